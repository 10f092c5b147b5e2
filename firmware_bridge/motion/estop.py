"""Emergency stop input: a GPIO line or a USB key. An input that cannot be read counts as pressed.

A stop in software is only the second protection: the first is a switch in the arm's power supply.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from pathlib import Path

from common.errors import Mendable

_EVENT = struct.Struct("llHHi")  # struct input_event: seconds, microseconds, type, code, value
_EV_KEY = 1
_GET_LINE = 0xC250B407  # GPIO_V2_GET_LINE_IOCTL (linux/gpio.h)
_GET_VALUES = 0xC010B40E  # GPIO_V2_LINE_GET_VALUES_IOCTL
_INPUT = 1 << 2  # GPIO_V2_LINE_FLAG_INPUT
_PULL_UP = 1 << 8  # GPIO_V2_LINE_FLAG_BIAS_PULL_UP


class EStopError(Mendable):
    """An emergency stop that cannot be opened; the text is one sentence and the next step."""


class EStop:
    """An emergency stop. GPIO: a normally-closed switch to ground, so that a cut wire counts as pressed."""

    def __init__(self, fd: int, gpio: bool):
        self._fd, self._gpio, self._latched = fd, gpio, False

    @classmethod
    def open(cls, where: str) -> EStop:
        """`where`: "gpio:/dev/gpiochip0:17" (line 17) or "key:/dev/input/by-id/..." (any key of that device). Raises
        EStopError."""
        kind, _, rest = where.partition(":")
        try:
            if kind == "gpio":
                chip, _, line = rest.rpartition(":")
                return cls(_request_line(chip, int(line)), True)
            if kind == "key":
                return cls(os.open(rest, os.O_RDONLY | os.O_NONBLOCK), False)
        except (OSError, ValueError) as e:
            raise EStopError(f"emergency stop {where} cannot be opened ({e}): check 'estop' in the robot file.") from e
        raise EStopError(
            f"emergency stop {where} is not understood: write gpio:/dev/gpiochipN:LINE or key:/dev/input/by-id/NAME."
        )

    def pressed(self) -> bool:
        """Whether the stop is pressed; never blocks. A key counts as pressed for good after its first press."""
        try:
            return self._line() if self._gpio else self._key()
        except OSError:
            return True

    def _line(self) -> bool:
        values = bytearray(struct.pack("QQ", 0, 1))
        fcntl.ioctl(self._fd, _GET_VALUES, values)
        return bool(struct.unpack("QQ", values)[0] & 1)  # the closed switch pulls the line low

    def _key(self) -> bool:
        while not self._latched and select.select([self._fd], [], [], 0)[0]:
            raw = os.read(self._fd, _EVENT.size * 16)
            if not raw:  # end of file: the device was unplugged
                self._latched = True
            for at in range(0, len(raw) - _EVENT.size + 1, _EVENT.size):
                _, _, kind, _, value = _EVENT.unpack_from(raw, at)
                self._latched |= kind == _EV_KEY and value == 1
        return self._latched

    def close(self) -> None:
        os.close(self._fd)


def _request_line(chip: str, line: int) -> int:
    """Ask the kernel for an input line with pull-up; returns its file descriptor. Raises OSError."""
    if not Path(chip).exists():
        raise OSError(f"{chip} does not exist")
    fd = os.open(chip, os.O_RDWR)
    try:
        # struct gpio_v2_line_request: offsets[64], consumer[32], config (flags first, 272 bytes), num_lines, size,
        # padding[5], fd
        request = bytearray(592)
        struct.pack_into("I", request, 0, line)
        request[256:265] = b"e-stop\0\0\0"
        struct.pack_into("Q", request, 288, _INPUT | _PULL_UP)
        struct.pack_into("I", request, 560, 1)
        fcntl.ioctl(fd, _GET_LINE, request)
        return int(struct.unpack_from("i", request, 588)[0])
    finally:
        os.close(fd)
