"""All servo models that this version knows, by name and by model number, and the codec that each of them speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from firmware_bridge.codecs import dynamixel, feetech
from firmware_bridge.servos.sts3215 import SCS0009, STS3215
from firmware_bridge.servos.xseries import XSERIES

MODELS = {m.name: m for m in (STS3215, SCS0009, *XSERIES)}
BY_NUMBER = {m.number: m for m in MODELS.values()}


class Parser(Protocol):
    """Incremental reader of one protocol's packets."""

    skipped: int
    longest: int

    def feed(self, data: bytes) -> list[feetech.Packet]: ...

    def flush(self) -> list[feetech.Packet]: ...

    def reset(self) -> None: ...


class Codec(Protocol):
    """What the bus needs of a protocol module: `feetech` and `dynamixel` are two."""

    BROADCAST: int
    STATUS_BYTES: int  # a status packet without data
    DATA_AT: int  # where in it the data begin; the error byte lies before them

    def packet(self, servo: int, instruction: int, params: bytes = b"") -> bytes: ...

    def ping(self, servo: int) -> bytes: ...

    def read(self, servo: int, address: int, size: int) -> bytes: ...

    def write(self, servo: int, address: int, data: bytes) -> bytes: ...

    def sync_read(self, servos: Sequence[int], address: int, size: int) -> bytes: ...

    def sync_write(self, address: int, data: Mapping[int, bytes]) -> bytes: ...

    def sync_write_rows(self, address: int, size: int, rows: bytes) -> bytes:
        """`rows`: servo id and `size` bytes, for one servo after another."""

    def new_parser(self) -> Parser: ...

    def whole(self, data: bytes, servos: Sequence[int], size: int) -> bool:
        """Whether `data` is the answer to a sync read with nothing wrong, missing or too much."""

    def answer(self, packet: feetech.Packet) -> tuple[int, bytes] | None:
        """Error byte and data when `packet` is a status, else None."""


def codec(protocol: str) -> Codec:
    """The codec of "feetech" or "dynamixel"."""
    return dynamixel if protocol == "dynamixel" else feetech
