"""The way down: over the table, not across it, and whatever happens on it is seen."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from firmware_bridge.arms import FAMILIES
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.limits import Limiter
from firmware_bridge.motion.lowering import (
    CLEAR_M,
    DIP_M,
    MARGIN_M,
    POINTS,
    REST_TOLERANCE,
    SETTLE_S,
    Descent,
    longest_s,
    plan,
    raised,
)
from firmware_bridge.motion.messages import RequestKind, SafetyState
from firmware_bridge.motion.safety import INSIST_S, lowering_s
from runtime.robot import load_robot
from tests.firmware_bridge.safety_bench import Bench
from tests.firmware_bridge.so101 import KNOWN

ARM = load_robot("so101").arm
REST = np.array(ARM.rest)
LOW, HIGH = np.array(ARM.lower), np.array(ARM.upper)
S = 1_000_000_000
# Straight ways stand for curves: so much lower than at its ends a way may be.
SLACK_M = 0.001
anywhere = st.tuples(
    *(
        st.one_of(st.sampled_from([lo, hi]), st.floats(lo, hi))
        for lo, hi in zip(LOW.tolist(), HIGH.tolist(), strict=True)
    )
).map(np.array)


def posed(x, y, z, pitch=1.3, roll=0.3, jaw=0.1):
    q, exact = so101.inverse(np.array([x, y, z, pitch, roll, jaw]), so101.LOWER, so101.UPPER)
    assert exact
    return q


@st.composite
def low_poses(draw):
    """Tool near the table: its lowest part between 2 cm in it and 6 cm over it."""
    pan, reach = draw(st.floats(-1.6, 1.6)), draw(st.floats(0.12, 0.36))
    x, y = 0.0388 + reach * np.cos(pan), reach * np.sin(pan)
    pose = [
        x,
        y,
        draw(st.floats(0.0, 0.06)),
        draw(st.floats(0.3, 1.6)),
        draw(st.floats(-1.1, 2.6)),
        draw(st.floats(0, 1.9)),
    ]
    q, exact = so101.inverse(np.array(pose), so101.LOWER, so101.UPPER)
    assume(exact and -0.02 < float(so101.lowest(q)) < 0.06 and float(so101.room(q)) > 0)
    return q


def along(start, way, step=0.03):
    """Poses of the straight ways between way-points, `step` rad apart."""
    legs = zip([start, *way[:-1]], way, strict=True)
    return np.concatenate([np.linspace(a, b, 2 + int(np.abs(b - a).max() / step)) for a, b in legs])


@settings(max_examples=40)
@given(st.one_of(anywhere, low_poses()))
@example(np.array([-1.91986, -1.74533, -1.69, 1.65806, -2.71, -0.1]))  # raised most steeply by joints that end here
def test_a_way_ends_at_rest_stays_within_the_limits_and_leaves_the_jaw_alone(q):
    way = plan(ARM, q)
    assert np.array_equal(way[-1][:5], REST[:5])
    assert len(way) <= 2 * (POINTS - 1) + 3
    for target in way:
        assert np.all(target >= LOW) and np.all(target <= HIGH) and target[5] == q[5]


@settings(max_examples=40)
@given(st.one_of(anywhere, low_poses()))
@example(np.array([-0.31, 0.15, 1.43, -1.15, 1.85, 1.37]))  # the steepest way up: wrist onto upper arm
@example(np.array([1.1121, -1.4956, 1.2045, 0.9036, -2.7438, -0.1745]))  # the shortest way over: gripper into shoulder
def test_on_the_way_no_part_comes_nearer_to_the_table_than_at_its_ends_nor_into_the_arm(q):
    assume(float(so101.room(q)) > MARGIN_M and float(so101.lowest(q)) > -0.02)
    poses = along(q, plan(ARM, q))
    height, room = so101.lowest(poses), so101.room(poses)
    assert height.min() > min(height[0], height[-1]) - SLACK_M
    assert room.min() > 0.0005


@settings(max_examples=40)
@given(low_poses())
def test_it_goes_round_only_where_it_is_clear_of_the_table(q):
    assume(abs(q[0]) > 0.25)
    poses = along(q, plan(ARM, q))
    turning = (np.abs(poses[:, 0] - q[0]) > 0.01) & (np.abs(poses[:, 0]) > 0.01)
    assert so101.lowest(poses[turning]).min() > CLEAR_M - DIP_M


@settings(max_examples=40)
@given(low_poses())
def test_the_way_up_only_goes_up_also_for_a_gripper_that_is_pressed_into_the_table(q):
    way = raised(ARM, q)
    height = so101.lowest(along(way[0], way[1:]))
    assert height[-1] >= CLEAR_M
    first = height < height[0] + 0.03  # where something may touch
    assert np.diff(height[first], prepend=height[0]).min() > -1e-3


@pytest.mark.parametrize("pan", [-1.2, 0.0, 0.9])
def test_where_the_joints_allow_it_the_tool_first_goes_straight_up(pan):
    q = posed(0.0388 + 0.2 * np.cos(pan), 0.2 * np.sin(pan), 0.014)
    way = raised(ARM, q)
    tool = so101.forward(along(way[0], way[1:]))
    first = tool[:, 2] < tool[0, 2] + 0.03
    assert np.hypot(*(tool[first, :2] - tool[0, :2]).T).max() < 0.003


def test_a_pose_that_is_clear_already_needs_no_way_up_and_rest_no_way_at_all():
    assert len(raised(ARM, np.zeros(6))) == 1
    near = REST + 0.19
    assert [list(target) for target in plan(ARM, near)] == [[*REST[:5], near[5]]]


@pytest.mark.parametrize("family", ["", "crab"])
def test_an_arm_of_which_no_shapes_are_known_goes_straight_to_rest(family):
    config = dataclasses.replace(ARM, family=family)
    q = posed(0.2, 0.1, 0.01)
    assert [list(target) for target in plan(config, q)] == [[*REST[:5], q[5]]]
    assert len(raised(config, q)) == 1


class Crane:
    """A toy of another family: a waist, two links of 0.2 m on a shoulder 0.1 m high, a gripper."""

    JOINTS, PAN, RAISING, UPRIGHT = (
        ("waist", "shoulder", "elbow", "gripper"),
        0,
        (1, 2),
        np.array([0.0, -1.4, 0.6, 0.0]),
    )

    @staticmethod
    def forward(q):
        a, b = q[..., 1], q[..., 1] + q[..., 2]
        r = 0.2 * np.cos(a) + 0.2 * np.cos(b)
        z = 0.1 - 0.2 * np.sin(a) - 0.2 * np.sin(b)
        return np.stack([r * np.cos(q[..., 0]), r * np.sin(q[..., 0]), z, b, 0 * b, q[..., 3]], -1)

    @staticmethod
    def lowest(q):
        return np.minimum(0.1 - 0.2 * np.sin(q[..., 1]), Crane.forward(q)[..., 2])

    @staticmethod
    def room(q):
        return np.ones(q.shape[:-1])


def test_another_family_needs_no_more_than_its_file(monkeypatch):
    monkeypatch.setitem(FAMILIES, "crane", Crane)
    rest = (0.0, -0.9, 1.7, 0.0)
    crane = dataclasses.replace(
        ARM,
        family="crane",
        joints=Crane.JOINTS,
        ids=(1, 2, 3, 4),
        lower=(-3.0, -1.6, -0.5, 0.0),
        upper=(3.0, 1.6, 2.6, 1.0),
        rest=rest,
    )
    q = np.array([1.5, 0.1, 0.4, 0.2])
    assert Crane.lowest(q) < 0.01
    poses = along(q, way := plan(crane, q))
    assert np.array_equal(way[-1], [*rest[:3], q[3]])
    turning = (np.abs(poses[:, 0] - q[0]) > 0.01) & (np.abs(poses[:, 0]) > 0.01)
    assert Crane.lowest(poses[turning]).min() > CLEAR_M - DIP_M
    assert Crane.lowest(poses).min() > min(Crane.lowest(q), Crane.lowest(poses[-1])) - SLACK_M


def test_a_family_of_another_number_of_joints_is_not_taken_for_this_one():
    short = dataclasses.replace(
        ARM, joints=ARM.joints[2:], ids=ARM.ids[2:], lower=ARM.lower[2:], upper=ARM.upper[2:], rest=ARM.rest[2:]
    )
    assert len(plan(short, REST[2:] + 0.5)) == 1


def test_the_robot_file_says_whose_shapes_the_arm_has_and_they_cross_to_the_motor_process():
    assert ARM.family == "so101" and ARM.family in FAMILIES
    assert type(ARM).from_dict(ARM.to_dict()).family == "so101"


def descent(q, measured=None):
    limiter = Limiter(0.01, np.array(ARM.max_acceleration), np.array(ARM.jerk), LOW, HIGH)
    limiter.reset(np.array(q))
    return limiter, Descent(ARM, limiter, np.array(q if measured is None else measured))


def test_joints_move_together_so_that_the_way_is_the_planned_one():
    q = posed(0.15, -0.2, 0.01, roll=-1.0)
    limiter, down = descent(q)
    goals, now = [limiter.goal], S
    while (goal := down.step(now, goals[-1])) is not None:
        goals.append(goal)
        now += S // 100
    straight = along(q, plan(ARM, q), step=0.005)
    off = [float(np.abs(straight - goal).max(-1).min()) for goal in goals]
    assert max(off) < 0.012
    assert np.abs(np.diff(goals, axis=0)).max() <= ARM.lower_speed * 0.01 + 1e-9


def test_a_tick_has_little_time_to_plan_in_so_the_goals_stand_still_for_some():
    q = posed(0.2, 0.1, 0.012)
    _, down = descent(q)
    goals = [down.step(S + k * S // 100, q) for k in range(60)]
    still = sum(np.array_equal(goal, goals[0]) for goal in goals)
    assert 10 < still < 40 and not np.array_equal(goals[-1], goals[0])


def test_a_way_begins_where_the_arm_is_not_where_it_was_told_to_go():
    q = posed(0.2, 0.0, 0.012)
    pressed = posed(0.2, -0.02, 0.001)  # into the table, and against something on its left
    limiter, down = descent(pressed, q)
    heights, off = [], []
    for k in range(140):
        goal = down.step(S + k * S // 100, q)
        heights.append(float(so101.lowest(goal)))
        off.append(float(np.abs(goal - plan(ARM, q)[0])[:5].max()))
    assert abs(q[0] - pressed[0]) > 0.05 and min(off) < 1e-6
    assert np.diff(heights).min() > -1e-4 and heights[60] > heights[0] + 0.01  # from the first goal on it is relieved


def test_an_arm_that_hangs_behind_at_a_way_point_is_waited_for_but_not_for_ever():
    q = posed(0.2, 0.1, 0.01)
    limiter, down = descent(q)
    first = plan(ARM, q)[0]
    now, waited = S, 0
    while waited < 1000:
        goal = down.step(now, np.add(first, [0, REST_TOLERANCE + 0.01, 0, 0, 0, 0]))
        now += S // 100
        if np.abs(limiter.ahead - first).max() < 1e-6:
            waited += 1
        elif waited:
            break
    assert goal is not None and waited == pytest.approx(SETTLE_S * 100, abs=3)


corners = st.tuples(*(st.sampled_from([a, b]) for a, b in zip(LOW, HIGH, strict=True)))


@settings(max_examples=10)
@given(st.one_of(corners, low_poses()), st.sampled_from([0.6, 3.0]), st.booleans())
def test_callers_wait_long_enough_for_every_way_also_for_an_arm_that_never_arrives(start, speed, stuck):
    config = dataclasses.replace(ARM, lower_speed=speed, follow_rad=9.0)
    bench = Bench(start, config)
    bench.tick()
    bench.stuck = stuck
    began = bench.now
    while not bench.tick(request=RequestKind.LOWER).release:
        pass
    assert (bench.now - began) / S < lowering_s(config) - INSIST_S
    assert stuck or np.abs(bench.q - REST)[:5].max() < REST_TOLERANCE


def test_the_longest_way_of_a_known_family_is_longer_than_straight_to_rest():
    assert longest_s(ARM) > longest_s(dataclasses.replace(ARM, family=""))


def test_the_jaw_keeps_its_goal_while_the_arm_is_lowered_and_after():
    bench = Bench(posed(0.2, 0.1, 0.02, jaw=0.5), ARM)
    bench.tick()
    squeeze = bench.q.copy()
    squeeze[5] -= 0.2
    bench.ticks(60, squeeze)
    goal = bench.safety.goal[5]
    while (d := bench.tick(request=RequestKind.LOWER)).goal is not None:
        assert d.goal[5] == pytest.approx(goal, abs=1e-9)


def test_an_obstacle_on_the_way_is_still_a_fault():
    bench = Bench(posed(0.2, -0.15, 0.02), ARM)
    bench.tick()
    bench.ticks(120, request=RequestKind.LOWER)  # on its way
    bench.stuck = True
    decisions = bench.ticks(200, request=RequestKind.LOWER)
    assert decisions[-1].state == SafetyState.FAULT
    assert bench.safety.reason.endswith(("does not follow its goal", "is blocked"))


def test_a_moving_arm_is_stopped_before_it_is_lowered():
    bench = Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5), KNOWN)
    bench.tick()
    for k in range(100):
        bench.tick(np.array([-1 + 0.02 * k, -0.5, 0.5, 0.5, 0.0, 0.5]))
    fast = bench.goals[-1][0] - bench.goals[-2][0]
    pans = [d.goal[0] for d in bench.ticks(30, request=RequestKind.LOWER) if d.goal is not None]
    steps = np.diff([bench.goals[-31][0], *pans])
    assert fast > 0.015 and steps.min() > -1e-9  # brakes in the direction in which it went
    assert steps[10:20] == pytest.approx(np.zeros(10), abs=1e-6)  # up first
