"""The last gate before the motors: what comes out is finite, in range, slow enough, and stops when it should."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.motion.limits import Limiter, limit_step
from firmware_bridge.motion.lowering import REST_TOLERANCE
from firmware_bridge.motion.measurement import DOUBTED, NO_REPLY, TWIN, Measurement, Telemetry
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from firmware_bridge.motion.safety import CONDITIONS, CUTS, INSIST_S, Row, Safety, lowering_s
from tests.firmware_bridge.so101 import CONFIG, LOWER, UPPER

S = 1_000_000_000
TICK = S // 100
COOL = np.full(6, 30.0)
LOW, HIGH = np.array(LOWER), np.array(UPPER)
V, A, DT = np.full(6, 4.0), np.full(6, 30.0), 0.01


class Bench:
    """A safety machine with an arm that goes exactly where it is told."""

    def __init__(self, start=(0.0, -0.5, 0.5, 0.5, 0.0, 0.5), config=CONFIG, **settings):
        self.safety, self.now = Safety(config, **settings), S
        self.q: Any = np.array(start)
        self.bits = np.zeros(6, np.uint8)
        self.volt: Any = np.full(6, 7.4)
        self.limp: Any = np.zeros(6, bool)
        self.qd: Any = np.zeros(6)
        self.temperature: Any = COOL
        self.pressed = False
        self.goals = []
        self.stuck = False

    def tick(self, q=None, request=RequestKind.ARM, age_ns=0, life_ns=75_000_000, qd=None):
        self.now += TICK
        command = None
        if q is not None:
            applied = self.now - age_ns
            q = np.asarray(q, np.float32)
            command = Command(applied, applied + life_ns, q, np.zeros(6, np.float32) if qd is None else qd)
        measured = Measurement(self.q, self.qd, self.bits)
        seen = Telemetry(np.zeros(6), self.temperature, self.volt, self.limp)
        d = self.safety.step(self.now, command, request, measured, seen, self.pressed)
        if d.goal is not None:
            self.q = self.q if self.stuck else d.goal.copy()
            self.goals.append(d.goal.copy())
        return d

    def ticks(self, n, *args, **kwargs):
        return [self.tick(*args, **kwargs) for _ in range(n)]


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


def test_every_condition_has_its_row_and_the_worst_come_first():
    assert set(CONDITIONS) == set(Row) and list(Row) == list(range(len(Row)))
    levels = [CONDITIONS[row][0] for row in Row]
    assert levels == sorted(levels)


def test_a_still_target_is_reached_without_overshoot():
    goal, velocity = np.zeros(6), np.zeros(6)
    target = np.full(6, 0.7)
    for _ in range(100):
        goal, velocity = limit_step(target, goal, velocity, DT, V, A, LOW, HIGH)
        assert np.all(goal <= target + 1e-9)
    assert np.allclose(goal, target, atol=1e-4) and np.allclose(velocity, 0, atol=1e-3)


@given(targets, st.data())
def test_commands_that_correct_a_tick_keep_the_limits_between_ticks(sequence, data):
    bench = Bench()
    bench.ticks(70)  # armed, and no longer gentle
    q = bench.q.copy()
    kept = [q.copy()] * 4
    for target in sequence:
        d = bench.tick(np.clip(target, LOW, HIGH))
        assert d.state == SafetyState.ACTIVE
        for shift in range(data.draw(st.integers(0, 2))):
            late = Command(
                bench.now,
                bench.now + S // 10,
                np.asarray(np.roll(target, 1 + shift), np.float32),
                np.zeros(6, np.float32),
            )
            bench.q = bench.safety.revise(bench.now, late, Measurement(bench.q, bench.qd, bench.bits))
            assert np.all(
                np.abs(bench.q - d.goal) <= np.array(CONFIG.jerk) * DT**3 + 1e-9
            )  # what was sent and taken back
            assert np.all(bench.q >= LOW) and np.all(bench.q <= HIGH)
        kept.append(bench.safety.goal.copy())
    v, a, j = (np.diff(kept, n, axis=0) / DT**n for n in (1, 2, 3))
    assert np.all(np.abs(v) <= np.array(CONFIG.max_velocity) + 1e-6)
    assert np.all(np.abs(a) <= np.array(CONFIG.max_acceleration) + 1e-4)
    assert np.all(np.abs(j) <= np.array(CONFIG.jerk) + 1e-2)


def test_a_correction_gives_the_goal_that_the_command_would_have_had_in_time():
    early, late = Bench(), Bench()
    for bench in (early, late):
        bench.ticks(70)
        bench.ticks(5, np.zeros(6))
    early.tick(np.full(6, 0.3))
    late.tick(np.zeros(6))
    command = Command(late.now, late.now + S // 10, np.full(6, 0.3, np.float32), np.zeros(6, np.float32))
    late.safety.revise(late.now, command, Measurement(late.q, late.qd, late.bits))
    assert np.array_equal(early.safety.goal, late.safety.goal)
    early.tick(np.full(6, 0.3))
    late.tick(np.full(6, 0.3))
    assert np.array_equal(early.safety.goal, late.safety.goal)


def test_when_no_servo_answers_any_more_the_goal_of_the_same_tick_is_a_braking_one():
    bench, other = Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5)), Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    for b in (bench, other):
        b.tick()
        run_to_speed(b, 60)
    before = bench.safety.goal.copy()
    target = np.array([1.0, -0.5, 0.5, 0.5, 0.0, 0.5])
    bench.tick(target)
    silent = Measurement(bench.q, bench.qd, np.full(6, NO_REPLY, np.uint8))
    command = Command(bench.now, bench.now + S // 10, target.astype(np.float32), np.zeros(6, np.float32))
    goal = bench.safety.revise(bench.now, command, silent)
    assert (bench.safety.state, bench.safety.reason) == (SafetyState.HOLD, "no servo answers")
    other.tick()  # no command: it brakes
    assert goal is not None and np.array_equal(goal, other.safety.goal) and not np.array_equal(goal, before)
    assert bench.safety.revise(bench.now, command, silent) is None  # once is enough
    assert bench.tick().state == SafetyState.HOLD  # and the time for which it may hold runs


def test_one_servo_that_still_answers_is_followed():
    bench = Bench()
    bench.tick()
    bench.tick(np.zeros(6))
    bits = np.array([NO_REPLY] * 3 + [DOUBTED] * 2 + [0], np.uint8)
    command = Command(bench.now, bench.now + S // 10, np.zeros(6, np.float32), np.zeros(6, np.float32))
    assert bench.safety.revise(bench.now, command, Measurement(bench.q, bench.qd, bits)) is not None
    assert bench.safety.state == SafetyState.ACTIVE


def test_only_an_arm_that_follows_commands_is_corrected_and_only_by_sound_ones():
    bench = Bench()
    measured = Measurement(bench.q, bench.qd, bench.bits)

    def command(q, life_ns=S // 10):
        return Command(bench.now, bench.now + life_ns, np.asarray(q, np.float32), np.zeros(6, np.float32))

    bench.tick()  # armed, and no command yet
    assert bench.safety.revise(bench.now, command(np.zeros(6)), measured) is None
    bench.tick(bench.q)
    goal = bench.safety.goal.copy()
    assert bench.safety.revise(bench.now, command(np.full(6, np.nan)), measured) is None
    assert bench.safety.revise(bench.now, command(np.zeros(6), life_ns=0), measured) is None
    assert bench.safety.revise(bench.now, command(np.zeros(6), life_ns=2 * S), measured) is None
    assert np.array_equal(bench.safety.goal, goal)


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


def test_what_is_cut_off_a_target_is_known_by_limit_and_joint():
    """For the log: pan asks for more than its range, lift for more than `max_lead` from where it stands; both speed up,
    then go as fast as they may. The others stay where they are."""
    bench = Bench()
    bench.ticks(100)
    assert bench.safety.cut() is None  # no command is followed
    target = bench.q.copy()
    target[1] -= 1.0
    target[0] = UPPER[0] + 0.1
    bench.ticks(2, target)
    cut = dict(zip(CUTS, bench.safety.cut().tolist(), strict=True))
    others = [False] * 4
    assert cut["range"] == [True, False, *others] and cut["lead"] == [True, True, *others]
    assert cut["acceleration"] == [True, True, *others] and cut["speed"] == [False, False, *others]
    bench.ticks(16, target)
    fast = dict(zip(CUTS, bench.safety.cut().tolist(), strict=True))
    assert fast["speed"] == [True, True, *others] and fast["acceleration"] == [False] * 6
    bench.ticks(300, [UPPER[0] - 0.1, *bench.q[1:]])
    assert not bench.safety.cut().any()  # there, and nothing is cut off any more
    bench.tick(request=RequestKind.LOWER)
    assert bench.safety.cut() is None


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


def wrong(joint=3, **values):
    """Make a bench whose arm shows `values` at `joint`."""

    def act(bench):
        for name, value in values.items():
            array = np.array(getattr(bench, name))
            array[joint] = value
            setattr(bench, name, array)

    return act


def lag(rad):
    def act(bench):
        bench.stuck = True
        bench.q = bench.safety.goal.copy()
        bench.q[1] -= rad

    return act


FAULT, STOP = SafetyState.FAULT, SafetyState.SAFE_STOP
# what goes wrong, what it leads to, after how many ticks, what is said
TROUBLE = {
    "silent": (wrong(bits=NO_REPLY), FAULT, 30, "wrist_flex does not answer"),
    "jump": (wrong(bits=DOUBTED), FAULT, 5, "wrist_flex reports a position that it cannot have reached"),
    "twin": (wrong(bits=TWIN), FAULT, 10, "wrist_flex and its second servo stand apart"),
    "encoder": (wrong(bits=2), FAULT, 10, "wrist_flex reports an encoder fault"),
    "limp": (wrong(limp=True), FAULT, 15, "wrist_flex has lost its torque"),
    "hot": (wrong(temperature=65.0), STOP, 20, "wrist_flex is too hot"),
    "servo says hot": (wrong(bits=4), STOP, 20, "wrist_flex reports overheating"),
    "sag": (wrong(volt=5.1), STOP, 20, "wrist_flex has too little voltage"),
    "surge": (wrong(volt=8.9), STOP, 20, "wrist_flex has too much voltage"),
    "servo says voltage": (wrong(bits=1), STOP, 30, "wrist_flex reports a voltage out of range"),
    "current": (wrong(bits=8), STOP, 50, "wrist_flex reports too much current"),
    "overload": (wrong(bits=32), STOP, 50, "wrist_flex is overloaded"),
    "behind": (lag(0.31), FAULT, 40, "shoulder_lift does not follow its goal"),
    "blocked": (lag(0.19), FAULT, 100, "shoulder_lift is blocked"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_what_goes_wrong_stops_the_arm_in_its_own_time_and_says_so(name):
    act, state, ticks, says = TROUBLE[name]
    bench = Bench()
    bench.ticks(60, (0.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    act(bench)
    states = [bench.tick(bench.safety.goal).state for _ in range(ticks + 20)]
    assert states.index(state) == ticks and set(states[: states.index(state)]) == {SafetyState.ACTIVE}
    assert bench.safety.reason == says
    assert set(states[states.index(state) :]) == {state}  # latched


@pytest.mark.parametrize("name", TROUBLE)
def test_what_passes_by_stops_nothing(name):
    act, _, ticks, _ = TROUBLE[name]
    bench = Bench()
    bench.ticks(60, bench.q)
    for _ in range(3):
        act(bench)
        bench.ticks(ticks - 1, bench.safety.goal)
        bench.q, bench.stuck = bench.safety.goal.copy(), False
        bench.bits, bench.limp, bench.temperature, bench.volt = (
            np.zeros(6, np.uint8),
            np.zeros(6, bool),
            COOL,
            np.full(6, 7.4),
        )
        assert bench.tick(bench.q).state == SafetyState.ACTIVE


def test_just_inside_the_limits_nothing_is_said():
    bench = Bench()
    bench.tick()
    for act in (wrong(temperature=54.9), wrong(2, volt=6.52), wrong(1, volt=8.8), lag(0.179)):
        act(bench)
    assert {d.state for d in bench.ticks(150, bench.safety.goal)} == {SafetyState.ACTIVE}
    assert bench.safety.reason == ""


@pytest.mark.parametrize(
    ("act", "says", "slow"),
    [
        (wrong(temperature=55.0), "warning: wrist_flex is warm", False),
        (wrong(volt=6.5), "warning: wrist_flex has a sagging voltage", False),
        (wrong(temperature=60.0), "warning: wrist_flex is hot", True),
        (wrong(volt=5.9), "warning: wrist_flex has low voltage", True),
    ],
)
def test_heat_and_low_voltage_warn_and_then_slow_the_arm(act, says, slow):
    bench = Bench()
    bench.ticks(100, bench.q)
    act(bench)
    bench.ticks(21, bench.q)
    target = bench.q + np.array([1.5, 0, 0, 0, 0, 0])
    bench.ticks(60, target)
    fastest = np.abs(np.diff(np.array(bench.goals), axis=0)).max() / DT
    assert bench.safety.reason == says
    assert fastest == pytest.approx(4.0 * 0.4 if slow else 4.0, rel=0.02)


def test_a_gripper_may_lag_for_it_holds_something():
    bench = Bench()
    bench.ticks(60, bench.q)
    bench.stuck = True
    target = bench.q.copy()
    target[5] -= 0.5
    assert {d.state for d in bench.ticks(200, target)} == {SafetyState.ACTIVE}


def test_the_emergency_stop_brakes_and_lets_the_torque_down_wherever_the_arm_is():
    bench = Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    bench.tick()
    run_to_speed(bench)
    bench.pressed = True
    d = bench.tick(bench.q)
    assert d.state == FAULT and d.reason == "emergency stop pressed"
    bench.pressed = False  # letting go of it moves nothing
    decisions = bench.ticks(80, bench.q)
    v = np.diff(np.array([*bench.goals, bench.goals[-1]]), axis=0) / DT
    assert np.abs(np.diff(v, axis=0)).max() <= 30 * DT + 1e-6 and not v[-1].any()
    assert decisions[-1].release and {d.state for d in decisions} == {FAULT}


def test_the_emergency_stop_also_ends_a_lowering_and_forbids_arming():
    bench = Bench()
    bench.pressed = True
    assert (
        bench.tick().state == SafetyState.DISARMED
        and bench.safety.reason == "cannot arm: the emergency stop is pressed"
    )
    bench.pressed = False
    bench.tick()
    bench.tick(request=RequestKind.LOWER)
    bench.pressed = True
    assert bench.tick().state == FAULT


def test_a_silent_servo_while_lowering_is_a_fault_but_not_while_the_torque_goes_down():
    bench = Bench()
    bench.tick()
    bench.tick(request=RequestKind.LOWER)
    bench.bits[3] = NO_REPLY
    assert bench.ticks(40)[-1].state == FAULT
    bench = Bench(CONFIG.rest)
    bench.tick()
    assert bench.tick(request=RequestKind.LOWER).goal is None or bench.tick().torque is not None
    bench.ticks(3)
    bench.bits[3] = NO_REPLY
    assert bench.ticks(31)[-1].state == STOP


def test_when_no_servo_answers_the_goals_come_to_a_stop_at_once():
    bench = Bench((-1.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    bench.tick()
    run_to_speed(bench)
    bench.bits[:] = NO_REPLY
    at = bench.goals[-1]
    d = bench.ticks(25, np.ones(6))[-1]
    assert d.state == SafetyState.HOLD and d.reason == "no servo answers"
    assert np.abs(bench.goals[-1] - at).max() < 4.0 * 0.1
    bench.bits[:] = 0
    assert bench.tick(bench.q).state == SafetyState.ACTIVE  # a short stall is got over


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


def test_an_arm_whose_port_came_back_waits_to_be_armed_or_lowered():
    bench = Bench(energised=True)
    d = bench.tick(np.ones(6), request=RequestKind.NONE)
    assert d.state == SafetyState.DISARMED and d.goal is None
    d = bench.tick(request=RequestKind.ARM)
    assert d.state == SafetyState.ARMING and d.arm
    bench = Bench(energised=True)
    d = bench.tick(request=RequestKind.LOWER)
    assert d.state == STOP and d.arm and d.reason == "lowering an arm that was left energised"
    assert np.allclose(d.goal, bench.q)
    assert bench.ticks(900)[-1].release
    bench = Bench(energised=True)
    states = [d.state for d in bench.ticks(1010, request=RequestKind.NONE)]
    assert states[1000] == SafetyState.DISARMED and states[1001] == STOP  # ten seconds from the first tick are over
    assert Bench().tick(request=RequestKind.LOWER).goal is None  # an arm that was never energised is left alone


def test_torque_goes_down_in_a_ramp_and_off_when_the_time_is_over():
    bench = Bench(CONFIG.rest)
    bench.tick()
    bench.tick(request=RequestKind.LOWER)
    decisions = bench.ticks(45)
    ramp = [d.torque for d in decisions if d.torque is not None]
    assert ramp == pytest.approx([1 - 0.01 * k / 0.4 for k in range(1, 40)], abs=0.03) and decisions[-1].release
    assert decisions[-1].torque is None and decisions[-1].goal is None


def test_an_arm_that_cannot_reach_its_rest_pose_is_let_down_where_it_is():
    bench = Bench(config=dataclasses.replace(CONFIG, follow_rad=9.0, family=""))
    bench.tick()
    bench.stuck = True
    decisions = bench.ticks(700, request=RequestKind.LOWER)
    first = next(k for k, d in enumerate(decisions) if d.torque is not None)
    assert first == 600 and decisions[-1].release and decisions[-1].state == STOP


corners = st.tuples(*(st.sampled_from([a, b]) for a, b in zip(LOWER, UPPER, strict=True)))


@settings(max_examples=8)
@given(corners, st.sampled_from([(0.3, 4.0), (0.6, 4.0), (1.5, 0.3), (3.0, 4.0)]))
def test_however_slowly_it_is_lowered_an_arm_is_let_go_at_rest_and_in_the_time_that_callers_wait(start, speeds):
    config = dataclasses.replace(CONFIG, lower_speed=speeds[0], max_velocity=(speeds[1],) * 6)
    bench = Bench(start, config)
    bench.tick()
    began = bench.now
    while (d := bench.tick(request=RequestKind.LOWER)).torque is None:
        assert d.goal is not None and d.state == STOP
    assert np.abs(bench.q - CONFIG.rest)[:5].max() < REST_TOLERANCE
    while not bench.tick(request=RequestKind.LOWER).release:
        pass
    assert (bench.now - began) / S < lowering_s(config) - INSIST_S


@settings(max_examples=8)
@given(corners, st.sampled_from([(0.3, 4.0), (0.6, 4.0), (1.5, 0.3), (3.0, 4.0)]))
def test_who_waits_as_long_as_a_lowering_can_take_also_waits_for_an_arm_that_never_arrives(start, speeds):
    config = dataclasses.replace(CONFIG, follow_rad=9.0, lower_speed=speeds[0], max_velocity=(speeds[1],) * 6)
    bench = Bench(start, config)
    bench.tick()
    bench.stuck = True
    began = bench.now
    while not bench.tick(request=RequestKind.LOWER).release:
        pass
    assert 6.0 < (bench.now - began) / S < lowering_s(config) - INSIST_S


def test_what_a_lowering_straight_to_rest_can_take_is_known_beforehand():
    straight = dataclasses.replace(CONFIG, family="")
    braking = 4 / 30 + 0.04 + 0.02  # where it was going, and at rest
    assert lowering_s(straight) == pytest.approx(6.0 + 2 * braking + 0.4 + 3.0)
    slow = dataclasses.replace(straight, lower_speed=0.3)  # the shoulder has the longest way, from 1.75 to -1.2 rad
    assert lowering_s(slow) - lowering_s(straight) == pytest.approx(1.5 * (UPPER[1] + 1.2) / 0.3 - 6.0)


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
    assert bench.tick(request=RequestKind.LOWER).torque is not None
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
    first = next(k for k, d in enumerate(decisions) if d.torque is not None)
    assert decisions[first].torque == 1.0 and decisions[first + 20].torque == pytest.approx(0.5)
    assert decisions[first + 39].torque is not None and decisions[first + 40].release


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
