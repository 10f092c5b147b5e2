"""The camera process: it owns the devices, others look; it is refused in one sentence, started again, and never left
behind."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from runtime.cameras.devices import CameraError
from runtime.cameras.process import CameraProcess, looking_at, open_cameras, owned
from runtime.cameras.sources import open_camera
from runtime.robot import SHIPPED, load_robot
from tests.rig import film

pytestmark = pytest.mark.wall_clock


@pytest.fixture
def robot(tmp_path):
    """An arm's robot file whose cameras are two films."""
    text = (SHIPPED / "so101.toml").read_text()
    for device, name in (("/dev/video0", "front"), ("/dev/video2", "wrist")):
        text = text.replace(device, film(tmp_path / f"{name}.avi", (20, 80, 200), (640, 480)))
    (tmp_path / "robot.toml").write_text(text)
    return load_robot(str(tmp_path / "robot.toml"))


@pytest.fixture
def slots(tmp_path):
    (tmp_path / "slots").mkdir()
    return tmp_path / "slots"


def gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_pictures_of_all_cameras_come_from_one_other_process_which_ends_with_the_context(robot, slots):
    with open_cameras(robot, ["front", "wrist"], slots) as cameras:
        assert set(cameras) == {"front", "wrist"}
        for camera in cameras.values():
            frame = camera.newest()
            assert frame.image.shape == (480, 640, 3) and abs(frame.image[..., 0].mean() - 200) < 6
            assert camera.wait(frame.frame_number, time.monotonic_ns() + 1_000_000_000)
        children = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "runtime.cameras.process"], capture_output=True
        )
        (pid,) = map(int, children.stdout.split())
    assert gone(pid)


def test_cameras_that_others_write_need_no_process(slots):
    process = CameraProcess(load_robot("sim_so101"), ["front", "wrist"], slots)
    assert process.pids == []
    process.wait()
    process.close()


def test_a_camera_that_cannot_be_opened_is_named_and_nothing_is_left_running(robot, slots):
    broken = robot.path.read_text().replace("wrist.avi", "none.avi")
    robot.path.write_text(broken)
    process = CameraProcess(load_robot(str(robot.path)), ["front", "wrist"], slots)
    with pytest.raises(CameraError, match=r"camera 'wrist' cannot be opened \(.*none.avi\): plug it in"):
        process.wait()
    process.close()
    assert gone(process.pids[0])


def test_a_camera_of_the_bundle_that_the_robot_file_lacks_is_refused(robot, slots):
    with (
        pytest.raises(CameraError, match=r"needs camera 'third', which .*robot.toml does not have: add it"),
        open_cameras(robot, ["third"], slots),
    ):
        pass


def test_a_process_that_was_killed_is_started_again_and_its_readers_follow(robot, slots):
    process = CameraProcess(robot, ["front"], slots)
    process.wait()
    try:
        with contextlib.closing(open_camera(robot.cameras["front"], slots)) as camera:
            before = camera.frame_number
            os.kill(process.pids[0], signal.SIGKILL)
            assert camera.wait(before + 30, time.monotonic_ns() + 10_000_000_000)
        assert process.starts == 2
    finally:
        process.close()
    assert gone(process.pids[0])


@pytest.mark.parametrize("waits", [True, False], ids=["with its first picture", "while it starts"])
def test_a_process_ends_when_its_parent_is_killed(robot, slots, waits):
    program = (
        "import sys, time; from pathlib import Path; from runtime.cameras.process import CameraProcess\n"
        "from runtime.robot import load_robot\n"
        f"p = CameraProcess(load_robot({str(robot.path)!r}), ['front'], Path({str(slots)!r}))\n"
        f"{'p.wait()' if waits else ''}\n"
        "print(p.pids[0], flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert gone(pid)


def test_who_only_looks_takes_the_frames_of_the_process_that_owns_the_camera(robot):
    with looking_at(robot, "front") as first:
        folder = owned(robot.cameras["front"])
        assert folder == first.path.parent
        assert owned(robot.cameras["wrist"]) is None
        with looking_at(robot, "front") as second:
            assert second.path == first.path
            assert second.newest().image.shape == (480, 640, 3)
        assert first.wait(first.frame_number, time.monotonic_ns() + 1_000_000_000)  # who looked has not ended it
    assert owned(robot.cameras["front"]) is None and not folder.exists()


def test_frames_that_nobody_renews_are_nobodys(robot):
    with looking_at(robot, "front") as camera:
        (pid,) = [
            int(p) for p in subprocess.run(["pgrep", "-f", str(camera.path.parent)], capture_output=True).stdout.split()
        ]
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(2.2)
            assert owned(robot.cameras["front"]) is None
        finally:
            os.kill(pid, signal.SIGCONT)


def test_the_simulators_cameras_are_owned_by_the_simulator():
    config = load_robot("sim_so101").cameras["front"]
    assert owned(config) is None and owned(dataclasses.replace(config, source="slot:x")) is None
