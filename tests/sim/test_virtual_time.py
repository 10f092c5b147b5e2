"""The two-rate loop in virtual time, on toy engines."""

import numpy as np
import pytest

from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle
from runtime.policies.finish import Finish
from runtime.policies.harmowam import FastStep, SlowStep
from sim.plant import virtual_motor
from sim.tasks import sample_layout
from sim.virtual_time import Schedule, run_episode
from sim.world import World
from tests.tiny import TASK

S = 1_000_000_000


def episode(rig, policy="gated", schedule=Schedule(), limit_s=1.5, **settings):
    world, slow, fast = rig
    world.reset(sample_layout(np.random.default_rng(3), TASK))
    fast.policy, fast.uses_pictures, fast.other_gate = policy, True, None
    for name, value in settings.items():
        setattr(fast, name, value)
    return run_episode(world, slow, fast, virtual_motor(world), schedule, limit_s)


def test_the_slow_loop_never_overlaps_itself(rig):
    slow = [p.t_ready_ns for p in episode(rig, schedule=Schedule(world_model_ms=300.0), limit_s=2.0).priors]
    assert np.diff(slow).min() >= 0.305 * S and len(slow) == 6
    assert len(episode(rig).priors) == 12  # 8 Hz when it is quick


def test_frames_that_nobody_looks_at_are_not_rendered(rig, monkeypatch):
    world, looked = rig[0], []
    render = world.render

    def noted(name):
        looked.append(name)
        return render(name)

    monkeypatch.setattr(world, "render", noted)
    quick = episode(rig, "predictive", uses_pictures=False)
    assert len(looked) == 2 * 13 and len(quick.ticks) == 38  # 13 slow steps begin
    assert all(t.expert in (Expert.NONE, Expert.PREDICTIVE) for t in quick.ticks)


def test_a_fixed_expert_needs_no_fast_engine(rig):
    """A predictive expert that is chosen throughout needs no fast engine: its commands are the same with and
    without."""
    a, b = (episode(rig, "predictive", uses_pictures=on) for on in (True, False))
    assert np.array_equal([t.sent_target for t in a.ticks], [t.sent_target for t in b.ticks])


def test_the_gate_can_be_replaced(rig):
    for value, expert in ((0.0, Expert.REACTIVE), (1.0, Expert.PREDICTIVE)):
        ticks = episode(rig, other_gate=lambda value=value: value).ticks
        assert {t.expert for t in ticks[8:]} == {expert}


def test_the_average_is_half_of_either(rig):
    """The toy's predictive expert stays in place, so the average moves where the reactive expert moves, at half its
    speed."""

    def way(policy):
        sent = np.array([t.sent_target for t in episode(rig, policy, limit_s=0.4).ticks if t.expert != Expert.NONE])
        return np.linalg.norm(sent[-1, :2] - sent[0, :2])

    assert way("predictive") < 0.1 * way("reactive")
    assert 0.4 < way("average") / way("reactive") < 0.6


def test_success_must_last(rig):
    """A cube lies on the plate from the start: the episode continues until the cube has lain there for `rest_s`, or is
    taken away."""
    world, slow, fast = rig
    # The toy's predictive expert stays where it is.
    fast.policy, fast.uses_pictures, fast.other_gate = "predictive", False, None

    def lasted(rest_s, taken_at_s=99.0):
        world.reset(sample_layout(np.random.default_rng(3), TASK))
        at = world.free_joint(world.layout.roles[0])
        world.data.qpos[at : at + 3] = world.position("plate") + np.array([0.0, 0.0, 0.018])
        world.advance(0.4)

        def watch(now_ns, obs):
            if now_ns >= (1 + taken_at_s) * S:
                world.data.qpos[at] += 0.1
            return ""

        return run_episode(world, slow, fast, virtual_motor(world), Schedule(rest_s=rest_s), 1.0, watch)

    for rest_s in (0.2, 3.0):
        done = lasted(rest_s)
        assert done.success and done.seconds == pytest.approx(rest_s, abs=0.02)
    undone = lasted(3.0, taken_at_s=1.0)
    assert not undone.success and undone.ended == "time" and undone.seconds == pytest.approx(3.8, abs=0.02)


def test_a_policy_that_says_when_it_is_done_is_judged_at_that_moment(done_bundle):
    """The cube lies on the plate from the start and is taken away later: no success of the moment ends the episode,
    and what counts is how it is when the policy says done."""
    opened, world = Bundle.load(done_bundle), World(0)
    cameras = {name: world.camera(name) for name in ("front", "wrist")}
    slow, fast = SlowStep(opened, TASK, cameras), FastStep(opened, cameras, policy="predictive")

    def played(for_s, taken_at_s=99.0):
        world.reset(sample_layout(np.random.default_rng(3), TASK))
        at = world.free_joint(world.layout.roles[0])
        assert at is not None
        world.data.qpos[at : at + 3] = world.position("plate") + np.array([0.0, 0.0, 0.018])
        world.advance(0.4)

        def watch(now_ns, obs):
            if now_ns >= (1 + taken_at_s) * S:
                world.data.qpos[at] += 0.1
            return ""

        finish = Finish(0.9, for_s)
        return run_episode(world, slow, fast, virtual_motor(world), Schedule(), 1.5, watch, finish=finish)

    right = played(0.6)
    assert (right.success, right.ever, right.ended) == (True, True, "done")
    assert right.seconds == pytest.approx(0.6 + 0.08, abs=0.1)  # and a picture and a plan before it
    undone = played(0.6, taken_at_s=0.4)
    assert (undone.success, undone.ever, undone.ended) == (False, True, "done")
    never = played(99.0)
    assert (never.success, never.ever, never.ended) == (False, True, "time")
    world.close()
