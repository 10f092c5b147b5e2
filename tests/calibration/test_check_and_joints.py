"""The drift check tells a moved camera from a wrong arm; joint calibration speaks LeRobot's form and watches the EEPROM."""

import dataclasses
import json

import numpy as np
import pytest

from calibration import check, joints
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.hand_eye import inverse, transform
from firmware_bridge.arm import Arm, ArmError
from firmware_bridge.bus import Bus
from firmware_bridge.sts3215 import RAD_PER_STEP
from firmware_bridge.virtual_bus import MemoryPort
from sim.boards import render
from sim.calibration_rig import look_at
from tests.firmware_bridge.so101 import CONFIG, bus

MARKER = Board.parse("charuco:5x4:0.030:0.022:4x4_50")
POSE = look_at(np.array([0.62, 0.05, 0.45]), np.array([0.25, 0.0, 0.0]))
CAMERA = Camera(
    "front", 640, 480, np.array([[460.0, 0, 322], [0, 459, 238], [0, 0, 1]]), np.array([-0.2, 0.05, 0, 0, 0]), POSE
)
TABLE = np.eye(4)
TABLE[:3, :3] = np.array([[0, -1.0, 0], [-1, 0, 0], [0, 0, -1]])
TABLE[:3, 3] = [0.33, 0.08, 0.0]
RAISED = TABLE @ transform(np.array([-0.4, -0.1, 0.0]), np.array([0.0, -0.03, -0.12]))


def frames(count, rng, moved=np.eye(4), place=TABLE):
    clean = render(CAMERA, inverse(POSE @ moved) @ place, MARKER)
    return [np.clip(clean + rng.normal(0, 2, clean.shape), 0, 255).astype(np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(0)
    shaken = [
        frames(1, rng, place=RAISED @ transform(rng.normal(0, 0.005, 3), rng.normal(0, 0.001, 3))) for _ in range(8)
    ]
    return check.learn(frames(check.LEARN_FRAMES, rng), MARKER, shaken, MARKER)


def test_a_standing_camera_is_ok_and_a_quarter_degree_or_two_millimetres_are_seen(reference):
    rng = np.random.default_rng(1)
    assert check.check(reference, frames(10, rng)).level == check.OK
    for moved in (
        transform(np.radians(0.25) * np.array([0, 1.0, 0]), np.zeros(3)),
        transform(np.zeros(3), np.array([0, 0, 0.002])),
    ):
        assert check.check(reference, frames(10, rng, moved)).level in (check.WARN, check.BLOCK)


def test_a_bump_blocks(reference):
    verdict = check.check(
        reference, frames(10, np.random.default_rng(2), transform(np.array([0, 0.08, 0]), np.array([0.03, 0, 0])))
    )
    assert verdict.level == check.BLOCK and "camera has moved" in verdict.reason


def test_camera_moved_arm_off_and_marker_moved_are_told_apart(reference):
    rng = np.random.default_rng(3)
    bump = transform(np.array([0.02, 0.02, 0]), np.zeros(3))
    off = RAISED @ transform(np.zeros(3), np.array([0.02, 0.0, 0]))
    assert "camera has moved" in check.check(reference, frames(10, rng, bump), frames(10, rng, bump, RAISED)).reason
    arm = check.check(reference, frames(10, rng), frames(10, rng, place=off))
    assert arm.level == check.BLOCK and "the arm is off" in arm.reason
    moved = TABLE @ transform(np.zeros(3), np.array([0.02, 0.01, 0]))
    assert (
        "marker was moved" in check.check(reference, frames(10, rng, place=moved), frames(10, rng, place=RAISED)).reason
    )


def test_a_hidden_marker_blocks_and_another_resolution_is_refused(reference):
    dark = [np.full((480, 640), 90, np.uint8)] * 10
    verdict = check.check(reference, dark)
    assert verdict.level == check.BLOCK and "hidden" in verdict.reason
    with pytest.raises(CalibrationError, match="320x240"):
        check.check(reference, [np.zeros((240, 320), np.uint8)])
    with pytest.raises(CalibrationError, match="no picture to judge"):
        check.check(reference, [])
    with pytest.raises(CalibrationError, match="not seen"):
        check.learn(dark * 3, MARKER)
    assert check.Reference.from_json(json.loads(json.dumps(reference.to_json()))).noise == reference.noise


def arm():
    virtual, _ = bus()
    return Arm(Bus(MemoryPort(virtual)), CONFIG), virtual


def sweep(recorder, low=700, high=3300):
    n = len(CONFIG.ids)
    for s in range(low, high + 1, 100):
        recorder.add(np.full(n, s))
    return recorder


def test_guided_motion_yields_the_bridges_config():
    made = sweep(joints.RangeRecorder(CONFIG)).finish(np.full(6, 2000), dict.fromkeys(CONFIG.ids, -12))
    config = made.apply(CONFIG)
    assert config.zero_step == (2000,) * 6
    assert config.lower[0] == pytest.approx(max(CONFIG.lower[0], (700 - 2000) * RAD_PER_STEP + joints.MARGIN))
    assert all(a >= b for a, b in zip(config.lower, CONFIG.lower, strict=True))


def test_an_arm_whose_offsets_are_others_than_when_it_was_calibrated_is_refused():
    """As after another `lerobot-calibrate`: every step means another angle, limits included."""
    a, virtual = arm()
    virtual.put(3, "homing_offset", -37)
    made = sweep(joints.RangeRecorder(CONFIG)).finish(np.full(6, 2000), joints.eeprom_offsets(a))
    named = dataclasses.replace(CONFIG, eeprom=((3, "homing_offset", 5), (1, "max_temperature", 70)))
    config = made.apply(named)
    assert (1, "max_temperature", 70) in config.eeprom and len(config.eeprom) == 7
    again = Arm(Bus(MemoryPort(virtual)), config)
    again.check()
    virtual.put(3, "homing_offset", 500)
    with pytest.raises(ArmError, match=r"servo 3 .elbow_flex. holds homing_offset 500"):
        again.check()


def test_a_joint_that_was_not_moved_or_wraps_round_is_refused():
    lazy = joints.RangeRecorder(CONFIG)
    lazy.add(np.full(6, 2000))
    assert lazy.missing() == list(CONFIG.joints)
    with pytest.raises(CalibrationError, match="move it from stop to stop"):
        sweep(joints.RangeRecorder(CONFIG), 2000, 2100).finish(np.full(6, 2048), dict.fromkeys(CONFIG.ids, 0))
    wrapping = joints.RangeRecorder(CONFIG)
    wrapping.add(np.full(6, 4090))
    with pytest.raises(CalibrationError, match="end of its encoder"):
        wrapping.add(np.full(6, 5))


def test_eeprom_is_read_over_the_bus_and_compared():
    a, virtual = arm()
    virtual.put(3, "homing_offset", -37)
    offsets = joints.eeprom_offsets(a)
    assert offsets[3] == -37
    made = sweep(joints.RangeRecorder(CONFIG)).finish(joints.reported_steps(a), offsets)
    assert joints.compare(made, joints.eeprom_offsets(a)) == []
    virtual.put(3, "homing_offset", 0)
    assert joints.compare(made, joints.eeprom_offsets(a)) == [
        "elbow_flex (servo 3): homing offset 0 in EEPROM, -37 when calibrated"
    ]


def test_lerobots_file_goes_in_and_out(tmp_path):
    path = tmp_path / "arm.json"
    data = {
        n: {"id": i, "drive_mode": 0, "homing_offset": 10 * i, "range_min": 800, "range_max": 3290}
        for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)
    }
    path.write_text(json.dumps(data))
    made = joints.from_lerobot(path, CONFIG)
    assert joints.to_lerobot(made) == data and made.joints[0].zero_step == 2045
    gripper = made.joints[-1]
    assert gripper.zero_step == gripper.range_min  # shut is 0 rad, as in the guided calibration and in the simulator


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: d.pop("gripper"), "is for joints"), (lambda d: d["gripper"].update(id=9), "is servo 9"),
        (lambda d: d["gripper"].pop("range_min"), "no LeRobot calibration"), (lambda d: d["gripper"].update(range_max=9000), "impossible"),
        (lambda d: d["gripper"].update(range_min=None), "'range_min' of gripper is null"),
        (lambda d: d["elbow_flex"].update(range_max="3290"), "'range_max' of elbow_flex is \"3290\""),
        (lambda d: d["elbow_flex"].update(drive_mode=None), "'drive_mode' of elbow_flex is null"),
        (lambda d: d["shoulder_pan"].update(homing_offset=True), "'homing_offset' of shoulder_pan is true"),
    ],
)  # fmt: skip
def test_another_arms_file_is_refused(tmp_path, spoil, sentence):
    data = {
        n: {"id": i, "drive_mode": 0, "homing_offset": 0, "range_min": 800, "range_max": 3290}
        for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)
    }
    spoil(data)
    (tmp_path / "arm.json").write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match=sentence):
        joints.from_lerobot(tmp_path / "arm.json", CONFIG)
