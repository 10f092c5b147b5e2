"""The drift check tells a moved camera from a wrong arm; joint calibration measures ranges and watches the EEPROM."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest

from calibration import check, joints
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.drift_job import run_learn, stored_reference
from calibration.joints_servos import eeprom, reported_steps
from calibration.store import Store, new_record
from calibration.transforms import inverse, transform
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from firmware_bridge.virtual.line import MemoryPort
from sim.boards import render
from sim.calibration_rig import look_at
from tests.firmware_bridge.so101 import KNOWN as CONFIG
from tests.firmware_bridge.so101 import bus

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


def exposed(times, pictures):
    return [np.clip(times * p.astype(float), 0, 255).astype(np.uint8) for p in pictures]


@pytest.mark.parametrize(("times", "level"), [(1.55, check.WARN), (1.7, check.BLOCK)])
def test_an_over_exposed_picture_is_named_and_no_moved_camera_or_hidden_marker(reference, times, level):
    verdict = check.check(reference, exposed(times, frames(10, np.random.default_rng(5))))
    assert verdict.level == level and "over-exposed" in verdict.reason
    assert "moved" not in verdict.reason and "hidden" not in verdict.reason


def test_exposure_does_not_explain_a_bump(reference):
    bump = transform(np.array([0, 0.08, 0]), np.array([0.03, 0, 0]))
    verdict = check.check(reference, exposed(1.4, frames(10, np.random.default_rng(6), bump)))
    assert verdict.level == check.BLOCK and "camera has moved" in verdict.reason


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


@pytest.mark.parametrize(("corners", "level"), [(6, check.OK), (5, check.BLOCK)])
def test_of_a_marker_half_of_the_corners_must_be_seen(reference, monkeypatch, corners, level):
    assert len(reference.ids) == 12
    part = (reference.ids[:corners], reference.corners[:corners])
    monkeypatch.setattr(check, "median_corners", lambda frames, board: part)
    verdict = check.check(dataclasses.replace(reference, arm_ids=None), [np.zeros((480, 640), np.uint8)])
    assert verdict.level == level and (
        level == check.OK or "hidden or out of sight (5 of 12 corners)" in verdict.reason
    )


@pytest.fixture
def store(tmp_path):
    """A store with a camera in use."""
    made = Store(tmp_path / "store")
    identity = {"width": 640, "height": 480, "mount": "base"}
    record = new_record("camera", "front", CAMERA.to_json(), identity=identity, parents=[], uncertainty={}, evidence={})
    made.set_current("front", made.put(record), "test")
    return made


def keep(store, reference, parents):
    record = new_record(
        "reference", "front.reference", reference.to_json(), identity={}, parents=parents, uncertainty={}, evidence={}
    )
    store.set_current("front.reference", store.put(record), "learn")


def test_a_drift_reference_of_an_older_calibration_is_refused(store, reference):
    keep(store, reference, [store.current_hash("front")])
    assert stored_reference(store, "front").board == reference.board
    for parents in (["0" * 64], [], ["0" * 64, store.current_hash("front")]):
        keep(store, reference, parents)
        with pytest.raises(
            CalibrationError, match=r"calibrated or rolled back after .*run `harmowam calibrate check --camera \w+ --l"
        ):
            stored_reference(store, "front")


def test_a_drift_reference_at_another_resolution_is_not_learnt(store, reference, monkeypatch):
    other = dataclasses.replace(reference, width=320, height=240)
    monkeypatch.setattr("calibration.drift_job.learn", lambda *_: other)
    with pytest.raises(
        CalibrationError, match=r"gives 320x240, its calibration is for 640x480: set the resolution back"
    ):
        run_learn(store, "front", [], MARKER, None, None)
    assert store.current_hash("front.reference") is None
    monkeypatch.setattr("calibration.drift_job.learn", lambda *_: reference)
    assert run_learn(store, "front", [], MARKER, None, None)["hash"] == store.current_hash("front.reference")


def arm():
    virtual, _ = bus()
    return Arm(Bus(MemoryPort(virtual)), CONFIG), virtual


def watching(config=CONFIG, zero=2000, offset=0):
    """A recorder of an arm whose servos read `zero` in the zero pose."""
    kept = dict.fromkeys(config.ids, joints.StepRegisters(offset, None))
    return joints.RangeRecorder(config, kept, np.full(6, zero))


def sweep(recorder, low=700, high=3300):
    n = len(CONFIG.ids)
    for s in range(low, high + 1, 100):
        recorder.add(np.full(n, s))
    return recorder


def test_guided_motion_yields_the_bridges_config():
    made = sweep(watching(offset=-12)).finish()
    config = made.apply(CONFIG)
    assert config.zero_step == (2000,) * 5 + (2114,)  # the jaw was shut, which is -10 degrees
    assert config.lower[0] == pytest.approx(max(CONFIG.lower[0], (700 - 2000) * RAD_PER_STEP + joints.MARGIN))
    assert all(a >= b for a, b in zip(config.lower, CONFIG.lower, strict=True))


EASY = dataclasses.replace(CONFIG, rest=(0.0,) * 6)  # rests where a short range has it, too


def measured(config=EASY, low=1200, high=2700, zero=2000):
    return sweep(watching(config, zero), low, high).finish()


def test_limits_are_the_measured_stops_less_a_margin_where_the_robot_files_are_not_narrower():
    config = measured().apply(EASY)
    low, high = -800 * RAD_PER_STEP + joints.MARGIN, 700 * RAD_PER_STEP - joints.MARGIN
    assert config.lower == pytest.approx((*[low] * 5, EASY.lower[5]))
    assert config.upper == pytest.approx((*[high] * 5, high - 114 * RAD_PER_STEP))  # the jaw's zero is 10 degrees open
    assert config.ids == EASY.ids and config.direction == EASY.direction


def test_the_stops_of_a_joint_that_counts_backwards_change_sides():
    backwards = dataclasses.replace(EASY, direction=(-1,) * 6)
    config = measured(backwards).apply(backwards)
    low, high = -700 * RAD_PER_STEP + joints.MARGIN, 800 * RAD_PER_STEP - joints.MARGIN
    assert config.lower == pytest.approx((*[low] * 5, EASY.lower[5]))
    assert config.upper == pytest.approx((*[high] * 5, high - 114 * RAD_PER_STEP)) and config.direction == (-1,) * 6
    # Which way a joint counts was found out when it was calibrated: the robot file's word is older.
    assert measured(backwards).apply(EASY).direction == (-1,) * 6


@pytest.mark.parametrize("change", [{"id": 9}, {"name": "elbow"}])
def test_a_calibration_of_other_joints_or_servos_is_refused(change):
    made = measured()
    other = msgspec.structs.replace(made.joints[2], **change)
    spoilt = joints.JointCalibration((*made.joints[:2], other, *made.joints[3:]))
    with pytest.raises(CalibrationError, match=r"for other joints or servo ids .*run `harmowam calibrate joints`"):
        spoilt.apply(EASY)


def test_the_order_of_the_joints_in_a_calibration_means_nothing():
    made = measured()
    assert joints.JointCalibration(made.joints[::-1]).apply(EASY) == made.apply(EASY)


@pytest.mark.parametrize(("joint", "angle"), [(1, -1.2), (2, 1.06)])
def test_a_rest_pose_outside_the_measured_range_is_refused(joint, angle):
    """1.06 rad lies within the stops and not within the margin: the arm would lean on a stop while it rests."""
    rest = [0.0] * 6
    rest[joint] = angle
    config = dataclasses.replace(EASY, rest=tuple(rest))
    name = config.joints[joint]
    with pytest.raises(CalibrationError, match=rf"puts {name} at {angle:.2f} rad, outside its measured range .*'rest'"):
        measured(config).apply(config)


def test_an_arm_whose_offsets_are_others_than_when_it_was_calibrated_is_refused():
    """As after another `lerobot-calibrate`: every step means another angle, limits included."""
    a, virtual = arm()
    virtual.put(3, "homing_offset", -37)
    made = sweep(joints.RangeRecorder(CONFIG, eeprom(a), np.full(6, 2000))).finish()
    named = dataclasses.replace(CONFIG, eeprom=((3, "homing_offset", 5), (1, "max_temperature", 70)))
    config = made.apply(named)
    assert (1, "max_temperature", 70) in config.eeprom and len(config.eeprom) == 7
    again = Arm(Bus(MemoryPort(virtual)), config)
    again.check()
    virtual.put(3, "homing_offset", 500)
    with pytest.raises(ArmError, match=r"servo 3 .elbow_flex. holds homing_offset 500"):
        again.check()


def test_a_jaw_that_is_shut_in_the_zero_pose_only_can_be_shut():
    recorder = watching(zero=2000)
    made = sweep(recorder, 2040, 3300).finish()
    assert made.joints[5].range_min == 2000
    assert made.apply(dataclasses.replace(EASY, rest=(0.2,) * 6)).lower[5] == pytest.approx(so101.SHUT)


def test_a_joint_that_was_not_moved_or_wraps_round_is_refused():
    lazy = watching()
    lazy.add(np.full(6, 2000))
    assert lazy.missing() == list(CONFIG.joints)
    with pytest.raises(CalibrationError, match="move it from stop to stop"):
        sweep(watching(zero=2048), 2000, 2100).finish()
    wrapping = watching()
    wrapping.add(np.full(6, 4090))
    with pytest.raises(CalibrationError, match="end of its encoder"):
        wrapping.add(np.full(6, 5))


def test_eeprom_is_read_over_the_bus_and_compared():
    a, virtual = arm()
    virtual.put(3, "homing_offset", -37)
    kept = eeprom(a)
    assert kept[3] == (-37, None)
    made = sweep(joints.RangeRecorder(CONFIG, kept, reported_steps(a))).finish()
    assert joints.compare(made, eeprom(a)) == []
    virtual.put(3, "homing_offset", 0)
    assert joints.compare(made, eeprom(a)) == ["elbow_flex (servo 3): homing offset 0 in EEPROM, -37 when calibrated"]


def test_a_record_of_mirrored_angles_is_refused():
    record = measured().to_json()
    del record["angles"]
    with pytest.raises(
        CalibrationError, match=r"made for mirrored joint angles .* run `harmowam calibrate joints` again"
    ):
        joints.JointCalibration.from_json(record, "calibration/joints")
