"""Real cameras through OpenCV: films, streams over HTTP that break off or stall, and how V4L2 and GStreamer are
asked."""

import contextlib
import dataclasses
import socket
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.cameras.devices import CameraError, Device, is_film, open_capture, serve
from runtime.cameras.frames import frames_path
from runtime.cameras.sources import open_camera
from runtime.cameras.v4l2 import is_device
from runtime.robot import CameraConfig
from tests.rig import film

pytestmark = pytest.mark.wall_clock

USB = CameraConfig("front", "0", 8, 6, 50.0, "front.json")


@contextlib.contextmanager
def served(config, folder):
    """The camera read by a thread, and opened as the loops open it."""
    stop, came = threading.Event(), threading.Event()
    path = frames_path(folder, config.name)
    thread = threading.Thread(target=serve, args=(config, path, stop, came.set), daemon=True)
    thread.start()
    try:
        assert came.wait(8)
        yield open_camera(config, folder)
    finally:
        stop.set()
        thread.join(3)


def test_a_film_is_read_in_rgb_at_its_own_rate_and_over_again(tmp_path):
    config = CameraConfig("front", film(tmp_path / "film.avi", (0, 0, 220)), 64, 48, 30.0, "front.json")  # BGR: red
    before = time.monotonic_ns()
    with served(config, tmp_path) as camera:
        frame = camera.newest()
        assert before < frame.t_capture_ns < time.monotonic_ns() and frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.reshape(-1, 3).mean(0) - (220, 0, 0)).max() < 6
        time.sleep(0.4)
        assert 8 <= camera.frame_number <= 16
        seen = camera.frame_number
        assert camera.wait(seen - 1, 0) and not camera.wait(seen + 9, time.monotonic_ns() + 50_000_000)
        assert (
            camera.wait(camera.frame_number, time.monotonic_ns() + 1_000_000_000)
            and camera.newest().frame_number == camera.frame_number > seen
        )
        assert not camera.noisy
        with pytest.raises(CameraError, match="gives 64x48, the robot file says 32x48"):
            open_camera(dataclasses.replace(config, width=32), tmp_path)


@pytest.mark.parametrize("size", [(32, 24), (128, 96)])
def test_pictures_of_another_size_than_asked_for_come_as_they_are(tmp_path, size):
    device = Device(
        dataclasses.replace(USB, source=film(tmp_path / "film.avi"), width=size[0], height=size[1]), tmp_path / "slot"
    )
    assert device.read() and device.read()
    camera = open_camera(CameraConfig("front", f"slot:{tmp_path / 'slot'}", 64, 48, 30.0, "x"), tmp_path)
    assert camera.frame_number >= 1 and camera.newest().image.mean() > 0


def test_a_picture_lands_in_the_file_without_a_copy(tmp_path):
    device = Device(CameraConfig("front", film(tmp_path / "film.avi"), 64, 48, 30.0, "front.json"), tmp_path / "slot")
    given = []

    class Looks:
        def __init__(self, capture):
            self.capture = capture

        def read(self, buffer):
            given.append((buffer, *self.capture.read(buffer)))
            return given[0][1:]

    device._capture = Looks(device._capture)
    device.read()
    buffer, ok, picture = given[0]
    assert ok and np.shares_memory(buffer, picture) and np.shares_memory(buffer, device.writer._bytes)


def test_cameras_that_are_not_there_are_refused_with_the_next_step(tmp_path):
    for source, why in (
        ("/dev/video97", r"is missing \(/dev/video97\): plug it in"),
        ("/dev/v4l/by-id/usb-none-video-index0", "is missing .*plug it in"),
        ("/no/such.avi", r"cannot be opened \(/no/such.avi\)"),
        ("gst:nvarguscamerasrc ! appsink", r"cannot be opened \(gst:nvarguscamerasrc"),  # this OpenCV has no GStreamer
    ):
        with pytest.raises(CameraError, match=f"camera 'front' {why}"):
            Device(dataclasses.replace(USB, source=source), tmp_path / "slot")


def test_a_film_in_shared_memory_is_a_film():
    with tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".avi") as lies:
        assert not is_device(lies.name) and is_film(lies.name)
    assert (
        is_device("0") and is_device("/dev/video0") and is_device("/dev/v4l/by-id/usb-cam") and not is_device("gst:x")
    )


class Recording:
    """Stands in for cv2.VideoCapture: how it was opened, and what was set, in that order."""

    def __init__(self, *how):
        self.how, self.asked = how, []

    def set(self, key, value):
        self.asked.append((key, value))

    def isOpened(self):
        return True


def test_the_pixel_format_comes_before_the_size_and_the_buffers_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Recording)
    monkeypatch.setattr("runtime.cameras.devices.node", lambda source: str(tmp_path))
    usb = dataclasses.replace(USB, fourcc="MJPG")
    keys = [k for k, _ in open_capture(usb).asked]
    assert keys == [cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS]
    assert dict(open_capture(usb).asked)[cv2.CAP_PROP_FOURCC] == int.from_bytes(b"MJPG", "little")
    assert cv2.CAP_PROP_FOURCC not in dict(open_capture(USB).asked)


def test_a_pipeline_has_limits_of_time(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Recording)
    pipeline, backend, limits = open_capture(dataclasses.replace(USB, source="gst:nvarguscamerasrc ! appsink")).how
    assert (pipeline, backend) == ("nvarguscamerasrc ! appsink", cv2.CAP_GSTREAMER)
    limits = dict(zip(limits[::2], limits[1::2], strict=True))
    assert limits == {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC: 1000}


def url(server):
    return CameraConfig("front", f"http://127.0.0.1:{server.port}/a.mjpg", 64, 48, 30.0, "front.json")


def test_a_stream_that_breaks_off_is_opened_again_with_growing_pauses(tmp_path):
    """A real stream over HTTP (motion JPEG), whose server goes away and comes back."""
    server = Stream()
    with served(url(server), tmp_path) as camera:
        server.close()
        time.sleep(0.8)
        before = camera.frame_number
        time.sleep(0.3)
        assert camera.frame_number == before
        server = Stream(server.port)
        deadline = time.monotonic() + 10
        while camera.frame_number <= before + 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        camera.newest()
        assert camera.reopened >= 1
    server.close()


def test_a_stream_that_stalls_without_breaking_off_is_opened_again_within_seconds(tmp_path):
    server = Stream()
    with served(url(server), tmp_path) as camera:
        server.stall.set()
        server.stalled.wait(2)
        began, before = time.monotonic(), camera.frame_number
        while camera.frame_number <= before + 3:
            assert time.monotonic() - began < 6  # OpenCV alone would wait for 30 s
            time.sleep(0.02)
        camera.newest()
        assert camera.reopened == 1
    server.close()


class Stream:
    """Serves pictures as multipart/x-mixed-replace, one client at a time. `stall`: the present client gets nothing
    more, and stays connected."""

    def __init__(self, port=0):
        ok, jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 128, np.uint8))
        self.jpeg = jpeg.tobytes()
        self.listener = socket.create_server(("127.0.0.1", port))
        self.listener.settimeout(0.1)
        self.port = self.listener.getsockname()[1]
        self.stop, self.stall, self.stalled = threading.Event(), threading.Event(), threading.Event()
        self.left: list[socket.socket] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stop.is_set():
            try:
                client, _ = self.listener.accept()
            except TimeoutError:
                continue
            with client:
                client.recv(4096)
                head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
                part = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(self.jpeg)
                try:
                    client.sendall(head)
                    while not self.stop.is_set():
                        if self.stall.is_set():
                            self.stall.clear()
                            self.stalled.set()
                            self.left.append(client.dup())
                            break
                        client.sendall(part + self.jpeg + b"\r\n")
                        time.sleep(0.03)
                except OSError:
                    pass

    def close(self):
        self.stop.set()
        self.thread.join()
        for client in (*self.left, self.listener):
            client.close()


class Stamping(Recording):
    """A capture that has one stamp (ms) to tell."""

    stamp_ms = 0.0

    def get(self, key):
        assert key == cv2.CAP_PROP_POS_MSEC
        return self.stamp_ms


def stamp_of(config, monkeypatch, stamp_ms=0.0):
    """The stamp of a picture that is handed over now, and by how much (ns) it lies before that at most and at least."""
    monkeypatch.setattr(cv2, "VideoCapture", Stamping)
    monkeypatch.setattr("runtime.cameras.devices.node", lambda source: "/")
    monkeypatch.setattr(Stamping, "stamp_ms", stamp_ms)
    device = Device(config, Path("no pictures come"))
    before = time.monotonic_ns()
    stamp = device._stamp()
    return stamp, before - stamp, time.monotonic_ns() - stamp


PIPELINE = dataclasses.replace(USB, source="gst:x ! appsink", delay_ms=40.0)
V4L2 = dataclasses.replace(USB, delay_ms=40.0)


def test_the_delay_of_the_robot_file_is_taken_off_the_time_of_hand_over(monkeypatch):
    _, least, most = stamp_of(PIPELINE, monkeypatch)
    assert least <= 40_000_000 <= most


def test_a_drivers_own_stamp_counts_as_it_is(monkeypatch):
    driver_ms = time.monotonic_ns() * 1e-6 - 30.0
    stamp, *_ = stamp_of(V4L2, monkeypatch, driver_ms)
    assert abs(stamp - driver_ms * 1e6) < 1000  # no delay is taken off it


@pytest.mark.parametrize("clock", ["none", "since 1970", "an hour ago", "ahead"])
def test_a_drivers_stamp_of_another_clock_is_not_believed(monkeypatch, clock):
    now_ms = time.monotonic_ns() * 1e-6
    others = {"none": 0.0, "since 1970": 1.8e12, "an hour ago": now_ms - 3.6e6, "ahead": now_ms + 60_000}
    _, least, most = stamp_of(V4L2, monkeypatch, others[clock])
    assert least <= 0 <= most
