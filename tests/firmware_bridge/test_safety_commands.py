"""What a command may do: limits, corrections between ticks, what is rejected, held and stopped."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.motion.limits import limit_step
from firmware_bridge.motion.measurement import DOUBTED, NO_REPLY, Measurement
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from firmware_bridge.motion.safety import CONDITIONS, CUTS, Row
from tests.firmware_bridge.safety_bench import DT, HIGH, LOW, TICK, A, Bench, S, V, run_to_speed, targets
from tests.firmware_bridge.so101 import CONFIG, UPPER


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
    assert d.torque_on and d.state == SafetyState.ARMING
    assert np.allclose(d.goal, (0.0, -0.5, 0.5, 0.5, 0.0, 0.5))
    d = bench.tick(np.ones(6))
    assert (
        d.state == SafetyState.ACTIVE and np.abs(d.goal - bench.goals[0]).max() < 4.0 * 0.2 * DT * 1.1
    )  # gently at first


def test_an_arm_that_does_not_answer_cannot_be_armed():
    bench = Bench()
    bench.bits[2] = NO_REPLY
    assert bench.tick().state == SafetyState.DISARMED


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
        torques.append(d.torque_share)
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
