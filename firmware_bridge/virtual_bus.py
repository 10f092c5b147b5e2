"""Virtual STS3215 servos that answer at byte level, and the pseudo-terminal that serves them.

`VirtualBus.handle(bytes, now)` is pure protocol over register tables; `PtyBus` gives it a serial port with the pace of the
wire. A master cannot tell it from hardware: same port class, same bytes.
"""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from firmware_bridge import feetech as fs
from firmware_bridge.plant import Plant
from firmware_bridge.sts3215 import CURRENT_A, REGISTERS, decode, encode

RAM_START = 40
FIRST_READ_ONLY, PRESENT_END = 56, 71
GOAL = REGISTERS["goal_position"]


class VirtualBus:
    """Servos `ids` over one `Plant`. `silent` ids do not answer; `drop` swallows the next n replies."""

    def __init__(self, ids: Sequence[int], plant: Plant):
        self.ids = list(ids)
        self.plant = plant
        self.memory = {i: bytearray(128) for i in self.ids}
        for i in self.ids:
            for r in REGISTERS.values():
                self.memory[i][r.address : r.address + r.size] = encode(r.name, i if r.name == "id" else r.default)
        self._pending: dict[int, tuple[int, bytes]] = {}
        self._parser = fs.Parser()
        self.silent: set[int] = set()
        self.drop = 0
        self.corrupt = 0  # the next n replies arrive with one bit turned over
        self._settings: tuple[np.ndarray, ...] | None = None
        position, _, _ = plant.present(0)
        for k, i in enumerate(self.ids):
            self.put(i, "goal_position", round(float(position[k])))
        self._drive()

    def put(self, servo: int, name: str, value: int) -> None:
        """Set a register as if the servo had it so (for tests: call `_drive` to let it act)."""
        self._settings = None
        r = REGISTERS[name]
        self.memory[servo][r.address : r.address + r.size] = encode(name, value)

    def get(self, servo: int, name: str) -> int:
        """Value of a register as it stands (for tests and displays)."""
        r = REGISTERS[name]
        return decode(name, bytes(self.memory[servo][r.address : r.address + r.size]))

    def _refresh(self, now_ns: int, servos: Iterable[int]) -> None:
        """Present registers of `servos` from the plant."""
        position, velocity, load = self.plant.present(now_ns)
        for i in servos:
            m, k = self.memory[i], self.ids.index(i)
            offset = self.get(i, "homing_offset")
            load_k = max(-1.0, min(1.0, float(load[k])))
            speed = max(-32767, min(32767, round(float(velocity[k]))))
            m[56:58] = encode("present_position", round(float(position[k])) - offset)
            m[58:60] = encode("present_speed", speed)
            m[60:62] = encode("present_load", int(1000 * load_k))
            m[66] = 1 if abs(speed) > 2 else 0
            m[69:71] = encode("present_current", int(1.2 * load_k / CURRENT_A))

    def _drive(self) -> None:
        """Hand what the registers ask for to the plant. All but the goal is read again only after something else was written."""
        if self._settings is None:
            self._settings = (
                np.array([self.get(i, "homing_offset") for i in self.ids], float),
                np.array([self.get(i, "min_position") for i in self.ids]),
                np.array([self.get(i, "max_position") for i in self.ids]),
                np.array([self.get(i, "torque_enable") == 1 for i in self.ids]),
                np.array([abs(self.get(i, "goal_speed")) for i in self.ids], float),
                np.array([self.get(i, "torque_limit") / 1000 for i in self.ids]),
            )
        offset, low, high, torque, speed, limit = self._settings
        goal = np.array([self.get(i, "goal_position") for i in self.ids]) + offset
        self.plant.drive(np.clip(goal, low, high), torque, speed, limit)

    def _write(self, servo: int, address: int, data: bytes) -> None:
        m = self.memory[servo]
        if (address, len(data)) != (GOAL.address, GOAL.size):
            self._settings = None
        for k, byte in enumerate(data):
            at = address + k
            if at >= FIRST_READ_ONLY and at < PRESENT_END or at < 5 or at >= len(m):
                continue  # read-only: accepted and ignored, as the servo does
            m[at] = byte
        if address <= 40 < address + len(data) and m[40] == 128:  # take the present position as the middle
            self.put(servo, "homing_offset", max(-2047, min(2047, self.get(servo, "present_position") - 2048)))
            m[40] = 0

    def handle(self, data: bytes, now_ns: int) -> bytes:
        """Everything the servos send back for `data`, in wire order."""
        out = bytearray()
        for p in self._parser.feed(data):
            out += self._answer(p, now_ns)
        return bytes(out)

    def _reply(self, servo: int, data: bytes) -> bytes:
        if servo in self.silent:
            return b""
        if self.drop > 0:
            self.drop -= 1
            return b""
        raw = fs.status(servo, self.memory[servo][65], data)
        if self.corrupt > 0:
            self.corrupt -= 1
            raw = raw[:-1] + bytes([raw[-1] ^ 0x10])
        return raw

    def _answer(self, p: fs.Packet, now_ns: int) -> bytes:
        everyone = p.servo == fs.BROADCAST
        if p.code == fs.SYNC_WRITE and everyone and len(p.params) >= 2:
            address, size = p.params[0], p.params[1]
            for k in range(2, len(p.params), size + 1):
                if p.params[k] in self.memory:
                    self._write(p.params[k], address, p.params[k + 1 : k + 1 + size])
            self._drive()
            return b""
        if p.code == fs.SYNC_READ and everyone and len(p.params) >= 2:
            self._refresh(now_ns, [i for i in p.params[2:] if i in self.memory])
            address, size = p.params[0], p.params[1]
            return b"".join(
                self._reply(i, bytes(self.memory[i][address : address + size]))
                for i in p.params[2:]
                if i in self.memory
            )
        targets = self.ids if everyone else [p.servo] if p.servo in self.memory else []
        if p.code == fs.PING:
            return b"".join(self._reply(i, b"") for i in targets[:1])
        if p.code == fs.READ and not everyone and targets and len(p.params) == 2:
            self._refresh(now_ns, [p.servo])
            return self._reply(p.servo, bytes(self.memory[p.servo][p.params[0] : p.params[0] + p.params[1]]))
        if p.code == fs.WRITE and p.params:
            self._refresh(now_ns, targets)
            for i in targets:
                self._write(i, p.params[0], p.params[1:])
            self._drive()
        elif p.code == fs.REG_WRITE and p.params:
            for i in targets:
                self._pending[i] = (p.params[0], p.params[1:])
        elif p.code == fs.ACTION:
            for i in targets:
                if i in self._pending:
                    self._write(i, *self._pending.pop(i))
            self._drive()
        else:
            return b""
        quiet = everyone or not targets or self.get(p.servo, "response_level") == 0
        return b"" if quiet else self._reply(p.servo, b"")


class PtyBus:
    """Serves a VirtualBus on a pseudo-terminal from a thread; `path` is the port to open.

    Replies are held back until the request and they themselves would have crossed the wire at `baud` (10 bits a byte), plus
    `latency_s` for the USB adapter.
    """

    def __init__(self, bus: VirtualBus, baud: int = 1_000_000, latency_s: float = 0.0002, link: Path | None = None):
        self.bus, self.baud, self.latency_s = bus, baud, latency_s
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
        self._thread = threading.Thread(target=self._serve, name="virtual-bus", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._master], [], [], 0.1)
            if not ready:
                continue
            try:
                data = os.read(self._master, 4096)
            except OSError:
                return
            began = time.monotonic_ns()
            reply = self.bus.handle(data, began)
            if reply:
                wire = (len(data) + len(reply)) * 10 / self.baud + self.latency_s
                rest = wire - (time.monotonic_ns() - began) * 1e-9
                if rest > 0:
                    time.sleep(rest)
                os.write(self._master, reply)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        os.close(self._master)
        os.close(self._slave)
        if self.link is not None:
            self.link.unlink(missing_ok=True)
