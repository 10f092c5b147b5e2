"""The sign check: the arm moves, a person looks at it. Here the person looks at the maker's model, posed as the servos
stand."""

import mujoco
import numpy as np
import pytest

from calibration.camera import CalibrationError
from calibration.store import Store
from firmware_bridge.arms.so101 import FAMILY
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from harmowam import calibration_joints
from harmowam.calibration_signs import check_signs
from runtime.robot import load_robot
from tests import makers

pytestmark = pytest.mark.wall_clock


class Person:
    """Answers from where the real arm is: its servos' steps, growing as the maker's angles do. `asked`: (question,
    answer)."""

    def __init__(self, plant):
        self.plant, self.asked = plant, []
        self.model = mujoco.MjModel.from_xml_path(str(makers.SO101))
        self.before = self.look()

    def look(self):
        data = mujoco.MjData(self.model)
        data.qpos[:6] = (self.plant.position - 2048) * RAD_PER_STEP
        mujoco.mj_kinematics(self.model, data)
        frame = data.site("gripperframe")
        gap = np.linalg.norm(data.geom("fixed_jaw_pad").xpos - data.geom("moving_jaw_pad").xpos)
        return frame.xpos.copy(), frame.xmat.reshape(3, 3).copy(), float(gap)

    def __call__(self, text):
        (p0, R0, gap0), (p1, R1, gap1) = self.before, self.look()
        seen = {
            "right": p1[1] < p0[1] - 0.01,
            "forward and down": p1[2] < p0[2] - 0.01,
            "forearm tilt down": p1[2] < p0[2] - 0.01,
            "gripper tilt down": p1[2] < p0[2] - 0.005,
            "counter-clockwise": (R1 @ R0.T)[1, 2] > 0.05,
            "jaw open": gap1 > gap0 + 0.003,
        }
        found = [v for k, v in seen.items() if k in text]
        if not found:
            self.before = self.look()
            return ""
        self.asked.append((text, bool(found[0])))
        return "y" if found[0] else "n"


def test_an_arm_whose_joints_turn_as_the_makers_passes_and_is_let_go_where_it_was_held(bench):
    plant = bench.servos.plant
    plant.position[:] = 2048
    robot = load_robot(str(bench.robot_file))
    told: list[str] = []
    person = Person(plant)
    check_signs(robot, robot.arm, robot.port, person, told.append)
    assert [q.split(": ")[1].removesuffix("? (y/n)") for q, _ in person.asked] == list(FAMILY.SEEN_TURNS)
    assert all(answer for _, answer in person.asked)
    assert np.abs(plant.position - 2048).max() < 20 and bench.torque() == [0] * 6
    assert told == ["hold the arm: it lets go"]


def test_joints_that_turn_the_other_way_are_named_and_nothing_is_stored(bench, tmp_path, monkeypatch):
    """A robot file with the wrong direction of pan and roll: what every shipped one said when angles were mirrored."""
    text = bench.robot_file.read_text()
    for name in ("shoulder_pan", "wrist_roll"):
        text = text.replace(f'name = "{name}"', f'name = "{name}"\ndirection = -1')
    bench.robot_file.write_text(text)
    plant = bench.servos.plant
    plant.position[:] = 2048
    robot, store = load_robot(str(bench.robot_file)), Store(tmp_path / "store")
    moved = iter([900, *range(900, 3300, 300), 3200])

    def by_hand(wait_s):
        at = next(moved, None)
        plant.position[:] = 2048 if at is None else at
        return at is None

    monkeypatch.setattr(calibration_joints, "_enter_pressed", by_hand)
    with pytest.raises(CalibrationError, match=r"shoulder_pan, wrist_roll turned the other way .* nothing was stored"):
        calibration_joints.guided(robot, store, robot.port, tmp_path / "r.html", Person(plant), print)
    assert store.current_hash("joints") is None and bench.torque() == [0] * 6


def test_an_arm_far_from_the_zero_pose_is_not_moved(bench):
    plant = bench.servos.plant
    plant.position[:] = 2048 + 500
    robot = load_robot(str(bench.robot_file))
    with pytest.raises(
        CalibrationError, match=r"shoulder_pan, .* is far from the zero pose: hold the arm as described"
    ):
        check_signs(robot, robot.arm, robot.port, Person(plant), print)
    assert bench.torque() == [0] * 6
