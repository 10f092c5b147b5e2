"""Cameras for the loops, calibration and the console: files of frames that another process writes.

`source` in the robot file says who writes: "sim": the simulator; "slot:PATH": another program
(`runtime/cameras/frames.py: FrameWriter`); a device ("/dev/videoN", a name under /dev/v4l/by-id, a number),
"gst:PIPELINE", a video file or a URL is read by the camera process (`runtime/cameras/process.py`).
"""

from __future__ import annotations

import time
from pathlib import Path

from calibration.camera import CalibrationError, Camera
from calibration.store import load_camera
from common.slots import SlotError
from runtime.cameras.devices import CameraError, is_film
from runtime.cameras.frames import FrameReader, frames_path
from runtime.cameras.v4l2 import focus, is_device, serial
from runtime.robot import CameraConfig, Robot

FIRST_FRAME_S = 3.0


def is_real(config: CameraConfig) -> bool:
    """Whether the camera process reads it."""
    return config.source != "sim" and not config.source.startswith("slot:")


class CameraSource(FrameReader):
    """One camera of the robot file. `noisy`: two of its pictures are never equal; `delay_ns`: the age of a picture at
    its hand-over."""

    def __init__(self, config: CameraConfig, path: Path):
        self.config = config
        self.noisy = is_real(config) and not is_film(config.source)
        self.delay_ns = int(config.delay_ms * 1e6) if is_real(config) and not is_device(config.source) else 0
        try:
            super().__init__(path)
        except SlotError as e:
            raise CameraError(
                f"camera '{config.name}' is missing ({path} has no frames): start its writer, or correct 'source' in "
                "the robot file."
            ) from e


def open_camera(config: CameraConfig, slots: Path, timeout_s: float = FIRST_FRAME_S) -> CameraSource:
    """A camera whose writer has begun, in folder `slots` unless the robot file names its file; waits for the first
    frame.

    Raises CameraError when none comes or it has another size.
    """
    named = config.source.startswith("slot:")
    camera = CameraSource(
        config, Path(config.source.removeprefix("slot:")) if named else frames_path(slots, config.name)
    )
    deadline = time.monotonic() + timeout_s
    while (frame := camera.newest()) is None:
        if time.monotonic() > deadline:
            camera.close()
            raise CameraError(
                f"camera '{config.name}' gives no frames ({config.source}): check its cable and that no other program "
                "uses it."
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
