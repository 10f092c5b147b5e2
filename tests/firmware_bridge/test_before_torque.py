"""What is looked at and set right before torque: positions that cannot be held, what other programs left, settings that
change a motion."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.servos.settings import LEFT_OVERS
from firmware_bridge.virtual.campaign import KOCH, MIDDLE, SO101
from tests.firmware_bridge.unarmed import MS, PLAIN, Slow, refused, untouched, wait
from tests.firmware_bridge.virtual_arm import VIPERX, virtual


@pytest.mark.parametrize(("step", "away"), [(6400, 3.54), (4300, 0.31), (-300, 0.46)])
def test_a_joint_outside_its_servos_range_is_not_armed(step, away):
    arm, servos = virtual(SO101)
    servos.plant.position[2] = step
    nothing = untouched(arm, servos)
    next(nothing)
    refused(
        arm,
        rf"^servo 3 \(elbow_flex\) reads step {step} .* sent to 0 to 4095, .* run {away} rad .*: turn it back by hand",
    )
    next(nothing)


def test_an_arm_that_was_moved_by_hand_since_the_start_is_looked_at_again():
    arm, servos = virtual(SO101)
    arm.check()
    servos.plant.position[1] = 4300
    nothing = untouched(arm, servos)
    next(nothing)
    with pytest.raises(ArmError, match=r"^servo 2 \(shoulder_lift\) reads step 4300"):
        arm.torque_on()
    next(nothing)


def test_an_energised_arm_outside_its_range_is_refused_and_keeps_its_torque():
    arm, servos = virtual(SO101)
    arm.torque_on()
    servos.servos[3].sensor = lambda actual, now_ns: actual + 4096  # it counts turns since it was switched on
    stood = servos.plant.position.copy()
    refused(arm, "reads step 6405")
    wait(arm, servos, 1.0)
    assert [servos.get(i, "torque_enable") for i in SO101.ids] == [1] * 6
    assert np.array_equal(servos.plant.position, stood)


def test_limits_are_steps_as_the_servo_reports_them():
    arm, servos = virtual(PLAIN)
    for name, value in (("homing_offset", 400), ("min_position", 1000), ("max_position", 3000)):
        servos.put(1, name, value)
    servos.plant.position[0] = 3300.0  # reported: 2900
    arm.torque_on()
    wait(arm, servos, 0.5)
    assert servos.plant.position[0] == 3300.0
    arm.torque_off()
    servos.plant.position[0] = 1300.0  # reported: 900, where the encoder alone would say 1300
    refused(arm, r"servo 1 \(shoulder_pan\) reads step 900 and can only be sent to 1000 to 3000, .*: move it by hand")


def test_a_joint_that_leans_on_its_stop_is_armed_at_its_limit():
    arm, servos = virtual(PLAIN)
    servos.put(2, "max_position", 3000)
    servos.plant.position[1] = 3020.0  # 1.8 degrees beyond
    arm.check()
    arm.torque_on()
    wait(arm, servos, 0.5)
    assert servos.plant.position[1] == 3000.0
    arm.torque_off()
    servos.plant.position[1] = 3030.0
    refused(arm, "reads step 3030")


def test_a_dynamixel_that_knows_no_limits_is_held_within_its_turn():
    """In mode 4 the servo would hold 6400; but the angle that our file makes of it is a turn away from where the joint
    stands."""
    arm, servos = virtual(KOCH)
    servos.put(3, "mode", 4)
    arm.torque_on()
    arm.torque_off()
    servos.plant.position[2] = 6400.0
    refused(arm, r"servo 3 \(elbow_flex\) reads step 6400 and can only be sent to 0 to 4095")


def test_a_geared_joint_may_turn_its_servo_as_far_as_its_range_asks():
    config = dataclasses.replace(
        KOCH, gear=(1.0,) * 5 + (4.0,)
    )  # the gripper's 1.7 rad are 4433 steps above the middle
    arm, servos = virtual(config)
    servos.put(6, "mode", 4)
    servos.plant.position[5] = 6400.0
    arm.check()
    arm.torque_on()
    wait(arm, servos, 0.5)
    assert servos.plant.position[5] == 6400.0
    arm.torque_off()
    servos.plant.position[5] = 6600.0
    refused(arm, r"servo 6 \(gripper\) reads step 6600 and can only be sent to 0 to 6481")


def test_a_second_servo_outside_its_range_is_named():
    arm, servos = virtual(VIPERX, np.zeros(6))
    servos.plant.position[servos.ids.index(3)] = -200.0
    refused(arm, r"^servo 3 \(shoulder\) reads step -200")


LEFT = (
    (PLAIN, "goal_speed", 60),
    (PLAIN, "goal_time", 1000),
    (PLAIN, "acceleration", 1),
    (PLAIN, "torque_limit", 10),
    (KOCH, "profile_velocity", 5),
    (KOCH, "profile_acceleration", 1),
    (KOCH, "goal_current", 3),
    (KOCH, "torque_limit", 8),
)


@pytest.mark.parametrize(("config", "register", "value"), LEFT, ids=lambda v: v if isinstance(v, str) else "")
def test_the_arm_moves_as_told_whatever_another_program_left(config, register, value):
    arm, servos = virtual(config)
    for i in config.ids:
        if register in servos.servos[i].model.registers:
            servos.put(i, register, value)
            if register == "goal_current":
                servos.put(i, "mode", 5)
    arm.check()
    arm.torque_on()
    arm.write_goals(MIDDLE + 0.5)
    wait(arm, servos, 0.5)
    assert np.allclose(arm.read().q, MIDDLE + 0.5, atol=2e-3)


def test_a_time_based_profile_takes_its_time_whatever_the_way():
    _, servos = virtual(KOCH)
    servos.put(1, "drive_mode", 4)
    servos.put(1, "profile_velocity", 2000)  # ms
    servos.put(1, "torque_enable", 1)
    start = servos.get(1, "goal_position")
    servos.refresh(0)
    servos.servos[1].write(116, (start + 400).to_bytes(4, "little"))
    servos.drive(True)
    servos.refresh(1000 * MS)
    assert servos.get(1, "present_position") == start + 200


@pytest.mark.parametrize("config", [PLAIN, KOCH], ids=["so101", "koch"])
def test_every_left_over_is_overwritten_at_arming(config):
    arm, servos = virtual(config)
    rows = [(i, r) for i in config.ids for r in LEFT_OVERS[config.model_names[config.ids.index(i)]]]
    servos.put(6, "mode", 0 if config is PLAIN else 5)  # the Koch's gripper
    rows = [(i, r) for i, r in rows if not r.modes or servos.get(i, "mode") in r.modes]
    for i, r in rows:
        servos.put(i, r.register, 1)
    arm.torque_on()
    assert len({r.register for _, r in rows}) == (3 if config is PLAIN else 9)
    for i, r in rows:
        assert servos.get(i, r.register) == (servos.get(i, r.like) if r.like else r.value), r


@pytest.mark.parametrize(
    ("config", "register", "at", "why"),
    [
        (PLAIN, "goal_speed", 46, "so the joint would be slower than it is told"),
        (PLAIN, "torque_limit", 48, "where 1000 was written: switch"),
        (KOCH, "profile_velocity", 112, "so the joint would be slower than it is told"),
    ],
)
def test_a_servo_that_keeps_what_another_program_wrote_is_not_armed(config, register, at, why):
    arm, servos = virtual(config)
    servos.put(2, register, 60)
    write = servos.servos[2].write

    def keeps(address, data):
        error = write(address, data)
        servos.put(2, register, 60)
        return error

    servos.servos[2].write = keeps
    with pytest.raises(ArmError, match=rf"^servo 2 \(shoulder_lift\) keeps {register} 60 .*{why}.* off and on"):
        arm.torque_on()
    assert not any(servos.get(i, "torque_enable") for i in config.ids)


def test_packets_that_are_lost_while_arming_are_written_again():
    arm, servos = virtual(PLAIN)
    servos.put(2, "goal_speed", 60)
    write, lost = servos.servos[2].write, iter([True])
    servos.servos[2].write = lambda address, data: 0 if next(lost, False) else write(address, data)
    arm.torque_on()
    assert servos.get(2, "goal_speed") == 0


def test_servos_whose_torque_a_goal_or_an_acceleration_switches_on_do_not_move_while_arming():
    """An old goal lies 0.7 rad away; whatever arrives first switches the torque on."""
    _, servos = virtual(PLAIN)
    for i in PLAIN.ids:
        servos.put(i, "goal_position", 2500)
        servos.put(i, "acceleration", 20)
    servos.faults.inject("goal-enables-torque")
    servos.faults.update(1)
    stood = servos.plant.position.copy()
    port = Slow(servos)
    Arm(Bus(port), PLAIN).torque_on()
    assert np.abs(np.array(port.steps) - stood).max() <= 1
    assert port.torque[-1] == [1] * 6


@pytest.mark.parametrize("config", [PLAIN, KOCH], ids=["so101", "koch"])
def test_an_energised_arm_keeps_its_torque_while_it_is_taken_over_and_does_not_move(config):
    arm, servos = virtual(config)
    arm.torque_on()
    for i in config.ids:
        servos.put(i, "goal_speed" if config is PLAIN else "profile_velocity", 5)
        servos.put(i, "goal_position", 2500)  # it creeps there
    port = Slow(servos)
    port.time_ns = arm.bus.port.time_ns
    stood = servos.plant.position.copy()
    Arm(Bus(port, protocol=config.protocol), config).torque_on()
    assert all(t == [1] * 6 for t in port.torque)
    assert np.abs(np.array(port.steps) - stood).max() < 40  # what it crept before its goal was taken away
    at = servos.plant.position.copy()
    servos.refresh(port.time_ns + 100 * MS)
    assert np.abs(servos.plant.position - at).max() <= 1
