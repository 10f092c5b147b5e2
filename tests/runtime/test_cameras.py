"""Cameras: newest frame, stamped; what is missing or of another size is refused."""

import dataclasses
import json
import socket
import tempfile
import threading
import time

import cv2
import numpy as np
import pytest

from calibration.camera import CalibrationError
from calibration.store import Store, new_record
from common.slots import SlotWriter
from runtime.cameras.sources import (
    FRAME_HEAD,
    CameraError,
    DeviceCamera,
    calibrations,
    is_device,
    open_camera,
    open_cameras,
    slot_path,
)  # fmt: skip
from runtime.robot import CameraConfig, load_robot
from tests.tiny import FRONT, WRIST

pytestmark = pytest.mark.wall_clock

SIM = CameraConfig("front", "sim", 8, 6, 50.0, "sim")


def write(slot, t_ns, value, size=(8, 6)):
    slot.write(FRAME_HEAD.pack(t_ns, *size), np.full((size[1], size[0], 3), value, np.uint8))


@pytest.fixture
def slot(tmp_path):
    return SlotWriter(slot_path(tmp_path, "front"), FRAME_HEAD.size + 8 * 6 * 3)


def test_a_slot_gives_the_newest_frame_with_its_time(tmp_path, slot):
    write(slot, 11, 1)
    camera = open_camera(SIM, tmp_path)
    write(slot, 22, 2)
    write(slot, 33, 3)
    frame = camera.newest()
    assert (frame.t_capture_ns, frame.seq, camera.seq) == (33, 3, 3)
    assert frame.image.shape == (6, 8, 3) and (frame.image == 3).all()
    camera.close()


def after(seconds, act):
    thread = threading.Timer(seconds, act)
    thread.start()
    return thread


def test_who_waits_for_a_slots_next_frame_has_it_at_once_and_not_before(tmp_path, slot):
    write(slot, 11, 1)
    camera = open_camera(SIM, tmp_path)
    assert camera.wait(0, 0)  # there already
    began = time.monotonic()
    assert not camera.wait(1, time.monotonic_ns() + 50_000_000)
    assert 0.05 <= time.monotonic() - began < 0.5
    thread = after(0.03, lambda: write(slot, 22, 2))
    began = time.monotonic()
    assert camera.wait(1, time.monotonic_ns() + 5_000_000_000)
    assert time.monotonic() - began < 0.15  # it would look again after 0.2 s
    assert camera.newest().t_capture_ns == 22
    thread.join()


def test_who_waits_while_a_slots_writer_is_started_again_has_its_first_frame(tmp_path, slot):
    write(slot, 11, 1)
    camera = open_camera(SIM, tmp_path)
    thread = after(0.05, lambda: write(SlotWriter(slot_path(tmp_path, "front"), FRAME_HEAD.size + 8 * 6 * 3), 22, 2))
    assert camera.wait(1, time.monotonic_ns() + 2_000_000_000)
    assert camera.newest().t_capture_ns == 22
    thread.join()


def test_a_slot_may_be_named_by_its_path(tmp_path, slot):
    write(slot, 11, 1)
    named = dataclasses.replace(SIM, source=f"slot:{slot_path(tmp_path, 'front')}")
    assert open_camera(named, tmp_path / "elsewhere").newest().t_capture_ns == 11


def test_cameras_that_cannot_be_used_are_refused_with_the_next_step(tmp_path, slot):
    with pytest.raises(CameraError, match=r"camera 'front' gives no frames .*check its cable"):
        open_camera(SIM, tmp_path, timeout_s=0.05)
    write(slot, 11, 1, (6, 8))
    with pytest.raises(CameraError, match=r"camera 'front' gives 6x8, the robot file says 8x6: correct the robot file"):
        open_camera(SIM, tmp_path)
    with pytest.raises(CameraError, match=r"camera 'wrist' is missing .*start its writer"):
        open_camera(dataclasses.replace(SIM, name="wrist"), tmp_path)
    with pytest.raises(CameraError, match=r"camera 'front' is missing \(/dev/video97\): plug it in"):
        open_camera(dataclasses.replace(SIM, source="/dev/video97"), tmp_path)
    lasting = "/dev/v4l/by-id/usb-none-video-index0"
    with pytest.raises(CameraError, match=rf"camera 'front' is missing \({lasting}\): plug it in"):
        open_camera(dataclasses.replace(SIM, source=lasting), tmp_path)
    with pytest.raises(CameraError, match=r"cannot be opened \(/no/such.avi\)"):
        open_camera(dataclasses.replace(SIM, source="/no/such.avi"), tmp_path)


def test_a_device_is_read_in_rgb_by_a_thread_of_its_own(tmp_path):
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(5):
        film.write(np.full((48, 64, 3), (0, 0, 220), np.uint8))  # BGR: red
    film.release()
    config = CameraConfig("front", str(tmp_path / "film.avi"), 64, 48, 30.0, "front.json")
    before = time.monotonic_ns()
    camera = open_camera(config, tmp_path)
    frame = camera.newest()
    assert before < frame.t_capture_ns < time.monotonic_ns() and frame.image.shape == (48, 64, 3)
    assert np.abs(frame.image.reshape(-1, 3).mean(0) - (220, 0, 0)).max() < 6
    time.sleep(0.4)
    assert 8 <= camera.seq <= 16  # its own rate, and over again at its end
    seen = camera.seq
    assert camera.wait(seen - 1, 0) and not camera.wait(seen + 9, time.monotonic_ns() + 50_000_000)
    assert camera.wait(camera.seq, time.monotonic_ns() + 1_000_000_000) and camera.newest().seq == camera.seq > seen
    camera.close()
    with pytest.raises(CameraError, match="gives 64x48, the robot file says 32x48"):
        open_camera(dataclasses.replace(config, width=32), tmp_path)


def test_a_film_in_shared_memory_is_a_film():
    with tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".avi") as film:
        assert not is_device(film.name)
    assert (
        is_device("0") and is_device("/dev/video0") and is_device("/dev/v4l/by-id/usb-cam") and not is_device("gst:x")
    )


def test_every_camera_of_the_bundle_must_be_in_the_robot_file(tmp_path):
    with pytest.raises(CameraError, match=r"needs camera 'third', which .*sim_so101.toml does not have: add it"):
        open_cameras(load_robot("sim_so101"), ["third"], tmp_path)


def test_a_calibration_at_another_resolution_is_refused(tmp_path):
    for name, camera in (("front", FRONT), ("wrist", WRIST)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**camera, "width": 320, "height": 240}))
    robot = load_robot("sim_so101")
    assert set(calibrations(robot, tmp_path)) == {"front", "wrist"}
    (tmp_path / "wrist.json").write_text(json.dumps(WRIST))
    with pytest.raises(CalibrationError, match=r"camera 'wrist' is calibrated at 96x96 .* used at 320x240"):
        calibrations(robot, tmp_path)
    (tmp_path / "wrist.json").unlink()
    with pytest.raises(CalibrationError, match="cannot be read"):
        calibrations(robot, tmp_path)


class Recording:
    """Stands in for cv2.VideoCapture: how it was opened, and what was set, in that order."""

    def __init__(self, *how):
        self.how, self.asked = how, []

    def set(self, key, value):
        self.asked.append((key, value))

    def isOpened(self):
        return True


def opened(config, monkeypatch, v4l2):
    monkeypatch.setattr(cv2, "VideoCapture", Recording)
    camera = DeviceCamera.__new__(DeviceCamera)
    camera.config, camera._v4l2 = config, v4l2
    return camera._open()


def test_the_pixel_format_comes_before_the_size_and_the_buffers_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.cameras.sources.node", lambda source: str(tmp_path))
    usb = dataclasses.replace(SIM, source="0", fourcc="MJPG")
    keys = [k for k, _ in opened(usb, monkeypatch, True).asked]
    assert keys == [cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS]
    asked = dict(opened(usb, monkeypatch, True).asked)
    assert asked[cv2.CAP_PROP_FOURCC] == int.from_bytes(b"MJPG", "little")
    plain = opened(dataclasses.replace(usb, fourcc=""), monkeypatch, True)
    assert cv2.CAP_PROP_FOURCC not in dict(plain.asked)


def test_a_pipeline_has_limits_of_time(monkeypatch):
    csi = opened(dataclasses.replace(SIM, source="gst:nvarguscamerasrc ! appsink"), monkeypatch, False)
    pipeline, backend, limits = csi.how
    assert (pipeline, backend) == ("nvarguscamerasrc ! appsink", cv2.CAP_GSTREAMER)
    limits = dict(zip(limits[::2], limits[1::2], strict=True))
    assert limits == {cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC: 1000}


def test_a_stream_that_breaks_off_is_opened_again_with_growing_pauses(tmp_path, monkeypatch):
    """A real stream over HTTP (motion JPEG), whose server goes away and comes back."""
    server = Stream()
    config = CameraConfig("front", f"http://127.0.0.1:{server.port}/a.mjpg", 64, 48, 30.0, "front.json")
    camera = open_camera(config, tmp_path, timeout_s=8)
    server.close()
    time.sleep(0.8)
    before = camera.seq
    time.sleep(0.3)
    assert camera.seq == before
    server = Stream(server.port)
    deadline = time.monotonic() + 10
    assert isinstance(camera, DeviceCamera)
    while camera.seq <= before + 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert camera.reconnects >= 1
    camera.close()
    server.close()


def test_a_stream_that_stalls_without_breaking_off_is_opened_again_within_seconds(tmp_path):
    server = Stream()
    config = CameraConfig("front", f"http://127.0.0.1:{server.port}/a.mjpg", 64, 48, 30.0, "front.json")
    camera = open_camera(config, tmp_path, timeout_s=8)
    server.stall.set()
    server.stalled.wait(2)
    began, before = time.monotonic(), camera.seq
    while camera.seq <= before + 3:
        assert time.monotonic() - began < 6  # OpenCV alone would wait for 30 s
        time.sleep(0.02)
    assert isinstance(camera, DeviceCamera) and camera.reconnects == 1
    camera.close()
    server.close()


def test_a_camera_is_not_taken_away_under_a_read_that_hangs(tmp_path):
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    film.write(np.zeros((48, 64, 3), np.uint8))
    film.release()
    camera = open_camera(CameraConfig("front", str(tmp_path / "film.avi"), 64, 48, 30.0, "front.json"), tmp_path)
    assert isinstance(camera, DeviceCamera)
    go_on = threading.Event()

    class Hangs:
        released = False

        def read(self):
            go_on.wait()
            return False, None

        def release(self):
            self.released = True

    camera._capture = hangs = Hangs()
    time.sleep(0.1)
    camera.close()
    assert not hangs.released
    go_on.set()


class Stream:
    """Serves pictures as multipart/x-mixed-replace, one client at a time. `stall`: the present client gets nothing more, and stays
    connected."""

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


def test_a_writer_that_was_started_again_is_followed(tmp_path, slot):
    write(slot, 11, 1)
    camera = open_camera(SIM, tmp_path)
    write(slot, 22, 2)
    before = camera.seq
    again = SlotWriter(slot_path(tmp_path, "front"), FRAME_HEAD.size + 8 * 6 * 3)
    write(again, 33, 3)
    time.sleep(0.25)
    assert camera.seq == before + 1 and camera.newest().t_capture_ns == 33
    camera.close()


def test_gstreamer_pipelines_are_passed_on_and_refused_where_opencv_has_none(tmp_path):
    config = dataclasses.replace(SIM, source="gst:nvarguscamerasrc ! appsink")
    with pytest.raises(CameraError, match=r"cannot be opened \(gst:nvarguscamerasrc"):
        open_camera(config, tmp_path)


class Stamping(Recording):
    """A capture that gives grey pictures and has one stamp (ms) to tell."""

    stamp_ms = 0.0

    def get(self, key):
        assert key == cv2.CAP_PROP_POS_MSEC
        return self.stamp_ms

    def read(self):
        time.sleep(0.005)
        return True, np.full((6, 8, 3), 90, np.uint8)

    def release(self):
        pass


def stamp_of(config, monkeypatch, stamp_ms=0.0):
    """The stamp of a picture that is handed over now, and by how much (ns) it lies before that at most and at least."""
    monkeypatch.setattr(cv2, "VideoCapture", Stamping)
    monkeypatch.setattr("runtime.cameras.sources.node", lambda source: "/")
    monkeypatch.setattr(Stamping, "stamp_ms", stamp_ms)
    camera = DeviceCamera(config)
    try:
        before = time.monotonic_ns()
        stamp = camera._stamp()
        return stamp, before - stamp, time.monotonic_ns() - stamp
    finally:
        camera.close()


PIPELINE = dataclasses.replace(SIM, source="gst:x ! appsink", delay_ms=40.0)
V4L2 = dataclasses.replace(SIM, source="0", delay_ms=40.0)


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


@pytest.mark.parametrize(
    ("serial_now", "focus_now", "refusal"),
    [
        ("A1", 30, ""),
        (None, None, ""),  # a device that does not say
        ("B2", 30, "is for camera A1, this camera has B2"),
        ("A1", 31, "is for focus 30, this camera has 31"),
    ],
)
def test_a_calibration_of_another_camera_or_focus_is_refused(tmp_path, monkeypatch, serial_now, focus_now, refusal):
    store = Store(tmp_path / "calibration")
    identity = {"serial": "A1", "focus": 30, "width": 96, "height": 96, "mount": "base"}
    record = new_record("camera", "front", FRONT, identity=identity, parents=[], uncertainty={}, evidence={})
    store.set_current("front", store.put(record), "test")
    config = CameraConfig("front", "/dev/video7", 96, 96, 30.0, str(store.root / "front"))
    robot = dataclasses.replace(load_robot("sim_so101"), cameras={"front": config})
    monkeypatch.setattr("runtime.cameras.sources.serial", {"/dev/video7": serial_now}.__getitem__)
    monkeypatch.setattr("runtime.cameras.sources.focus", {"/dev/video7": focus_now}.__getitem__)
    if refusal:
        with pytest.raises(CalibrationError, match=refusal):
            calibrations(robot, tmp_path)
    else:
        assert calibrations(robot, tmp_path)["front"].width == 96
