"""Bus master: requests, replies, retries inside the tick, and counters. Knows registers only by address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firmware_bridge import feetech as fs
from firmware_bridge.port import Transport


@dataclass(frozen=True)
class Reply:
    """Condition bits and data of one servo's status packet."""

    bits: int
    data: bytes


class Bus:
    """The only one who talks on `port`. `margin_s` is what USB and scheduler may add to the wire time."""

    def __init__(self, port: Transport, baud: int = 1_000_000, margin_s: float = 0.004):
        self.port, self.baud, self.margin_ns = port, baud, int(margin_s * 1e9)
        self.errors: Counter[tuple[int, str]] = Counter()  # (servo id, kind); id -1 for the bus itself
        self._parser = fs.Parser()

    def _send(self, request: bytes) -> None:
        """Drain, then send: what is still in the line belongs to an earlier request and must not answer this one."""
        late = self.port.drain()
        if late:
            self.errors[-1, "late or unasked bytes"] += late
        self._parser.reset()
        self.port.write(request)

    def _collect(self, request: bytes, servos: Sequence[int], size: int) -> dict[int, Reply]:
        """Replies of `servos` with exactly `size` data bytes, each taken once, until all are in or the deadline has passed."""
        wire_ns = int((len(request) + len(servos) * (size + 6)) * 10 / self.baud * 1e9)
        deadline = self.port.now_ns() + wire_ns + self.margin_ns
        got: dict[int, Reply] = {}
        while len(got) < len(servos):
            data = self.port.read(deadline)
            if not data:
                break
            for p in self._parser.feed(data):
                if p.servo not in servos or p.servo in got:
                    self.errors[p.servo, "unexpected id"] += 1
                elif len(p.params) != size:
                    self.errors[p.servo, "wrong length"] += 1
                else:
                    got[p.servo] = Reply(p.code, p.params)
        return got

    def sync_read(self, servos: Sequence[int], address: int, size: int, retries: int = 1) -> dict[int, Reply]:
        """Partial results: a servo that stayed silent is absent and counted."""
        got: dict[int, Reply] = {}
        for _ in range(1 + retries):
            missing = [i for i in servos if i not in got]
            if not missing:
                break
            request = fs.sync_read(missing, address, size)
            self._send(request)
            got.update(self._collect(request, missing, size))
        for i in servos:
            if i not in got:
                self.errors[i, "no reply"] += 1
        return got

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> None:
        """Not acknowledged by the servos: read back what matters."""
        self._send(fs.sync_write(address, data))

    def read(self, servo: int, address: int, size: int, retries: int = 1) -> Reply | None:
        for _ in range(1 + retries):
            request = fs.read(servo, address, size)
            self._send(request)
            got = self._collect(request, [servo], size)
            if servo in got:
                return got[servo]
        self.errors[servo, "no reply"] += 1
        return None

    def write(self, servo: int, address: int, data: bytes, retries: int = 1) -> bool:
        """True when the servo acknowledged."""
        for _ in range(1 + retries):
            request = fs.write(servo, address, data)
            self._send(request)
            if servo in self._collect(request, [servo], 0):
                return True
        self.errors[servo, "no reply"] += 1
        return False

    def ping(self, servo: int) -> bool:
        request = fs.ping(servo)
        self._send(request)
        return servo in self._collect(request, [servo], 0)
