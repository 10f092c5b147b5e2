"""Feetech STS/SMS serial protocol as pure functions: bytes in, bytes out.

Packet: `FF FF ID LEN INST PARAM... CK`, LEN = parameters + 2, CK = ~(ID + LEN + INST + sum(PARAM)) & FF; a status packet has
the condition byte in INST's place. Little-endian, no byte stuffing: FF FF may occur in data, so a reader must find packets by
their checksum, never by the header alone. Source: ftservo memory tables, SCS protocol description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BROADCAST = 0xFE
PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
MAX_PACKET = 250


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


def reg_write(servo: int, address: int, data: bytes) -> bytes:
    """Kept by the servo until `action`."""
    return packet(servo, REG_WRITE, bytes([address]) + data)


def action() -> bytes:
    return packet(BROADCAST, ACTION)


def sync_read(servos: Sequence[int], address: int, size: int) -> bytes:
    return packet(BROADCAST, SYNC_READ, bytes([address, size, *servos]))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """`data`: servo id -> equally long bytes."""
    sizes = {len(d) for d in data.values()}
    if len(sizes) != 1:
        raise PacketError("a sync write carries the same number of bytes for every servo")
    return packet(
        BROADCAST, SYNC_WRITE, bytes([address, sizes.pop()]) + b"".join(bytes([i]) + d for i, d in data.items())
    )


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """A servo's answer (the virtual bus speaks with this)."""
    return packet(servo, error, data)


def encode_sign(value: int, bit: int) -> int:
    """Sign-magnitude with the sign at `bit`; raises PacketError when the magnitude does not fit."""
    if abs(value) >= 1 << bit:
        raise PacketError(f"{value} does not fit into {bit} bits and a sign")
    return value if value >= 0 else -value | (1 << bit)


def decode_sign(raw: int, bit: int) -> int:
    """Inverse of `encode_sign`; minus zero reads as zero."""
    magnitude = raw & ((1 << bit) - 1)
    return -magnitude if raw >> bit & 1 else magnitude


@dataclass(frozen=True)
class Packet:
    """One valid packet: a status from a servo (`code` = condition bits) or a request (`code` = instruction)."""

    servo: int
    code: int
    params: bytes


class Parser:
    """Incremental reader of any byte stream; what fails its checksum is skipped one byte at a time and counted."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped = 0

    def feed(self, data: bytes) -> list[Packet]:
        """All packets that are complete after `data`."""
        b = self._buffer
        b += data
        out: list[Packet] = []
        while True:
            start = b.find(b"\xff\xff")
            if start < 0:  # keep one FF: it may be half a header
                keep = 1 if b[-1:] == b"\xff" else 0
                self.skipped += len(b) - keep
                del b[: len(b) - keep]
                return out
            if start:
                self.skipped += start
                del b[:start]
            if len(b) < 4:
                if len(b) == 3 and b[2] == 0xFF:  # FF FF FF: the header starts one later
                    self.skipped += 1
                    del b[:1]
                    continue
                return out
            servo, length = b[2], b[3]
            if servo == 0xFF or not 2 <= length <= MAX_PACKET - 4:
                self.skipped += 1
                del b[:1]
                continue
            if len(b) < length + 4:
                return out
            if ~sum(b[2 : length + 3]) & 0xFF == b[length + 3]:
                out.append(Packet(servo, b[4], bytes(b[5 : length + 3])))
                del b[: length + 4]
            else:
                self.skipped += 1
                del b[:1]

    def reset(self) -> None:
        """Forget an unfinished packet (before a new request)."""
        self.skipped += len(self._buffer)
        self._buffer.clear()
