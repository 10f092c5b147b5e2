"""How plans follow each other as a policy asks for it: as many targets of each, the mean of all, and no jump whatever
comes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.limits import Limiter
from runtime.bundle import Bundle
from runtime.loop.two_rate import _over_s
from runtime.manifest import Chunk
from runtime.policies.chunk import FastSettings, FastStep
from tests.export.lerobot_golden import golden
from tests.runtime.test_chunk import HERE, MS, RAMP, S, observe, plan, plans
from tests.tiny import tiny_chunk_bundle

CHUNKS = {"newest": Chunk(16, 50), "use": Chunk(16, 50, first=0, use=4), "ensemble": Chunk(16, 50, ensemble=0.1)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {k: Bundle.load(tiny_chunk_bundle(folder / k, RAMP, chunk=c)) for k, c in CHUNKS.items()}


def test_a_plan_is_followed_for_its_share_of_targets_and_then_the_newest_takes_over(bundles):
    """LeRobot's n_action_steps: four targets 50 ms apart, though a new plan comes every 30 ms."""
    fast, followed = FastStep(bundles["use"]), []
    for k in range(40):
        prior = plan(S + k // 3 * 30 * MS, RAMP, number=1 + k // 3)
        fast.step(S + k * 10 * MS, observe(S), prior)
        followed.append(fast.plans[0].number)
    assert len(fast.plans) == 1 and sorted(set(followed)) == [1, 7, 13]
    # from its capture to its fourth target, which is due 200 ms later (the first target of `plan` is due after 50)
    assert followed.index(7) == 20 and followed.index(13) == 38


def test_the_mean_of_all_plans_is_what_lerobots_ensembler_gives(bundles):
    """One plan a step, without delay: the golden actions of lerobot 0.4.4. Weights fall with the age of the oldest."""
    case = golden("ensemble")
    at_once = FastSettings(blend_s=1e-7, start_s=1e-9)
    fast = FastStep(bundles["ensemble"], settings=at_once)
    assert fast.ensemble == case["coefficient"]
    for k, (chunk, action) in enumerate(zip(case["chunks"], case["actions"], strict=True)):
        t = S + k * 50 * MS
        prior = plan(t - 50 * MS, chunk, number=k + 1)  # its first target is due now
        fast.step(t - 1_000, observe(t), prior)
        command, _ = fast.step(t, observe(t), prior)
        assert command.q_rad == pytest.approx(action, abs=1e-4)
    assert len(fast.plans) == 6  # of six targets each


def test_a_plan_that_lasts_is_followed_however_long_the_next_one_takes(bundles):
    """A second of inference, and a plan of three: nothing is late until the plan ends, and then it has a name."""
    fast, prior = FastStep(bundles["newest"]), plan(S, np.linspace(HERE, HERE + 0.3, 30), step_ms=100)
    assert fast.step(S + 2900 * MS, observe(S), prior)[0] is not None
    assert _over_s(S + 2900 * MS, prior) == pytest.approx(-0.1)
    assert _over_s(S + 3400 * MS, prior) == pytest.approx(0.4)
    assert fast.step(S + 3400 * MS, observe(S), prior)[0] is None


DEGREE = np.radians(1)
FASTEST, HARDEST, JERK = 3.0, 12.0, 600.0


@settings(max_examples=40)
@given(plans=plans(), how=st.sampled_from(list(CHUNKS)))
def test_whatever_chunks_come_no_seam_jumps_and_the_limits_hold(bundles, plans, how):
    """At a seam the target moves by less than a degree beyond what the plan itself does; the goals that leave the
    limiter keep range, velocity, acceleration and jerk."""
    fast, prior, dt = FastStep(bundles[how]), None, 0.01
    acceleration, jerk = np.full(6, HARDEST), np.full(6, JERK)
    limiter = Limiter(dt, acceleration, jerk, so101.LOWER, so101.UPPER)
    limiter.reset(HERE.astype(float))
    target, goals, coming = HERE.astype(float), [], list(plans)
    for t in range(plans[0][0], plans[-1][0] + 900 * MS, 10 * MS):
        if coming and t >= coming[0][0]:
            before = fast.step(t, observe(t, target), prior)[0]
            prior = coming.pop(0)[1]
            after = fast.step(t + 1_000, observe(t, target), prior)[0]
            if before is not None and after is not None:
                assert np.abs(after.q_rad - before.q_rad).max() < DEGREE
        command, _ = fast.step(t + 2_000, observe(t, target), prior)
        target = target if command is None else command.q_rad.astype(float)
        goals.append(limiter.step(target, np.full(6, FASTEST)))
    moved = np.array([HERE] * 3 + goals)
    assert (moved >= so101.LOWER - 1e-9).all() and (moved <= so101.UPPER + 1e-9).all()
    for order, most in ((1, FASTEST), (2, HARDEST), (3, JERK)):
        assert np.abs(np.diff(moved, order, axis=0)).max() <= most * dt**order * (1 + 1e-6)
