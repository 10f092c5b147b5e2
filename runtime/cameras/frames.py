"""Pictures between processes: a memory-mapped file with four frames in turn, of which readers take the newest.

One process owns a camera and writes; any number of others read. Neither side waits for the other. A writer
decodes a picture straight into the file (`FrameWriter.buffer`), a reader copies it out once, which also puts the
colours into RGB order. Pictures carry no checksum, unlike the values of `common/slots.py`: three more come before a
frame's memory is written again, and a reader that was slower than two of them takes the newest instead.

    head   64 bytes: magic "HFR1", capacity (bytes of a picture), number of the newest frame
    frame  64 bytes: capture time (monotonic ns), width, height, colour order, how often the device was opened again;
           then its pixels
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.slots import NewestNumber, SlotError, create_mapped

RGB, BGR = 0, 1
FRAMES = 4
LOOK_AGAIN_S = 0.2  # after this long without a new picture a reader checks whether the writer was replaced
_HEAD = struct.Struct("<4sIQ")
_FRAME = struct.Struct("<qIIII")
_MAGIC = b"HFR1"
_LINE = 64  # bytes of a cache line: neither heads nor pictures share one


@dataclass(frozen=True)
class Frame:
    """uint8[H,W,3] RGB and when it was captured (monotonic ns). `frame_number` counts the frames of its camera from 1;
    it goes on where a writer was started again."""

    t_capture_ns: int
    image: np.ndarray
    frame_number: int


def frames_path(folder: Path, camera: str) -> Path:
    return folder / f"camera-{camera}.slot"


def _offset(capacity: int, frame_number: int) -> int:
    return _LINE + (frame_number % FRAMES) * (_LINE + _padded(capacity))


def _padded(capacity: int) -> int:
    return -(-capacity // _LINE) * _LINE


def _size(capacity: int) -> int:
    """Of the whole file."""
    return _offset(capacity, 0) + FRAMES * (_LINE + _padded(capacity))


class FrameWriter:
    """Creates (or takes over) the file at `path` for pictures of up to `width` x `height`. One writer a file."""

    def __init__(self, path: Path, width: int, height: int):
        self._capacity = width * height * 3
        self._map = create_mapped(path, _size(self._capacity), _HEAD.pack(_MAGIC, self._capacity, 0))
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._newest = NewestNumber(self._map)
        self.path, self.frame_number = path, 0

    def fits(self, width: int, height: int) -> bool:
        return width * height * 3 <= self._capacity

    def buffer(self, width: int, height: int) -> np.ndarray:
        """uint8[H,W,3] of the next frame, to be filled; readers see it once it is published. Raises SlotError where it
        is too large."""
        if not self.fits(width, height):
            raise SlotError(f"a picture of {width}x{height} does not fit into {self.path}")
        at = _offset(self._capacity, self.frame_number + 1) + _LINE
        return self._bytes[at : at + width * height * 3].reshape(height, width, 3)

    def publish(self, t_capture_ns: int, width: int, height: int, order: int = RGB, reopened: int = 0) -> int:
        """Make what `buffer` holds the newest frame; returns its number."""
        self.frame_number += 1
        _FRAME.pack_into(
            self._map, _offset(self._capacity, self.frame_number), t_capture_ns, width, height, order, reopened
        )
        self._newest.set(self.frame_number)
        return self.frame_number

    def write(self, t_capture_ns: int, image: np.ndarray) -> int:
        """Copy and publish `image` uint8[H,W,3] RGB; returns its number."""
        height, width = image.shape[:2]
        np.copyto(self.buffer(width, height), image)
        return self.publish(t_capture_ns, width, height)

    def close(self) -> None:
        del self._bytes
        self._newest.close()
        self._map.close()


class FrameReader:
    """The newest frame of the file at `path`; a writer that was started again is followed. Raises SlotError where there
    is none."""

    def __init__(self, path: Path):
        self.path, self.reopened = path, 0
        self._last: Frame | None = None
        self._before = 0  # frames of writers that are gone
        self._looked, self._seen = time.monotonic(), -1
        self._open()

    def _open(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError as e:
            raise SlotError(f"{self.path} cannot be opened ({e.strerror}): is its writer running?") from e
        try:
            about, head = os.fstat(fd), os.read(fd, _HEAD.size)
            if len(head) < _HEAD.size or head[: len(_MAGIC)] != _MAGIC:
                raise SlotError(f"{self.path} holds no frames")
            capacity = _HEAD.unpack(head)[1]
            if about.st_size != _size(capacity):
                raise SlotError(f"{self.path} should have {_size(capacity)} bytes and has {about.st_size}")
            mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        except OSError as e:
            raise SlotError(f"{self.path} cannot be read ({e.strerror})") from e
        finally:
            os.close(fd)
        self._map, self._capacity, self._inode = mapped, capacity, about.st_ino
        self._bytes, self._newest = np.frombuffer(mapped, np.uint8), NewestNumber(mapped)

    def _follow(self) -> None:
        """Open the file that a new writer has put in this one's place, if there is one."""
        try:
            if os.stat(self.path).st_ino == self._inode:
                return
            before = self._newest.get()
            self._open()
            self._before += before
        except (OSError, SlotError):  # gone for good, or not there yet
            pass

    @property
    def frame_number(self) -> int:
        """Number of the newest frame, 0 before the first; cheap, for polling."""
        newest, now = self._newest.get(), time.monotonic()
        if newest != self._seen:
            self._seen, self._looked = newest, now
        elif now - self._looked > LOOK_AGAIN_S:
            self._looked = now
            self._follow()
        return self._before + self._newest.get()

    def wait(self, frame_number: int, until_ns: int) -> bool:
        """Sleep until there is a newer frame than this number, or until then (monotonic); whether there is one."""
        while True:
            newest = self._newest.get()  # before the look: what comes after it ends the sleep at once
            if self.frame_number > frame_number:
                return True
            rest = until_ns - time.monotonic_ns()
            if rest <= 0:
                return False
            self._newest.wait(newest, min(rest, int(LOOK_AGAIN_S * 1e9)))

    def newest(self) -> Frame | None:
        """The newest frame, None before the first. It is a copy, which nobody writes to."""
        while (frame_number := self._newest.get()) > 0:
            if self._last is not None and self._last.frame_number == self._before + frame_number:
                break
            frame = self._copied(frame_number)
            # The writer is two frames on at most: it has not begun to write where this one lies.
            if frame is not None and self._newest.get() - frame_number <= FRAMES - 2:
                self._last = frame
                break
            if frame is None and self._newest.get() == frame_number:  # damaged
                break
        return self._last

    def _copied(self, frame_number: int) -> Frame | None:
        at = _offset(self._capacity, frame_number)
        t_ns, width, height, order, self.reopened = _FRAME.unpack_from(self._map, at)
        size = width * height * 3
        if not 0 < size <= self._capacity:
            return None
        image = self._bytes[at + _LINE : at + _LINE + size].reshape(height, width, 3)
        return Frame(t_ns, _rgb(image) if order == BGR else image.copy(), self._before + frame_number)

    def close(self) -> None:
        del self._bytes
        self._newest.close()
        self._map.close()


def _rgb(bgr: np.ndarray) -> np.ndarray:
    import cv2  # for real cameras only

    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
