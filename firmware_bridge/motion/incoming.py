"""Input of the motor process: the newest command and the newest request, from any process that writes their slots."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np

from common.slots import SlotError, SlotReader
from firmware_bridge.motion.messages import Command, RequestKind

# Stands for a record that cannot be decoded: the safety machine rejects this command.
UNREADABLE = Command(0, 1 << 62, np.full(0, np.nan, np.float32), np.full(0, np.nan, np.float32))


def opened(path: Path) -> SlotReader | None:
    """A reader of the slot; None where there is no slot yet."""
    try:
        return SlotReader(path)
    except SlotError:
        return None


class Latest:
    """Newest value of a slot whose writer may start later, or start again.

    A value that is in the slot when this object is made belongs to an earlier run and is not read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._reader = opened(path)
        self._earlier = self._reader.newest_version if self._reader is not None else 0

    def look(self) -> None:
        """Open the slot once its writer has started, and again when another writer has replaced the file."""
        if self._reader is None or self._reader.replaced:
            self._reader, self._earlier = opened(self.path) or self._reader, 0

    def read(self) -> bytes | None:
        """The newest value, also when it was read before; None where there is none."""
        if self._reader is None or self._reader.newest_version == self._earlier:
            return None
        got = self._reader.read()
        return got[0] if got is not None else None

    @property
    def newest_version(self) -> int:
        """Count of values written to the slot; 0 without a writer."""
        return self._reader.newest_version if self._reader is not None else 0

    @property
    def fresh(self) -> bool:
        """Whether there is a value that `read` has not returned yet."""
        return self._reader is not None and self._reader.newest_version not in (
            self._earlier,
            self._reader.given_version,
        )

    def take(self) -> bytes | None:
        """The newest value if `read` has not returned it yet; else, or where it cannot be read, None."""
        if self._reader is None or not self.fresh:
            return None
        given, raw = self._reader.given_version, self.read()
        return raw if self._reader.given_version != given else None

    def wait(self, until_ns: int) -> bool:
        """Wait until `until_ns` (monotonic) for a value that `read` has not returned yet; returns whether one came."""
        while (rest := until_ns - time.monotonic_ns()) > 0:
            if self._reader is None:
                time.sleep(rest * 1e-9)
            elif self._reader.wait(self._reader.given_version, rest):
                return True
        return False


class Incoming(Protocol):
    """The part of `Latest` that `motor.Between` uses; a simulation in virtual time has another."""

    @property
    def newest_version(self) -> int: ...

    @property
    def fresh(self) -> bool: ...

    def take(self) -> bytes | None: ...

    def wait(self, until_ns: int) -> bool: ...


def as_command(raw: bytes | None) -> Command | None:
    """The command in a slot's bytes; `UNREADABLE` when they are no command."""
    try:
        return Command.unpack(raw) if raw is not None else None
    except ValueError:
        return UNREADABLE


def as_request(raw: bytes | None) -> RequestKind:
    """The request in a slot's bytes; NONE without bytes, HOLD for an unknown request."""
    try:
        return RequestKind(raw[0]) if raw else RequestKind.NONE
    except ValueError:
        return RequestKind.HOLD
