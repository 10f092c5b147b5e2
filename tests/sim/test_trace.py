"""Circles in the air for arms of any family: within reach, judged by physics, with the direction as the difference
between instructions."""

import numpy as np
import pytest

from firmware_bridge.arms import FAMILIES
from runtime.robot import load_robot
from sim.tasks import ARM, TASKS
from sim.trace import INSTRUCTIONS, TASK, Tracer, angle_at, sample_start, sample_trace, success, track
from sim.world import World

FAMILY = pytest.mark.parametrize("arm", FAMILIES.values(), ids=list(FAMILIES))


def limits(arm):
    described = load_robot(f"sim_{arm.NAME}").arm
    return np.array(described.lower), np.array(described.upper)


@FAMILY
def test_the_circle_and_every_start_lie_within_the_arms_reach_clear_of_the_table_and_of_the_arm(arm):
    rng, ends = np.random.default_rng(0), limits(arm)
    starts = [sample_trace(rng, arm) for _ in range(100)]
    poses = [track(arm, a) for a in np.linspace(0, 2 * np.pi, 60)] + [np.append(s.start, s.jaw) for s in starts]
    found = [arm.inverse(pose, *ends) for pose in poses]
    assert all(exact for _, exact in found)
    q = np.array([q for q, _ in found])
    assert arm.lowest(q).min() > 0.03 and arm.room(q).min() > 0.01
    assert np.abs(np.diff(q[:60], axis=0)).max() < 0.1, "no joint jumps on the way round"
    assert {s.instruction for s in starts} == set(INSTRUCTIONS)


@pytest.mark.parametrize("name", ["koch", "viperx"])
@pytest.mark.parametrize("told", INSTRUCTIONS)
def test_physics_says_whether_the_tool_goes_round_as_told(name, told):
    """After two seconds to join the circle, success holds throughout, and never for the other instruction. At the start
    there is no success."""
    arm, rng = FAMILIES[name], np.random.default_rng(1)
    ends, (other,) = limits(arm), set(INSTRUCTIONS) - {told}
    layout = sample_trace(rng, arm, told)
    world = World(layout=layout, family=arm)
    script, seen = Tracer(arm, layout, rng, 4.0), []
    script._scale[:] = 0  # without disturbance
    assert not world.success()
    done = False
    while not done:
        goal, done = script.step(0.02)
        world.set_goals(arm.inverse(goal, *ends)[0])
        world.advance(0.02)
        seen.append(world.success())
    assert all(seen[110:])
    world.layout = sample_trace(rng, arm, other)
    assert not success(world)
    world.close()


def test_a_start_is_of_a_task_that_is_laid_out_for_the_arm():
    rng = np.random.default_rng(0)
    assert sample_start(rng, ARM).task in TASKS
    assert sample_start(rng, ARM, next(iter(INSTRUCTIONS))).task == TASK
    for arm in FAMILIES.values():
        if arm is not ARM:
            start = sample_start(rng, arm)
            pose = np.append(start.start, start.jaw)
            assert start.task == TASK and pose == pytest.approx(track(arm, angle_at(arm, pose)), abs=1e-9)


@pytest.mark.parametrize("told", INSTRUCTIONS)
def test_a_disturbance_moves_the_tool_across_the_circle_and_not_along_it(told):
    arm, rng = FAMILIES["koch"], np.random.default_rng(2)
    script = Tracer(arm, sample_trace(rng, arm, told, aside=0.0), rng, 4.0)
    pushed = []
    for _ in range(200):
        done = script.step(0.02)[0][:3] - script.clean()[:3]
        pushed.append([done @ [0.0, -np.sin(script.at()), np.cos(script.at())], np.linalg.norm(done)])
    along, across = np.abs(pushed).T
    assert along.max() < 1e-12 and across.max() > 0.02 * arm.reach_m


def test_half_of_the_demonstrations_start_on_the_circle_as_every_run_does():
    arm, rng = FAMILIES["koch"], np.random.default_rng(3)
    starts = [sample_trace(rng, arm) for _ in range(200)]
    off = [np.linalg.norm(s.start[:3] - track(arm, angle_at(arm, s.start))[:3]) for s in starts]
    assert 80 < np.sum(np.array(off) < 1e-9) < 120
    run = sample_start(rng, arm)
    assert np.linalg.norm(run.start[:3] - track(arm, angle_at(arm, run.start))[:3]) < 1e-9
