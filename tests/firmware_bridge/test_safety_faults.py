"""What goes wrong with an arm, in which time it is noticed, and what follows."""

import numpy as np
import pytest

from firmware_bridge.motion.measurement import DOUBTED, NO_REPLY, TWIN
from firmware_bridge.motion.messages import RequestKind, SafetyState
from tests.firmware_bridge.safety_bench import COOL, DT, FAULT, STOP, Bench, lag, run_to_speed, wrong
from tests.firmware_bridge.so101 import CONFIG

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
    assert bench.tick(request=RequestKind.LOWER).goal is None or bench.tick().torque_share is not None
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
