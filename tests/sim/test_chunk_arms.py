"""A bundle of kind chunk for each arm: it opens, is refused on robots of other families, and its own arm follows it
within 10 mm."""

from pathlib import Path

import numpy as np
import pytest

from calibration.camera import Camera
from firmware_bridge.arms import FAMILIES
from firmware_bridge.motion.messages import SafetyState
from harmowam.live import live
from runtime.bundle import Bundle, BundleError
from runtime.contracts import Observation
from runtime.policies import open_policy
from runtime.policies.handover import on_grid
from runtime.robot import load_robot
from sim.evaluate import jobs_for
from sim.plant import virtual_motor
from sim.trace import round_s, sample_trace, track
from sim.world import World
from tests.tiny import CHUNK_INPUTS, FRONT, TASK, WRIST, of_arm, tiny_chunk_bundle

S, MS = 1_000_000_000, 1_000_000
CAMERAS = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
FRAMES = {name: np.zeros((c.height, c.width, 3), np.uint8) for name, c in CAMERAS.items()}
STEPS = 28  # steps of 50 ms: 56 mm of the circle


@pytest.fixture(params=[n for n in sorted(FAMILIES) if n != "so101"])
def robot(request):
    return load_robot(f"sim_{request.param}")


@pytest.fixture
def bundle(robot, tmp_path):
    """A bundle whose engine always plans the first 56 mm of the circle."""
    arm, ends = robot.family, (np.array(robot.arm.lower), np.array(robot.arm.upper))
    turns = np.arange(1, STEPS + 1) * 0.05 * 2 * np.pi / round_s(arm)
    targets = [arm.inverse(track(arm, a), *ends)[0] for a in turns]
    inputs = {**CHUNK_INPUTS, "state": [1, len(arm.JOINTS)]}
    return Bundle.load(tiny_chunk_bundle(tmp_path, np.array(targets), inputs=inputs, **of_arm(arm)))


def test_widths_follow_from_the_family_and_its_arm_follows_the_plan(robot, bundle):
    arm, n = robot.family, len(robot.family.JOINTS)
    layout = sample_trace(np.random.default_rng(0), arm)
    layout.start[:] = track(arm, 0.0)[:5]
    world = World(layout=layout, family=arm)
    motor = virtual_motor(world, robot.arm)
    policy = open_policy(bundle, TASK, CAMERAS)
    state, command, now, away = motor(S, None), None, S, []
    prior = policy.slow.step(S, Observation(S, FRAMES, state.q_rad, state.qd_rad_s, 1))
    assert prior.chunk.shape == (STEPS, n) and bundle.family is not None and bundle.family.NAME == arm.NAME
    while now < S + (STEPS - 1) * 50 * MS:
        now += 10 * MS
        command, _ = policy.fast.step(now, Observation(now, FRAMES, state.q_rad, state.qd_rad_s, 1), prior)
        assert command is not None and command.q_rad.shape == (n,)
        state = motor(now, command)
        assert state.safety == SafetyState.ACTIVE and not np.any(state.status_bits), state.reason
        world.advance(0.01)
        planned = on_grid(prior.chunk, prior.grid_ns, float(now + 10 * MS - prior.t_capture_ns))[0]
        away.append(float(np.linalg.norm((arm.tool(world.q) - arm.tool(planned))[:3, 3])))
    assert max(away[30:]) < 0.010, "the blend from where it stood is over"
    assert np.linalg.norm(arm.tool(world.q)[:3, 3] - track(arm, 0.0)[:3]) > 0.03, "it went round"
    world.close()


def test_a_robot_of_another_family_is_refused_before_anything_starts(robot, bundle):
    other = load_robot("sim_so101")
    with pytest.raises(BundleError, match=f"made for arms of the family '{robot.family.NAME}', .*one of 'so101'"):
        live(bundle.path, other, TASK, 1.0)


def test_an_evaluation_takes_no_bundle_of_an_arm_that_its_tasks_are_not_laid_out_for(robot, bundle, tmp_path):
    with pytest.raises(BundleError, match=f"made for arms of the family '{robot.family.NAME}', .*one of 'so101'"):
        jobs_for(Path(bundle.path), ("chunk",), ("seen",), (TASK,), range(1))
