"""Faults of pictures that arrive: frozen, black, late, cameras out of step. No clock, no I/O; microseconds a frame."""

from __future__ import annotations

import zlib

import numpy as np

STEP = 16  # every 16th pixel is looked at
FROZEN_FRAMES = 30  # equal pictures in a row; a sensor's noise never repeats
BLACK_MEAN, BLACK_SPREAD = 6.0, 2.0  # of 255


class CameraWatch:
    """Watches one camera. `noisy` False: equal pictures are possible (simulation, film), so only stamps that do not
    change count as frozen. `delay_ns`: the age of its pictures at their hand-over, by the robot file; it does not count
    as lateness."""

    def __init__(self, name: str, fps: float, noisy: bool = True, delay_ns: int = 0):
        self.name, self.noisy = name, noisy
        self.late_ns = int(3e9 / fps) + delay_ns
        self._stamp = -1
        self._print = 0
        self._equal = self._stuck = 0

    def look(self, now_ns: int, t_capture_ns: int, image: np.ndarray) -> tuple[str, ...]:
        """Faults of this picture, by name of the camera; `now_ns` is when the loop took it."""
        found = []
        few = np.ascontiguousarray(image[::STEP, ::STEP])
        if self.noisy:
            print_ = zlib.crc32(few.data)
            self._equal = self._equal + 1 if print_ == self._print else 0
            self._print = print_
        self._stuck = self._stuck + 1 if t_capture_ns <= self._stamp else 0
        self._stamp = max(self._stamp, t_capture_ns)
        if self._equal >= FROZEN_FRAMES or self._stuck >= 3:
            found.append(f"camera '{self.name}' is frozen")
        if few.mean() < BLACK_MEAN and few.std() < BLACK_SPREAD:
            found.append(f"camera '{self.name}' is black")
        if now_ns - t_capture_ns > self.late_ns:
            found.append(f"camera '{self.name}' is late")
        return tuple(found)


def apart(stamps_ns: dict[str, int], limit_ns: int) -> tuple[str, ...]:
    """Whether the pictures of one observation were taken further apart than `limit_ns`."""
    if len(stamps_ns) < 2 or max(stamps_ns.values()) - min(stamps_ns.values()) <= limit_ns:
        return ()
    return (
        (
            f"cameras '{min(stamps_ns, key=stamps_ns.__getitem__)}' and '{max(stamps_ns, key=stamps_ns.__getitem__)}' "
            "are out of step"
        ),
    )
