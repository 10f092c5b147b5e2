"""Virtual servos that answer at byte level: packets in, packets out. `line.py` has the wire and the ports to it.

A master cannot tell it from hardware: same port class, same bytes, the pace of the wire, and every fault of `faults.py`
by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.servos.models import codec
from firmware_bridge.servos.registers import Model
from firmware_bridge.servos.sts3215 import STS3215
from firmware_bridge.virtual.faults import Faults
from firmware_bridge.virtual.plant import Plant
from firmware_bridge.virtual.servo import VirtualServo
from firmware_bridge.virtual.table import ACCESS_ERROR, INSTRUCTION_ERROR, LENGTH_ERROR, RATES

SAG_V = 0.15  # of the supply for each servo at full load
Answers = list[tuple[int, bytes]]  # servo id, status packet


class VirtualBus:
    """Servos `ids` of `models` (default: STS3215) over one `Plant`; all of one protocol.

    Servos with the same id answer at the same time: a byte on the line is the AND of theirs. `servos` has the first of
    them.
    """

    def __init__(self, ids: Sequence[int], plant: Plant, models: Sequence[Model] | None = None):
        self.plant = plant
        models = models or [STS3215] * len(ids)
        self.protocol = models[0].protocol
        self.dynamixel = self.protocol == "dynamixel"
        self.codec = codec(self.protocol)
        self._baud = 0  # the host's rate as it was last
        self.all = [VirtualServo(i, m) for i, m in zip(ids, models, strict=True)]  # in the plant's order
        self._note()
        self.faults = Faults(self)
        self.delay_ns = 0  # return delays of the answers since somebody asked
        self._parser = self.codec.new_parser()
        self._settings: tuple[np.ndarray, ...] | None = None
        position, _, _ = plant.present(0)
        for s, step in zip(self.all, position, strict=True):
            s.stood = float(step)
            s.put("goal_position", s.shown(s.stood))
        self.drive()

    def _note(self) -> None:
        """Note who answers to which id, and who hears the host."""
        self._called = [(s.get("id"), s.get("baud")) for s in self.all]
        self.ids = [i for i, _ in self._called]
        self.servos = {i: self.all[self.ids.index(i)] for i in self.ids}
        rates = RATES[self.protocol]
        self._hearing = [k for k, (_, b) in enumerate(self._called) if self._baud in (0, rates[b % len(rates)])]
        self._places: dict[int, list[int]] = {}  # of those who hear, by id
        for k in self._hearing:
            self._places.setdefault(self.ids[k], []).append(k)

    def _named(self, servo: int) -> list[int]:
        """Places of all that have the id `servo`."""
        return [k for k, i in enumerate(self.ids) if i == servo]

    def put(self, servo: int, name: str, value: int) -> None:
        """Set a register as if the servo had it so; it acts at once."""
        self.servos[servo].put(name, value)
        self._note()
        self.drive(True)

    def get(self, servo: int, name: str) -> int:
        """Value of a register as it stands (for tests and displays)."""
        return self.servos[servo].get(name)

    def refresh(self, now_ns: int, servos: Iterable[int] | None = None) -> None:
        """Present registers of `servos` (default: all) from the plant."""
        places = range(len(self.all)) if servos is None else [k for i in servos for k in self._named(i)]
        self._refresh(now_ns, places)

    def _refresh(self, now_ns: int, places: Iterable[int]) -> None:
        position, velocity, load = self.plant.present(now_ns)
        sag = SAG_V * float(np.abs(load).sum())
        changed = False
        for k in places:
            changed |= self.all[k].refresh(now_ns, float(position[k]), float(velocity[k]), float(load[k]), sag)
        if changed:
            self.drive(True)

    def drive(self, changed: bool = False) -> None:
        """Hand what the registers ask for to the plant. All but the goal is read again only after something else was
        written."""
        every = self.all
        if self._settings is None or changed:
            self._settings = (
                np.array([s.actual(0) for s in every], float),
                *np.array([s.limits() for s in every]).T,
                np.array([s.torque() for s in every]),
                np.array([s.share() for s in every]),
                np.array([s.unlike_its_goal() for s in every]),
            )
        offset, low, high, torque, limit, unlike = self._settings
        goal = np.clip([s.get("goal_position") for s in every], low, high) + offset
        speed = np.zeros(len(every))
        for k in np.flatnonzero(unlike):
            goal[k], speed[k] = every[k].drive(goal[k])
        self.plant.drive(goal, torque, speed, limit)

    # ---- packets -----------------------------------------------------------------------------------------------------
    def handle(self, data: bytes, now_ns: int) -> bytes:
        """Everything the servos send back for `data`, in wire order, without delays."""
        return b"".join(raw for _, raw in self.serve(data, now_ns))

    def set_baud(self, baud: int) -> None:
        """Set every servo to `baud` bits per second, as if it had been set up so; one that has no such rate keeps its
        own."""
        for s in self.all:
            if baud in (rates := RATES[self.protocol]):
                s.put("baud", rates.index(baud))
        self._note()

    def serve(self, data: bytes, now_ns: int, baud: int = 0) -> list[tuple[int, bytes]]:
        """Replies to `data` in wire order, each with the nanoseconds by which it is late. Servos of another rate than
        `baud` hear nothing; 0: all do."""
        self.faults.update(now_ns)
        out: list[tuple[int, bytes]] = []
        if baud != self._baud:
            self._baud = baud
            self._note()
        packets = self._parser.feed(data)
        if packets and self.dynamixel:
            self._watch(now_ns)
        for p in packets:
            out += self.faults.damage(self._answer(p, now_ns))
        return self.faults.around(data, out) if self.faults.now else out

    def _watch(self, now_ns: int) -> None:
        """The bus watchdogs count the time to the last instruction packet of anybody."""
        if any(s.get("watchdog") > 0 for s in self.all):
            self.refresh(now_ns)
        for k in self._hearing:
            self.all[k].heard_ns = now_ns

    def _answer(self, p: fs.Packet, now_ns: int) -> Answers:
        """(servo id, status packet) of each answer; a fast sync read's joint answer comes from the broadcast id.

        A write of the id is acknowledged from the old one. Feetech: its C++ library (SCS.cpp, Ack) and LeRobot's
        setup_motor wait for that. Dynamixel: the e-manual does not say; ROBOTIS' DynamixelSDK waits for the id that it
        asked (Protocol2PacketHandler, txRxPacket), and with it LeRobot's setup_motor raises where none comes, which
        sets up Koch and OMX arms of X servos. ROBOTIS' slave library for other devices (Dynamixel2Arduino, slave.cpp)
        answers from the new id; its master takes either.
        """
        everyone, wide = p.servo == fs.BROADCAST, 2 if self.dynamixel else 1
        address, body = int.from_bytes(p.params[:wide], "little"), p.params[wide:]
        if p.code in (fs.SYNC_READ, fs.SYNC_WRITE) or (p.code == dxl.FAST_SYNC_READ and self.dynamixel):
            size, rest = int.from_bytes(body[:wide], "little"), body[wide:]
            known = p.code == fs.SYNC_WRITE or self.all[0].model.sync_read  # (SCS servos know no sync read)
            if not (everyone and rest and known):
                return []
            if p.code == fs.SYNC_WRITE:
                self._sync_write(address, size, rest)
                return []
            return self._sync_read(address, size, rest, now_ns, p.code == dxl.FAST_SYNC_READ)
        places = self._hearing if everyone else self._places.get(p.servo, [])
        if p.code == fs.PING:
            return self._pinged(sorted(self._places) if everyone else [p.servo])
        if p.code == fs.READ:
            places = [] if everyone else [k for k in places if self.all[k].answers(True)]
            self._refresh(now_ns, places)
            size, whole = int.from_bytes(body, "little"), len(body) == wide
            wrong = LENGTH_ERROR if self.dynamixel else None
            said = [self._block(k, address, size) if whole else self._said(k, p.servo, wrong) for k in places]
            return self._joined(p.servo, said)
        errors = self._told(p.code, places, address, body, now_ns)
        if everyone:
            return []
        told = [k for k in places if self.all[k].answers(False)]
        said = [self._said(k, p.servo, e) for k, e in zip(places, errors, strict=True) if k in told]
        return self._joined(p.servo, said)

    def _told(self, code: int, places: list[int], address: int, body: bytes, now_ns: int) -> list[int | None]:
        """Do what an instruction other than a read asks of the servos at `places`; the error number of each, None for
        one that keeps silent.

        An instruction that does not exist, and a write of nothing, get silence of a Feetech, whose status has no bit
        for it (FT-SCS protocol: ERROR holds conditions only), and an error of a Dynamixel (e-manual, protocol 2.0).
        """
        if code == dxl.REBOOT and self.dynamixel:
            for k in places:
                self._power_cycle(k, now_ns)
            return [0] * len(places)
        if code not in (fs.WRITE, fs.REG_WRITE, fs.ACTION) or not (body or code == fs.ACTION):
            wrong = LENGTH_ERROR if code in (fs.WRITE, fs.REG_WRITE) else INSTRUCTION_ERROR
            return [wrong if self.dynamixel else None] * len(places)
        if code == fs.REG_WRITE:
            return [self.all[k].keep_for_later(address, body) for k in places]
        self._refresh(now_ns, places)
        errors: list[int | None] = [
            self._act(k) if code == fs.ACTION else self._write(k, address, body) for k in places
        ]
        self.drive()
        return errors

    def _act(self, place: int) -> int:
        """Carry a kept write out."""
        pending, self.all[place].pending = self.all[place].pending, None
        if pending is None:
            return INSTRUCTION_ERROR if self.dynamixel else 0
        return self._write(place, *pending)

    def _write(self, place: int, address: int, data: bytes) -> int:
        s = self.all[place]
        error = s.write(address, data)
        goal = s.model.registers["goal_position"]
        if (address, len(data)) != (goal.address, goal.size):
            self._settings = None
            if (s.get("id"), s.get("baud")) != self._called[place]:  # so it answers from now on
                self._note()
        if self.faults.goal_enables_torque and goal.address - len(data) <= address < goal.address + goal.size:
            s.put("torque_enable", 1)  # (an acceleration, which lies below the goal, does it too)
            self._settings = None
        return error

    def _sync_write(self, address: int, size: int, rows: bytes) -> None:
        """A servo takes its row where the row is whole."""
        places = self._places  # as they are called now: the packet may rename them
        for k in range(0, len(rows) - size, size + 1):
            for place in places.get(rows[k], ()):
                self._write(place, address, rows[k + 1 : k + 1 + size])
        self.drive()

    def _sync_read(self, address: int, size: int, asked: bytes, now_ns: int, fast: bool) -> Answers:
        places = self._places
        there = [i for i in dict.fromkeys(asked) if i in places]
        self._refresh(now_ns, [k for i in there for k in places[i]])
        answering = [i for i in there if self.all[places[i][0]].answers(True)]
        if not fast:
            return [a for i in answering for a in self._joined(i, [self._block(k, address, size) for k in places[i]])]
        first = [self.all[places[i][0]] for i in answering]
        data = [s.read(address, size) for s in first]
        if len(answering) < len(asked) or any(self.faults.mute(i) for i in answering):
            return []  # the chain breaks at the silent servo: no valid packet comes
        joint = [(i, s.bits(), d) for i, s, d in zip(answering, first, data, strict=True) if d is not None]
        return [(fs.BROADCAST, dxl.fast_status(joint))] if len(joint) == len(asked) else []

    def _pinged(self, ids: Iterable[int]) -> Answers:
        """Whatever its response level, a servo answers a ping; all answer one to everybody, in the order of their ids
        (Dynamixel: e-manual, Ping. Feetech: LeRobot's broadcast_ping; the maker advises against it with several)."""
        return [a for i in ids for a in self._joined(i, [self._present(k) for k in self._places.get(i, ())])]

    def _present(self, place: int) -> bytes:
        m = self.all[place].memory
        data = bytes(m[0:2] + m[6:7]) if self.dynamixel else b""  # model number and firmware
        return self._status(place, self.ids[place], 0, data)

    def _block(self, place: int, address: int, size: int) -> bytes:
        """The answer to a read, empty for silence."""
        data = self.all[place].read(address, size)
        if data is not None:
            return self._status(place, self.ids[place], 0, data)
        return self._status(place, self.ids[place], ACCESS_ERROR) if self.dynamixel else b""

    def _status(self, place: int, servo: int, error: int, data: bytes = b"") -> bytes:
        """What the servo at `place` says, as `servo`."""
        s = self.all[place]
        self.delay_ns += s.get("return_delay") * 2000
        return (dxl if self.dynamixel else fs).status(servo, s.bits() | error, data)

    def _said(self, place: int, servo: int, error: int | None) -> bytes:
        """A status without data, empty for silence."""
        return b"" if error is None else self._status(place, servo, error)

    def _joined(self, servo: int, said: list[bytes]) -> Answers:
        """One answer of all that answer as `servo`. A dominant 0 wins on the line, so servos that talk at once are
        ANDed."""
        said = [raw for raw in said if raw]
        if len(said) < 2:
            return [(servo, raw) for raw in said]
        longest = max(map(len, said))
        rows = [np.frombuffer(raw.ljust(longest, b"\xff"), np.uint8) for raw in said]
        return [(servo, np.bitwise_and.reduce(rows).tobytes())]

    def power_cycle(self, servo: int, now_ns: int) -> None:
        """The servo starts anew, where it stands."""
        for k in self._named(servo):
            self._power_cycle(k, now_ns)

    def _power_cycle(self, place: int, now_ns: int) -> None:
        self.all[place].power_on(float(self.plant.present(now_ns)[0][place]))
        self._note()
        self.drive(True)
