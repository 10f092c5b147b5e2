"""Every arm family alike: one pose after the other, both ways, against the simulated arm of its name and against
mink."""

import mink
import mujoco
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from firmware_bridge.arms import FAMILIES, FamilyError, family
from firmware_bridge.arms.family import Family, difference, rotation
from firmware_bridge.arms.five_axis import FiveAxis
from runtime.robot import SHIPPED, load_robot
from sim.world import compiled

NAMES = sorted(FAMILIES)
each = pytest.mark.parametrize("arm", [FAMILIES[n] for n in NAMES], ids=NAMES)
SHARES = st.lists(st.floats(0.02, 0.98), min_size=8, max_size=8)


def angles(arm, shares):
    """Joint angles at these shares of the maker's limits."""
    return arm.LOWER + np.array(shares[: len(arm.JOINTS)]) * (arm.UPPER - arm.LOWER)


def poses(arm, count, seed=0):
    return np.random.default_rng(seed).uniform(arm.LOWER, arm.UPPER, (count, len(arm.JOINTS)))


def simulated(arm):
    model = compiled("plate", arm)
    return model, mujoco.MjData(model)


def test_the_shipped_families_are_found_by_their_names():
    assert {"so101", "koch", "viperx"} <= set(FAMILIES)
    with pytest.raises(FamilyError, match="'panda' is not known: this version drives koch, so101, viperx"):
        family("panda")


@each
def test_a_familys_numbers_fit_together(arm):
    n = len(arm.JOINTS)
    assert len(arm.LOWER) == len(arm.UPPER) == len(arm.SEEN_TURNS) == len(arm.UPRIGHT) == n
    assert (arm.LOWER < arm.UPPER).all() and arm.LOWER[-1] <= arm.SHUT < arm.UPPER[-1]
    assert ((arm.UPRIGHT >= arm.LOWER) & (arm.UPRIGHT <= arm.UPPER)).all()
    assert [link.name for link in arm.chain] == list(dict.fromkeys(link.name for link in arm.chain))
    assert arm.chain[arm.PAN].axis in ((0, 0, 1), (0, 0, -1))


@each
@pytest.mark.parametrize("kind", ["", "sim_"])
def test_shipped_robot_files_stay_within_the_makers_limits(arm, kind):
    robot = load_robot(kind + arm.NAME)
    assert robot.family is arm and robot.arm.family == arm.NAME and robot.arm.joints == arm.JOINTS
    assert (np.array(robot.arm.lower) >= arm.LOWER - 1e-5).all()
    assert (np.array(robot.arm.upper) <= arm.UPPER + 1e-5).all()
    assert robot.simulated == bool(kind) and robot.path == SHIPPED / f"{kind}{arm.NAME}.toml"


@each
def test_at_rest_the_arm_touches_neither_the_table_nor_itself(arm):
    rest = np.array(load_robot(arm.NAME).arm.rest)
    assert 0.0 < arm.lowest(rest) < 0.05 and arm.room(rest) > 0.0


@each
def test_upright_every_other_joint_may_turn_as_it_likes(arm):
    q = poses(arm, 500)
    q[:, list(arm.RAISING)] = arm.UPRIGHT[list(arm.RAISING)]
    assert arm.room(q).min() > 0.0 and arm.lowest(q).min() > 0.01


@each
def test_forward_kinematics_are_the_simulated_arms_to_rounding(arm):
    model, data = simulated(arm)
    for q in poses(arm, 200):
        data.qpos[: len(q)] = q
        mujoco.mj_kinematics(model, data)
        T, site = arm.tool(q), data.site("tcp")
        assert np.allclose(T[:3, 3], site.xpos, atol=1e-12)
        assert np.allclose(T[:3, :3], site.xmat.reshape(3, 3), atol=1e-6)  # (angles in an MJCF have seven digits)


@each
def test_the_simulated_arm_has_the_makers_limits(arm):
    model, _ = simulated(arm)
    assert np.allclose(model.jnt_range[: len(arm.JOINTS)], np.stack([arm.LOWER, arm.UPPER], 1), atol=1e-5)


@each
def test_many_poses_at_once_are_the_same_as_one_by_one(arm):
    many = poses(arm, 12).reshape(3, 4, -1)
    for what in (arm.tool, arm.forward, arm.lowest, arm.room):
        assert np.allclose(what(many)[1, 2], what(many[1, 2]), atol=1e-12)


@each
def test_five_numbers_and_a_jaw_say_where_the_tool_is(arm):
    """Position, pitch and roll as the general frame has them; of a rotation only what leans out of the arm's plane is
    left away."""
    for q in poses(arm, 100):
        pose, T = arm.forward(q), arm.tool(q)
        assert np.allclose(pose[:3], T[:3, 3], atol=1e-12)
        assert pose[5] == pytest.approx(q[-1] - arm.SHUT)
        seen = Family.forward(arm, q)
        assert np.allclose(np.sin(pose[3:5]), np.sin(seen[3:5]), atol=1e-9)
        assert np.allclose(T, Family.tool(arm, q), atol=1e-12)
        if isinstance(arm, FiveAxis):
            assert np.allclose(rotation(arm.heading_at(q), pose[3], pose[4]), T[:3, :3], atol=1e-9)


@each
def test_a_jaw_that_points_ahead_opens_to_the_tools_left(arm):
    """In the simulated arm: where the moving jaw goes as the last joint grows."""
    model, data = simulated(arm)
    moving = model.geom("moving_jaw").id
    for q in poses(arm, 20):
        at = []
        for jaw in (arm.SHUT + 0.2, arm.SHUT + 0.25):
            mujoco.mj_resetData(model, data)
            data.qpos[: len(q)] = [*q[:-1], jaw]
            _pull_along(model, data)
            mujoco.mj_kinematics(model, data)
            at.append(data.geom_xpos[moving].copy())
        way = arm.tool(q)[:3, :3].T @ (at[1] - at[0])
        assert way[1] > 0.0 and abs(way[2]) < 1e-9


def _pull_along(model, data):
    """Put joints that an equality couples to others where it wants them."""
    for k in range(model.neq):
        if model.eq_type[k] == mujoco.mjtEq.mjEQ_JOINT:
            a, b = (model.jnt_qposadr[j] for j in (model.eq_obj1id[k], model.eq_obj2id[k]))
            moved = data.qpos[b] - model.qpos0[b]
            data.qpos[a] = model.qpos0[a] + np.polynomial.polynomial.polyval(moved, model.eq_data[k, :5])


@each
@given(shares=SHARES)
def test_what_the_arm_has_reached_it_reaches_again(arm, shares):
    q = angles(arm, shares)
    if isinstance(
        arm, FiveAxis
    ):  # elbow up: the forearm bends down from the straight arm, and not through the upper arm
        straight = np.arctan2(arm.links.lower_up, arm.links.lower_forward)
        straight -= np.arctan2(arm.links.upper_up, arm.links.upper_forward)
        q[2] = np.clip(q[2], straight + 0.05, straight + np.pi - 0.05)
        ahead = arm.forward(q)[0] - arm.links.pan_forward
        out = ahead * np.cos(arm.heading_at(q)) + arm.forward(q)[1] * np.sin(arm.heading_at(q))
        assume(q[2] <= arm.UPPER[2] and out > 0.02)  # behind its own pan axis it would turn round instead
    T = arm.tool(q)
    found = arm.reach(T, q[-1] - arm.SHUT, arm.LOWER, arm.UPPER, near=q)
    assert found.exact and found.q[-1] == pytest.approx(q[-1])
    assert max(difference(arm.tool(found.q), T)) < 1e-6


@each
@given(shares=SHARES, place=st.tuples(*(st.floats(-1.2, 1.2),) * 3), turn=st.tuples(*(st.floats(-3, 3),) * 3))
def test_the_limits_are_those_that_are_given(arm, shares, place, turn):
    """Not the maker's: a robot file, or a joint calibration, may have narrower ones. The answer says what is
    missing."""
    middle = angles(arm, shares)
    lower, upper = np.maximum(middle - 0.2, arm.LOWER), np.minimum(middle + 0.2, arm.UPPER)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation(*turn), place
    found = arm.reach(T, 0.3, lower, upper)
    pose = np.array([*place, turn[1], turn[2], 0.3])
    q, exact = arm.inverse(pose, lower, upper)
    for answer in (found.q, q):
        assert ((answer >= lower) & (answer <= upper)).all()
    assert np.allclose((found.away_m, found.turned_rad), difference(arm.tool(found.q), T), atol=1e-9)
    if exact:
        assert np.allclose(arm.forward(q)[:3], place, atol=1e-6)


@each
def test_what_cannot_be_held_whole_keeps_its_place_first(arm):
    """A tool that leans 0.3 rad out of the arm's plane: five axes come to the place and say what turn is missing, six
    hold it."""
    q = arm.UPRIGHT.copy()
    q[list(arm.RAISING)[-2:]] += 0.4
    T = arm.tool(q)
    asked = T.copy()
    asked[:3, :3] = rotation(0.3, 0.0, 0.0) @ T[:3, :3]
    found = arm.reach(asked, 0.0, arm.LOWER, arm.UPPER)
    assert found.away_m < 1e-6
    assert found.exact != isinstance(arm, FiveAxis)
    if not found.exact:
        assert 0.02 < found.turned_rad <= 0.3 + 1e-6


@each
def test_inverse_kinematics_agree_with_mink(arm):
    model, _ = simulated(arm)
    n = len(arm.JOINTS) - 1
    configuration = mink.Configuration(model)
    task = mink.FrameTask("tcp", "site", position_cost=1.0, orientation_cost=0.3)
    still = mink.DofFreezingTask(model, dof_indices=list(range(n, model.nv)))  # jaw and things move nothing
    rng = np.random.default_rng(1)
    for pose in rng.uniform([0.16, -0.08, 0.05, 1.0, -0.4, 0.1], [0.2, 0.08, 0.09, 1.2, 0.4, 0.1], (5, 6)):
        ours, exact = arm.inverse(pose, arm.LOWER, arm.UPPER)
        assert exact
        start = model.qpos0.copy()
        start[:n] = ours[:-1] + rng.uniform(-0.1, 0.1, n)
        configuration.update(start)
        task.set_target(mink.SE3.from_matrix(arm.tool(ours)))
        for _ in range(60):
            velocity = mink.solve_ik(configuration, [task], 0.05, "daqp", damping=1e-5, constraints=[still])
            configuration.integrate_inplace(velocity, 0.05)
        assert np.allclose(configuration.q[:n], ours[:-1], atol=3e-3)


@each
def test_lerobots_numbers_go_both_ways(arm):
    q = poses(arm, 20)
    values = arm.to_lerobot(q)
    assert np.allclose(arm.from_lerobot(values), q, atol=1e-12)
    assert ((values[:, -1] >= 0) & (values[:, -1] <= 100)).all()
    shut_and_open = arm.from_lerobot(np.array([[0.0] * (len(q[0]) - 1) + [v] for v in (0.0, 100.0)]))
    assert np.allclose(shut_and_open[:, -1], [arm.LOWER[-1], arm.UPPER[-1]])
    assert np.allclose(shut_and_open[:, :-1], arm.middle[:-1])


@each
def test_lerobots_names_are_known_in_all_their_forms(arm):
    n = len(arm.JOINTS)
    names = [f"{j}.pos" for j in arm.JOINTS]
    assert arm.lerobot_columns(names) == tuple(range(n))
    assert arm.lerobot_columns([f"main_{j}" for j in arm.JOINTS]) == tuple(range(n))
    assert arm.lerobot_columns([f"motor_{k}" for k in range(1, n + 1)]) == tuple(range(n))
    assert arm.lerobot_columns([f"motor_{k}" for k in range(n)]) == tuple(range(n))
    assert arm.lerobot_columns(names[::-1]) == tuple(range(n))[::-1]
    assert arm.lerobot_columns(names[:-1]) is None and arm.lerobot_columns([*names, "x.vel"]) is None
    assert arm.lerobot_columns([*names, names[0]]) is None


def test_the_second_servos_of_a_viperx_are_no_joints():
    arm = family("viperx")
    names = ["waist.pos", "shoulder.pos", "shoulder_shadow.pos", "elbow.pos", "elbow_shadow.pos", "forearm_roll.pos"]
    names += ["wrist_angle.pos", "wrist_rotate.pos", "gripper.pos"]
    assert arm.lerobot_columns(names) == (0, 1, 3, 5, 6, 7, 8)
