"""Lowering: how the arm comes to rest, and how its torque is ramped down."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.motion.lowering import REST_TOLERANCE
from firmware_bridge.motion.messages import RequestKind, SafetyState
from firmware_bridge.motion.safety import INSIST_S, lowering_s
from tests.firmware_bridge.safety_bench import (
    STOP,
    Bench,
    S,
)
from tests.firmware_bridge.so101 import CONFIG, LOWER, UPPER


def test_an_arm_whose_port_came_back_waits_to_be_armed_or_lowered():
    bench = Bench(energised=True)
    d = bench.tick(np.ones(6), request=RequestKind.NONE)
    assert d.state == SafetyState.DISARMED and d.goal is None
    d = bench.tick(request=RequestKind.ARM)
    assert d.state == SafetyState.ARMING and d.torque_on
    bench = Bench(energised=True)
    d = bench.tick(request=RequestKind.LOWER)
    assert d.state == STOP and d.torque_on and d.reason == "lowering an arm that was left energised"
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
    ramp = [d.torque_share for d in decisions if d.torque_share is not None]
    assert ramp == pytest.approx([1 - 0.01 * k / 0.4 for k in range(1, 40)], abs=0.03) and decisions[-1].release
    assert decisions[-1].torque_share is None and decisions[-1].goal is None


def test_an_arm_that_cannot_reach_its_rest_pose_is_let_down_where_it_is():
    bench = Bench(config=dataclasses.replace(CONFIG, follow_rad=9.0, family=""))
    bench.tick()
    bench.stuck = True
    decisions = bench.ticks(700, request=RequestKind.LOWER)
    first = next(k for k, d in enumerate(decisions) if d.torque_share is not None)
    assert first == 600 and decisions[-1].release and decisions[-1].state == STOP


corners = st.tuples(*(st.sampled_from([a, b]) for a, b in zip(LOWER, UPPER, strict=True)))


@settings(max_examples=8)
@given(corners, st.sampled_from([(0.3, 4.0), (0.6, 4.0), (1.5, 0.3), (3.0, 4.0)]))
def test_however_slowly_it_is_lowered_an_arm_is_let_go_at_rest_and_in_the_time_that_callers_wait(start, speeds):
    config = dataclasses.replace(CONFIG, lower_speed=speeds[0], max_velocity=(speeds[1],) * 6)
    bench = Bench(start, config)
    bench.tick()
    began = bench.now
    while (d := bench.tick(request=RequestKind.LOWER)).torque_share is None:
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
