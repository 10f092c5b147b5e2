"""The slow and the fast step on real engines and rendered pictures, in virtual time."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.messages import Expert
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.decode import relative_chunk
from runtime.steps import WARM_MOST, WARM_NS, WARM_STEP, WARMTH, FastStep, SlowStep, pose_of
from sim.plant import virtual_motor
from sim.tasks import sample_layout
from sim.virtual_time import Schedule, run_episode
from sim.world import World

S = 1_000_000_000


@pytest.fixture(scope="module")
def rig(bundle_path):
    bundle = Bundle.load(bundle_path)
    world = World(layout=sample_layout(np.random.default_rng(5)))
    cameras = {name: world.camera(name) for name in ("front", "wrist")}
    yield world, SlowStep(bundle, world.instruction, cameras), FastStep(bundle, cameras)
    world.close()


def observe(world, t_ns, seq=1):
    frames = {name: world.render(name) for name in ("front", "wrist")}
    return Observation(t_ns, frames, world.measured.astype(np.float32), world.qd.astype(np.float32), seq)


@pytest.fixture
def starts(rig, monkeypatch):
    """What the predictive flow is started from, plan by plan, [K,6] each."""
    slow, seen = rig[1], []
    run = slow.predictive.run
    monkeypatch.setattr(slow.predictive, "run", lambda feeds: seen.append(feeds["noise"][0].copy()) or run(feeds))
    slow.reset()
    yield seen
    slow.reset()


def test_a_plan_goes_on_from_the_last_one_as_seen_from_here(rig, starts):
    world, slow, _ = rig
    first = slow.step(S, observe(world, S))
    slow.step(S + S // 10, observe(world, S + S // 10))  # two steps of the grid later
    pose = pose_of(world.measured.astype(np.float32), slow.links)
    left = (relative_chunk(pose, first.chunk[2:], slow.links) - slow.mean[:14]) / slow.std[:14]
    later = slice(WARM_STEP, 14)
    assert not starts[0].any()
    assert np.allclose(starts[1][later], WARMTH * np.clip(left, -WARM_MOST, WARM_MOST)[later], atol=1e-4)
    assert starts[1][later].any()
    assert not starts[1][:WARM_STEP].any(), "what the tool does now is left to the newest picture"
    assert not starts[1][14:].any(), "and what the last plan says nothing of to this one"


@pytest.mark.parametrize("gap", [0, WARM_NS, -S // 10])
def test_a_plan_of_the_same_instant_or_of_long_ago_is_not_gone_on_with(rig, starts, gap):
    world, slow, _ = rig
    slow.step(S, observe(world, S))
    slow.step(S + gap, observe(world, S + gap))
    assert not starts[1].any()


def test_another_task_begins_without_the_last_ones_plan(rig, starts):
    world, slow, _ = rig
    slow.step(S, observe(world, S))
    slow.set_task(world.instruction)
    slow.step(S + S // 10, observe(world, S + S // 10))
    assert not starts[1].any()


@pytest.mark.parametrize("engine", ["predictive", "world"])
def test_a_plan_that_is_not_finite_leaves_no_trace(rig, starts, monkeypatch, engine):
    world, slow, _ = rig
    number = slow.step(S, observe(world, S)).seq
    run = getattr(slow, engine).run
    with monkeypatch.context() as broken:
        spoilt = {"predictive": "chunk", "world": "future"}[engine]
        broken.setattr(
            getattr(slow, engine),
            "run",
            lambda feeds: {k: v * np.nan if k == spoilt else v for k, v in run(feeds).items()},
        )
        slow.step(S + S // 10, observe(world, S + S // 10))
    again = slow.step(S + S // 5, observe(world, S + S // 5))
    assert again.seq == number + 1 and np.isfinite(again.chunk).all()
    assert starts[2].any() and not starts[2][12:].any(), "the plan that was finite is gone on with"


def test_equal_observations_give_equal_priors(rig):
    world, slow, _ = rig
    obs = observe(world, S)
    slow.reset()
    a, b = slow.step(S, obs), slow.step(S, obs)
    assert np.array_equal(a.chunk, b.chunk) and np.array_equal(a.future, b.future)
    assert a.chunk.shape == (16, 6) and a.future.shape == (3, 16, 12, 12) and b.seq == a.seq + 1
    assert a.t_capture_ns == S and np.all(np.diff(a.grid_ns) == 50_000_000)


def test_a_prior_stays_what_it_was_when_an_engine_answers_in_the_same_memory(rig, monkeypatch):
    """TensorRT's outputs lie in pinned buffers that the next run writes to, while the fast loop reads the Prior before."""
    world, slow, _ = rig
    run = slow.world.run
    kept: dict[str, np.ndarray] = {}

    def in_place(feeds):
        for name, value in run(feeds).items():
            np.copyto(kept.setdefault(name, np.empty_like(value)), value)
        return kept

    monkeypatch.setattr(slow.world, "run", in_place)
    first = slow.step(S, observe(world, S))
    future, tokens = first.future.copy(), first.tokens.copy()
    dark = Observation(
        S,
        {k: 0 * v for k, v in observe(world, S).frames.items()},
        world.q.astype(np.float32),
        np.zeros(6, np.float32),
        2,
    )
    second = slow.step(S, dark)
    assert not np.array_equal(second.future, future)
    assert np.array_equal(first.future, future) and np.array_equal(first.tokens, tokens)


def test_without_a_prior_nothing_is_commanded(rig):
    world, _, fast = rig
    fast.reset()
    command, tick = fast.step(S, observe(world, S), None)
    assert command is None and tick.expert == Expert.NONE


def test_the_first_command_starts_where_the_arm_is(rig):
    world, slow, fast = rig
    fast.reset()
    obs = observe(world, S)
    command, _ = fast.step(S, obs, slow.step(S, obs))
    assert np.abs(command.q_rad - obs.q_rad)[:5].max() < 0.05
    assert command.t_stale_ns > command.t_apply_ns == S and command.t_capture_ns == obs.t_capture_ns


def test_a_prior_that_is_too_old_gives_no_predictive_targets_and_then_none_at_all(rig):
    world, slow, fast = rig
    obs = observe(world, S)
    prior = slow.step(S, obs)
    fast.reset()
    fast.policy = "gated"
    old = dataclasses.replace(prior, t_capture_ns=S - 900_000_000)
    assert fast.step(S, obs, old)[1].expert == Expert.REACTIVE
    gone = dataclasses.replace(prior, t_capture_ns=S - 2 * S)
    assert fast.step(S + 20_000_000, obs, gone)[0] is None


def test_position_and_velocity_stay_continuous_whoever_is_in_charge(rig):
    """Experts are forced to change hands every 0.2 s and plans every 0.1 s; the commanded tool never jumps."""
    world, slow, fast = rig
    fast.reset()
    obs = observe(world, S)
    poses, dt = [], 20_000_000
    for k in range(60):
        now = S + k * dt
        if k % 5 == 0:
            prior = slow.step(now, dataclasses.replace(obs, t_capture_ns=now))
        fast.policy = "predictive" if k // 10 % 2 else "reactive"
        command, tick = fast.step(now, obs, prior)
        poses.append(tick.sent_target[:5].copy())
        assert np.isfinite(command.q_rad).all() and np.isfinite(command.qd_rad_s).all()
    fast.policy = "gated"
    steps = np.diff(np.array(poses), axis=0)
    assert np.abs(steps[:, :3]).max() < 0.03  # 1.5 m/s over one tick: a jump would be tens of centimetres
    assert np.abs(np.diff(steps, axis=0)[:, :3]).max() < 0.02


def paused(fast, prior, now_ns, seq):
    """A chunk that stays where the tool is for 0.3 s, then rises by 50 mm."""
    rise = 0.05 * np.clip((np.arange(16) - 5) / 8, 0, 1)
    chunk = np.tile(fast.pose, (16, 1))
    chunk[:, 2] += rise
    return dataclasses.replace(prior, t_capture_ns=now_ns - 40_000_000, chunk=chunk.astype(np.float32), seq=seq)


def test_a_pause_that_every_new_chunk_begins_with_is_served_once(rig):
    """Plans come eight times a second and each begins with the pause of the one before; the tool must not stand there for ever."""
    world, slow, fast = rig
    obs = observe(world, S)
    made = slow.step(S, obs)
    heights = {}
    for pause_s in (1e9, fast.set.pause_s):  # never skipped, and as it is
        fast.reset()
        fast.policy, settings = "predictive", fast.set
        fast.set = dataclasses.replace(settings, pause_s=pause_s)
        prior, sent = dataclasses.replace(made, seq=1), []
        fast.pose = pose_of(obs.q_rad, fast.links)
        for i in range(100):  # two seconds
            now = S + i * 20_000_000
            if i % 6 == 0:
                prior = paused(fast, made, now, 10 + i)
            sent.append(fast.step(now, obs, prior)[1].sent_target.astype(float))
        fast.set, fast.policy = settings, "gated"
        heights[pause_s] = np.array(sent)[:, 2] - sent[0][2]
        assert np.abs(np.diff(heights[pause_s])).max() < 0.01  # and never jumps
    kept, skipped = heights.values()
    assert kept.max() < 0.005 and skipped[:25].max() < 0.005  # half a second of pause is left alone
    assert skipped[-1] > 0.04


def test_one_plan_alone_does_not_let_go(rig):
    """Plans come eight times a second; one that opens the jaw is kept only if the next one opens it too. Closing waits for nobody."""
    world, slow, fast = rig
    obs = observe(world, S)
    made = slow.step(S, obs)
    fast.reset()
    fast.policy = "predictive"
    jaw = []
    for i, wanted in enumerate((0.05, 0.6, 0.05, 0.6, 0.6, 0.05)):
        now = S + i * 120_000_000
        chunk = made.chunk.copy()
        chunk[:, 5] = wanted
        prior = dataclasses.replace(made, t_capture_ns=now - 40_000_000, chunk=chunk, seq=made.seq + 1 + i)
        jaw.append([round(float(fast.step(now + k * 20_000_000, obs, prior)[1].sent_target[5]), 2) for k in range(6)])
    fast.policy = "gated"
    assert jaw == [[j] * 6 for j in (0.05, 0.05, 0.05, 0.05, 0.6, 0.05)]


def test_the_gripper_pose_is_what_the_joints_say(rig):
    world, _, fast = rig
    assert np.allclose(pose_of(world.measured, fast.links), world.pose)


def test_an_episode_in_virtual_time_repeats_bit_for_bit(rig):
    world, slow, fast = rig
    ends = []
    for _ in range(2):
        world.reset(sample_layout(np.random.default_rng([3, 7])))
        slow.set_task(world.instruction)
        slow.seq = fast.seq = 0
        episode = run_episode(world, slow, fast, virtual_motor(world), Schedule(), limit_s=2.0)
        ends.append((world.q, [t.gate for t in episode.ticks], episode.states[-1].goal_rad))
    assert (
        np.array_equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1] and np.array_equal(ends[0][2], ends[1][2])
    )
