"""Files of frames: the newest picture with its time; readers that wait, readers that are slow, writers that change."""

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from calibration.camera import CalibrationError
from calibration.store import Store, new_record
from common.slots import SlotError
from runtime.cameras.devices import CameraError
from runtime.cameras.frames import BGR, FRAMES, FrameReader, FrameWriter, frames_path
from runtime.cameras.sources import calibrations, open_camera
from runtime.robot import CameraConfig, load_robot
from tests.tiny import FRONT, WRIST

SIM = CameraConfig("front", "sim", 8, 6, 50.0, "sim")


def write(writer, t_ns, value, size=(8, 6)):
    writer.write(t_ns, np.full((size[1], size[0], 3), value, np.uint8))


@pytest.fixture
def writer(tmp_path):
    return FrameWriter(frames_path(tmp_path, "front"), 8, 6)


def test_the_newest_frame_comes_with_its_time(tmp_path, writer):
    write(writer, 11, 1)
    camera = open_camera(SIM, tmp_path)
    write(writer, 22, 2)
    write(writer, 33, 3)
    frame = camera.newest()
    assert (frame.t_capture_ns, frame.frame_number, camera.frame_number) == (33, 3, 3)
    assert frame.image.shape == (6, 8, 3) and (frame.image == 3).all()
    assert camera.newest() is frame  # taken out once
    camera.close()


def test_a_picture_in_another_order_of_colours_is_read_as_rgb(writer):
    writer.buffer(8, 6)[:] = (1, 2, 3)
    writer.publish(7, 8, 6, BGR)
    frame = FrameReader(writer.path).newest()
    assert (frame.image == (3, 2, 1)).all()


def test_a_frame_that_was_taken_stays_as_it_was(writer):
    reader = FrameReader(writer.path)
    write(writer, 11, 1)
    frame = reader.newest()
    for k in range(2 * FRAMES):
        write(writer, 20 + k, 200)
    assert (frame.image == 1).all()


def test_a_reader_that_was_overtaken_while_it_copied_takes_the_newest_instead(writer, monkeypatch):
    reader = FrameReader(writer.path)
    write(writer, 11, 1)
    copied, slow = reader._copied, [True]

    def overtaken(frame_number):
        frame = copied(frame_number)
        if slow:
            slow.clear()
            for k in range(FRAMES - 1):
                write(writer, 20 + k, 2 + k)
        return frame

    monkeypatch.setattr(reader, "_copied", overtaken)
    frame = reader.newest()
    assert (frame.t_capture_ns, frame.frame_number) == (22, 4) and (frame.image == 4).all()


def test_no_frame_is_torn_while_a_writer_and_a_reader_run_freely(tmp_path):
    writer = FrameWriter(tmp_path / "big", 640, 480)
    reader, stop = FrameReader(writer.path), threading.Event()

    def run():
        k = 0
        while not stop.is_set():
            k = k % 250 + 1
            writer.buffer(640, 480)[:] = k
            writer.publish(k, 640, 480)

    thread = threading.Thread(target=run)
    thread.start()
    seen: set[int] = set()
    try:
        while len(seen) < 60:
            frame = reader.newest()
            if frame is not None:
                assert (frame.image == frame.t_capture_ns).all()
                seen.add(frame.frame_number)
    finally:
        stop.set()
        thread.join()


def after(seconds, act):
    thread = threading.Timer(seconds, act)
    thread.start()
    return thread


@pytest.mark.wall_clock
def test_who_waits_for_the_next_frame_has_it_at_once_and_not_before(tmp_path, writer):
    write(writer, 11, 1)
    camera = open_camera(SIM, tmp_path)
    assert camera.wait(0, 0)  # there already
    began = time.monotonic()
    assert not camera.wait(1, time.monotonic_ns() + 50_000_000)
    assert 0.05 <= time.monotonic() - began < 0.5
    thread = after(0.03, lambda: write(writer, 22, 2))
    began = time.monotonic()
    assert camera.wait(1, time.monotonic_ns() + 5_000_000_000)
    assert time.monotonic() - began < 0.15  # it would look again after 0.2 s
    assert camera.newest().t_capture_ns == 22
    thread.join()


@pytest.mark.wall_clock
def test_who_waits_while_the_writer_is_started_again_has_its_first_frame(tmp_path, writer):
    write(writer, 11, 1)
    camera = open_camera(SIM, tmp_path)
    thread = after(0.05, lambda: write(FrameWriter(writer.path, 8, 6), 22, 2))
    assert camera.wait(1, time.monotonic_ns() + 2_000_000_000)
    assert camera.newest().t_capture_ns == 22
    thread.join()


def test_a_writer_that_was_started_again_is_followed_and_numbers_go_on(tmp_path, writer):
    write(writer, 11, 1)
    camera = open_camera(SIM, tmp_path)
    write(writer, 22, 2)
    before = camera.frame_number
    write(FrameWriter(writer.path, 16, 12), 33, 3, (16, 12))  # of another size, too
    time.sleep(0.25)
    assert camera.frame_number == before + 1
    frame = camera.newest()
    assert (frame.t_capture_ns, frame.frame_number, frame.image.shape) == (33, before + 1, (12, 16, 3))
    camera.close()


def test_a_robot_file_may_name_the_file_of_another_program(tmp_path, writer):
    write(writer, 11, 1)
    named = dataclasses.replace(SIM, source=f"slot:{writer.path}")
    assert open_camera(named, tmp_path / "elsewhere").newest().t_capture_ns == 11


def test_cameras_that_cannot_be_used_are_refused_with_the_next_step(tmp_path, writer):
    with pytest.raises(CameraError, match=r"camera 'front' gives no frames .*check its cable"):
        open_camera(SIM, tmp_path, timeout_s=0.05)
    write(writer, 11, 1, (6, 8))
    with pytest.raises(CameraError, match=r"camera 'front' gives 6x8, the robot file says 8x6: correct the robot file"):
        open_camera(SIM, tmp_path)
    with pytest.raises(CameraError, match=r"camera 'wrist' is missing .*start its writer"):
        open_camera(dataclasses.replace(SIM, name="wrist"), tmp_path)


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [(b"", "holds no frames"), (b"HSL1" + bytes(100), "holds no frames"), (b"HFR1" + bytes(60), "should have")],
)
def test_what_is_no_file_of_frames_is_refused(tmp_path, damage, refusal):
    (tmp_path / "x").write_bytes(damage)
    with pytest.raises(SlotError, match=refusal):
        FrameReader(tmp_path / "x")


def test_a_head_that_was_damaged_gives_no_picture_and_the_next_frame_heals_it(writer):
    reader = FrameReader(writer.path)
    write(writer, 11, 1)
    writer.publish(12, 60_000, 60_000)
    assert reader.newest() is None
    write(writer, 13, 3)
    assert reader.newest().t_capture_ns == 13
    with pytest.raises(SlotError, match="a picture of 9x6 does not fit"):
        writer.buffer(9, 6)


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
