"""What the motor process reads of others: the newest command and the newest request, whoever writes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np

from common.slots import SlotError, SlotReader
from firmware_bridge.motion.messages import Command, RequestKind

# What a record that cannot be decoded stands for: a command that the safety machine rejects.
UNREADABLE = Command(0, 1 << 62, np.full(0, np.nan, np.float32), np.full(0, np.nan, np.float32))


def opened(path: Path) -> SlotReader | None:
    try:
        return SlotReader(path)
    except SlotError:
        return None


class Latest:
    """Newest value of a slot whose writer may come late or come again. What already lay there is an earlier run's: not
    read."""

    def __init__(self, path: Path):
        self.path = path
        self._reader = opened(path)
        self._earlier = self._reader.newest if self._reader is not None else 0

    def look(self) -> None:
        """Open the slot when its writer has come, and again when another writer took its place."""
        if self._reader is None or self._reader.replaced:
            self._reader, self._earlier = opened(self.path) or self._reader, 0

    def read(self) -> bytes | None:
        if self._reader is None or self._reader.newest == self._earlier:
            return None
        got = self._reader.read()
        return got[0] if got is not None else None

    @property
    def newest(self) -> int:
        """Number of the newest value, 0 without a writer."""
        return self._reader.newest if self._reader is not None else 0

    @property
    def fresh(self) -> bool:
        """Whether there is a value that `read` has not given yet."""
        return self._reader is not None and self._reader.newest not in (self._earlier, self._reader.given)

    def take(self) -> bytes | None:
        """The newest value where `read` has not given it yet; None where it has, or where it cannot be read."""
        if self._reader is None or not self.fresh:
            return None
        given, raw = self._reader.given, self.read()
        return raw if self._reader.given != given else None

    def wait(self, until_ns: int) -> bool:
        """Whether a value comes until then (monotonic) that `read` has not given yet; returns as soon as it does."""
        while (rest := until_ns - time.monotonic_ns()) > 0:
            if self._reader is None:
                time.sleep(rest * 1e-9)
            elif self._reader.wait(self._reader.given, rest):
                return True
        return False


class Incoming(Protocol):
    """The newest command: `Latest` is one."""

    @property
    def newest(self) -> int: ...

    @property
    def fresh(self) -> bool: ...

    def take(self) -> bytes | None: ...

    def wait(self, until_ns: int) -> bool: ...


def as_command(raw: bytes | None) -> Command | None:
    """The command in a slot's bytes; UNREADABLE when they are none, so that it is rejected and never raises here."""
    try:
        return Command.unpack(raw) if raw is not None else None
    except ValueError:
        return UNREADABLE


def as_request(raw: bytes | None) -> RequestKind:
    """The request in a slot's bytes; an unknown one holds the arm."""
    try:
        return RequestKind(raw[0]) if raw else RequestKind.NONE
    except ValueError:
        return RequestKind.HOLD
