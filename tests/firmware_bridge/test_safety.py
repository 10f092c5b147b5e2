"""The last gate before the motors: what comes out is finite, in range, slow enough, and stops when it should."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.motion.limits import Limiter, limit_step
from firmware_bridge.motion.measurement import NO_REPLY, TWIN, Measurement, Telemetry
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from tests.firmware_bridge.safety_bench import (
    COOL,
    DT,
    HIGH,
    LOW,
    STOP,
    A,
    Bench,
    S,
    V,
    lag,
    run_to_speed,
)
from tests.firmware_bridge.so101 import CONFIG


def test_a_command_that_claims_to_be_good_for_ever_is_rejected():
    bench = Bench()
    bench.tick()
    assert bench.tick(bench.q, life_ns=S).state == SafetyState.ACTIVE
    assert bench.tick(bench.q, life_ns=S + 1).state == SafetyState.HOLD
    assert bench.safety.rejected == 1 and bench.safety.reason == "command was rejected"


def test_a_command_whose_times_are_of_another_clock_is_rejected():
    bench = Bench()
    bench.tick()
    wall_clock = -(10**18)  # ahead of the monotonic clock by decades, like time.time_ns()
    assert bench.tick(bench.q).state == SafetyState.ACTIVE
    states = [d.state for d in bench.ticks(60, bench.q, age_ns=wall_clock)]
    assert states[0] == SafetyState.HOLD and bench.safety.rejected > 0
    assert states[-1] == SafetyState.SAFE_STOP and bench.safety.reason == "no command for 0.5 s"


def test_a_command_may_apply_a_little_later_but_is_over_a_second_from_now():
    bench = Bench()
    bench.tick()
    for ahead in (50_000_000, S - 75_000_000):
        assert bench.tick(bench.q, age_ns=-ahead).state == SafetyState.ACTIVE
    assert bench.tick(bench.q, age_ns=75_000_000 - S - 1).state == SafetyState.HOLD
    assert bench.safety.rejected == 1 and bench.safety.reason == "command was rejected"
    bench.tick(bench.q)
    command = Command(bench.now + S, bench.now + S + 1, bench.q.astype(np.float32), np.zeros(6, np.float32))
    assert bench.safety.revise(bench.now, command, Measurement(bench.q, bench.qd, bench.bits)) is None


def test_the_goal_never_leads_the_measured_arm_by_more_than_max_lead():
    bench = Bench(config=dataclasses.replace(CONFIG, follow_rad=9.0))
    bench.tick()
    bench.stuck = True
    start = bench.q.copy()
    for d in bench.ticks(200, start + 1.2):
        assert np.all(np.abs(d.goal - start) <= CONFIG.max_lead + 1e-9)
    assert np.allclose(np.abs(d.goal - start)[[0, 1, 2, 4]], CONFIG.max_lead, atol=1e-3)


def test_a_command_is_read_at_the_time_it_applies_to_and_no_further_than_100_ms():
    for age_ms, ahead in ((0, 0.015), (20, 0.035), (70, 0.085), (95, 0.1), (-50, 0.0)):
        bench = Bench()
        bench.tick()
        rate = np.array([1.0, 0, 0, 0, 0, 0], np.float32)
        for _ in range(100):
            bench.tick((0.1, -0.5, 0.5, 0.5, 0.0, 0.5), age_ns=age_ms * 1_000_000, life_ns=200_000_000, qd=rate)
        assert bench.goals[-1][0] == pytest.approx(0.1 + ahead, abs=2e-3)


everything = st.tuples(
    st.lists(st.floats(-4, 4), min_size=6, max_size=6),
    st.lists(st.floats(-40, 40), min_size=6, max_size=6),
    st.sampled_from(
        [RequestKind.ARM, RequestKind.ARM, RequestKind.ARM, RequestKind.HOLD, RequestKind.NONE, RequestKind.LOWER]
    ),
    st.sampled_from([0, 0, 0, 50, 200]),  # age of the command, ms
    st.sampled_from([0, 0, 0, 1, 32, 64, 128]),  # status bits
    st.floats(20, 70),
    st.floats(4, 9),
    st.integers(1, 12),  # ticks
)


@settings(max_examples=60, deadline=None)
@given(st.lists(everything, min_size=2, max_size=12))
def test_whatever_comes_in_the_goals_stay_within_position_velocity_acceleration_and_jerk(inputs):
    bench = Bench()
    bench.ticks(2)
    for q, qd, request, age, bits, warm, volt, n in inputs:
        bench.bits[2], bench.temperature, bench.volt[4] = bits, np.full(6, warm), volt
        bench.ticks(n, q, request=request, age_ns=age * 1_000_000, qd=np.array(qd, np.float32))
    goals = np.array([bench.goals[0], *bench.goals])
    v = np.diff(goals, axis=0) / DT
    a = np.diff(v, axis=0) / DT
    j = np.diff(a, axis=0) / DT
    assert np.all(goals >= LOW - 1e-9) and np.all(goals <= HIGH + 1e-9)
    assert np.all(np.abs(v) <= V + 1e-9)
    assert np.all(np.abs(a) <= A + 1e-6)
    assert np.all(np.abs(j) <= np.array(CONFIG.jerk) + 1e-3)


@given(st.floats(5, 60), st.floats(100, 5000), st.sampled_from([50.0, 100.0, 250.0]))
def test_the_jerk_limit_holds_for_any_arm(acceleration, jerk, hz):
    """A full reversal is the hardest that can be asked."""
    dt, one = 1 / hz, np.ones(1)
    limiter = Limiter(dt, acceleration * one, jerk * one, -one, one)
    goals = [limiter.goal, limiter.goal]
    for k in range(int(2 * hz)):
        goals.append(limiter.step(one * (1 if k // int(hz / 5) % 2 else -1), 4 * one))
    assert np.abs(np.diff(goals, 3, axis=0)).max() / dt**3 <= jerk * (1 + 1e-6) + 1e-2
    while not limiter.at_rest:
        limiter.brake()
    assert np.abs(limiter.goal) <= 1 + 1e-9


def test_an_armed_arm_that_nobody_commands_is_lowered_after_ten_seconds():
    bench = Bench()
    states = [bench.tick().state for _ in range(1100)]
    assert states[900] == SafetyState.HOLD and states[-1] == SafetyState.SAFE_STOP


def test_what_is_said_while_nothing_is_wrong():
    bench = Bench()
    assert bench.tick(request=RequestKind.NONE).reason == "not armed"
    assert bench.tick().reason == "torque on at the measured pose"
    assert bench.tick().reason == "no command yet"
    assert bench.tick(bench.q).reason == ""
    assert bench.tick(bench.q, age_ns=100_000_000).reason == "command is stale"
    assert bench.tick(bench.q, request=RequestKind.HOLD).reason == "held on request"
    decisions = bench.ticks(900, request=RequestKind.LOWER)
    assert {d.reason for d in decisions} == {"lowering on request"} and decisions[-1].release


def test_a_held_arm_is_sent_its_goal_and_may_be_held_for_ever():
    bench = Bench()
    bench.ticks(2)
    held = bench.ticks(1500, request=RequestKind.HOLD)
    assert all(d.state == SafetyState.HOLD and np.array_equal(d.goal, bench.q) for d in held)
    bench.tick(bench.q)
    held = bench.ticks(200, request=RequestKind.HOLD)
    assert {d.state for d in held} == {SafetyState.HOLD}
    after = [d.state for d in bench.ticks(60)]  # the request is over and nobody commands: patience begins only now
    assert after.index(SafetyState.SAFE_STOP) == 50


def test_a_command_ends_at_its_very_nanosecond_and_patience_at_its_tick():
    bench = Bench()
    bench.ticks(2)
    assert bench.tick(bench.q, age_ns=74_999_999).state == SafetyState.ACTIVE
    assert bench.tick(bench.q, age_ns=75_000_000).state == SafetyState.HOLD
    states = [d.state for d in bench.ticks(60, bench.q, age_ns=75_000_000)]
    assert states.index(SafetyState.SAFE_STOP) == 50  # stop_after_s = 0.5, counted from the first tick on hold
    assert bench.safety.reason == "no command for 0.5 s"
    again = Bench()
    again.ticks(2)
    for _ in range(4):  # each hold is counted anew
        assert {d.state for d in again.ticks(45)} == {SafetyState.HOLD}
        again.tick(again.q)


def test_every_rejected_command_is_counted():
    bench = Bench()
    bench.tick()
    bench.ticks(7, np.full(6, np.nan))
    assert bench.safety.rejected == 7


def test_speed_grows_from_a_fifth_to_full_in_0_6_s_after_arming():
    bench = Bench(
        (-1.9, -0.5, 0.5, 0.5, 0.0, 0.5),
        dataclasses.replace(CONFIG, max_lead=9.0, max_jerk=(1e9,) * 6, max_acceleration=(400.0,) * 6),
    )
    bench.ticks(2)
    bench.ticks(70, (1.9, -0.5, 0.5, 0.5, 0.0, 0.5))
    speed = np.diff(np.array(bench.goals)[:, 0]) / DT
    ticks = np.arange(2, len(speed) + 1)
    assert speed[1:61] == pytest.approx(4.0 * np.minimum(1.0, 0.2 + 0.8 * ticks[:60] * DT / 0.6), rel=1e-6)
    assert speed[65] == pytest.approx(4.0)


def test_a_hot_arm_is_slow_also_while_the_speed_still_grows():
    bench = Bench(config=dataclasses.replace(CONFIG, max_jerk=(1e9,) * 6, max_acceleration=(400.0,) * 6))
    bench.temperature = np.full(6, 61.0)
    bench.ticks(25)
    bench.ticks(2, bench.q + 0.5)
    assert (bench.goals[-1] - bench.goals[-2])[0] / DT == pytest.approx(4.0 * 0.4 * (0.2 + 0.8 * 0.26 / 0.6), rel=1e-6)


def test_both_sides_of_the_lead_are_limited():
    bench = Bench(config=dataclasses.replace(CONFIG, follow_rad=9.0))
    bench.tick()
    bench.stuck = True
    start = bench.q.copy()
    d = bench.ticks(200, start - 1.2)[-1]
    assert np.allclose((start - d.goal)[[0, 1, 3, 4]], CONFIG.max_lead, atol=1e-3)


def test_voltages_that_were_not_read_yet_mean_nothing_and_each_joint_has_its_own_supply():
    bench = Bench()
    bench.volt = np.zeros(6)
    bench.tick()
    bench.ticks(50, bench.q)
    assert bench.safety.reason == ""
    bench.volt = np.array([12.0, 12.0, 5.0, 5.0, 0.9, 0.0])
    bench.ticks(50, bench.q)
    assert bench.safety.reason == ""
    bench.volt = np.array([12.0, 12.0, 5.0, 4.3, 0.9, 5.0])
    bench.ticks(30, bench.q)
    assert bench.safety.reason == "warning: wrist_flex has a sagging voltage"


def test_the_first_voltage_that_was_read_counts_however_low_it_is():
    bench = Bench()
    bench.volt = np.array([7.4] * 5 + [0.9])  # a reading that means nothing, or a supply that is not yet up
    bench.tick()
    bench.ticks(5, bench.q)
    bench.volt = np.full(6, 7.4)
    assert bench.ticks(30, bench.q)[-1].state == STOP and bench.safety.reason == "gripper has too much voltage"


def test_who_has_no_emergency_stop_need_not_speak_of_one():
    bench = Bench()
    measured, seen = Measurement(bench.q, bench.qd, bench.bits), Telemetry(bench.qd, COOL, bench.volt, bench.limp)
    assert bench.safety.step(S, None, RequestKind.ARM, measured, seen).state == SafetyState.ARMING


def test_a_moving_joint_that_lags_a_little_is_not_blocked():
    bench = Bench()
    bench.ticks(60, bench.q)
    lag(0.25)(bench)
    bench.qd = np.full(6, 0.05)
    assert {d.state for d in bench.ticks(150, bench.safety.goal)} == {SafetyState.ACTIVE}


def test_exactly_at_a_threshold_it_is_not_yet_wrong():
    config = dataclasses.replace(CONFIG, follow_rad=0.5, lower=(-4.0,) * 6, upper=(4.0,) * 6)
    bench = Bench((0.0,) * 6, config)
    bench.volt = np.full(6, 10.0)
    bench.ticks(60, bench.q)
    bench.volt = np.full(6, 0.88 * 10)
    assert bench.ticks(30, bench.q)[-1].reason == ""
    bench.volt = np.full(6, 0.8 * 10)
    assert "sagging" in bench.ticks(30, bench.q)[-1].reason
    bench.volt = np.full(6, 0.7 * 10)
    assert bench.ticks(30, bench.q)[-1].state == SafetyState.ACTIVE
    bench.volt = np.full(6, 1.2 * 10)
    assert bench.ticks(30, bench.q)[-1].state == SafetyState.ACTIVE
    bench.volt = np.full(6, 10.0)
    bench.stuck, bench.q = True, np.array([0.5, 0, 0, 0, 0, 0])  # exactly follow_rad away from the goal at zero
    bench.qd = np.ones(6)
    assert bench.ticks(100, np.zeros(6))[-1].state == SafetyState.ACTIVE
    bench.qd, bench.q = np.zeros(6), np.array([0.5 * 0.6, 0, 0, 0, 0, 0])
    assert bench.ticks(150, np.zeros(6))[-1].state == SafetyState.ACTIVE


def test_only_the_gripper_need_not_be_at_rest_and_rest_has_a_tolerance():
    near = np.add(CONFIG.rest, [0.059, -0.059, 0.059, 0.059, 0.059, 0.5])
    bench = Bench(near)
    bench.ticks(2, request=RequestKind.ARM)
    bench.tick(request=RequestKind.LOWER)
    assert bench.tick(request=RequestKind.LOWER).torque_share is not None
    for joint, away in ((0, 0.06), (4, 0.061)):
        far = np.array(CONFIG.rest)
        far[joint] += away
        bench = Bench(far)
        bench.ticks(2)
        assert bench.tick(request=RequestKind.LOWER).goal is not None


def test_a_lowering_moves_no_faster_than_it_should():
    bench = Bench((1.5, 1.0, -1.0, -1.0, 1.0, 1.0))
    bench.tick()
    bench.ticks(300, request=RequestKind.LOWER)
    assert np.abs(np.diff(np.array(bench.goals), axis=0)).max() / DT == pytest.approx(CONFIG.lower_speed, rel=1e-3)


def test_a_fault_brakes_before_the_torque_goes_down_and_keeps_its_reason():
    bench = Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    bench.tick()
    run_to_speed(bench)
    bench.pressed = True
    decisions = bench.ticks(80, bench.q)
    assert [d.goal is not None for d in decisions[:5]] == [True] * 5
    assert {d.reason for d in decisions} == {"emergency stop pressed"}
    first = next(k for k, d in enumerate(decisions) if d.torque_share is not None)
    assert decisions[first].torque_share == 1.0 and decisions[first + 20].torque_share == pytest.approx(0.5)
    assert decisions[first + 39].torque_share is not None and decisions[first + 40].release


def test_an_energised_arm_that_cannot_be_seen_is_neither_armed_nor_lowered():
    for bits in (NO_REPLY, TWIN):
        bench = Bench(energised=True)
        bench.bits[2] = bits
        for request in (RequestKind.ARM, RequestKind.LOWER):
            d = bench.tick(request=request)
            assert d.goal is None and d.reason == "cannot arm: a servo does not answer, or two of a joint stand apart"


@pytest.mark.parametrize("side", [-1, 1])
def test_a_target_beyond_the_limits_is_approached_like_the_limit_itself(side):
    goal, velocity = np.zeros(6), np.zeros(6)
    limit = HIGH if side > 0 else LOW
    for _ in range(300):
        goal, v = limit_step(np.full(6, 9.0 * side), goal, velocity, DT, V, A, LOW, HIGH)
        assert np.all(np.abs(v - velocity) <= A * DT + 1e-6)
        velocity = v
    assert np.allclose(goal, limit) and np.allclose(velocity, 0, atol=1e-9)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_range_comes_before_the_acceleration_for_a_goal_that_could_not_stop_in_time(side):
    limit = HIGH if side > 0 else LOW
    goal, velocity = limit_step(limit, limit - side * 0.001, side * V, DT, V, A, LOW, HIGH)
    assert np.array_equal(goal, limit) and np.allclose(velocity, side * 0.001 / DT)


@pytest.mark.parametrize("side", [-1, 1])
def test_an_arm_outside_its_range_is_led_back_within_the_limits_and_no_further_out(side):
    goal = (HIGH if side > 0 else LOW) + side * 0.2
    back, _ = limit_step(goal + side, goal, np.zeros(6), DT, V, A, LOW, HIGH)
    assert np.allclose(back, goal - side * A * DT * DT)
    out, _ = limit_step(goal + side, goal, side * V, DT, V, A, LOW, HIGH)
    assert np.array_equal(out, goal)


def test_a_step_that_was_undone_never_was_and_before_the_first_there_is_nothing_to_undo():
    limiter = Limiter(DT, A, 50 * A, LOW, HIGH)
    start = np.full(6, 0.3)
    limiter.reset(start)
    still = []
    for act in (limiter.undo, lambda: limiter.step(start + 1, V), limiter.undo):
        act()
        still.append(limiter.at_rest)
    assert still == [True, False, True]
    assert np.allclose(limiter.brake(), start)
