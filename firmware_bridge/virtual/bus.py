"""Virtual servos that answer at byte level, the line between them and the host, and the pseudo-terminal that serves it.

A master cannot tell it from hardware: same port class, same bytes, the pace of the wire, and every fault of `faults.py`
by name.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from firmware_bridge.bus.port import PortError
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


class Line:
    """The wire and the USB adapter between host and servos: when bytes arrive. `baud` 0: at once.

    Answers to one request reach the host together, when the last of them has crossed the wire, as through a USB
    adapter.
    """

    def __init__(self, bus: VirtualBus, baud: int = 0, latency_ns: int = 0):
        self.bus, self.baud, self.latency_ns = bus, baud, latency_ns
        self._out: list[tuple[int, bytes]] = []  # on their way to the servos
        self._in: list[tuple[int, bytes]] = []  # and to the host
        self._free_ns = 0  # the wire is busy until then
        self.wire_ns = 0  # time that the wire was busy, all in all

    def send(self, data: bytes, now_ns: int) -> None:
        self._out.append((self.bus.faults.stalled_until(now_ns), data))
        self._pass(now_ns)

    def _pass(self, now_ns: int) -> None:
        while self._out and self._out[0][0] <= now_ns:
            _, data = self._out.pop(0)
            replies = self.bus.serve(data, now_ns)
            length = sum(len(raw) for _, raw in replies)
            wire = (len(data) + length) * 10_000_000_000 // self.baud if self.baud else 0
            wire, self.bus.delay_ns = wire + self.bus.delay_ns if self.baud else 0, 0
            self._free_ns = max(now_ns, self._free_ns) + wire
            self.wire_ns += wire
            latency = self.latency_ns + self.bus.faults.latency_ns
            joined: list[tuple[int, bytes]] = []
            for late, raw in replies:
                at = self._free_ns + latency + late
                at = max(at, self._in[-1][0]) if self._in else at  # a line keeps the order
                if joined and joined[-1][0] == at:
                    joined[-1] = (at, joined[-1][1] + raw)
                else:
                    joined.append((at, raw))
            self._in += joined

    def receive(self, now_ns: int) -> bytes:
        """What has arrived at the host by `now_ns`."""
        self._pass(now_ns)
        if now_ns < self.bus.faults.stalled_until(now_ns):
            return b""
        data = b""
        while self._in and self._in[0][0] <= now_ns:
            data += self._in.pop(0)[1]
        return data + self.bus.faults.babble(now_ns)

    def next_ns(self) -> int | None:
        """When something will happen next."""
        return self.bus.faults.next_ns([q[0][0] for q in (self._out, self._in) if q])


TCGETS2 = 0x802C542A


class MemoryPort:
    """The virtual bus without a pseudo-terminal: the same bytes, no waiting. Whoever drives virtual time sets
    `time_ns`; while the master waits for an answer, virtual time passes as far as the line's pace (none by default)
    demands."""

    def __init__(self, bus: VirtualBus, baud: int = 0, latency_ns: int = 0):
        self.line, self.time_ns, self._arrived = Line(bus, baud, latency_ns), 0, b""
        self.path = "the virtual bus"
        self.lost = False  # unplugged

    def now_ns(self) -> int:
        return self.time_ns

    def write(self, data: bytes) -> None:
        if self.lost:
            raise PortError("the virtual bus was unplugged: plug it in, then start again.")
        self.line.send(data, self.time_ns)

    def read(self, deadline_ns: int) -> bytes:
        if self.lost:
            raise PortError("the virtual bus was unplugged: plug it in, then start again.")
        while True:
            data = self._arrived + self.line.receive(self.time_ns)
            self._arrived = b""
            due = self.line.next_ns()
            if data or due is None or due > deadline_ns:
                if not data and self.line.baud:
                    self.time_ns = max(self.time_ns, deadline_ns)
                return data
            self.time_ns = max(self.time_ns, due)

    def drain(self) -> bytes:
        data, self._arrived = self._arrived + self.line.receive(self.time_ns), b""
        return data


def host_baud(fd: int) -> int:
    """Baud rate that was set on a terminal, also one that has no constant (struct termios2, asm-generic)."""
    raw = bytearray(44)
    fcntl.ioctl(fd, TCGETS2, raw)
    return int(struct.unpack_from("I", raw, 40)[0])


def answer(line: Line, host: int, stop: threading.Event, understood: Callable[[], bool] = lambda: True) -> None:
    """Carry bytes between descriptor `host` and the bus at the pace of the wire, until `stop` or the host hangs up."""
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: sleeps end when they should
    while not stop.is_set():
        due = line.next_ns()
        wait = 0.1 if due is None else (due - SPIN_NS - time.monotonic_ns()) * 1e-9
        ready, _, _ = select.select([host], [], [], min(max(wait, 0.0), 0.1))
        while not ready and due is not None and time.monotonic_ns() < due < time.monotonic_ns() + SPIN_NS:
            pass
        try:
            if ready:
                data = os.read(host, 4096)
                if not data:
                    return
                if understood():
                    line.send(data, time.monotonic_ns())
            arrived = line.receive(time.monotonic_ns())
            if arrived:
                os.write(host, arrived)
        except OSError:
            return


class PtyBus:
    """Serves a VirtualBus on a pseudo-terminal from a thread, at the pace of the wire; `path` is the port to open.

    A host that sets another baud rate is not understood, as on a wire.

    `link`: a symbolic link to the terminal, as udev makes under /dev/serial/by-id.
    """

    def __init__(self, bus: VirtualBus, baud: int = 1_000_000, latency_s: float = 0.0002, link: Path | None = None):
        self.bus = bus
        self.line = Line(bus, baud, int(latency_s * 1e9))
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self.link = link
        if link is not None:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.path)
            self.path = str(link)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=answer, args=(self.line, self._master, self._stop, self._understood), name="virtual-bus", daemon=True
        )
        self._thread.start()

    def _understood(self) -> bool:
        return self.line.baud in (0, host_baud(self._slave))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        os.close(self._master)
        os.close(self._slave)
        if self.link is not None:
            self.link.unlink(missing_ok=True)


class SocketBus:
    """The same behind a Unix socket at `path`, one host at a time; `Port.open` finds the way.

    Bytes in a pseudo-terminal are handed on by a kernel worker of ordinary priority, twice an exchange: beside loops
    with SCHED_FIFO on all cores it comes too late, and it is not the servos that are measured then. A socket hands over
    in the writer's own time.
    """

    def __init__(self, bus: VirtualBus, path: Path, baud: int = 1_000_000, latency_s: float = 0.0002):
        self.bus, self.path = bus, str(path)
        self.line = Line(bus, baud, int(latency_s * 1e9))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="virtual-bus", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                host, _ = self._listener.accept()
            except TimeoutError:
                continue
            with host:
                answer(self.line, host.fileno(), self._stop)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)
