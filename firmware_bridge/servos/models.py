"""All known servo models, by name and by model number, and the codec of each protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from firmware_bridge.codecs import dynamixel, feetech
from firmware_bridge.servos.sts3215 import SCS0009, STS3215
from firmware_bridge.servos.xseries import XSERIES

MODELS = {m.name: m for m in (STS3215, SCS0009, *XSERIES)}
BY_NUMBER = {m.number: m for m in MODELS.values()}


class Parser(Protocol):
    """Finds the packets of one protocol in a stream of bytes."""

    skipped: int
    longest: int

    def feed(self, data: bytes) -> list[feetech.Packet]: ...

    def flush(self) -> list[feetech.Packet]: ...

    def reset(self) -> None: ...


class Codec(Protocol):
    """The part of a protocol module that the bus uses; `codecs.feetech` and `codecs.dynamixel` are such modules."""

    BROADCAST: int
    STATUS_BYTES: int  # size of a status packet without data
    DATA_AT: int  # index of the first data byte in a status packet; the error byte is the one before it

    def packet(self, servo: int, instruction: int, params: bytes = b"") -> bytes: ...

    def ping(self, servo: int) -> bytes: ...

    def read(self, servo: int, address: int, size: int) -> bytes: ...

    def write(self, servo: int, address: int, data: bytes) -> bytes: ...

    def sync_read(self, servos: Sequence[int], address: int, size: int) -> bytes: ...

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> bytes: ...

    def sync_write_rows(self, address: int, size: int, rows: bytes) -> bytes:
        """`rows`: for each servo its id (one byte) and `size` bytes of data."""

    def new_parser(self) -> Parser: ...

    def whole(self, data: bytes, servos: Sequence[int], size: int) -> bool:
        """Whether `data` is exactly one correct status packet, in order, of each of the `servos`."""

    def answer(self, packet: feetech.Packet) -> tuple[int, bytes] | None:
        """Error byte and data when `packet` is a status packet, else None."""


def codec(protocol: str) -> Codec:
    """The codec of "feetech" or "dynamixel"."""
    return dynamixel if protocol == "dynamixel" else feetech
