"""A policy of joint-space chunks: plans read at the time an action applies, and joints that never jump whatever plans
come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.camera import Camera
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle, BundleError
from runtime.contracts import Observation, Prior
from runtime.manifest import Chunk, Preprocess
from runtime.policies import open_policy
from runtime.policies.chunk import FastStep
from runtime.policies.protocol import PolicyError
from runtime.policies.views import Views
from tests.rig import START
from tests.tiny import FRONT, TASK, WRIST, tiny_chunk_bundle

MS = 1_000_000
S = 1_000 * MS
HERE = np.array(START, np.float32)
CAMERAS = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
RAMP = HERE + np.outer(np.arange(1, 17) * 0.05, [0.4, -0.2, 0.2, 0.1, 0.3, 0.5])  # rad, 50 ms apart


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_chunk_bundle(tmp_path_factory.mktemp("tiny"), RAMP))


def observe(t_ns, q=HERE, number=1):
    frames = {name: np.full((96, 96, 3), 90, np.uint8) for name in CAMERAS}
    return Observation(t_ns, frames, np.asarray(q, np.float32), np.zeros(6, np.float32), number)


def plan(t_ns, targets, number=1, step_ms=50):
    grid = np.arange(1, len(targets) + 1, dtype=np.int64) * step_ms * MS
    nothing = np.zeros(0, np.float32)
    return Prior(t_ns, t_ns, TASK, nothing, nothing, np.asarray(targets, np.float32), grid, number, "joints")


def test_the_slow_step_gives_joint_targets_at_the_policys_times(bundle):
    policy = open_policy(bundle, TASK, CAMERAS)
    assert (policy.kind, policy.mode) == ("chunk", "chunk") and not policy.fast.uses_pictures
    prior = policy.slow.step(S, observe(S))
    assert prior.space == "joints" and prior.chunk == pytest.approx(RAMP, abs=1e-5)
    assert prior.grid_ns.tolist() == [50 * MS * k for k in range(1, 17)] and prior.t_capture_ns == S
    assert (prior.number, prior.tokens.size, prior.future.size) == (1, 0, 0) and not policy.slow.remembers
    with pytest.raises(BundleError, match="does not know the task"):
        policy.slow.set_task("take the peg away")


def test_a_plan_is_read_at_the_time_an_action_applies_however_late_it_comes(bundle):
    """After the blend from where the arm was: 0.3 s after the capture the target is that of 0.3 s, half way between
    steps the middle."""
    fast = FastStep(bundle)
    fast.step(S, observe(S), plan(S - 50 * MS, RAMP))  # the motion has begun
    prior = plan(S, RAMP, number=2)
    for k in range(4, 16):  # it came 80 ms after its pictures
        command, tick = fast.step(S + k * 20 * MS, observe(S, RAMP[0]), prior)
    assert command.q_rad == pytest.approx(RAMP[5], abs=1e-6)
    assert command.qd_rad_s == pytest.approx([0.4, -0.2, 0.2, 0.1, 0.3, 0.5], abs=1e-4)
    command, tick = fast.step(S + 325 * MS, observe(S), prior)
    assert command.q_rad == pytest.approx((RAMP[5] + RAMP[6]) / 2, abs=1e-6)
    assert command.t_apply_ns == S + 325 * MS and command.expert == Expert.PLAN and tick.prior_age_ns == 325 * MS
    assert tick.sent_target == pytest.approx(so101.forward(command.q_rad), abs=1e-5)


def test_the_first_command_starts_where_the_arm_is_at_rest(bundle):
    fast = FastStep(bundle)
    for _ in range(2):  # again after a while without a Prior
        command, _ = fast.step(S + 100 * MS, observe(S), plan(S, RAMP + 0.5))
        assert command.q_rad == pytest.approx(HERE, abs=1e-6) and command.qd_rad_s == pytest.approx(
            np.zeros(6), abs=1e-4
        )
        assert fast.step(S + 120 * MS, observe(S), None)[0] is None


def test_the_first_plans_time_starts_at_rest_so_that_the_tool_has_no_speed_to_catch_up_with(bundle):
    """The plan moves at full speed from its first target on. Its time comes up to speed within 0.2 s: the distance
    between command and plan only shrinks, and the motion is 0.1 s behind until the second plan comes."""
    fast, prior, sent = FastStep(bundle), plan(S, RAMP + 0.02), []
    for k in range(40):
        sent.append(fast.step(S + 50 * MS + k * 10 * MS, observe(S, RAMP[0]), prior))
    rates = np.array([command.qd_rad_s[0] for command, _ in sent])
    planned, followed = (
        np.array([getattr(t, name)[:3] for _, t in sent]) for name in ("predictive_target", "sent_target")
    )
    away = np.linalg.norm(planned - followed, axis=1)
    assert rates[0] == pytest.approx(0, abs=1e-6) and rates[20:] == pytest.approx(np.full(20, 0.4), abs=1e-4)
    assert (np.diff(away) < 1e-6).all() and away[0] > 0.004 and away[-1] < 1e-6
    assert sent[30][0].q_rad == pytest.approx(
        (RAMP + 0.02)[4], abs=1e-6
    )  # 0.35 s after the capture: the target of 0.25 s


def test_beyond_its_end_a_plan_is_held_and_a_lost_one_gives_nothing(bundle):
    fast = FastStep(bundle)
    prior, sent = plan(S, RAMP[:4]), []
    for k in range(5, 75):
        sent.append(fast.step(S + k * 20 * MS, observe(S), prior)[0])
    q, qd = (np.array([getattr(c, name) for c in sent]) for name in ("q_rad", "qd_rad_s"))
    assert q[20:] == pytest.approx(np.tile(RAMP[3], (50, 1)), abs=1e-6) and not qd[20:].any()
    assert fast.step(S + 1501 * MS, observe(S), prior)[0] is None


@st.composite
def plans(draw):
    """Plans as they may come: any targets, lengths and grids, made from pictures of any age, at any time."""
    angle = st.floats(-2.0, 2.0, width=32)
    out, t = [], S
    for number in range(1, draw(st.integers(3, 7))):
        t += draw(st.integers(1, 900)) * MS
        steps = draw(st.integers(2, 8))
        targets = draw(st.lists(st.lists(angle, min_size=6, max_size=6), min_size=steps, max_size=steps))
        age = draw(st.integers(0, 700)) * MS
        out.append((t, plan(t - age, targets, number, draw(st.sampled_from([10, 33, 50, 120])))))
    return out


@given(plans=plans(), tick_ms=st.sampled_from([5, 10, 20, 33]))
def test_position_and_velocity_go_on_at_every_seam_whatever_plans_come(bundle, plans, tick_ms):
    """Two commands a microsecond apart, the second on the next plan: the same place, the same velocity. And on the way
    the joints go no further from tick to tick than the steepest plan and its blend take them."""
    fast, prior = FastStep(bundle), None
    last, last_t = None, 0
    times = sorted({*range(plans[0][0], plans[-1][0] + 900 * MS, tick_ms * MS), *(t for t, _ in plans)})
    coming = list(plans)
    for t in times:
        before = fast.step(t, observe(t), prior)[0]
        if coming and t == coming[0][0]:
            prior = coming.pop(0)[1]
            after = fast.step(t + 1_000, observe(t), prior)[0]
            if before is not None and after is not None:
                assert np.abs(after.q_rad - before.q_rad).max() < 1e-3
                assert np.abs(after.qd_rad_s - before.qd_rad_s).max() < 1e-1
            before = after
        if last is not None and before is not None:
            steepest = max(
                np.abs(np.diff(p.chunk, axis=0)).max() / ((p.grid_ns[1] - p.grid_ns[0]) * 1e-9) for _, p in plans
            )
            assert (
                np.abs(before.q_rad - last.q_rad).max()
                <= (t - last_t) * 1e-9 * 4 * (steepest + 4 / fast.set.blend_s) + 1e-4
            )
        last, last_t = before, t


def test_pictures_are_taken_pixel_for_pixel_where_the_bundle_says_so(tmp_path):
    straight = Preprocess([96, 96], [0.0] * 3, [1.0] * 3, straight=True)
    bundle = Bundle.load(tiny_chunk_bundle(tmp_path, RAMP, preprocess=straight))
    frames = {k: np.random.default_rng(1).integers(0, 256, (96, 96, 3)).astype(np.uint8) for k in CAMERAS}
    made = Views(bundle, CAMERAS)(Observation(S, frames, HERE, HERE))
    assert made["front"][0] == pytest.approx(frames["front"].transpose(2, 0, 1) / 255, abs=1e-7)
    larger = {**CAMERAS, "wrist": CAMERAS["wrist"].scaled(192, 192)}
    with pytest.raises(
        PolicyError, match=r"camera 'wrist' gives pictures of 192x192, .* pixel for pixel at 96x96: set"
    ):
        Views(bundle, larger)


def test_a_first_target_may_apply_at_the_capture_itself(tmp_path):
    """LeRobot pairs an observation with the action that is sent right after it."""
    bundle = Bundle.load(tiny_chunk_bundle(tmp_path, RAMP, chunk=Chunk(16, 50, first=0)))
    assert open_policy(bundle, TASK, CAMERAS).slow.step(S, observe(S)).grid_ns.tolist() == [
        50 * MS * k for k in range(16)
    ]
