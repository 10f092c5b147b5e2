"""The simulated arm before its first torque, when brakes hold it, and after its last, when nothing does."""

import numpy as np
import pytest

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.messages import Command, SafetyState
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from firmware_bridge.virtual.line import MemoryPort
from runtime.robot import load_robot
from sim.plant import servos, virtual_motor
from sim.tasks import sample_layout
from sim.world import World

S = 1_000_000_000
LIFT = 1
SLOW_START_S = 5.0


@pytest.fixture(scope="module")
def world():
    w = World(0)
    yield w
    w.close()


@pytest.fixture(params=[0, 3])
def arm(world, request):
    """The arm as `sim.server` starts it, behind its servo bus and not armed."""
    world.reset(sample_layout(np.random.default_rng([request.param, 7])))
    config = load_robot("sim_so101").arm
    return Arm(Bus(MemoryPort(servos(world, config))), config)


def test_an_arm_that_waits_for_its_first_torque_stays_where_it_stands(world, arm):
    before = world.q
    world.advance(SLOW_START_S)
    assert np.abs(world.q - before).max() < RAD_PER_STEP
    telemetry = [arm.bus.port.line.bus.get(i, "present_load") for i in arm.ids]
    assert telemetry == [0] * len(arm.ids)  # servos have no load while the brake holds


def test_after_a_slow_start_it_stiffens_where_it_stands_and_follows_its_goals(world, arm):
    world.advance(SLOW_START_S)
    before = world.q
    arm.torque_on()
    world.advance(1.0)
    assert np.abs(world.q - before).max() < 0.02
    there = before + np.array([0.3, 0, 0, 0, 0.3, 0])
    arm.write_goals(there)
    world.advance(1.0)
    assert np.abs(world.q - there).max() < 0.02


def test_an_arm_that_is_released_falls(world, arm):
    world.advance(SLOW_START_S)
    arm.torque_on()
    world.advance(0.2)
    before = world.q
    assert arm.torque_off() == []
    world.advance(SLOW_START_S)
    assert world.q[LIFT] - before[LIFT] > 0.1


def test_a_goal_and_a_torque_limit_that_come_before_the_torque_move_nothing(world, arm):
    before = world.q
    arm.write_goals(before + 0.5)
    arm.set_torque(0.0)
    world.advance(1.0)
    assert np.abs(world.q - before).max() < RAD_PER_STEP


def test_each_joint_is_held_until_its_own_torque_is_first_on(world, arm):
    before, enable = world.q, arm.model.registers["torque_enable"].address
    arm.bus.write(1, enable, b"\x01")
    world.advance(1.0)
    assert np.abs(world.q - before).max() < 0.02
    arm.bus.write(LIFT + 1, enable, b"\x01")
    arm.bus.write(LIFT + 1, enable, b"\x00")
    world.advance(SLOW_START_S)
    assert world.q[LIFT] - before[LIFT] > 0.1


def test_a_robot_that_starts_late_is_armed_and_driven_as_one_that_starts_at_once(world):
    """With motor process and limiter: no joint is reported as blocked, and both arms end at the same servo step."""
    ends = []
    for waited_s in (0.0, SLOW_START_S):
        world.reset(sample_layout(np.random.default_rng([0, 7])))
        motor, now = virtual_motor(world), S
        world.advance(waited_s)
        state = motor(now, None)
        goal = state.q_rad + np.array([0.3, -0.1, 0.1, 0, 0, 0], np.float32)
        for _ in range(200):
            now += S // 100
            state = motor(now, Command(now, now + S // 10, goal, np.zeros_like(goal)))
            assert state.safety in (SafetyState.HOLD, SafetyState.ACTIVE), state.reason
            world.advance(0.01)
        ends.append(world.q)
    assert np.abs(ends[1] - ends[0]).max() < RAD_PER_STEP
