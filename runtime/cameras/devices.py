"""Real cameras, through OpenCV: V4L2, GStreamer, video files (played at their rate, over and over), URLs (RTSP, HTTP).

`serve` reads one of them into a file of frames until it is told to stop, and opens it again, with growing pauses, when
it fails.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.clock import Ticker, prefer
from common.errors import Mendable
from common.timing import CAMERA_PRIORITY
from runtime.cameras.frames import BGR, FrameWriter
from runtime.cameras.v4l2 import is_device, node
from runtime.robot import CameraConfig

STALL_MS, OPEN_MS = 1000, 3000  # limits for a read and for opening a stream; OpenCV's own are 10 s and more
PIPELINE_MS = 10_000  # opening a GStreamer pipeline, which waits for a sensor to start
WAIT_V4L2 = ("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(STALL_MS // 1000))  # read by OpenCV at its first picture
FAILURES = 5  # reads that fail in a row before a device is opened again
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0  # between attempts to open it


class CameraError(Mendable):
    """A camera that cannot be used; one sentence and the next step."""


def is_film(source: str) -> bool:
    """Whether a camera's `source` is a video file."""
    return "://" not in source and not is_device(source) and Path(source).is_file()


def _stream(config: CameraConfig) -> Any:
    """An OpenCV capture that may or may not be open."""
    import cv2

    def with_limits(source: str, backend: int, open_ms: int) -> Any:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, STALL_MS]
        return cv2.VideoCapture(source, backend, limits)

    source = config.source
    if source.startswith("gst:"):
        return with_limits(source.removeprefix("gst:"), cv2.CAP_GSTREAMER, PIPELINE_MS)
    if "://" in source and cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
        return with_limits(source, cv2.CAP_FFMPEG, OPEN_MS)
    return cv2.VideoCapture(source)


def _v4l2(config: CameraConfig) -> Any:
    """The same of a V4L2 device, at the size, rate and pixel format of the robot file."""
    import cv2

    os.environ.setdefault(*WAIT_V4L2)
    capture = cv2.VideoCapture(int(config.source) if config.source.isdigit() else config.source, cv2.CAP_V4L2)
    if config.fourcc:  # first: which sizes and rates there are depends on it
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.fourcc))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
    capture.set(cv2.CAP_PROP_FPS, config.fps)
    # The four buffers that OpenCV asks for stay: with one, some drivers lose every other frame. The thread reads on to
    # the newest frame in any case.
    return capture


def open_capture(config: CameraConfig) -> Any:
    """A working OpenCV capture, or None."""
    if not is_device(config.source):
        capture = _stream(config)
    elif Path(node(config.source)).exists():
        capture = _v4l2(config)
    else:
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None


class Device:
    """One real camera, whose pictures go into the file `path`, which appears with the first of them.

    Stamps: the driver's own for V4L2 (CLOCK_MONOTONIC, start of the transfer for most USB cameras: add the exposure),
    else the time of hand-over less `delay_ms` of the robot file.
    """

    def __init__(self, config: CameraConfig, path: Path):
        self.config, self.path = config, path
        self.v4l2, self.film = is_device(config.source), is_film(config.source)
        self.reopened = 0
        self.writer: FrameWriter | None = None
        self._size = config.width, config.height
        self._capture = open_capture(config)
        if self._capture is None:
            gone = self.v4l2 and not Path(node(config.source)).exists()
            why = "is missing" if gone else "cannot be opened"
            raise CameraError(
                f"camera '{config.name}' {why} ({config.source}): plug it in, or correct 'source' in the robot file."
            )

    def read(self) -> bool:
        """Wait for the next picture and publish it; returns whether one came. Raises CameraError for a picture without
        three colours."""
        if self.writer is None:
            self.writer = FrameWriter(self.path, *self._size)
        ok, picture = self._capture.read(
            self.writer.buffer(*self._size)
        )  # straight into the file, where the size is right
        if not ok:
            return False
        stamp = self._stamp()
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise CameraError(
                f"camera '{self.config.name}' gives pictures of shape {picture.shape}, not of three colours: end its "
                "pipeline "
                "in `video/x-raw,format=BGR ! appsink`."
            )
        height, width = picture.shape[:2]
        if (width, height) != self._size:
            self._size = width, height
            if not self.writer.fits(width, height):
                self.writer = FrameWriter(self.path, width, height)
            np.copyto(self.writer.buffer(width, height), picture)
        self.writer.publish(stamp, width, height, BGR, self.reopened)
        return True

    def _stamp(self) -> int:
        now = time.monotonic_ns()
        if self.v4l2:
            import cv2

            driver = int(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if 0 <= now - driver < 1_000_000_000:  # some drivers stamp by another clock, or not at all
                return driver
            return now
        return now - int(self.config.delay_ms * 1e6)

    def reopen(self, stop: threading.Event) -> None:
        """Open what has failed, with pauses of 0.1 s to 2 s; returns when it is open or `stop` is set."""
        self._capture.release()
        pause = FIRST_PAUSE_S
        while not stop.is_set():
            capture = open_capture(self.config)
            if capture is not None:
                self._capture = capture
                self.reopened += not self.film  # a film starts again
                return
            stop.wait(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    def release(self) -> None:
        self._capture.release()


def serve(config: CameraConfig, path: Path, stop: threading.Event, came: Callable[[], None]) -> None:
    """Read a camera into the file `path` until `stop`; `came` is called at its first picture. Raises CameraError where
    it cannot be opened or its pictures cannot be used."""
    device = Device(config, path)
    prefer(CAMERA_PRIORITY)
    ticker, failed, first = Ticker(config.fps), 0, True
    while not stop.is_set():
        if device.film:
            ticker.wait()
        asked = time.monotonic()
        if device.read():
            failed = 0
            if first:
                first = False
                came()
            continue
        stalled = time.monotonic() - asked > 0.8e-3 * STALL_MS  # four more such reads would take too long
        failed += FAILURES if stalled else 1
        if device.film or failed >= FAILURES:
            failed = 0
            device.reopen(stop)
        else:
            time.sleep(0.01)
    device.release()
