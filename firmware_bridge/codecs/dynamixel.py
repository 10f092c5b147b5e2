"""Dynamixel Protocol 2.0 as pure functions: bytes in, bytes out.

Packet: `FF FF FD 00 ID LENL LENH INST PARAM... CRCL CRCH`, LEN = parameters + 3; a status has INST 55 and the error
byte first. Between INST and the CRC every `FF FF FD` gets another `FD` (byte stuffing), which LEN and CRC count. The
CRC-16 is the catalogue's CRC-16/UMTS over everything before it. Source: ROBOTIS e-manual, protocol 2.0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from firmware_bridge.codecs.feetech import Packet, PacketError

BROADCAST = 0xFE
PING, READ, WRITE, REG_WRITE, ACTION, REBOOT, CLEAR = 1, 2, 3, 4, 5, 8, 0x10
STATUS, SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x55, 0x82, 0x83, 0x8A
HEADER = b"\xff\xff\xfd\x00"
STATUS_BYTES = 11
DATA_AT = 9  # in a status packet without stuffing; the error byte lies before it
MAX_PACKET = 1024
ERRORS = {1: "result failed", 2: "instruction", 3: "CRC", 4: "range", 5: "length", 6: "limit", 7: "access"}


def _table() -> tuple[int, ...]:
    out = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1
        out.append(crc & 0xFFFF)
    return tuple(out)


_CRC = _table()


def crc16(data: bytes | bytearray) -> int:
    """CRC-16/UMTS: polynomial 8005, start 0, neither reflected nor inverted; of "123456789": FEE8."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ _CRC[(crc >> 8) ^ byte]
    return crc


def stuff(body: bytes) -> bytes:
    return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def unstuff(body: bytes) -> bytes:
    return body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


def packet(servo: int, instruction: int, params: bytes = b"") -> bytes:
    """One request. Raises PacketError for an id or a length that does not exist."""
    if not 0 <= servo <= BROADCAST or servo == 253:
        raise PacketError(f"servo id {servo} is none of 0..252 and 254")
    body = stuff(bytes([instruction]) + params)
    if len(body) + 9 > MAX_PACKET:
        raise PacketError(
            f"{len(params)} parameter bytes do not fit into a {MAX_PACKET}-byte packet: split the request"
        )
    raw = HEADER + bytes([servo]) + (len(body) + 2).to_bytes(2, "little") + body
    return raw + crc16(raw).to_bytes(2, "little")


def ping(servo: int) -> bytes:
    return packet(servo, PING)


def _word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def read(servo: int, address: int, size: int) -> bytes:
    return packet(servo, READ, _word(address) + _word(size))


def write(servo: int, address: int, data: bytes) -> bytes:
    return packet(servo, WRITE, _word(address) + data)


def reboot(servo: int) -> bytes:
    """Ends a shutdown; the servo comes back with its torque off and RAM at its defaults."""
    return packet(servo, REBOOT)


def sync_read(servos: Sequence[int], address: int, size: int) -> bytes:
    return packet(BROADCAST, SYNC_READ, _word(address) + _word(size) + bytes(servos))


def fast_sync_read(servos: Sequence[int], address: int, size: int) -> bytes:
    """All answers in one status packet: fewer bytes, but one silent servo loses it whole."""
    return packet(BROADCAST, FAST_SYNC_READ, _word(address) + _word(size) + bytes(servos))


def sync_write(address: int, data: Mapping[int, bytes]) -> bytes:
    """`data`: servo id -> equally long bytes."""
    sizes = {len(d) for d in data.values()}
    if len(sizes) != 1:
        raise PacketError("a sync write carries the same number of bytes for every servo")
    return sync_write_rows(address, sizes.pop(), b"".join(bytes([i]) + d for i, d in data.items()))


def sync_write_rows(address: int, size: int, rows: bytes) -> bytes:
    """`rows`: servo id and `size` bytes, for one servo after another."""
    return packet(BROADCAST, SYNC_WRITE, _word(address) + _word(size) + rows)


def status(servo: int, error: int, data: bytes = b"") -> bytes:
    """A servo's answer (the virtual bus speaks with this)."""
    return packet(servo, STATUS, bytes([error]) + data)


def fast_status(answers: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The joint answer to a fast sync read from (id, error, data); it carries no stuffing. The CRC runs on through
    it."""
    length = 1 + sum(len(d) + 4 for _, _, d in answers)
    raw = HEADER + bytes([BROADCAST]) + _word(length) + bytes([STATUS])
    for servo, error, data in answers:
        raw += bytes([error, servo]) + data
        raw += _word(crc16(raw))
    return raw


def fast_answers(packet: Packet, servos: Sequence[int], size: int) -> list[tuple[int, int, bytes]]:
    """(id, error, data) of each servo in the joint answer, or nothing when it is not the one that `servos` would
    give."""
    body, step = packet.params, size + 4  # the parser has cut the last CRC off
    if packet.servo != BROADCAST or packet.code != STATUS or len(body) != step * len(servos) - 2:
        return []
    out = [(body[k * step + 1], body[k * step], body[k * step + 2 : k * step + 2 + size]) for k in range(len(servos))]
    return out if [i for i, _, _ in out] == list(servos) else []


class Parser:
    """Incremental reader of any byte stream; what fails its CRC is skipped one byte at a time.

    A `Packet` has the instruction as its code (STATUS for an answer) and its parameters unstuffed; a status from the
    broadcast id (fast sync read) is left as it is. `longest` is the longest packet that may come. `skipped` counts
    bytes that belong to no packet, since `reset`.
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
        at = 0
        while True:
            start = b.find(HEADER, at)
            if start < 0:  # keep what may be the beginning of a header
                keep = next((k for k in (3, 2, 1) if len(b) - at >= k and b[len(b) - k :] == HEADER[:k]), 0)
                start = len(b) - keep
                at = start
                break
            at = start
            if len(b) - at < 8:
                break
            servo, length = b[at + 4], b[at + 5] | b[at + 6] << 8
            end = at + 7 + length
            if servo in (0xFF, 253) or not 3 <= length <= self.longest - 7:
                at += 1
            elif end > len(b):
                break
            elif crc16(b[at : end - 2]) == b[end - 2] | b[end - 1] << 8:
                joint = servo == BROADCAST and b[at + 7] == STATUS
                body = bytes(b[at + 7 : end - 2])
                out.append(Packet(servo, body[0], body[1:] if joint else unstuff(body)[1:]))
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
            if len(self._buffer) < 10:
                self.skipped += len(self._buffer)
                self._buffer.clear()
        return out

    def reset(self) -> None:
        """Forget an unfinished packet, and what was skipped (before a new request)."""
        self._buffer.clear()
        self.skipped = 0


@functools.lru_cache(maxsize=256)
def _head(servo: int, size: int) -> tuple[bytes, int]:
    """Begin of a status with `size` bytes, and its CRC so far."""
    head = HEADER + bytes([servo]) + _word(size + 4) + b"\x55"
    return head, crc16(head)


def whole(data: bytes, servos: Sequence[int], size: int) -> bool:
    """Whether `data` is exactly the undamaged and unstuffed answer of `servos` to a sync read of `size` bytes."""
    step = size + STATUS_BYTES
    if len(data) != step * len(servos):
        return False
    table, at = _CRC, 0
    for i in servos:
        end = at + step
        head, crc = _head(i, size)
        if not data.startswith(head, at):
            return False
        for byte in data[at + 8 : end - 2]:  # `crc16`, without the calls
            crc = (crc << 8 & 0xFFFF) ^ table[(crc >> 8) ^ byte]
        if crc != data[end - 2] | data[end - 1] << 8:
            return False
        at = end
    return True


def new_parser() -> Parser:
    return Parser()


def answer(packet: Packet) -> tuple[int, bytes] | None:
    """Error byte and data of a single servo's status, else None."""
    if packet.code != STATUS or packet.servo == BROADCAST or not packet.params:
        return None
    return packet.params[0], packet.params[1:]
