"""Cameras: newest frame only, stamped at capture. Slots (the simulator, other processes) and OpenCV devices."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from calibration.camera import CalibrationError, Camera, load_camera
from firmware_bridge.clock import prefer
from firmware_bridge.slots import SlotError, SlotReader
from runtime.robot import CameraConfig, Robot

FRAME_HEAD = struct.Struct("<qII")  # capture time (monotonic ns), width, height; then RGB bytes

CAMERA_PRIORITY = 11  # above the loop that waits for its pictures


class CameraError(Exception):
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

    def close(self) -> None: ...


def slot_path(folder: Path, camera: str) -> Path:
    return folder / f"camera-{camera}.slot"


class SlotCamera:
    """A camera that another process writes into a slot."""

    def __init__(self, config: CameraConfig, path: Path):
        try:
            self._slot = SlotReader(path)
        except SlotError as e:
            raise CameraError(
                f"camera '{config.name}' is missing ({path} has no frames): start its writer, or correct 'source' in the robot file."
            ) from e
        self._name = config.name

    @property
    def seq(self) -> int:
        return self._slot.newest

    def newest(self) -> Frame | None:
        got = self._slot.read()
        if got is None:
            return None
        t_ns, width, height = FRAME_HEAD.unpack_from(got[0])
        image = np.frombuffer(got[0], np.uint8, width * height * 3, FRAME_HEAD.size).reshape(height, width, 3)
        return Frame(t_ns, image, got[1])

    def close(self) -> None:
        self._slot.close()


class DeviceCamera:
    """V4L2 device (path or number), video file or URL through OpenCV, read by a thread. Stamped when the frame has been handed over.

    That is later than the exposure by the transfer time (about one frame period for USB cameras); the driver's own stamp is
    not offered by OpenCV.
    """

    def __init__(self, config: CameraConfig):
        import cv2

        source: str | int = int(config.source) if config.source.isdigit() else config.source
        if config.source.startswith("/dev/video") and not Path(config.source).exists():
            raise CameraError(
                f"camera '{config.name}' is missing ({config.source}): plug it in, or correct 'source' in the robot file."
            )
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise CameraError(
                f"camera '{config.name}' cannot be opened ({config.source}): plug it in, or correct 'source' in the robot file."
            )
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
        self._capture.set(cv2.CAP_PROP_FPS, config.fps)
        self._frame: Frame | None = None
        self._count = 0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"camera-{config.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        prefer(CAMERA_PRIORITY)
        while not self._stop:
            ok, bgr = self._capture.read()
            if not ok:
                time.sleep(0.05)
                continue
            self._count += 1
            self._frame = Frame(time.monotonic_ns(), np.ascontiguousarray(bgr[..., ::-1]), self._count)

    @property
    def seq(self) -> int:
        return self._count

    def newest(self) -> Frame | None:
        return self._frame

    def close(self) -> None:
        self._stop = True
        self._thread.join(1.0)
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


def serial(source: str) -> str | None:
    """The USB serial number behind a device such as /dev/video0; None where there is none (file, slot, simulator)."""
    try:
        device = Path("/sys/class/video4linux") / Path(source).resolve().name / "device"
        return (device.resolve().parent / "serial").read_text().strip() or None
    except OSError:
        return None


def calibrations(robot: Robot, slots: Path) -> dict[str, Camera]:
    """Each camera's calibration, checked against the resolution it is used at; raises CalibrationError."""
    out = {}
    for name, config in robot.cameras.items():
        path = slots / f"{name}.json" if config.calibration == "sim" else robot.path.parent / config.calibration
        camera = load_camera(path, {"serial": serial(config.source)})
        if (camera.width, camera.height) != (config.width, config.height):
            raise CalibrationError(
                f"camera '{name}' is calibrated at {camera.width}x{camera.height} ({path}) and used at "
                f"{config.width}x{config.height}: calibrate it at the resolution of the robot file."
            )
        out[name] = camera
    return out
