"""Calibration with a live arm and live cameras: what is refused before the arm moves, and how it is put down."""

import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.camera import CalibrationError
from calibration.store import Store, new_record
from firmware_bridge.motion.endings import Exit, exit_code
from firmware_bridge.motion.messages import SafetyState
from harmowam.calibration_rig import LiveRig, refuse_moved
from harmowam.cli import main
from runtime.cameras.sources import open_camera
from runtime.robot import load_robot
from sim.calibration_rig import webcam
from tests.calibration.verbs import calibrate


def test_a_run_is_refused_when_the_marker_is_not_where_it_was(bench):
    """The robot file names a marker; the bench's cameras show a bar instead."""
    from calibration.check import Reference

    store = Store(bench.folder / "calibration")
    for name in ("front", "wrist"):
        r = json.loads((bench.folder / f"{name}.json").read_text())
        mount = "base" if name == "front" else "arm"
        record = new_record(
            "camera",
            name,
            r,
            identity={"width": 320, "height": 240, "mount": mount},
            parents=[],
            uncertainty={},
            evidence={},
        )
        store.set_current(name, store.put(record), "test")
    text = bench.robot_file.read_text().replace(
        'calibration = "front.json"', 'calibration = "calibration/front"\nmarker = "chessboard:6x5:0.015"'
    )
    bench.robot_file.write_text(text)
    robot = load_robot(str(bench.robot_file))
    cameras = {"front": open_camera(robot.cameras["front"], bench.folder)}
    with pytest.raises(CalibrationError, match="no calibration"):
        refuse_moved(robot, cameras, print)
    seen = Reference("chessboard:6x5:0.015", 320, 240, np.arange(30), np.full((30, 2), 100.0), 0.02)
    parents = [store.current_hash("front") or ""]
    reference = new_record(
        "reference", "front.reference", seen.to_json(), identity={}, parents=parents, uncertainty={}, evidence={}
    )
    store.set_current("front.reference", store.put(reference), "test")
    with pytest.raises(CalibrationError, match=r"must not be used.*hidden"):
        refuse_moved(robot, cameras, print)
    for c in cameras.values():
        c.close()


def test_the_arm_is_driven_through_guard_and_motor_process_and_put_down(bench, tmp_path):
    robot = load_robot(str(bench.robot_file))
    with LiveRig(robot, tmp_path / "slots") as rig:
        start = rig.state().q_rad[:-1].astype(float)
        goal = start + np.array([0.2, 0.1, 0, -0.1, 0.2])
        assert not any(bench.torque())  # limp until it is asked
        rig.enable_torque()
        assert np.abs(rig.move_to(goal, velocity=1.5) - goal).max() < 0.02
        time.sleep(
            robot.arm.stop_after_s + 0.4
        )  # looking for a board may take longer than the motor process waits for a command
        assert rig.state().safety == SafetyState.ACTIVE
        assert all(bench.torque())
    assert not any(bench.torque())


def test_a_motor_process_that_dies_is_noticed_while_calibrating_and_the_guards_words_are_shown(bench, tmp_path, capfd):
    with LiveRig(load_robot(str(bench.robot_file)), tmp_path / "slots") as rig:
        rig.enable_torque()
        keeper = rig.session.keeper.pid
        (motor,) = [int(p) for p in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
        os.kill(motor, signal.SIGKILL)
        with pytest.raises(
            CalibrationError,
            match=r"the motor process is silent: end other work on this machine \(load .*virtual servos answer late",
        ):
            rig.move_to(rig.state().q_rad[:-1] + 0.3, velocity=0.1)
    said = capfd.readouterr().err
    assert "guard: motor process died (signal 9): holding" in said and "error: the arm lost its motor process" in said
    assert exit_code(Exit.REFUSED) == Exit.GUARD
    assert not any(bench.torque())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_calibration_that_is_told_to_end_puts_the_arm_down(bench, tmp_path, number):
    with pytest.raises(KeyboardInterrupt), LiveRig(load_robot(str(bench.robot_file)), tmp_path / "slots") as rig:
        rig.enable_torque()
        signal.raise_signal(number)
    assert rig.session.close().code == Exit.REST and not any(bench.torque())


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("resolution", "for width 1280, this camera has 320"),
        ("camera", "for camera A1, this camera has B2"),
        ("focus", "for focus 30, this camera has 31"),
        ("autofocus", "focuses by itself.*focus_automatic_continuous=0"),
        ("name", "has no camera 'side': give one of front, wrist"),
        ("pictures", "gives 320x240, the robot file says 640x480"),
        ("board", "did not see the board .board not found.: hold the arm so that it does"),
    ],
)
def test_hand_eye_refuses_another_camera_than_the_lens_was_calibrated_with_or_an_unseen_board_before_the_arm_stiffens(
    bench, case, sentence, monkeypatch, tmp_path
):
    from harmowam import calibration_rig

    name = "side" if case == "name" else "front"
    if case == "pictures":
        bench.robot_file.write_text(
            bench.robot_file.read_text().replace("width = 320", "width = 640").replace("height = 240", "height = 480")
        )
    size = {"resolution": (1280, 720), "pictures": (640, 480)}.get(case, (320, 240))
    store = Store(tmp_path / "store")
    record = new_record(
        "camera",
        name,
        webcam(None).scaled(*size).to_json(),
        identity={"width": size[0], "height": size[1], "serial": "A1", "focus": 30, "mount": "base"},
        parents=[],
        uncertainty={},
        evidence={},
    )
    store.set_current(name, store.put(record), "test")
    monkeypatch.setattr(calibration_rig, "serial", lambda source: "B2" if case == "camera" else "A1")
    focus = {"focus": 31, "autofocus": "auto"}.get(case, 30)
    monkeypatch.setattr(calibration_rig, "focus", lambda source: focus)
    monkeypatch.setattr("harmowam.live_hand_eye.SEEK_S", 0.3)
    stood = bench.servos.plant.position.copy()
    result = calibrate("hand-eye", "--robot", bench.robot_file, "--camera", name, "--store", store.root)
    assert result.exit_code == 2 and re.search(sentence, result.stderr), result.output
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: ") and len(before) == (case == "board")  # by then it has said what to do
    assert (bench.servos.plant.position == stood).all() and not any(bench.torque())


def test_joints_are_calibrated_by_moving_the_limp_arm(bench, tmp_path, monkeypatch):
    """A hand moves the virtual servos from stop to stop once it is told to; the result is compared with their
    EEPROM."""
    from calibration.joints_servos import reported_steps
    from harmowam import calibration_joints

    read, write = os.pipe()
    typed = os.fdopen(read)
    monkeypatch.setattr(sys, "stdin", typed)
    plant, look = bench.servos.plant, reported_steps
    told: list[str] = []
    shares = iter([*np.linspace(0, 1, 12), *np.linspace(1, 0, 12)])

    def moved_by_hand(arm):
        """One step of the hand before every look at the joints: a machine that is late misses no end of the range."""
        if any("move every joint" in text for text in told):
            share = next(shares, None)
            if share is None:
                os.write(write, b"\n")
            else:
                plant.position[:] = 900 + 2300 * share
        return look(arm)

    monkeypatch.setattr(calibration_joints, "reported_steps", moved_by_hand)
    plant.position[:] = 2048
    robot, store, page = load_robot(str(bench.robot_file)), Store(tmp_path / "store"), tmp_path / "joints.html"
    done = calibration_joints.guided(robot, store, robot.port, page, print, told.append, poll_s=0.005, sign_check=False)
    typed.close()
    os.close(write)
    assert all(
        abs(j["zero_step"] - zero) < 3 and j["range_min"] < 950 and j["range_max"] > 3150
        for j, zero in zip(done["joints"], [2048] * 5 + [2048 + 114], strict=True)
    )
    assert "shoulder_pan" in page.read_text() and "<svg" in page.read_text()
    assert calibration_joints.compare_eeprom(robot, store, robot.port)["differs"] == []
    bench.servos.put(2, "homing_offset", 55)
    assert "servo 2" in calibration_joints.compare_eeprom(robot, store, robot.port)["said"]
    bench.servos.put(4, "torque_enable", 1)
    with pytest.raises(CalibrationError, match="energised"):
        calibration_joints.guided(robot, store, robot.port, page, print, print)
    # The robot file may name it.
    bench.robot_file.write_text(
        bench.robot_file.read_text().replace("[arm]", f'[arm]\ncalibration = "{store.root}/joints"')
    )
    measured = load_robot(str(bench.robot_file))
    assert measured.joints_measured and measured.arm.zero_step == tuple(j["zero_step"] for j in done["joints"])
    # Naming one that is still to be made stops whoever would drive with it, and nobody who makes it.
    calibration_joints.export_lerobot(store, tmp_path / "lerobot.json")
    bench.robot_file.write_text(bench.robot_file.read_text().replace(str(store.root), str(tmp_path / "fresh")))
    with pytest.raises(CalibrationError, match="run `harmowam calibrate joints`"):
        load_robot(str(bench.robot_file))
    options = ["--robot", str(bench.robot_file), "--store", str(tmp_path / "fresh"), "--report", str(page)]
    made = CliRunner().invoke(
        main, ["calibrate", "joints", *options, "--import-lerobot", str(tmp_path / "lerobot.json")]
    )
    assert made.exit_code == 0 and load_robot(str(bench.robot_file)).joints_measured


def test_only_what_moves_the_arm_waits_for_the_joint_calibration_that_the_robot_file_names(bench, tmp_path):
    bench.robot_file.write_text(
        bench.robot_file.read_text().replace("[arm]", '[arm]\ncalibration = "calibration/joints"')
    )
    options = ("--robot", bench.robot_file, "--store", tmp_path / "store", "--report", tmp_path / "r.html")
    moves = calibrate("hand-eye", *options)
    assert moves.exit_code == 2 and f"run `harmowam calibrate joints --robot {bench.robot_file}`" in moves.stderr
    for looks in ("intrinsics", "check"):
        assert "no picture fits" in calibrate(looks, *options, "--images", tmp_path / "*.png").stderr


def test_the_cameras_focus_is_part_of_its_identity(monkeypatch, tmp_path):
    from runtime.cameras import v4l2 as cameras

    controls = {cameras.FOCUS_ABSOLUTE: 30, cameras.FOCUS_AUTO: 1}

    def ioctl(device, request, packed):
        assert request == cameras.VIDIOC_G_CTRL
        number = cameras.CONTROL.unpack(packed)[0]
        if number not in controls:
            raise OSError(22, "Invalid argument")
        return cameras.CONTROL.pack(number, controls[number])

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "open", lambda path, flags: 99)
    monkeypatch.setattr(os, "close", lambda device: None)
    assert cameras.focus("/dev/video7") == "auto"
    controls[cameras.FOCUS_AUTO] = 0
    assert cameras.focus("7") == 30
    controls.clear()
    assert cameras.focus("/dev/video7") is None and cameras.focus("slot:x") is None and cameras.focus("sim") is None
