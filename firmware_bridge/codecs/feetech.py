"""Feetech STS/SMS serial protocol as pure functions: bytes in, bytes out.

Packet: `FF FF ID LEN INST PARAM... CK`, LEN = parameters + 2, CK = ~(ID + LEN + INST + sum(PARAM)) & FF; a status
packet has the condition byte in INST's place. Little-endian, no byte stuffing: FF FF may occur in data, so a reader
must find packets by their checksum, never by the header alone. Source: ftservo memory tables, SCS protocol description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

BROADCAST = 0xFE
PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
MAX_PACKET = 250
STATUS_BYTES = 6
DATA_AT = 5  # in a status packet; the condition byte lies before it


class PacketError(ValueError):
    """A packet that the protocol cannot carry."""


def packet(servo: int, instruction: int, params: bytes = b"") -> bytes:
    """One request. Raises PacketError for an id or a length that does not exist."""
    if not 0 <= servo <= BROADCAST:
        raise PacketError(f"servo id {servo} is outside 0..254")
    if len(params) + 6 > MAX_PACKET:
        raise PacketError(
            f"{len(params)} parameter bytes do not fit into a {MAX_PACKET}-byte packet: split the request"
        )
    body = bytes([servo, len(params) + 2, instruction]) + params
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


def ping(servo: int) -> bytes:
    return packet(servo, PING)


def read(servo: int, address: int, size: int) -> bytes:
    return packet(servo, READ, bytes([address, size]))


def write(servo: int, address: int, data: bytes) -> bytes:
    return packet(servo, WRITE, bytes([address]) + data)


def sync_read(servos: Sequence[int], address: int, size: int) -> bytes:
    return packet(BROADCAST, SYNC_READ, bytes([address, size, *servos]))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """`data`: servo id -> equally long bytes."""
    size = len(next(iter(data.values()), b""))
    if not size or any(len(d) != size for d in data.values()):
        raise PacketError("a sync write carries the same number of bytes for every servo")
    return sync_write_rows(address, size, b"".join([b"%c" % i + d for i, d in data.items()]))


def sync_write_rows(address: int, size: int, rows: bytes) -> bytes:
    """`rows`: servo id and `size` bytes, for one servo after another."""
    if len(rows) + 8 > MAX_PACKET:
        raise PacketError(f"{len(rows)} bytes of rows do not fit into a {MAX_PACKET}-byte packet: split the request")
    body = bytes((BROADCAST, len(rows) + 4, SYNC_WRITE, address, size)) + rows
    return b"\xff\xff%b%c" % (body, ~sum(body) & 0xFF)


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """A servo's answer (the virtual bus speaks with this)."""
    return packet(servo, error, data)


class Packet(NamedTuple):
    """One valid packet: a status from a servo (`code` = condition bits) or a request (`code` = instruction)."""

    servo: int
    code: int
    params: bytes


class Parser:
    """Incremental reader of any byte stream; what fails its checksum is skipped one byte at a time.

    `longest` is the longest packet that may come: a damaged length must not take in the packets behind it. `skipped`
    counts bytes that belong to no packet, since `reset`.
    """

    def __init__(self, longest: int = MAX_PACKET) -> None:
        self._buffer = bytearray()
        self.longest = longest
        self.skipped = 0

    def feed(self, data: bytes) -> list[Packet]:
        """All packets that are complete after `data`."""
        b = self._buffer
        b += data
        out: list[Packet] = []
        taken = 0
        at = 0  # what lies before it has been dealt with
        while True:
            start = b.find(b"\xff\xff", at)
            if start < 0:  # keep one FF: it may be half a header
                start = len(b) - (len(b) > at and b[-1] == 0xFF)
                at = start
                break
            at = start
            if len(b) - at < 4:
                if len(b) - at == 3 and b[at + 2] == 0xFF:  # FF FF FF: the header starts one later
                    at += 1
                    continue
                break
            servo, length = b[at + 2], b[at + 3]
            end = at + length + 4
            if servo == 0xFF or not 2 <= length <= self.longest - 4:
                at += 1
            elif end > len(b):
                break
            elif ~sum(b[at + 2 : end - 1]) & 0xFF == b[end - 1]:
                out.append(Packet(servo, b[at + 4], bytes(b[at + 5 : end - 1])))
                taken += end - at
                at = end
            else:
                at += 1
        del b[:at]
        self.skipped += at - taken
        return out

    def flush(self) -> list[Packet]:
        """No more bytes will come: give up what is unfinished, and return the packets that lay behind its header."""
        out: list[Packet] = []
        while self._buffer:
            del self._buffer[:1]
            self.skipped += 1
            out += self.feed(b"")
            if len(self._buffer) < 6:
                self.skipped += len(self._buffer)
                self._buffer.clear()
        return out

    def reset(self) -> None:
        """Forget an unfinished packet, and what was skipped (before a new request)."""
        self._buffer.clear()
        self.skipped = 0


def whole(data: bytes, servos: Sequence[int], size: int) -> bool:
    """Whether `data` is exactly the undamaged answer of `servos` to a sync read of `size` bytes: one status after
    another. Cheap."""
    n, step = len(servos), size + STATUS_BYTES
    if (
        len(data) != step * n
        or data[::step] != b"\xff" * n
        or data[1::step] != b"\xff" * n
        or data[2::step] != bytes(servos)
        or data[3::step] != bytes((size + 2,)) * n
    ):
        return False
    for at in range(2, len(data), step):  # noqa: SIM110 (a generator costs a microsecond here)
        if sum(data[at : at + step - 2]) & 0xFF != 0xFF:  # with the checksum, id and all that follows add up to FF
            return False
    return True


def new_parser() -> Parser:
    return Parser()


def answer(packet: Packet) -> tuple[int, bytes] | None:
    """Condition bits and data of a status; a request has the same form, so what comes from the broadcast id is none."""
    return (packet.code, packet.params) if packet.servo != BROADCAST else None
