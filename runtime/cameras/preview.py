"""One look through a camera: a picture of it, and the size and rate that it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from runtime.cameras.devices import is_film, open_capture
from runtime.robot import CameraConfig

SETTLING = 10  # pictures of a live camera until its exposure fits
TRIES = 2  # reads without a picture; each waits as long as `runtime.cameras.devices` allows


@dataclass(frozen=True)
class Look:
    """`config`: what was asked for, with the size and rate that came; `jpeg`: one picture; `pixel_format`: the four
    characters by which V4L2 calls how it came (MJPG, YUYV), "" where that is not known."""

    config: CameraConfig
    jpeg: bytes
    pixel_format: str = ""


def look(config: CameraConfig) -> Look | None:
    """Open the camera of `config`, which no other program may have open, and take a picture; None where it does not
    open or gives none."""
    import cv2

    capture = open_capture(config)
    if capture is None:
        return None
    try:
        picture, wanted, failed = None, 1 if is_film(config.source) else SETTLING, 0
        while wanted and failed < TRIES:
            came, newer = capture.read()
            picture = newer if came else picture
            wanted, failed = wanted - came, failed + (not came)
        if picture is None:
            return None
        told = float(capture.get(cv2.CAP_PROP_FPS))
        fps = told if math.isfinite(told) and 1 <= told <= 1000 else config.fps
        height, width = picture.shape[:2]
        jpeg = bytes(cv2.imencode(".jpg", picture)[1])
        kind = _four_characters(int(capture.get(cv2.CAP_PROP_FOURCC)))
        return Look(replace(config, width=width, height=height, fps=fps), jpeg, kind)
    finally:
        capture.release()


def _four_characters(code: int) -> str:
    """A FOURCC as text; "" for one that is none."""
    text = code.to_bytes(4, "little", signed=code < 0).decode("latin-1").rstrip()
    return text if text.isascii() and text.isprintable() else ""
