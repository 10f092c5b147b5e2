"""LeRobot's file of a joint calibration: what it means for an arm, and what of it is refused."""

import dataclasses
import json

import numpy as np
import pytest

from calibration import joints
from calibration.camera import CalibrationError
from calibration.joints_lerobot import from_lerobot, to_lerobot
from calibration.report import joints_page
from firmware_bridge.arms import FAMILIES
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from firmware_bridge.virtual.line import MemoryPort
from runtime.robot import SHIPPED, load_robot
from tests.firmware_bridge.so101 import KNOWN as CONFIG
from tests.firmware_bridge.so101 import bus


def test_lerobots_file_goes_in_and_out(tmp_path):
    path = tmp_path / "arm.json"
    data = {
        n: {"id": i, "drive_mode": 0, "homing_offset": 10 * i, "range_min": 800, "range_max": 3290}
        for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)
    }
    path.write_text(json.dumps(data))
    made, ignored = from_lerobot(path, CONFIG)
    assert ignored == () and to_lerobot(made) == data and made.joints[0].zero_step == 2045
    gripper = made.joints[-1]
    assert (gripper.range_min - gripper.zero_step) * RAD_PER_STEP == pytest.approx(so101.SHUT, abs=RAD_PER_STEP)
    arm = made.apply(CONFIG)
    assert arm.lower[-1] == pytest.approx(so101.SHUT, abs=RAD_PER_STEP)  # it can be shut, and driven no further


@pytest.mark.parametrize("name", ["so101", "koch"])
@pytest.mark.parametrize(("direction", "shut", "opened"), [(1, 2031, 3000), (-1, 3000, 2031)])
def test_an_imported_jaw_is_shut_where_lerobots_gripper_is_at_0(tmp_path, name, direction, shut, opened):
    """LeRobot's 100 is the open stop, from which the arm keeps away, as from the stops of every other joint."""
    config = load_robot(str(SHIPPED / f"{name}.toml"), calibrated=False).arm
    config = dataclasses.replace(config, direction=(*config.direction[:-1], direction))
    row = {"drive_mode": 0, "homing_offset": 0, "range_min": 700, "range_max": 3400}
    data = {n: {"id": i, **row} for n, i in zip(config.joints, config.ids, strict=True)}
    data["gripper"] |= {"range_min": 2031, "range_max": 3000}
    (tmp_path / "arm.json").write_text(json.dumps(data))
    made, _ = from_lerobot(tmp_path / "arm.json", config)
    driven = made.apply(config)
    virtual, _ = bus()
    least, most = (
        Arm(Bus(MemoryPort(virtual)), driven).to_steps(np.array(q))[-1] for q in (driven.lower, driven.upper)
    )
    assert least == shut and driven.lower[-1] <= FAMILIES[name].SHUT
    assert abs(most - opened) * RAD_PER_STEP == pytest.approx(joints.MARGIN, abs=RAD_PER_STEP)
    joints_page(tmp_path / "joints.html", made, None)
    ends = np.degrees(driven.lower[-1]), np.degrees(driven.upper[-1])
    assert f"<td>{ends[0]:.0f} to {ends[1]:.0f} degrees, zero at" in (tmp_path / "joints.html").read_text()


@pytest.mark.parametrize(("drive_mode", "direction"), [(1, 1), (True, 1), (0, -1)])
def test_of_a_joint_that_counts_backwards_lerobots_upper_end_is_the_closed_gripper(tmp_path, drive_mode, direction):
    """Backwards by LeRobot's file, or by the robot file alone."""
    config = dataclasses.replace(CONFIG, direction=(direction,) * 6)
    row = {"drive_mode": drive_mode, "homing_offset": 3, "range_min": 800, "range_max": 3290}
    data = {n: {"id": i, **row} for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)}
    (tmp_path / "arm.json").write_text(json.dumps(data))
    made, _ = from_lerobot(tmp_path / "arm.json", config)
    assert [j.direction for j in made.joints] == [-1] * 6
    assert [j.zero_step for j in made.joints] == [2045] * 5 + [3290 - 114]
    assert all(row["drive_mode"] == 1 for row in to_lerobot(made).values())
    assert made.apply(config).lower[5] == pytest.approx(so101.SHUT, abs=RAD_PER_STEP)


def test_lerobots_positive_is_the_makers_positive(tmp_path):
    """A servo whose steps grow turns the joint as the maker's model does: pan to the right, the jaw open."""
    row = {"drive_mode": 0, "homing_offset": 0, "range_min": 800, "range_max": 3290}
    data = {n: {"id": i, **row} for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)}
    (tmp_path / "arm.json").write_text(json.dumps(data))
    config = from_lerobot(tmp_path / "arm.json", CONFIG)[0].apply(CONFIG)
    virtual, _ = bus()
    a = Arm(Bus(MemoryPort(virtual)), config)
    q = (
        (np.full(6, 2045 + 341) - config.zero_step) * np.array(config.direction) * RAD_PER_STEP
    )  # 30 degrees of the middle
    assert np.allclose(a.to_steps(q), 2045 + 341)
    pose = so101.forward(q)
    assert so101.heading(pose) == pytest.approx(-np.radians(30), abs=2e-3) and pose[5] > 1


BEYOND = (
    "the homing_offset {} of elbow_flex is beyond -2047 to 2047, all that its servo holds: run `lerobot-calibrate` "
    "again with that joint held in the middle of its range, or `harmowam calibrate joints`"
)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: d.pop("gripper"), "is for joints"),
        (lambda d: d["gripper"].update(id=9), "is servo 9"),
        (lambda d: d["gripper"].pop("range_min"), "no LeRobot calibration"),
        (lambda d: d["gripper"].update(range_max=9000), "from 0 to 4095, not 9000"),
        (
            lambda d: d["gripper"].update(range_min=None),
            "'gripper.range_min' must be a whole number from 0 to 4095, not null",
        ),
        (
            lambda d: d["elbow_flex"].update(range_max="3290"),
            "'elbow_flex.range_max' must be a whole number from 0 to 4095, not '3290'",
        ),
        (lambda d: d["elbow_flex"].update(drive_mode=None), "'elbow_flex.drive_mode' must be 0 or 1, not null"),
        (
            lambda d: d["shoulder_pan"].update(homing_offset=True),
            "'shoulder_pan.homing_offset' must be a whole number .* not true",
        ),
        (lambda d: d.clear(), "no LeRobot calibration .it names no joint.: give the JSON that lerobot-calibrate wrote"),
        (lambda d: d.update(seventh=dict(d["gripper"])), "is for joints .*gripper, seventh, the robot has"),
        (lambda d: d["elbow_flex"].update(homing_offset=2048), BEYOND.format(2048)),
        (lambda d: d["elbow_flex"].update(homing_offset=-2048), BEYOND.format(-2048)),
        (lambda d: d["elbow_flex"].update(homing_offset=3114), BEYOND.format(3114)),
        (lambda d: d["elbow_flex"].update(homing_offset=10**7), BEYOND.format(10**7)),
    ],
)
def test_another_arms_file_is_refused(tmp_path, spoil, sentence):
    data = {
        n: {"id": i, "drive_mode": 0, "homing_offset": 0, "range_min": 800, "range_max": 3290}
        for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)
    }
    spoil(data)
    (tmp_path / "arm.json").write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match=sentence):
        from_lerobot(tmp_path / "arm.json", CONFIG)


@pytest.mark.parametrize("extra", [{"version": 1}, {"_meta": {"id": "mine", "made": "today"}}, {"made with": None}])
def test_a_key_that_is_no_joint_is_ignored_and_said(tmp_path, extra):
    row = {"drive_mode": 0, "homing_offset": 0, "range_min": 800, "range_max": 3290}
    joints_only = {n: {"id": i, **row} for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)}
    for name, data in (("plain", joints_only), ("more", {**extra, **joints_only})):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    plain, _ = from_lerobot(tmp_path / "plain.json", CONFIG)
    assert from_lerobot(tmp_path / "more.json", CONFIG) == (plain, tuple(extra))


def test_lerobots_list_format_is_refused_by_its_age(tmp_path):
    lists = {
        "homing_offset": [2048, -3114, 1024, 0, 5, 7],
        "drive_mode": [0] * 6,
        "start_pos": [2000] * 6,
        "end_pos": [3000] * 6,
        "calib_mode": ["DEGREE"] * 5 + ["LINEAR"],
        "motor_names": list(CONFIG.joints),
    }
    (tmp_path / "arm.json").write_text(json.dumps(lists))
    next_step = "run `lerobot-calibrate` again and import what it writes, or run `harmowam calibrate joints`"
    with pytest.raises(CalibrationError, match=f"list format from before 2025: {next_step}"):
        from_lerobot(tmp_path / "arm.json", CONFIG)
