"""The environment "disturbed": something moves once, never in the gripper, and the time to react is measured by a
twin."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from firmware_bridge.motion.messages import Command, Expert
from sim import disturbance as ds
from sim.disturbance import Disturber, reaction_ms
from sim.expert import Follower, joints_for, plan
from sim.plant import virtual_motor
from sim.score import Score
from sim.tasks import DISTURBED, PAN_X, REACH, SEEN, TASKS, TOOL_PITCH, sample_layout
from sim.virtual_time import START, Schedule, run_episode
from sim.world import World

TICK_S = 0.02


@pytest.fixture(scope="module")
def world():
    w = World(0)
    yield w
    w.close()


def lay(world, task, seed):
    world.reset(sample_layout(np.random.default_rng(seed), task=task, environment=DISTURBED))


def play(world, task, seed, subgoal, late):
    """Let the scripted expert, which sees nothing move, do the task; the disturber, and heights of the tool and touch
    of the thing when it moved."""
    lay(world, task, seed)
    score = Score(world)
    disturber = Disturber(world, score, np.random.default_rng([seed, 1]))
    disturber.plan = ds.Plan(subgoal, late, 0.5)
    disturber.body = world.layout.roles[subgoal]
    follower, done, now = (
        Follower(world, plan(world, np.random.default_rng(1)), np.random.default_rng(0), 0.0),
        False,
        START,
    )
    while not done and disturber.happened is None:
        now += round(TICK_S * 1e9)
        score.watch(now)
        held = score.held and ds.touched(world.model, world.data, disturber.body)
        disturber(now)
        target, done = follower.step(TICK_S)
        world.set_goals(joints_for(target))
        world.advance(TICK_S)
    return disturber, held, score


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("subgoal", [0, 1])
@pytest.mark.parametrize("late", [False, True])
def test_the_thing_moves_by_3_to_8_cm_to_a_free_place_and_is_not_touched(world, task, subgoal, late):
    disturber, held, score = play(world, task, 5, subgoal, late)
    happened, layout = disturber.happened, world.layout
    assert happened is not None and happened.body == layout.roles[subgoal] and not held
    now, before = world.position(happened.body)[:2], np.array(layout.places[happened.body][:2])
    assert ds.NEAREST_M <= happened.moved_m <= ds.FURTHEST_M
    assert np.linalg.norm(now - before) == pytest.approx(happened.moved_m, abs=2e-3)
    assert all(low - 1e-3 <= v <= high + 1e-3 for v, low, high in zip(now, *SEEN, strict=True))
    assert math.hypot(now[0] - PAN_X, now[1]) < REACH + 1e-3
    assert not ds.touched(world.model, world.data, happened.body)
    height = TASKS[task].place_z if subgoal and task != "press" else TASKS[task].grasp_z
    assert (world.pose[2] < height + ds.ABOVE_M) == late and score.due() == subgoal


def test_either_moment_and_either_thing_is_drawn_and_no_two_seeds_are_alike():
    plans = [ds.draw(np.random.default_rng([seed, 0, 0, 2, 1])) for seed in range(40)]
    assert {(p.subgoal, p.late) for p in plans} == {(a, b) for a in (0, 1) for b in (False, True)}
    assert len({p.share for p in plans}) == 40


class Scripted:
    """A fast step: the tool hovers over where the item was `late` frames ago."""

    uses_pictures, commands_made = False, 0

    def __init__(self, world, late):
        self.world, self.late = world, late

    def reset(self):
        self.seen, self.commands_made = [], 0

    def step(self, now_ns, obs, prior=None):
        self.seen.append(self.world.position(self.world.layout.roles[0])[:2])
        x, y = self.seen[max(len(self.seen) - 1 - self.late, 0)]
        q = joints_for(np.array([x, y, 0.09, TOOL_PITCH, 0.0, 0.6])).astype(np.float32)
        self.commands_made += 1
        return Command(
            now_ns, now_ns + 10**8, q, np.zeros(6, np.float32), Expert.REACTIVE, 0.0, now_ns, self.commands_made
        ), None


def episode(world, late, disturbed):
    lay(world, "plate", 3)
    score, policy = Score(world), Scripted(world, late)
    disturber = Disturber(world, score, np.random.default_rng(3))
    disturber.plan = ds.Plan(0, False, 0.6)
    disturber.body = world.layout.roles[0]

    def watch(now_ns, obs):
        return score.watch(now_ns) or ("" if now_ns < START + 2 * 10**9 else "enough")

    slow = SimpleNamespace(step=lambda now_ns, obs: None, history_ns=())  # its answer comes after the end
    moved, schedule = disturber if disturbed else None, Schedule(world_model_ms=9000)
    return run_episode(world, slow, policy, virtual_motor(world), schedule, 3.0, watch, moved), disturber.happened


@pytest.mark.parametrize("late", [0, 1, 4])
def test_the_reaction_of_a_policy_of_known_latency_is_measured_exactly(world, late):
    """From the displacement to the next frame, then the policy's latency, then the fast step's 8 ms."""
    sent, happened = episode(world, late, disturbed=True)
    twin, _ = episode(world, late, disturbed=False)
    frame_ns = 40_000_000
    seen_ns = START + ((happened.at_ns - START) // frame_ns + 1) * frame_ns
    wanted = (seen_ns + late * frame_ns + 8_000_000 - happened.at_ns) / 1e6
    assert reaction_ms(happened.at_ns, sent.commands, twin.commands) == pytest.approx(wanted)
    same = [(a, b) for a, b in zip(sent.states, twin.states, strict=False) if a.t_ns < happened.at_ns]
    assert len(same) > 20 and all(np.array_equal(a.q_rad, b.q_rad) for a, b in same)
    before = [(a, b) for (t, a), (_, b) in zip(sent.commands, twin.commands, strict=False) if t <= happened.at_ns]
    assert len(before) > 5 and all(np.array_equal(a.q_rad, b.q_rad) for a, b in before)


def test_a_policy_that_does_not_react_has_no_reaction_time(world):
    twin, _ = episode(world, 0, disturbed=False)
    assert reaction_ms(START, twin.commands, twin.commands) is None
