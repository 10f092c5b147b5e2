"""The last gate before the motors: what comes out is finite, in range, slow enough, and stops when it should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.arm import NO_REPLY, Measurement
from firmware_bridge.messages import Command, RequestKind, SafetyState
from firmware_bridge.safety import Safety, limit_step
from tests.firmware_bridge.so101 import CONFIG, LOWER, UPPER

S = 1_000_000_000
TICK = S // 100
COOL = np.full(6, 30.0)
LOW, HIGH = np.array(LOWER), np.array(UPPER)
V, A, DT = np.full(6, 4.0), np.full(6, 30.0), 0.01


class Bench:
    """A safety machine with an arm that goes exactly where it is told."""

    def __init__(self, start=(0.0, -0.5, 0.5, 0.5, 0.0, 0.5)):
        self.safety, self.now, self.q = Safety(CONFIG), S, np.array(start)
        self.bits = np.zeros(6, np.uint8)
        self.goals = []

    def tick(self, q=None, request=RequestKind.ARM, age_ns=0, life_ns=75_000_000, qd=None, temperature=COOL):
        self.now += TICK
        command = None
        if q is not None:
            applied = self.now - age_ns
            command = Command(
                applied, applied + life_ns, np.asarray(q, np.float32), np.zeros(6, np.float32) if qd is None else qd
            )
        d = self.safety.step(self.now, command, request, Measurement(self.q, np.zeros(6), self.bits), temperature)
        if d.goal is not None:
            self.q = d.goal.copy()
            self.goals.append(d.goal.copy())
        return d


targets = st.lists(st.lists(st.floats(-4, 4), min_size=6, max_size=6), min_size=3, max_size=40)


@given(targets, st.integers(1, 5))
def test_any_targets_give_goals_within_position_velocity_and_acceleration(sequence, repeat):
    goal, velocity = np.zeros(6), np.zeros(6)
    for target in sequence:
        for _ in range(repeat):
            new, v = limit_step(np.array(target), goal, velocity, DT, V, A, LOW, HIGH)
            assert np.all(new >= LOW - 1e-9) and np.all(new <= HIGH + 1e-9)
            assert np.all(np.abs(new - goal) <= V * DT + 1e-9)
            assert np.all(np.abs(v - velocity) <= A * DT + 1e-6)
            goal, velocity = new, v


def test_a_still_target_is_reached_without_overshoot():
    goal, velocity = np.zeros(6), np.zeros(6)
    target = np.full(6, 0.7)
    for _ in range(100):
        goal, velocity = limit_step(target, goal, velocity, DT, V, A, LOW, HIGH)
        assert np.all(goal <= target + 1e-9)
    assert np.allclose(goal, target, atol=1e-4) and np.allclose(velocity, 0, atol=1e-3)


bad = st.sampled_from([np.nan, np.inf, -np.inf])


@settings(max_examples=40)
@given(st.integers(0, 5), bad)
def test_a_command_that_is_no_number_is_rejected_whole(joint, value):
    bench = Bench()
    bench.tick()
    before = bench.q.copy()
    q = np.ones(6)
    q[joint] = value
    d = bench.tick(q)
    assert d.state == SafetyState.HOLD and bench.safety.rejected == 1
    assert np.allclose(bench.q, before)


def test_a_command_of_the_wrong_size_is_rejected():
    bench = Bench()
    bench.tick()
    assert bench.tick(np.zeros(5)).state == SafetyState.HOLD


def test_nothing_moves_before_it_is_armed_and_arming_starts_where_the_arm_is():
    bench = Bench()
    d = bench.tick(np.zeros(6), request=RequestKind.NONE)
    assert d.state == SafetyState.DISARMED and d.goal is None
    d = bench.tick(np.ones(6))
    assert d.arm and d.state == SafetyState.ARMING
    assert np.allclose(d.goal, (0.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    d = bench.tick(np.ones(6))
    assert (
        d.state == SafetyState.ACTIVE and np.abs(d.goal - bench.goals[0]).max() < 4.0 * 0.2 * DT * 1.1
    )  # gently at first


def test_an_arm_that_does_not_answer_cannot_be_armed():
    bench = Bench()
    bench.bits[2] = NO_REPLY
    assert bench.tick().state == SafetyState.DISARMED


def run_to_speed(bench, n=100):
    """Follow a moving target until the arm is fast."""
    for k in range(n):
        bench.tick(np.array([-1 + 0.02 * k, -0.5, 0.5, 0.5, 0.0, 0.5]))


def test_a_stale_command_is_held_within_100_ms_and_then_stopped_safely():
    bench = Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    bench.tick()
    run_to_speed(bench)
    last = np.array([1.0, -0.5, 0.5, 0.5, 0.0, 0.5])
    states, releases, torques = [], [], []
    for k in range(900):
        d = bench.tick(last, age_ns=k * TICK)
        states.append(d.state)
        torques.append(d.torque)
        releases.append(d.release)
    assert states[:10].count(SafetyState.HOLD) >= 1 and states[9] == SafetyState.HOLD
    assert SafetyState.SAFE_STOP in states and releases[-1]
    ramp = [t for t in torques if t is not None]
    assert all(a > b for a, b in zip(ramp, ramp[1:], strict=False)) and ramp[-1] < 0.1
    assert np.allclose(bench.q[:5], CONFIG.rest[:5], atol=0.07)
    goals = np.array(bench.goals)
    v = np.diff(goals, axis=0) / DT
    assert np.abs(np.diff(v, axis=0)).max() <= 30 * DT + 1e-6


def test_commands_that_come_back_during_hold_are_followed_again():
    bench = Bench()
    bench.tick()
    run_to_speed(bench, 30)
    for k in range(20):
        bench.tick(bench.q, age_ns=100_000_000 + k * TICK)
    assert bench.safety.state == SafetyState.HOLD
    assert bench.tick(bench.q).state == SafetyState.ACTIVE


def test_safe_stop_is_latched():
    bench = Bench()
    bench.tick()
    bench.tick(bench.q, request=RequestKind.LOWER)
    for _ in range(50):
        assert bench.tick(np.ones(6)).state == SafetyState.SAFE_STOP


@pytest.mark.parametrize(("temperature", "state"), [(59.0, SafetyState.ACTIVE), (66.0, SafetyState.SAFE_STOP)])
def test_a_hot_servo_stops_the_arm(temperature, state):
    bench = Bench()
    bench.tick()
    hot = COOL.copy()
    hot[1] = temperature
    assert bench.tick(bench.q, temperature=hot).state == state


def test_a_silent_servo_is_a_fault_after_0_3_s_and_the_arm_stays():
    bench = Bench()
    bench.tick()
    bench.bits[3] = NO_REPLY
    states = [bench.tick(np.zeros(6)).state for _ in range(40)]
    assert states[20] == SafetyState.ACTIVE and states[-1] == SafetyState.FAULT
    assert "wrist_flex" in bench.safety.reason


def test_the_goal_never_leads_the_measured_arm_by_more_than_max_lead():
    bench = Bench()
    bench.tick()
    stuck = bench.q.copy()
    for _ in range(200):
        d = bench.tick(stuck + 1.2)
        bench.q = stuck.copy()
        assert np.all(np.abs(d.goal - stuck) <= CONFIG.max_lead + 0.05)


def test_an_armed_arm_that_nobody_commands_is_lowered_after_ten_seconds():
    bench = Bench()
    states = [bench.tick().state for _ in range(1100)]
    assert states[900] == SafetyState.HOLD and states[-1] == SafetyState.SAFE_STOP
