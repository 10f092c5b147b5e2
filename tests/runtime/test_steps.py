"""The slow and the fast step on real engines and rendered pictures, in virtual time."""

import dataclasses

import numpy as np
import pytest

from calibration.camera import Camera
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.policies.decode import relative_chunk
from runtime.policies.harmowam import FastStep, SlowStep
from runtime.policies.harmowam.slow import WARM_AFTER_NS, WARM_MOST, WARM_NS, WARMTH
from sim.plant import virtual_motor
from sim.tasks import sample_layout
from sim.virtual_time import Schedule, run_episode
from sim.world import World
from tests.rig import START
from tests.tiny import FRONT, TASK, WRIST, tiny_bundle

S = 1_000_000_000


@pytest.fixture(scope="module")
def rig(bundle_path):
    bundle = Bundle.load(bundle_path)
    world = World(layout=sample_layout(np.random.default_rng(5)))
    cameras = {name: world.camera(name) for name in ("front", "wrist")}
    yield world, SlowStep(bundle, world.instruction, cameras), FastStep(bundle, cameras)
    world.close()


def observe(world, t_ns, number=1):
    frames = {name: world.render(name) for name in ("front", "wrist")}
    return Observation(t_ns, frames, world.measured.astype(np.float32), world.qd.astype(np.float32), number)


@pytest.fixture
def starts(rig, monkeypatch):
    """What the predictive flow is started from, plan by plan, [K,6] each."""
    slow, seen = rig[1], []
    run = slow.predictive.run

    def watched(feeds):
        seen.append(feeds["noise"][0].copy())
        return run(feeds)

    monkeypatch.setattr(slow.predictive, "run", watched)
    slow.reset()
    yield seen
    slow.reset()


def test_a_plan_goes_on_from_the_last_one_as_seen_from_here(rig, starts):
    world, slow, _ = rig
    first = slow.step(S, observe(world, S))
    slow.step(S + S // 10, observe(world, S + S // 10))  # two steps of the grid later
    pose = so101.forward(world.measured.astype(np.float32))
    left = (relative_chunk(pose, first.chunk[2:], slow.family) - slow.mean[:14]) / slow.std[:14]
    soon = int(np.searchsorted(slow.grid_ns, WARM_AFTER_NS, side="right"))
    later = slice(soon, 14)
    assert not starts[0].any()
    assert np.allclose(starts[1][later], WARMTH * np.clip(left, -WARM_MOST, WARM_MOST)[later], atol=1e-4)
    assert starts[1][later].any()
    assert not starts[1][:soon].any(), "what the tool does now is left to the newest picture"
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
    number = slow.step(S, observe(world, S)).number
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
    assert again.number == number + 1 and np.isfinite(again.chunk).all()
    assert starts[2].any() and not starts[2][12:].any(), "the plan that was finite is gone on with"


def test_equal_observations_give_equal_priors(rig):
    world, slow, _ = rig
    obs = observe(world, S)
    slow.reset()
    a, b = slow.step(S, obs), slow.step(S, obs)
    assert np.array_equal(a.chunk, b.chunk) and np.array_equal(a.future, b.future)
    assert a.chunk.shape == (16, 6) and a.future.shape == (3, 16, 12, 12) and b.number == a.number + 1
    assert a.t_capture_ns == S and np.all(np.diff(a.grid_ns) == 50_000_000)


def test_a_prior_stays_what_it_was_when_an_engine_answers_in_the_same_memory(rig, monkeypatch):
    """TensorRT's outputs lie in pinned buffers that the next run writes to, while the fast loop reads the Prior
    before."""
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


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Both steps on engines that always say the same; the reactive target is the middle of the table, 60 mm up."""
    bundle = Bundle.load(tiny_bundle(tmp_path_factory.mktemp("tiny")))
    cameras = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
    frames = {name: np.full((96, 96, 3), 90, np.uint8) for name in cameras}
    obs = Observation(S, frames, np.array(START, np.float32), np.zeros(6, np.float32), 1)
    fast = FastStep(bundle, cameras)
    return SlowStep(bundle, TASK, cameras).step(S, obs), fast, obs


@pytest.fixture
def fast(toys):
    toys[1].reset()
    yield toys[1]
    toys[1].other_gate = None


TICK = 20_000_000


def straight(prior, now_ns, pose, velocity, number):
    """A plan of 60 ms ago that goes on from `pose` with `velocity` [6]."""
    chunk = pose + np.outer(prior.grid_ns * 1e-9 - 0.06, velocity)
    return dataclasses.replace(prior, t_capture_ns=now_ns - 60_000_000, chunk=chunk.astype(np.float32), number=number)


def test_velocity_stays_continuous_at_every_hand_over_of_a_moving_tool(toys, fast):
    """Experts change hands every 0.2 s and plans every 0.1 s, each of them with another velocity.

    At the hand-over the tool is told to go on as it went: what differs comes in later, by the blend. And where it is
    told to be is where that velocity takes it.
    """
    made, _, obs = toys
    limit = np.array([fast.set.acceleration] * 3 + [20.0, 20.0]) * TICK * 1e-9 + 1e-6
    prior, jumps, speeds = made, [], []
    for k in range(80):
        now = S + k * TICK
        if new := k % 5 == 0:
            velocity = np.array([0.1, 0.2 * (-1) ** (k // 5), -0.05, 0.3, -0.3, 0.0])
            prior = straight(made, now, so101.forward(obs.q_rad), velocity, 10 + k)
        fast.other_gate = lambda k=k: float(k // 10 % 2)
        before, was, expert = fast.velocity.copy(), fast.pose.copy(), fast.expert
        fast.step(now, obs, prior)
        if k and (fast.expert != expert or (new and fast.expert == Expert.PREDICTIVE)):
            jumps.append(np.abs(fast.velocity - before)[:5] / limit)
            speeds.append(np.linalg.norm(before[:3]))
        elif k:
            went = (before + fast.velocity)[:3] / 2 * TICK * 1e-9
            assert np.abs(fast.pose - was)[:3] == pytest.approx(np.abs(went), abs=6e-4)
    assert len(jumps) >= 11 and np.sort(speeds)[2] > 0.05
    assert np.max(jumps) <= 1


def test_in_transit_the_tool_stays_in_its_funnel_and_within_speed_and_acceleration(fast):
    start, target = np.array([0.20, 0.10, 0.07, 1.4, 0, 0.6]), np.array([0.25, -0.10, 0.01, 1.4, 0, 0.6])
    fast.pose, dt = start.copy(), TICK * 1e-9
    poses, velocities = [fast.pose], [fast.velocity.copy()]
    for _ in range(150):
        fast._transit(dt, target)
        poses.append(fast.pose)
        velocities.append(fast.velocity.copy())
    p, v = np.array(poses), np.array(velocities)[:, :3]
    away = np.linalg.norm(p[:, :2] - target[:2], axis=1)
    floor = np.minimum(target[2] + 1.6 * np.maximum(away - 0.006, 0), 0.07)
    assert (p[:, 2] > floor - 0.003).all() and (p[away > 0.05, 2] > 0.06).all()
    speed = np.linalg.norm(v, axis=1)
    assert 0.25 < speed.max() <= 0.26 + 1e-9
    assert 1.9 < np.abs(np.diff(v, axis=0)).max() / dt <= 2.0 + 1e-9
    assert np.abs(p[-1, :3] - target[:3]).max() < 0.002, "and it arrives"


def test_between_its_two_thresholds_the_gate_changes_nothing(toys, fast, monkeypatch):
    made, _, obs = toys
    monkeypatch.setattr(fast, "on", 0.6)
    monkeypatch.setattr(fast, "off", 0.4)
    chosen = []
    for k, gate in enumerate((0.5, 0.61, 0.5, 0.39, 0.5, 0.61)):
        fast.other_gate = lambda gate=gate: gate
        now = S + k * TICK
        command, _ = fast.step(now, obs, dataclasses.replace(made, t_capture_ns=now, number=k + 1))
        chosen.append(command.expert)
        assert command.gate == pytest.approx(gate)
    R, P = Expert.REACTIVE, Expert.PREDICTIVE
    assert chosen == [R, P, P, R, R, P]


def test_the_joints_velocity_is_how_the_joints_move(toys, fast):
    made, _, obs = toys
    fast.other_gate = lambda: 1.0
    velocity = np.array([0.15, 0.1, -0.1, 0.5, -0.5, 0.0])
    prior = straight(made, S, so101.forward(obs.q_rad), velocity, 1)
    sent = [fast.step(S + k * TICK, obs, prior)[0] for k in range(22)]
    assert {c.expert for c in sent} == {Expert.PREDICTIVE}
    q, qd = (np.array([getattr(c, name) for c in sent], float)[:, :5] for name in ("q_rad", "qd_rad_s"))
    central = (q[2:] - q[:-2]) / (2 * TICK * 1e-9)
    assert (np.abs(central).max(axis=0) > 0.3).all(), "every joint moves"
    assert np.abs(qd[1:-1] - central).max() < 0.1 * np.abs(central).max()


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_after_a_prior_was_lost_the_tool_starts_at_rest_from_where_the_arm_is(toys, fast, gate):
    made, _, obs = toys
    fast.other_gate = lambda: gate
    there = so101.forward(obs.q_rad)
    prior = straight(made, S, there, np.array([0.1, 0.1, 0, 0, 0, 0]), 1)
    for k in range(20):
        fast.step(S + k * TICK, obs, prior)
    assert np.linalg.norm(fast.velocity[:3]) > 0.03, "it moved"
    assert fast.step(S + 20 * TICK, obs, None)[0] is None
    elsewhere = dataclasses.replace(obs, q_rad=obs.q_rad + np.array([0.4, 0, 0, 0, 0, 0], np.float32))
    now = S + 25 * TICK
    prior = straight(made, now, there, np.array([0.1, 0.1, 0, 0, 0, 0]), 30)
    command, tick = fast.step(now, elsewhere, prior)
    assert tick.sent_target[:5] == pytest.approx(so101.forward(elsewhere.q_rad)[:5], abs=1e-5)
    assert np.abs(command.qd_rad_s).max() < 1e-5
    assert np.abs(command.q_rad - elsewhere.q_rad)[:5].max() < 0.02


def paused(fast, prior, now_ns, number):
    """A chunk that stays where the tool is for 0.3 s, then rises by 50 mm."""
    rise = 0.05 * np.clip((np.arange(16) - 5) / 8, 0, 1)
    chunk = np.tile(fast.pose, (16, 1))
    chunk[:, 2] += rise
    return dataclasses.replace(prior, t_capture_ns=now_ns - 40_000_000, chunk=chunk.astype(np.float32), number=number)


def test_a_pause_that_every_new_chunk_begins_with_is_served_once(rig):
    """Plans come eight times a second and each begins with the pause of the one before; the tool must not stand there
    for ever."""
    world, slow, fast = rig
    obs = observe(world, S)
    made = slow.step(S, obs)
    heights = {}
    for pause_s in (1e9, fast.set.pause_s):  # never skipped, and as it is
        fast.reset()
        fast.policy, settings = "predictive", fast.set
        fast.set = dataclasses.replace(settings, pause_s=pause_s)
        prior, sent = dataclasses.replace(made, number=1), []
        fast.pose = so101.forward(obs.q_rad)
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
    """Plans come eight times a second; one that opens the jaw is kept only if the next one opens it too. Closing waits
    for nobody."""
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
        prior = dataclasses.replace(made, t_capture_ns=now - 40_000_000, chunk=chunk, number=made.number + 1 + i)
        jaw.append([round(float(fast.step(now + k * 20_000_000, obs, prior)[1].sent_target[5]), 2) for k in range(6)])
    fast.policy = "gated"
    assert jaw == [[j] * 6 for j in (0.05, 0.05, 0.05, 0.05, 0.6, 0.05)]


def test_the_gripper_pose_is_what_the_joints_say(rig):
    world, _, fast = rig
    assert np.allclose(so101.forward(world.measured), world.pose)


def test_an_episode_in_virtual_time_repeats_bit_for_bit(rig):
    world, slow, fast = rig
    ends = []
    for _ in range(2):
        world.reset(sample_layout(np.random.default_rng([3, 7])))
        slow.set_task(world.instruction)
        slow.priors_made = fast.commands_made = 0
        episode = run_episode(world, slow, fast, virtual_motor(world), Schedule(), limit_s=2.0)
        ends.append((world.q, [t.gate for t in episode.ticks], episode.states[-1].goal_rad))
    assert (
        np.array_equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1] and np.array_equal(ends[0][2], ends[1][2])
    )
