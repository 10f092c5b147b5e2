"""Bus master for both protocols: requests, replies, retries inside the tick, and counters. Knows registers only by address.

A servo bus has no sequence numbers, so a reply that comes late could be taken for the answer to a later question. It never is: what
lies in the line is thrown away before each request, and as long as a servo *owes* an answer (it was asked and said nothing) it is
asked for another number of bytes than it owes. A servo answers in the order in which it was asked, so its next answer settles the debt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from firmware_bridge import dynamixel as dxl
from firmware_bridge.models import codec
from firmware_bridge.port import Transport

OWED_NS = 2_500_000_000  # a USB stall that is longer than this loses its bytes
PATIENCE_NS = 50_000_000
MAX_OWED = 28  # unanswered requests a servo, each of another length; beyond that it is left in peace until they expire


class Reply(NamedTuple):
    """Error byte (Feetech: condition bits; Dynamixel: alert and error number) and data of one servo's status packet."""

    bits: int
    data: bytes


class Bus:
    """The only one who talks on `port`. Not thread-safe.

    `margin_s` is what USB and scheduler may add to the wire time, `return_delay_s` what each servo waits before it answers (default:
    as delivered). `until_ns` (monotonic): no retry begins after it; None outside of ticks, where there is time to wait longer.
    `fast`: Dynamixel's fast sync read. `sync`: servos know sync read (SCS do not).
    """

    def __init__(
        self, port: Transport, baud: int = 1_000_000, margin_s: float = 0.004, protocol: str = "feetech",
        return_delay_s: float | None = None,
    ):  # fmt: skip
        self.port, self.baud, self.margin_ns = port, baud, int(margin_s * 1e9)
        self.dynamixel = protocol == "dynamixel"
        self.return_delay_s = (0.0005 if self.dynamixel else 0.0) if return_delay_s is None else return_delay_s
        self.codec = codec(protocol)
        self.until_ns: int | None = None
        self.fast, self.sync = False, True
        self._fast_failures = 0
        self._requests: dict[tuple[int, ...], bytes] = {}  # sync reads that were asked before
        self.errors: Counter[tuple[int, str]] = Counter()  # (servo id, kind); id -1 for the bus itself
        self._parser = self.codec.new_parser()
        self._owed: dict[tuple[int, int], int] = {}  # (servo, size of the answer) -> when it was asked for

    def _send(self, request: bytes) -> None:
        """Drain, then send: what is still in the line belongs to an earlier request and must not answer this one."""
        late = self.port.drain()
        if late:
            self.errors[-1, "late or unasked bytes"] += len(late)
            for p in self.codec.new_parser().feed(late):
                self._late(p.servo, self.codec.answer(p))
        self._parser.reset()
        self.port.write(request)

    def _late(self, servo: int, answer: tuple[int, bytes] | None) -> bool:
        """Whether this answer was owed by an earlier request; if so the debt is settled."""
        if answer is None or self._owed.pop((servo, len(answer[1])), None) is None:
            return False
        self.errors[servo, "late reply"] += 1
        return True

    def _collect(
        self, request: bytes, servos: Sequence[int], size: int, fast: bool = False, linger: bool = False
    ) -> dict[int, Reply]:
        """Replies of `servos` with exactly `size` data bytes, in the order asked, until all are in or the deadline has passed.

        `fast`: the joint answer to a fast sync read. `linger`: wait out the deadline in any case, to hear a second servo with the same id.
        """
        n = len(servos)
        answer, parser, errors = self.codec.answer, self._parser, self.errors
        parser.longest = self.codec.STATUS_BYTES + size + (size + 2) // 3 if not fast else dxl.MAX_PACKET
        wire_ns = int((len(request) + n * (size + self.codec.STATUS_BYTES)) * 10 / self.baud * 1e9)
        margin = PATIENCE_NS if self.until_ns is None and not linger else self.margin_ns
        deadline = self.port.now_ns() + wire_ns + int(n * self.return_delay_s * 1e9) + margin
        if not self._owed and not linger and not fast:
            data = self.port.read(deadline)
            whole = self.codec.block(data, servos, size)
            if whole is not None and data != request:  # (an echo of a short read looks like an answer)
                return {i: Reply(*r) for i, r in zip(servos, whole, strict=True)}
        else:
            data = b""
        got: dict[int, Reply] = {}
        spoiled: set[int] = set()
        order = -1
        head: bytes | None = b""  # an adapter that echoes sends the request back first
        while len(got) < n or linger:
            data = data or self.port.read(deadline)
            if data and head is not None:
                head += data
                if request.startswith(head[: len(request)]):
                    if len(head) < len(request):
                        data = b""
                        continue
                    errors[-1, "echo"] += 1
                    data, head = head[len(request) :], None
                    if not data:
                        continue
                else:
                    data, head = head, None
            packets = parser.feed(data) if data else parser.feed(head or b"") + parser.flush()
            for p in packets:
                found = answer(p)
                if found is None:
                    if fast:
                        got.update({i: Reply(e, d) for i, e, d in dxl.fast_answers(p, servos, size)})
                    else:
                        errors[-1, "no status packet"] += 1
                    continue
                servo = p.servo
                if len(found[1]) != size:
                    if not self._late(servo, found):
                        refused = self.dynamixel and found[0] & 0x7F
                        errors[
                            servo, f"refused ({dxl.ERRORS.get(refused, refused)})" if refused else "wrong length"
                        ] += 1
                elif servo not in servos:
                    errors[servo, "unexpected id"] += 1
                elif servo in got or servo in spoiled:
                    errors[servo, "duplicate id"] += 1
                    got.pop(servo, None)
                    spoiled.add(servo)
                elif servos.index(servo) <= order:
                    errors[servo, "out of turn"] += 1
                else:
                    order = servos.index(servo)
                    got[servo] = Reply(*found)
            if not data:
                break
            data = b""
        if self._owed:
            for key in [k for k in self._owed if k[0] in got]:
                del self._owed[key]
        if len(got) < n:
            for i, after in zip(servos, servos[1:], strict=False):
                cut = i in got and after not in got and b"\xff\xff" in got[i].data
                if cut:  # its data are the rest of a cut packet and the next one's head
                    errors[i, "overlapping packets"] += 1
                    del got[i]
            now = self.port.now_ns()
            for i in servos:
                if i not in got:
                    self._owed[i, size] = now
        return got

    def _extra(self, servos: Sequence[int], size: int) -> tuple[list[int], int]:
        """Who may be asked now, and for how many bytes more, so that no answer can be one that is owed."""
        if not self._owed:
            return list(servos), 0
        now = self.port.now_ns()
        self._owed = {k: t for k, t in self._owed.items() if now - t < OWED_NS}
        debts = Counter(i for i, _ in self._owed)
        free = [i for i in servos if debts[i] < MAX_OWED]
        taken = {n for i, n in self._owed if i in free}
        extra = 0
        while size + extra in taken:
            extra += 1
        return free, extra

    def sync_read(self, servos: Sequence[int], address: int, size: int, retries: int = 1) -> dict[int, Reply]:
        """Partial results: a servo that stayed silent is absent and counted."""
        if not self.sync:
            alone = {i: self.read(i, address, size, retries) for i in servos}
            return {i: r for i, r in alone.items() if r is not None}
        got: dict[int, Reply] = {}
        missing: Sequence[int] = servos
        for attempt in range(1 + retries):
            if attempt and self.until_ns is not None and self.port.now_ns() > self.until_ns:
                break
            ask, extra = self._extra(missing, size)
            if not ask:
                break
            front = extra if extra <= address else 0  # longer at its beginning: registers below exist
            fast = self.fast and attempt == 0 and not extra
            make = dxl.fast_sync_read if fast else self.codec.sync_read
            key = (fast, address - front, size + extra, *ask)
            request = self._requests.get(key) or make(ask, address - front, size + extra)
            if not extra:
                self._requests[key] = request
            self._send(request)
            answers = self._collect(request, ask, size + extra, fast)
            if fast:
                self._fast_failures = 0 if answers else self._fast_failures + 1
                self.fast = (
                    self._fast_failures < 2
                )  # one silent servo breaks the joint answer: ask for single ones from now on
            for i, r in answers.items():
                got[i] = Reply(r.bits, r.data[front : front + size]) if extra else r
            missing = [i for i in servos if i not in got]
            if not missing:
                break
        for i in missing:
            self.errors[i, "no reply"] += 1
        return got

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> None:
        """Not acknowledged by the servos: read back what matters."""
        self.port.write(self.codec.sync_write(address, data))  # nothing to drain for: nobody answers

    def read(self, servo: int, address: int, size: int, retries: int = 1) -> Reply | None:
        """One servo's bytes, or None (counted)."""
        for attempt in range(1 + retries):
            if attempt and self.until_ns is not None and self.port.now_ns() > self.until_ns:
                break
            ask, extra = self._extra([servo], size)
            if not ask:
                break
            front = extra if extra <= address else 0
            request = self.codec.read(servo, address - front, size + extra)
            self._send(request)
            r = self._collect(request, [servo], size + extra).get(servo)
            if r is not None:
                return Reply(r.bits, r.data[front : front + size]) if extra else r
        self.errors[servo, "no reply"] += 1
        return None

    def write(self, servo: int, address: int, data: bytes, retries: int = 1) -> bool:
        """True when the servo acknowledged, or, where its word is missing or could be an old one, when it holds `data`."""
        for _ in range(1 + retries):
            doubtful = (servo, 0) in self._owed
            request = self.codec.write(servo, address, data)
            self._send(request)
            r = self._collect(request, [servo], 0).get(servo)
            if r is not None and self.dynamixel and r.bits & 0x7F:
                self.errors[servo, f"refused ({dxl.ERRORS.get(r.bits & 0x7F, r.bits & 0x7F)})"] += 1
                return False
            if r is not None and not doubtful:
                return True
            back = self.read(servo, address, len(data), retries=0)
            if back is not None and back.data == data:
                return True
        self.errors[servo, "no reply"] += 1
        return False

    def ping(self, servo: int) -> bool:
        """Whether somebody answers as `servo`. (On an adapter that echoes, a ping comes back like an answer: then it reads.)"""
        request = self.codec.ping(servo)
        self._send(request)
        size = 3 if self.dynamixel else 0
        return servo in self._collect(request, [servo], size) or (
            bool(self.errors[-1, "echo"]) and self.read(servo, 0 if self.dynamixel else 3, 2) is not None
        )

    def count(self, servo: int, address: int, size: int) -> int:
        """How many servos answer as `servo` (2 stands for two or more); waits out the deadline to hear a second one."""
        before = self.errors[servo, "duplicate id"]
        request = self.codec.read(servo, address, size)
        self._send(request)
        got = self._collect(request, [servo], size, linger=True)
        return 2 if self.errors[servo, "duplicate id"] > before else len(got)

    def reboot(self, servo: int) -> None:
        """Dynamixel only: end a shutdown. The servo comes back with its torque off."""
        self._send(dxl.reboot(servo))
