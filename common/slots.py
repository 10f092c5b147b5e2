"""Latest-value slots between processes: a memory-mapped file with two buffers, version and CRC-32.

A writer never waits; a reader gets the newest complete value and its version, which counts the values that were
written. Values are not queued.
(`multiprocessing.shared_memory` is not used: it unlinks the segment when an attached process exits.)
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import Mendable

_HEAD = struct.Struct("<4sIQ")  # magic, capacity, newest version
_CELL = struct.Struct("<QII")  # version, length, CRC-32
_MAGIC = b"HSL1"
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())  # number of the system call; None: readers poll
_WAIT, _WAKE = 0, 1
_POLL_S = 0.0003
_libc = ctypes.CDLL(None)


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class SlotError(Mendable):
    """A slot that cannot be opened or is not valid."""


def _offset(capacity: int, version: int) -> int:
    return _HEAD.size + (version & 1) * (_CELL.size + capacity)


def _size(capacity: int) -> int:
    """Size of the whole file in bytes."""
    return _HEAD.size + 2 * (_CELL.size + capacity)


def memory_folder() -> str | None:
    """The folder for slots: in memory if the system has one, because mapped pages of a disk sometimes wait for its
    write-back."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def create_mapped(path: Path, size: int, head: bytes) -> mmap.mmap:
    """Create and map a new file of `size` bytes that begins with `head`; it replaces `path` only once it is complete.

    Never follows a link that lies where it writes. Raises SlotError, for example where memory is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a page that finds no room later is a SIGBUS
            mapped = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        mapped[: len(head)] = head
        os.replace(partial, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SlotError(f"{path} cannot be made ({e.strerror}): make room in {path.parent.parent}.") from e
    return mapped


class NewestNumber:
    """The number of the newest value at byte 8 of a mapped file, 0 before the first value.

    It is one aligned word, stored and loaded as a whole, and readers can sleep on it (a futex; on systems without
    futexes they poll). `struct.pack_into` would first set its bytes to zero and then write them one by one: readers saw
    that zero in one of five reads.
    """

    def __init__(self, mapped: mmap.mmap):
        self._word = memoryview(mapped)[8:16].cast("Q")
        self._where = int(np.frombuffer(mapped, np.uint8).ctypes.data) + 8  # its low half, the futex's address

    def get(self) -> int:
        return self._word[0]

    def set(self, number: int) -> None:
        """Store the number and wake the readers that sleep on it."""
        self._word[0] = number
        if _FUTEX is not None:
            _libc.syscall(_FUTEX, ctypes.c_void_p(self._where), _WAKE, 1 << 30, None, None, 0)

    def wait(self, number: int, timeout_ns: int) -> bool:
        """Sleep until the number differs from `number`, `timeout_ns` at most; returns whether it differs. May return
        early."""
        if self.get() == number and timeout_ns > 0:
            if _FUTEX is None:
                time.sleep(min(_POLL_S, timeout_ns * 1e-9))
            else:
                rest = _Time(*divmod(timeout_ns, 1_000_000_000))
                low = ctypes.c_uint32(number & 0xFFFFFFFF)
                _libc.syscall(_FUTEX, ctypes.c_void_p(self._where), _WAIT, low, ctypes.byref(rest), None, 0)
        return self.get() != number

    def close(self) -> None:
        self._word.release()


class SlotWriter:
    """Creates (or takes over) the slot at `path` for payloads of up to `capacity` bytes. One writer per slot."""

    def __init__(self, path: Path, capacity: int):
        self._map = create_mapped(path, _size(capacity), _HEAD.pack(_MAGIC, capacity, 0))
        self._capacity, self.version = capacity, 0
        self._newest = NewestNumber(self._map)

    def write(self, *parts: Any) -> int:
        """Store the concatenation of `parts` (anything with the buffer protocol); returns its version."""
        version = self.version + 1
        at = _offset(self._capacity, version)
        views = [memoryview(p).cast("B") for p in parts]
        length = sum(len(v) for v in views)
        if length > self._capacity:
            raise SlotError(f"payload of {length} bytes does not fit into a slot of {self._capacity}")
        crc, end = 0, at + _CELL.size
        for v in views:
            self._map[end : end + len(v)] = v
            crc = zlib.crc32(v, crc)
            end += len(v)
        _CELL.pack_into(self._map, at, version, length, crc)
        self._newest.set(version)
        self.version = version
        return version

    def close(self) -> None:
        self._newest.close()
        self._map.close()


class SlotReader:
    """Reads the slot at `path`; raises SlotError when there is none or the file is no slot."""

    def __init__(self, path: Path):
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise SlotError(f"slot {path} cannot be opened ({e.strerror}): is its writer running?") from e
        try:
            about, head = os.fstat(fd), os.read(fd, _HEAD.size)
            if len(head) < _HEAD.size or head[: len(_MAGIC)] != _MAGIC:
                raise SlotError(f"{path} is not a slot")
            _, self._capacity, _ = _HEAD.unpack(head)
            if about.st_size != _size(self._capacity):
                raise SlotError(f"{path} is a slot of {_size(self._capacity)} bytes of which {about.st_size} are there")
            self._path, self._inode = path, about.st_ino
            self._map = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        except OSError as e:
            raise SlotError(f"{path} is not a slot ({e.strerror})") from e
        finally:
            os.close(fd)
        self._newest = NewestNumber(self._map)
        self._last: tuple[bytes, int] | None = None

    @property
    def replaced(self) -> bool:
        """Whether a new writer has replaced the file: the slot must be opened again."""
        try:
            return os.stat(self._path).st_ino != self._inode
        except OSError:
            return False

    @property
    def newest_version(self) -> int:
        """Version of the newest value, 0 before the first; cheap enough for polling."""
        return self._newest.get()

    @property
    def given_version(self) -> int:
        """Version of the value that `read` returned last, 0 before the first."""
        return self._last[1] if self._last is not None else 0

    def wait(self, version: int, timeout_ns: int) -> bool:
        """Sleep until the slot has another version than `version`, `timeout_ns` at most; returns whether it has. May
        return early."""
        return self._newest.wait(version, timeout_ns)

    def read(self) -> tuple[bytes, int] | None:
        """Newest payload and its version; None before the first. After a torn read, the last good value
        again."""
        for _ in range(3):
            version = self.newest_version
            if version == 0:
                break
            if self._last is not None and self._last[1] == version:
                return self._last
            at = _offset(self._capacity, version)
            found, length, crc = _CELL.unpack_from(self._map, at)
            if found == version and length <= self._capacity:
                payload = self._map[at + _CELL.size : at + _CELL.size + length]
                if zlib.crc32(payload) == crc:
                    self._last = (payload, version)
                    return self._last
        return self._last

    def close(self) -> None:
        self._newest.close()
        self._map.close()
