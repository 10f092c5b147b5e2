"""Bus master for both protocols: requests, replies, retries inside the tick, and counters. Knows registers only by
address.

A servo bus has no sequence numbers, so a reply that comes late could be taken for the answer to a later question. It
never is: what lies in the line is thrown away before each request, and as long as a servo *owes* an answer (it was
asked and said nothing) it is asked for another number of bytes than it owes. A servo answers in the order in which it
was asked, so its next answer settles the debt. An adapter that echoes sends requests back, which pass for answers:
what equals a request that was sent is thrown away as well (`echo.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from firmware_bridge.bus.answers import DAMAGED, ECHO, Answers, Reply
from firmware_bridge.bus.echo import Echoes
from firmware_bridge.bus.port import Transport
from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.servos.models import codec

OWED_NS = 2_500_000_000  # a USB stall that is longer than this loses its bytes
PATIENCE_NS = 50_000_000
MAX_OWED = 28  # unanswered requests a servo, each of another length; beyond that it is not asked until they expire


class Bus:
    """The only one who talks on `port`. Not thread-safe.

    `margin_s` is what USB and scheduler may add to the wire time, `return_delay_s` what each servo waits before it
    answers (default: as delivered). `until_ns` (monotonic): no retry begins after it; None outside of ticks, where
    there is time to wait longer. `fast`: Dynamixel's fast sync read. `sync`: servos know sync read (SCS do not).
    """

    def __init__(
        self,
        port: Transport,
        baud: int = 1_000_000,
        margin_s: float = 0.004,
        protocol: str = "feetech",
        return_delay_s: float | None = None,
    ):
        self.port, self.baud, self.margin_ns = port, baud, int(margin_s * 1e9)
        self.dynamixel = protocol == "dynamixel"
        self._byte_ns = 10_000_000_000 // baud
        self._delay_ns = int(1e9 * ((0.0005 if self.dynamixel else 0.0) if return_delay_s is None else return_delay_s))
        self.codec = codec(protocol)
        self.until_ns: int | None = None
        self.fast, self.sync = False, True
        self._fast_failures = 0
        # Sync reads that were made.
        self._requests: dict[tuple[int, int, tuple[int, ...], bool], tuple[bytes, int]] = {}
        self.sent_ns = 0  # when the last request was handed to the port (its clock)
        self.drained = 0  # bytes that had come too late for the request before
        self.told_ns = 0  # and the last packet that nobody answers
        self.errors: Counter[tuple[int, str]] = Counter()  # (servo id, kind); id -1 for the bus itself
        self.echoes = Echoes(protocol)
        self._answers = Answers(self.codec, self.errors, self.echoes, self._late)
        self._parser = self.codec.new_parser()
        # Servo -> its owed answers in order: size, when it was asked for.
        self._owed: dict[int, list[tuple[int, int]]] = {}

    def time_is_up(self) -> bool:
        """Whether the time is up in which retries may begin."""
        return self.until_ns is not None and self.port.now_ns() > self.until_ns

    @property
    def echoing(self) -> bool:
        """Whether the adapter has sent back what it was given."""
        return self.errors[ECHO] > 0

    def _send(self, request: bytes, before: bytes = b"") -> None:
        """Drain, then send `before` and `request` in one write: what is still in the line belongs to an earlier request
        and must not answer this one."""
        late = self.port.drain()
        if late:
            self.drained += len(late)
            self._pass_over(late)
        self.port.write(before + request)
        self.sent_ns = self.port.now_ns()
        self.echoes.sent(request, self.sent_ns)
        if before:
            self.told_ns = self.sent_ns
            self.echoes.sent(before, self.sent_ns)

    def _pass_over(self, late: bytes) -> None:
        """Count bytes that no request waits for, and settle what was owed."""
        parser, echoed = self.codec.new_parser(), 0
        for p in parser.feed(late):
            if self.echoes.has(p):
                self.errors[ECHO] += 1
                echoed += len(self.codec.packet(*p))
            else:
                self._late(p.servo, self.codec.answer(p))
        if len(late) > echoed:
            self.errors[-1, "late or unasked bytes"] += len(late) - echoed

    def _late(self, servo: int, answer: tuple[int, bytes] | None) -> bool:
        """Whether this answer was owed by an earlier request; if so the debt is settled."""
        if answer is None or not self._settle(servo, len(answer[1])):
            return False
        self.errors[servo, "late reply"] += 1
        return True

    def _settle(self, servo: int, size: int) -> bool:
        """Take the first owed answer of `size` bytes for come, and those before it for lost: a servo keeps the order.
        False: none was."""
        debts = self._owed.get(servo, [])
        sizes = [n for n, _ in debts]
        if size not in sizes:
            return False
        del debts[: sizes.index(size) + 1]
        if not debts:
            del self._owed[servo]
        return True

    def _deadline(self, sent: int, wire_ns: int, patient: bool) -> int:
        """When to give up waiting for answers that take `wire_ns` to the `sent` bytes that were handed over last."""
        margin = PATIENCE_NS if patient else self.margin_ns
        return self.sent_ns + sent * self._byte_ns + wire_ns + margin

    def _answers_ns(self, n: int, size: int) -> int:
        """What `n` answers of `size` data bytes take on the wire, with the servos' return delays."""
        return n * ((size + self.codec.STATUS_BYTES) * self._byte_ns + self._delay_ns)

    def _replies(self, data: bytes, servos: Sequence[int], size: int) -> dict[int, Reply]:
        """Undamaged answers, one after another, taken apart."""
        at, step = self.codec.DATA_AT, self.codec.STATUS_BYTES + size
        parts = [data[k : k + size] for k in range(at, len(data), step)]
        return dict(zip(servos, map(Reply, data[at - 1 :: step], parts), strict=True))

    def _collect(
        self,
        servos: Sequence[int],
        size: int,
        deadline: int,
        data: bytes = b"",
        fast: bool = False,
        linger: bool = False,
    ) -> dict[int, Reply]:
        """Replies of `servos` with exactly `size` data bytes, in the order asked, until all are in or the deadline has
        passed.

        `data`: what has been read of them. `fast`: the joint answer to a fast sync read. `linger`: wait out the
        deadline in any case, to hear a second servo with the same id.
        """
        parser = self._parser
        parser.reset()
        parser.longest = self.codec.STATUS_BYTES + size + (size + 2) // 3 if not fast else dxl.MAX_PACKET
        parser.longest = max(parser.longest, self.echoes.longest)
        answers = self._answers
        answers.begin(servos, size, fast)
        while len(answers.got) < len(servos) or linger:
            data = data or self.port.read(deadline)
            for packet in parser.feed(data) if data else parser.flush():
                answers.sort(packet)
            if not data:
                break
            data = b""
        if parser.skipped:
            self.errors[DAMAGED] += parser.skipped
        self._keep_account(answers.got, servos, size)
        return answers.got

    def _keep_account(self, got: dict[int, Reply], servos: Sequence[int], size: int) -> None:
        """Note whose answers may still come late, and take out of `got` an answer that was cut by the next one."""
        now = self.port.now_ns()
        for i in [i for i in self._owed if i in got]:
            # A write cannot ask for another length: the answer may be an older one, and its own still to come.
            if self._settle(i, size):
                self._owed.setdefault(i, []).append((size, now))
            else:  # no other answer has this length: all older ones are lost
                del self._owed[i]
        if len(got) == len(servos):
            return
        for i, after in zip(servos, servos[1:], strict=False):
            cut = i in got and after not in got and b"\xff\xff" in got[i].data
            if cut:  # its data are the rest of a cut packet and the next one's head
                self.errors[i, "overlapping packets"] += 1
                del got[i]
        for i in servos:
            if i not in got:
                self._owed.setdefault(i, []).append((size, now))

    def _extra(self, servos: Sequence[int], size: int) -> tuple[Sequence[int], int]:
        """Who may be asked now, and for how many bytes more, so that no answer can be one that is owed."""
        if not self._owed:
            return servos, 0
        now = self.port.now_ns()
        standing = {i: [(n, t) for n, t in debts if now - t < OWED_NS] for i, debts in self._owed.items()}
        self._owed = {i: debts for i, debts in standing.items() if debts}
        sizes = {i: {n for n, _ in debts} for i, debts in self._owed.items()}
        free = [i for i in servos if len(sizes.get(i, ())) < MAX_OWED]
        taken = {n for i in free for n in sizes.get(i, ())}
        extra = 0
        while size + extra in taken:
            extra += 1
        return free, extra

    def sync_read(self, servos: Sequence[int], address: int, size: int, retries: int = 1) -> dict[int, Reply]:
        """Partial results: a servo that stayed silent is absent and counted."""
        got = self.exchange(b"", servos, address, size, retries)
        return self._replies(got, servos, size) if isinstance(got, bytes) else got

    def exchange(
        self, before: bytes, servos: Sequence[int], address: int, size: int, retries: int = 1
    ) -> bytes | dict[int, Reply]:
        """A sync read in one write with the packet `before`, which goes first and which nobody answers (goals, or
        nothing).

        Returns the answers as they came, one status packet after another, when nothing is wrong with them
        (`codec.whole`); otherwise partial results: a servo that stayed silent is absent and counted.
        """
        if self._owed or self.fast or not self.sync:
            return self._piecemeal(before, servos, address, size, 1 + retries)
        request, wire_ns = self._sync_request(address, size, tuple(servos))
        self._send(request, before)
        deadline = self._deadline(len(before) + len(request), wire_ns, self.until_ns is None)
        data = self.port.read(deadline)
        while data and len(data) < len(servos) * (size + self.codec.STATUS_BYTES):  # adapters hand over in parts
            more = self.port.read(deadline)
            if not more:
                break
            data += more
        if self.codec.whole(data, servos, size) and not self.echoes.among(data, size + self.codec.STATUS_BYTES):
            return data
        got = self._collect(servos, size, deadline, data)
        return got if len(got) == len(servos) else self._piecemeal(b"", servos, address, size, retries, got)

    def _piecemeal(
        self,
        before: bytes,
        servos: Sequence[int],
        address: int,
        size: int,
        attempts: int,
        got: dict[int, Reply] | None = None,
    ) -> dict[int, Reply]:
        """Answers of those who are not in `got` yet, in so many attempts and as far as the time allows."""
        if not self.sync:
            if before:
                self.send(before)
            alone = {i: self.read(i, address, size, attempts - 1) for i in servos}
            return {i: r for i, r in alone.items() if r is not None}
        first, got = got is None, got or {}
        missing = [i for i in servos if i not in got]
        for _ in range(attempts):
            if not first and self.time_is_up():
                break
            ask, extra = self._extra(missing, size)
            if not ask:
                break
            front = extra if extra <= address else 0  # longer at its beginning: registers below exist
            fast = self.fast and first and not extra
            first = False
            request, wire_ns = self._sync_request(address - front, size + extra, tuple(ask), fast)
            self._send(request, before)
            deadline = self._deadline(len(before) + len(request), wire_ns, self.until_ns is None)
            before = b""
            answers = self._collect(ask, size + extra, deadline, fast=fast)
            if fast:
                self._fast_failures = 0 if answers else self._fast_failures + 1
                # One silent servo breaks the joint answer: ask for single ones from now on.
                self.fast = self._fast_failures < 2
            for i, r in answers.items():
                got[i] = Reply(r.bits, r.data[front : front + size]) if extra else r
            missing = [i for i in servos if i not in got]
            if not missing:
                break
        if before:  # nobody could be asked
            self.send(before)
        for i in missing:
            self.errors[i, "no reply"] += 1
        return got

    def _sync_request(self, address: int, size: int, servos: tuple[int, ...], fast: bool = False) -> tuple[bytes, int]:
        """The request of a sync read, and the time in ns that its answers take; made once."""
        key = (address, size, servos, fast)
        known = self._requests.get(key)
        if known is None:
            make = dxl.fast_sync_read if fast else self.codec.sync_read
            known = make(servos, address, size), self._answers_ns(len(servos), size)
            self._requests[key] = known
        return known

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> None:
        """Not acknowledged by the servos: read back what matters."""
        self.send(self.codec.sync_write(address, data))

    def send(self, packet: bytes) -> None:
        """A packet that nobody answers: nothing to drain for."""
        self.port.write(packet)
        self.told_ns = self.port.now_ns()
        self.echoes.sent(packet, self.told_ns)

    def _ask(self, request: bytes, servo: int, size: int, linger: bool = False) -> dict[int, Reply]:
        """Send `request` to one servo and collect its answer of `size` data bytes."""
        self._send(request)
        deadline = self._deadline(len(request), self._answers_ns(1, size), self.until_ns is None and not linger)
        data = b""
        if not self._owed and not linger:
            data = self.port.read(deadline)
            if self.codec.whole(data, (servo,), size) and not self.echoes.among(data, len(data)):
                return self._replies(data, (servo,), size)
        return self._collect([servo], size, deadline, data, linger=linger)

    def read(self, servo: int, address: int, size: int, retries: int = 1) -> Reply | None:
        """One servo's bytes, or None (counted)."""
        for attempt in range(1 + retries):
            if attempt and self.time_is_up():
                break
            ask, extra = self._extra([servo], size)
            if not ask:
                break
            front = extra if extra <= address else 0
            r = self._ask(self.codec.read(servo, address - front, size + extra), servo, size + extra).get(servo)
            if r is not None:
                return Reply(r.bits, r.data[front : front + size]) if extra else r
        self.errors[servo, "no reply"] += 1
        return None

    def write(self, servo: int, address: int, data: bytes, retries: int = 1) -> bool:
        """True when the servo acknowledged, or, where its word is missing or could be an old one, when it holds
        `data`."""
        for attempt in range(1 + retries):
            if attempt and self.time_is_up():
                break
            doubtful = any(n == 0 for n, _ in self._owed.get(servo, ()))
            r = self._ask(self.codec.write(servo, address, data), servo, 0).get(servo)
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

    def ping(self, servo: int, retries: int = 1) -> bool:
        """Whether somebody answers as `servo`. (Where a ping came back, it may have been the answer, with the condition
        "voltage": then it reads.)"""
        size = 3 if self.dynamixel else 0
        for attempt in range(1 + retries):
            if attempt and self.time_is_up():
                break
            if servo in self._ask(self.codec.ping(servo), servo, size):
                return True
        return self.echoing and self.read(servo, 0 if self.dynamixel else 3, 2) is not None

    def count(self, servo: int, address: int, size: int) -> int:
        """How many servos answer as `servo` (2 stands for two or more); waits out the deadline to hear a second one."""
        before = self.errors[servo, "duplicate id"]
        got = self._ask(self.codec.read(servo, address, size), servo, size, linger=True)
        return 2 if self.errors[servo, "duplicate id"] > before else len(got)

    def reboot(self, servo: int) -> None:
        """Dynamixel only: end a shutdown. The servo comes back with its torque off."""
        self._send(dxl.reboot(servo))
