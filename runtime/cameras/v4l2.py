"""What Linux knows of a camera: whether its `source` is a V4L2 device, its serial number, its focus position."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from firmware_bridge.bus.port import lasting_name

CONTROL = struct.Struct("<Ii")  # struct v4l2_control: id, value (linux/videodev2.h, as all of these)
VIDIOC_G_CTRL = 0xC008561B
FOCUS_ABSOLUTE, FOCUS_AUTO = 0x009A090A, 0x009A090C


def is_device(source: str) -> bool:
    """Whether a camera's `source` is a V4L2 device: a number, or a path such as /dev/video0 or a name under
    /dev/v4l/by-id."""
    return source.isdigit() or (source.startswith("/dev/") and not Path(source).is_file())  # a film may lie in /dev/shm


def node(source: str) -> str:
    """A camera's `source` with the device's path in place of its bare number, as OpenCV takes it."""
    return f"/dev/video{source}" if source.isdigit() else source


def plugged_in(dev: Path = Path("/dev"), sys: Path = Path("/sys/class/video4linux")) -> list[str]:
    """The cameras that Linux has, in the order of their numbers, by names that survive unplugging where there are any.
    Of the nodes of one camera only the first gives pictures (a USB camera's second has the data about them)."""
    numbers = sorted(int(p.name[5:]) for p in dev.glob("video[0-9]*") if p.name[5:].isdecimal())
    first = [n for n in numbers if _index(sys / f"video{n}") == "0"]
    return [lasting_name(str(dev / f"video{n}"), dev / "v4l/by-id") for n in first]


def _index(folder: Path) -> str:
    try:
        return (folder / "index").read_text().strip()
    except OSError:
        return ""


def serial(source: str) -> str | None:
    """The USB serial number behind a device such as /dev/video0; None where there is none (file, slot, simulator)."""
    try:
        device = Path("/sys/class/video4linux") / Path(node(source)).resolve().name / "device"
        return (device.resolve().parent / "serial").read_text().strip() or None
    except OSError:
        return None


def focus(source: str) -> int | str | None:
    """Focus position of a V4L2 device, "auto" while it focuses by itself; None where it has no such control (most have
    none) or is no device."""
    if not is_device(source):
        return None
    try:
        device = os.open(node(source), os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return "auto" if _control(device, FOCUS_AUTO) else _control(device, FOCUS_ABSOLUTE)
    finally:
        os.close(device)


def _control(device: int, control: int) -> int | None:
    """Value of a V4L2 control, None where the device has none."""
    try:
        return int(CONTROL.unpack(fcntl.ioctl(device, VIDIOC_G_CTRL, CONTROL.pack(control, 0)))[1])
    except OSError:
        return None
