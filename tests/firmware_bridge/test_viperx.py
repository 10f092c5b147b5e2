"""The ViperX 300 S against the maker's model (MJCF and meshes of `gym-aloha`)."""

import mujoco
import numpy as np
import pytest

from firmware_bridge.arms.viperx import FAMILY as viperx
from tests import makers

POSES = np.random.default_rng(0).uniform(viperx.LOWER, viperx.UPPER, (300, 7))
WHO = "vx300s_left/"
# The maker's bodies, and the link of ours that each is part of; -1: the base.
PARTS = {
    "vx300s_left": -1,
    f"{WHO}shoulder_link": 0,
    f"{WHO}upper_arm_link": 1,
    f"{WHO}upper_forearm_link": 2,
    f"{WHO}lower_forearm_link": 3,
    f"{WHO}wrist_link": 4,
    f"{WHO}gripper_link": 5,
    f"{WHO}gripper_prop_link": 5,
    f"{WHO}left_finger_link": 5,
    f"{WHO}right_finger_link": 5,
}


class Maker:
    def __init__(self):
        self.model = mujoco.MjModel.from_xml_path(str(makers.VIPERX))
        self.data = mujoco.MjData(self.model)
        self.at = [self.model.joint(WHO + j).qposadr[0] for j in viperx.JOINTS[:-1]]

    def pose(self, q):
        """The left arm at joint angles [7] (rad); its fingers slide."""
        self.data.qpos[self.at] = q[:6]
        finger = viperx.finger(q[6])
        self.data.joint(f"{WHO}left_finger").qpos[0] = finger
        self.data.joint(f"{WHO}right_finger").qpos[0] = -finger
        mujoco.mj_kinematics(self.model, self.data)
        return self.data

    def frame(self, body):
        """float64[4,4] of a body in the frame of the arm's base."""
        T = [np.eye(4), np.eye(4)]
        for made, name in zip(T, ("vx300s_left", body), strict=True):
            made[:3, :3], made[:3, 3] = self.data.body(name).xmat.reshape(3, 3), self.data.body(name).xpos
        return np.linalg.inv(T[0]) @ T[1]


@pytest.fixture(scope="module")
def maker():
    return Maker()


def test_joints_and_limits_are_the_makers(maker):
    for k, name in enumerate(viperx.JOINTS[:-1]):
        assert np.allclose(maker.model.joint(WHO + name).range, (viperx.LOWER[k], viperx.UPPER[k]), atol=1e-5)


def test_the_tool_stands_where_the_makers_gripper_does(maker):
    """Joint angles straight in: the tool is a constant 107.2 mm ahead of the maker's gripper_link, and turned as that
    is."""
    away, turned = [], []
    for q in POSES:
        maker.pose(q)
        frame, T = maker.frame(f"{WHO}gripper_link"), viperx.tool(q)
        away.append(frame[:3, :3].T @ (T[:3, 3] - frame[:3, 3]))
        turned.append(frame[:3, :3].T @ T[:3, :3])
    assert np.abs(np.array(away) - [0.1072, 0, 0]).max() < 0.2e-3
    assert np.abs(np.array(turned) - np.eye(3)).max() < 1e-3


def test_at_zero_the_tool_is_at_the_makers_home_pose():
    """`M` of Interbotix' vx300s."""
    assert np.allclose(viperx.tool(np.zeros(7))[:3, 3], [0.536494, 0, 0.42705], atol=1e-6)


@pytest.mark.parametrize(
    ("joint", "says"),
    [
        ("waist", lambda a, b: b[1, 3] > a[1, 3] + 0.01),  # to its left
        ("shoulder", lambda a, b: b[2, 3] < a[2, 3] - 0.01),  # down
        ("elbow", lambda a, b: b[2, 3] < a[2, 3] - 0.01),
        ("forearm_roll", lambda a, b: (b[:3, :3] @ a[:3, :3].T)[2, 1] > 0.05),  # clockwise, seen from behind
        ("wrist_angle", lambda a, b: b[2, 3] < a[2, 3] - 0.005),
        ("wrist_rotate", lambda a, b: (b[:3, :3] @ a[:3, :3].T)[2, 1] > 0.05),
    ],
)
def test_five_degrees_more_turn_maker_and_kinematics_the_same_way(joint, says, maker):
    q, more = np.zeros(7), np.zeros(7)
    more[viperx.JOINTS.index(joint)] = np.radians(5)
    ahead = np.eye(4)
    ahead[0, 3] = 0.1072
    frames = []
    for at in (q, more):
        maker.pose(at)
        frames.append(maker.frame(f"{WHO}gripper_link") @ ahead)
    assert says(*frames)
    assert says(viperx.tool(q), viperx.tool(more))


def test_the_crank_makes_both_ends_of_the_makers_table():
    """gym-aloha, constants.py: gripper angles -0.6213 and 1.4910 rad are fingers at 18.44 and 58.00 mm."""
    assert viperx.LOWER[-1] == viperx.SHUT
    assert viperx.finger(viperx.LOWER[-1]) == pytest.approx(0.01844, abs=0.2e-3)
    assert viperx.finger(viperx.UPPER[-1]) == pytest.approx(0.05800, abs=0.2e-3)
    assert (np.diff(viperx.finger(np.linspace(viperx.LOWER[-1], viperx.UPPER[-1], 50))) > 0).all()


def test_the_makers_fingers_part_as_the_gripper_opens(maker):
    def gap(angle):
        maker.pose(np.array([0, 0, 0, 0, 0, 0, angle]))
        left, right = (maker.frame(f"{WHO}{side}_finger_link")[:3, 3] for side in ("left", "right"))
        assert left[1] > right[1]  # the left one goes to the tool's left
        return left[1] - right[1]

    assert gap(1.0) > gap(0.0) > gap(viperx.SHUT)


def test_the_boxes_hold_the_makers_meshes(maker):
    m = maker.model
    rng = np.random.default_rng(3)
    for q in rng.uniform(viperx.LOWER, viperx.UPPER, (5, 7)):
        data, frames = maker.pose(q), viperx.frames(q)
        base = np.eye(4)
        base[:3, :3], base[:3, 3] = data.body("vx300s_left").xmat.reshape(3, 3), data.body("vx300s_left").xpos
        for g in range(m.ngeom):
            part = PARTS.get(m.body(m.geom_bodyid[g]).name)
            if part is None or m.geom_type[g] != mujoco.mjtGeom.mjGEOM_MESH:
                continue
            mesh = m.geom_dataid[g]
            first = m.mesh_vertadr[mesh]
            points = m.mesh_vert[first : first + m.mesh_vertnum[mesh]] @ data.geom_xmat[g].reshape(3, 3).T
            T = base if part < 0 else base @ frames[part]
            points = (points + data.geom_xpos[g] - T[:3, 3]) @ T[:3, :3]
            boxes = np.array(viperx.BASE if part < 0 else viperx.chain[part].boxes)
            inside = ((points[:, None] >= boxes[..., 0]) & (points[:, None] <= boxes[..., 1])).all(-1).any(1)
            assert inside.mean() > 0.999, m.geom(g).name
