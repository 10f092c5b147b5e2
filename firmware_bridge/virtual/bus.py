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

# a sleep may end that much late, the line must not: the last bit of the way to a due time is waited for awake
SPIN_NS = 80_000
SAG_V = 0.15  # of the supply for each servo at full load


class VirtualBus:
    """Servos `ids` of `models` (default: STS3215) over one `Plant`; all of one protocol."""

    def __init__(self, ids: Sequence[int], plant: Plant, models: Sequence[Model] | None = None):
        self.ids = list(ids)
        self.plant = plant
        models = models or [STS3215] * len(self.ids)
        self.protocol = models[0].protocol
        self.codec = codec(self.protocol)
        self.servos = {i: VirtualServo(i, m) for i, m in zip(self.ids, models, strict=True)}
        self.faults = Faults(self)
        self.delay_ns = 0  # return delays of the answers since somebody asked
        self._index = {i: k for k, i in enumerate(self.ids)}
        self._parser = self.codec.new_parser()
        self._settings: tuple[np.ndarray, ...] | None = None
        position, _, _ = plant.present(0)
        for k, i in enumerate(self.ids):
            s = self.servos[i]
            s.put("goal_position", s.shown(float(position[k])))
        self.drive()

    def put(self, servo: int, name: str, value: int) -> None:
        """Set a register as if the servo had it so; it acts at once."""
        self.servos[servo].put(name, value)
        self.drive(True)

    def get(self, servo: int, name: str) -> int:
        """Value of a register as it stands (for tests and displays)."""
        return self.servos[servo].get(name)

    def refresh(self, now_ns: int, servos: Iterable[int] | None = None) -> None:
        """Present registers of `servos` (default: all) from the plant."""
        position, velocity, load = self.plant.present(now_ns)
        sag = SAG_V * float(np.abs(load).sum())
        changed = False
        for i in self.ids if servos is None else servos:
            k = self._index[i]
            changed |= self.servos[i].refresh(now_ns, float(position[k]), float(velocity[k]), float(load[k]), sag)
        if changed:
            self.drive(True)

    def drive(self, changed: bool = False) -> None:
        """Hand what the registers ask for to the plant. All but the goal is read again only after something else was
        written."""
        every = [self.servos[i] for i in self.ids]
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

    def handle(self, data: bytes, now_ns: int) -> bytes:
        """Everything the servos send back for `data`, in wire order, without delays."""
        return b"".join(raw for _, raw in self.serve(data, now_ns))

    def serve(self, data: bytes, now_ns: int) -> list[tuple[int, bytes]]:
        """Replies to `data` in wire order, each with the nanoseconds by which it is late."""
        self.faults.update(now_ns)
        out: list[tuple[int, bytes]] = []
        packets = self._parser.feed(data)
        if packets and self.protocol == "dynamixel":
            self._watch(now_ns)
        for p in packets:
            out += self.faults.damage(self._answer(p, now_ns))
        return self.faults.around(data, out) if self.faults.now else out

    def _watch(self, now_ns: int) -> None:
        """The bus watchdogs count the time to the last instruction packet of anybody."""
        if any(s.get("watchdog") > 0 for s in self.servos.values()):
            self.refresh(now_ns)
        for s in self.servos.values():
            s.heard_ns = now_ns

    def _status(self, servo: int, data: bytes, error: int = 0) -> tuple[int, bytes]:
        bits = self.servos[servo].bits() | error
        self.delay_ns += self.servos[servo].get("return_delay") * 2000
        module = dxl if self.protocol == "dynamixel" else fs
        return servo, module.status(servo, bits, data)

    def _write(self, servo: int, address: int, data: bytes) -> int:
        s = self.servos[servo]
        error = s.write(address, data)
        if (new := s.get("id")) != servo:  # it answers to another id from now on
            self.servos[new] = self.servos.pop(servo)
            self.ids[self._index[servo]] = new
            self._index[new] = self._index.pop(servo)
        goal = s.model.registers["goal_position"]
        if (address, len(data)) != (goal.address, goal.size):
            self._settings = None
        if self.faults.goal_enables_torque and goal.address - len(data) <= address < goal.address + goal.size:
            s.put("torque_enable", 1)  # (an acceleration, which lies below the goal, does it too)
            self._settings = None
        return error

    def _memory(self, servo: int, address: int, size: int) -> bytes:
        return bytes(self.servos[servo].memory[address : address + size]).ljust(size, b"\0")

    def _answer(self, p: fs.Packet, now_ns: int) -> list[tuple[int, bytes]]:
        """(servo id, status packet) of each answer; a fast sync read's joint answer comes from the broadcast id."""
        wide = 2 if self.protocol == "dynamixel" else 1  # bytes of an address
        everyone, code, params = p.servo == fs.BROADCAST, p.code, p.params
        address = int.from_bytes(params[:wide], "little")
        body = params[wide:]
        if everyone and code in (fs.SYNC_READ, fs.SYNC_WRITE, dxl.FAST_SYNC_READ):
            if len(body) < wide:
                return []
            size, rest = int.from_bytes(body[:wide], "little"), body[wide:]
            if code == fs.SYNC_WRITE:
                for k in range(0, len(rest), size + 1):
                    if rest[k] in self.servos:
                        self._write(rest[k], address, rest[k + 1 : k + 1 + size])
                self.drive()
                return []
            asked = [i for i in rest if i in self.servos]
            self.refresh(now_ns, asked)
            if code == dxl.FAST_SYNC_READ:
                if len(asked) < len(rest) or any(self.faults.mute(i) for i in asked):
                    return []  # the chain breaks at the silent servo: no valid packet comes
                joint = [(i, self.servos[i].bits(), self._memory(i, address, size)) for i in asked]
                return [(fs.BROADCAST, dxl.fast_status(joint))]
            return [self._status(i, self._memory(i, address, size)) for i in asked if self.servos[i].answers(True)]
        targets = self.ids if everyone else [p.servo] if p.servo in self.servos else []
        if code == fs.PING:
            if self.protocol == "dynamixel":
                return [self._status(i, self._memory(i, 0, 2) + self._memory(i, 6, 1)) for i in targets]
            return [self._status(i, b"") for i in targets[:1]]
        if code == fs.READ and not everyone and targets and len(body) == wide and self.servos[p.servo].answers(True):
            self.refresh(now_ns, targets)
            return [self._status(p.servo, self._memory(p.servo, address, int.from_bytes(body, "little")))]
        error = 0
        if code == fs.WRITE and params:
            self.refresh(now_ns, targets)
            for i in [*targets]:
                error = self._write(i, address, body)
            self.drive()
        elif code == fs.REG_WRITE and params:
            for i in targets:
                self.servos[i].pending = (address, body)
        elif code == fs.ACTION:
            for i in targets:
                pending, self.servos[i].pending = self.servos[i].pending, None
                if pending is not None:
                    self._write(i, *pending)
            self.drive()
        elif code == dxl.REBOOT and self.protocol == "dynamixel":
            for i in targets:
                self.power_cycle(i, now_ns)
        else:
            return []
        if everyone or not targets:
            return []
        who = p.servo if p.servo in self.servos else body[0]  # its id was changed
        return [self._status(who, b"", error)] if self.servos[who].answers(False) else []

    def power_cycle(self, servo: int, now_ns: int) -> None:
        """The servo starts anew, where it stands."""
        self.servos[servo].power_on(float(self.plant.present(now_ns)[0][self._index[servo]]))
        self.drive(True)
