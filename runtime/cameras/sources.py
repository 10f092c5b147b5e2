"""Cameras: newest frame only, stamped at capture, a thread each, opened again when they come back.

Sources (`source` in the robot file): "sim", "slot:PATH" (another process), "/dev/videoN", a name under /dev/v4l/by-id or a number (V4L2),
"gst:PIPELINE" (GStreamer, ends in an appsink), a video file (played at its rate, over and over), a URL (RTSP, HTTP).
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calibration.camera import CalibrationError, Camera
from calibration.store import load_camera
from common.clock import Ticker, prefer
from common.errors import Mendable
from common.slots import SlotError, SlotReader
from common.timing import CAMERA_PRIORITY
from runtime.robot import CameraConfig, Robot

FRAME_HEAD = struct.Struct("<qII")  # capture time (monotonic ns), width, height; then RGB bytes

CONTROL = struct.Struct("<Ii")  # struct v4l2_control: id, value (linux/videodev2.h, as all of these)
VIDIOC_G_CTRL = 0xC008561B
FOCUS_ABSOLUTE, FOCUS_AUTO = 0x009A090A, 0x009A090C

STALL_MS, OPEN_MS = 1000, 3000  # so long a read, or opening a stream, may take; OpenCV's own limits are 10 s and more
PIPELINE_MS = 10_000  # opening a GStreamer pipeline, which waits for a sensor to start
WAIT_V4L2 = ("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(STALL_MS // 1000))  # read by OpenCV at its first picture
FAILURES = 5  # reads that fail in a row before a device is opened again
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0  # between attempts to open it
LOOK_AGAIN_S = 0.2  # without a new picture: has a slot's writer been replaced?


class CameraError(Mendable):
    """A camera that cannot be used; one sentence and the next step."""


@dataclass(frozen=True)
class Frame:
    """uint8[H,W,3] RGB and when it was captured."""

    t_capture_ns: int
    image: np.ndarray
    seq: int


class CameraSource(Protocol):
    def newest(self) -> Frame | None: ...

    @property
    def seq(self) -> int:
        """Sequence number of the newest frame; cheap, for polling."""

    def wait(self, seq: int, until_ns: int) -> bool:
        """Sleep until there is a newer frame than number `seq`, or until then (monotonic); whether there is one."""

    def close(self) -> None: ...


def slot_path(folder: Path, camera: str) -> Path:
    return folder / f"camera-{camera}.slot"


class SlotCamera:
    """A camera that another process writes into a slot; a writer that was started again is followed."""

    noisy = False  # the simulator's table may stand still

    def __init__(self, config: CameraConfig, path: Path):
        try:
            self._slot = SlotReader(path)
        except SlotError as e:
            raise CameraError(
                f"camera '{config.name}' is missing ({path} has no frames): start its writer, or correct 'source' in the robot file."
            ) from e
        self._path, self._before = path, 0
        self._looked, self._last = time.monotonic(), -1

    @property
    def seq(self) -> int:
        newest = self._slot.newest
        now = time.monotonic()
        if newest != self._last:
            self._last, self._looked = newest, now
        elif now - self._looked > LOOK_AGAIN_S:
            self._looked = now
            if self._slot.replaced:
                try:
                    self._slot, self._before = SlotReader(self._path), self._before + newest
                except SlotError:  # gone for good, or not there yet
                    pass
        return self._before + self._slot.newest

    def wait(self, seq: int, until_ns: int) -> bool:
        while True:
            newest = self._slot.newest  # before the look: what comes after it ends the sleep at once
            if self.seq > seq:
                return True
            rest = until_ns - time.monotonic_ns()
            if rest <= 0:
                return False
            self._slot.wait(newest, min(rest, int(LOOK_AGAIN_S * 1e9)))

    def newest(self) -> Frame | None:
        got = self._slot.read()
        if got is None:
            return None
        t_ns, width, height = FRAME_HEAD.unpack_from(got[0])
        image = np.frombuffer(got[0], np.uint8, width * height * 3, FRAME_HEAD.size).reshape(height, width, 3)
        return Frame(t_ns, image, self._before + got[1])

    def close(self) -> None:
        self._slot.close()


class DeviceCamera:
    """V4L2, GStreamer, file or URL through OpenCV, read by a thread; opened again with growing pauses when it fails.

    Stamps: the driver's own for V4L2 (CLOCK_MONOTONIC, start of the transfer for most USB cameras: add the exposure), else the time
    of hand-over less `delay_ms` of the robot file.
    """

    noisy = True

    def __init__(self, config: CameraConfig):
        self.config = config
        self.file = "://" not in config.source and Path(config.source).is_file()
        self.noisy = not self.file
        self.reconnects = 0
        self._v4l2 = is_device(config.source)
        self.delay_ns = 0 if self._v4l2 else int(config.delay_ms * 1e6)
        self._capture = self._open()
        if self._capture is None:
            gone = self._v4l2 and not Path(node(config.source)).exists()
            why = "is missing" if gone else "cannot be opened"
            raise CameraError(
                f"camera '{config.name}' {why} ({config.source}): plug it in, or correct 'source' in the robot file."
            )
        self._frame: Frame | None = None
        self._count = 0
        self._came = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"camera-{config.name}", daemon=True)
        self._thread.start()

    def _open(self) -> Any:
        """A working capture, or None."""
        import cv2

        c = self.config
        if c.source.startswith("gst:"):
            capture = cv2.VideoCapture(c.source.removeprefix("gst:"), cv2.CAP_GSTREAMER, [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, PIPELINE_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, STALL_MS,
            ])  # fmt: skip
        elif self._v4l2:
            if not Path(node(c.source)).exists():
                return None
            os.environ.setdefault(*WAIT_V4L2)
            capture = cv2.VideoCapture(int(c.source) if c.source.isdigit() else c.source, cv2.CAP_V4L2)
            if c.fourcc:  # first: which sizes and rates there are depends on it
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*c.fourcc))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, c.width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, c.height)
            capture.set(cv2.CAP_PROP_FPS, c.fps)
            # OpenCV's own four buffers: with one, some drivers lose every other frame, and the thread reads on to the newest anyway.
        elif "://" in c.source and cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
            capture = cv2.VideoCapture(c.source, cv2.CAP_FFMPEG, [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, STALL_MS,
            ])  # fmt: skip
        else:
            capture = cv2.VideoCapture(c.source)
        if capture.isOpened():
            return capture
        capture.release()
        return None

    def _stamp(self) -> int:
        now = time.monotonic_ns()
        if self._v4l2:
            import cv2

            driver = int(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if 0 <= now - driver < 1_000_000_000:  # some drivers stamp by another clock, or not at all
                return driver
        return now - self.delay_ns

    def _again(self) -> None:
        """Open what has failed, with pauses of 0.1 s to 2 s; returns when it is open or the camera is closed."""
        self._capture.release()
        pause = FIRST_PAUSE_S
        while not self._stop:
            capture = self._open()
            if capture is not None:
                self._capture = capture
                self.reconnects += not self.file  # a film starts again
                return
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    def _run(self) -> None:
        prefer(CAMERA_PRIORITY)
        ticker, failed = Ticker(self.config.fps), 0
        while not self._stop:
            if self.file:
                ticker.wait()
            asked = time.monotonic()
            ok, bgr = self._capture.read()
            if not ok:
                stalled = time.monotonic() - asked > 0.8e-3 * STALL_MS  # waiting four times more would be too long
                failed += FAILURES if stalled else 1
                if self.file or failed >= FAILURES:
                    failed = 0
                    self._again()
                else:
                    time.sleep(0.01)
                continue
            failed = 0
            stamp = self._stamp()
            frame = Frame(stamp, np.ascontiguousarray(bgr[..., ::-1]), self._count + 1)
            with self._came:
                self._frame, self._count = frame, frame.seq
                self._came.notify_all()

    @property
    def seq(self) -> int:
        return self._count

    def wait(self, seq: int, until_ns: int) -> bool:
        with self._came:
            return self._came.wait_for(lambda: self._count > seq, max(until_ns - time.monotonic_ns(), 0) * 1e-9)

    def newest(self) -> Frame | None:
        return self._frame

    def close(self) -> None:
        self._stop = True
        self._thread.join(3.0)
        if not self._thread.is_alive():  # else it is inside read() still, and nobody may take the capture away under it
            self._capture.release()


def open_camera(config: CameraConfig, slots: Path, timeout_s: float = 3.0) -> CameraSource:
    """Open a camera ("sim", "slot:PATH", or a device, file or URL) and wait for its first frame.

    Raises CameraError when none comes or it has another size.
    """
    camera: CameraSource
    if config.source == "sim":
        camera = SlotCamera(config, slot_path(slots, config.name))
    elif config.source.startswith("slot:"):
        camera = SlotCamera(config, Path(config.source.removeprefix("slot:")))
    else:
        camera = DeviceCamera(config)
    deadline = time.monotonic() + timeout_s
    while (frame := camera.newest()) is None:
        if time.monotonic() > deadline:
            camera.close()
            raise CameraError(
                f"camera '{config.name}' gives no frames ({config.source}): check its cable and that no other program uses it."
            )
        time.sleep(0.01)
    height, width = frame.image.shape[:2]
    if (width, height) != (config.width, config.height):
        camera.close()
        raise CameraError(
            f"camera '{config.name}' gives {width}x{height}, the robot file says {config.width}x{config.height}: "
            "correct the robot file, and calibrate the camera at that resolution."
        )
    return camera


def open_cameras(robot: Robot, wanted: Iterable[str], slots: Path) -> dict[str, CameraSource]:
    """All cameras that a bundle wants; raises CameraError, and leaves none open then."""
    cameras: dict[str, CameraSource] = {}
    try:
        for name in wanted:
            if name not in robot.cameras:
                raise CameraError(
                    f"the bundle needs camera '{name}', which {robot.path} does not have: add it under [camera.{name}]."
                )
            cameras[name] = open_camera(robot.cameras[name], slots)
    except CameraError:
        for camera in cameras.values():
            camera.close()
        raise
    return cameras


def is_device(source: str) -> bool:
    """Whether a camera's `source` is a V4L2 device: a number, or a path such as /dev/video0 or a name under /dev/v4l/by-id."""
    return source.isdigit() or (source.startswith("/dev/") and not Path(source).is_file())  # a film may lie in /dev/shm


def node(source: str) -> str:
    """A camera's `source` with the device's path in place of its bare number, as OpenCV takes it."""
    return f"/dev/video{source}" if source.isdigit() else source


def serial(source: str) -> str | None:
    """The USB serial number behind a device such as /dev/video0; None where there is none (file, slot, simulator)."""
    try:
        device = Path("/sys/class/video4linux") / Path(node(source)).resolve().name / "device"
        return (device.resolve().parent / "serial").read_text().strip() or None
    except OSError:
        return None


def focus(source: str) -> int | str | None:
    """Focus position of a V4L2 device, "auto" while it focuses by itself; None where it has no such control (most have none) or is no
    device."""
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


def calibrations(robot: Robot, slots: Path) -> dict[str, Camera]:
    """Each camera's calibration, checked against the resolution it is used at; raises CalibrationError."""
    out = {}
    for name, config in robot.cameras.items():
        path = slots / f"{name}.json" if config.calibration == "sim" else robot.path.parent / config.calibration
        camera = load_camera(path, {"serial": serial(config.source), "focus": focus(config.source)})
        if (camera.width, camera.height) != (config.width, config.height):
            raise CalibrationError(
                f"camera '{name}' is calibrated at {camera.width}x{camera.height} ({path}) and used at "
                f"{config.width}x{config.height}: calibrate it at the resolution of the robot file."
            )
        out[name] = camera
    return out
