"""What is looked at and set right before torque: positions that cannot be held, what other programs left, settings that
change a motion."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.service import mend
from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.settings import LEFT_OVERS, SETTINGS
from firmware_bridge.virtual.bus import MemoryPort, VirtualBus
from firmware_bridge.virtual.campaign import KOCH, MIDDLE, SO101
from firmware_bridge.virtual.plant import KinematicPlant
from tests.firmware_bridge.test_arms import VIPERX, virtual

PLAIN = dataclasses.replace(SO101, eeprom=())  # nothing said about what its servos hold
MS = 1_000_000


def wait(arm, servos, seconds):
    """Let time pass on an arm that somebody listens to (a Dynamixel's watchdog counts)."""
    for _ in range(round(seconds * 100)):
        arm.bus.port.time_ns += 10 * MS
        arm.read()


def refused(arm, match):
    """Neither start nor arming go on, in the same words."""
    with pytest.raises(ArmError, match=match):
        arm.check()
    with pytest.raises(ArmError, match=match):
        arm.torque_on()


def untouched(arm, servos):
    """What must be as it was after a refusal: every register that is written, and where the arm stands a second
    later."""
    before, stood = [bytes(s.memory[:56]) for s in servos.servos.values()], servos.plant.position.copy()
    yield
    wait(arm, servos, 1.0)
    assert [bytes(s.memory[:56]) for s in servos.servos.values()] == before
    assert np.array_equal(servos.plant.position, stood)
    yield


# ---- a joint that reads what its servo cannot be sent to -------------------------------------------------------------


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


# ---- what another program left ---------------------------------------------------------------------------------------

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


class Slow(MemoryPort):
    """Between any two packets 50 ms pass, in which the arm moves where its servos drive it. `torque`, `steps`: after
    each packet."""

    def __init__(self, servos):
        super().__init__(servos)
        self.plant = servos.plant
        self.torque, self.steps = [], []

    def write(self, data):
        super().write(data)
        self.time_ns += 50 * MS
        self.line.bus.refresh(self.time_ns)
        self.torque.append([self.line.bus.get(i, "torque_enable") for i in self.line.bus.ids])
        self.steps.append(self.plant.position.copy())


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


# ---- settings --------------------------------------------------------------------------------------------------------

XL330 = dataclasses.replace(KOCH, models=("XL330-M288",) * 6)
BAD = (
    (PLAIN, "mode", 1),
    (PLAIN, "mode", 2),
    (PLAIN, "mode", 3),
    (PLAIN, "phase", 0x1C),
    (PLAIN, "max_torque", 0),
    (PLAIN, "max_position", 0),
    (PLAIN, "response_level", 0),
    (PLAIN, "return_delay", 254),
    (PLAIN, "p_gain", 0),
    (XL330, "mode", 0),
    (XL330, "mode", 1),
    (XL330, "mode", 16),
    (XL330, "drive_mode", 1),
    (XL330, "drive_mode", 4),
    (XL330, "secondary_id", 2),
    (XL330, "pwm_limit", 0),
    (XL330, "current_limit", 0),
    (XL330, "max_position", 0),
    (XL330, "return_delay", 254),
)


@pytest.mark.parametrize(("config", "register", "value"), BAD, ids=[f"{c.protocol} {r} {v}" for c, r, v in BAD])
def test_a_setting_that_changes_a_motion_is_refused_by_name_before_torque_and_mended_on_request(
    config, register, value
):
    arm, servos = virtual(config)
    servos.put(4, register, value)
    nothing = untouched(arm, servos)
    next(nothing)
    refused(
        arm, rf"^servo 4 \(wrist_flex\) holds {register} {value} and must hold .*, for .*`harmowam bus check .*`--fix`"
    )
    next(nothing)
    (wrong,) = mend(arm)
    assert (wrong.servo, wrong.setting.register, wrong.value) == (4, register, value)
    servos.power_cycle(4, arm.bus.port.time_ns)  # it lies in the EEPROM, which is locked again
    assert servos.servos[4].model.registers.get("lock") is None or servos.get(4, "lock") == 1
    arm.check()
    arm.torque_on()
    arm.write_goals(MIDDLE + 0.2)
    wait(arm, servos, 0.5)
    assert np.allclose(arm.read().q, MIDDLE + 0.2, atol=2e-3)


def test_several_wrong_settings_are_counted():
    arm, servos = virtual(PLAIN)
    servos.put(2, "mode", 1)
    servos.put(2, "phase", 0x1C)
    servos.put(5, "max_torque", 0)
    refused(arm, r"^servo 2 \(shoulder_lift\) holds mode 1 and must hold 0, .* \(2 more are wrong\)")
    assert [(w.servo, w.setting.register) for w in mend(arm)] == [(2, "mode"), (2, "phase"), (5, "max_torque")]
    assert servos.get(2, "phase") == 0x0C and servos.get(5, "max_torque") == 1000


def test_a_mended_gripper_gets_half_its_torque():
    arm, servos = virtual(PLAIN)
    servos.put(6, "max_torque", 0)
    mend(arm)
    assert servos.get(6, "max_torque") == 500


@pytest.mark.parametrize("config", [PLAIN, XL330], ids=["so101", "koch"])
def test_nothing_is_written_to_the_eeprom_of_an_arm_whose_torque_is_on(config):
    arm, servos = virtual(config)
    servos.put(4, "mode", 1)
    servos.put(6, "torque_enable", 1)
    before = [s.stored for s in servos.servos.values()]
    with pytest.raises(ArmError, match=r"^servo 6 \(gripper\) has its torque on, .* nothing was written"):
        mend(arm)
    servos.put(6, "torque_enable", 0)
    servos.faults.inject("silent-servo", servo=5)
    with pytest.raises(ArmError, match=r"^servo 5 \(wrist_roll\) has its torque on, or does not say"):
        mend(arm)
    assert [s.stored for s in servos.servos.values()] == before


def test_a_servo_that_does_not_keep_a_setting_is_named():
    arm, servos = virtual(PLAIN)
    servos.put(4, "mode", 1)
    servos.servos[4].write = lambda address, data: 0
    with pytest.raises(
        ArmError, match=r"^servo 4 \(wrist_flex\) still holds mode 1: set it to 0 with its maker's tool"
    ):
        mend(arm)


LEROBOT = {
    "return_delay": 0,
    "p_gain": 16,
    "i_gain": 0,
    "d_gain": 32,
    "mode": 0,
    "acceleration": 254,
    "min_position": 700,
    "max_position": 3400,
    "homing_offset": -85,
    "lock": 0,
}
LEROBOTS_GRIPPER = LEROBOT | {"max_torque": 500, "protection_current": 250, "overload_torque": 25}


def test_an_arm_that_lerobot_has_set_up_is_taken_as_it_is():
    arm, servos = virtual(PLAIN)
    for i in PLAIN.ids:
        for name, value in (LEROBOTS_GRIPPER if i == 6 else LEROBOT).items():
            servos.put(i, name, value)
        servos.power_cycle(i, 0)
    arm.check()
    arm.torque_on()
    assert servos.get(6, "torque_limit") == 500 and mend_is_idle(arm)


def test_a_koch_that_lerobot_has_set_up_is_taken_as_it_is():
    """Its arm counts turns, its gripper holds a current."""
    arm, servos = virtual(KOCH)
    for i in KOCH.ids:
        servos.put(i, "mode", 5 if i == 6 else 4)
        servos.put(i, "return_delay", 0)
    arm.check()
    arm.torque_on()


@pytest.mark.parametrize("name", [n for n in MODELS if n != "SCS0009"])
def test_a_servo_as_it_is_delivered_is_taken_as_it_is(name):
    arm, servos = virtual(dataclasses.replace(PLAIN, models=(name,) * 6))
    for i in PLAIN.ids:
        servos.put(i, "return_delay", 250)
    arm.check()
    arm.torque_on()


def mend_is_idle(arm):
    arm.torque_off()
    return mend(arm) == []


def test_what_the_robot_file_says_itself_is_right():
    """A second servo that is mounted the other way round may say so in its EEPROM, when its direction was found with
    that."""
    config = dataclasses.replace(KOCH, eeprom=((3, "drive_mode", 1),))
    arm, servos = virtual(config)
    servos.put(3, "drive_mode", 1)
    arm.check()
    servos.put(3, "drive_mode", 0)
    with pytest.raises(ArmError, match=r"servo 3 .* holds drive_mode 0, the robot file says 1"):
        arm.check()


@pytest.mark.parametrize("name", MODELS)
def test_every_row_of_the_table_has_a_register_a_reason_and_a_cure(name):
    for s in SETTINGS[name]:
        register = MODELS[name].registers[s.register]
        assert register.eeprom and s.must and s.why
        assert s.right(register.default), "as it is delivered"
        worst = (1 << 8 * register.size) - 1
        assert all(s.right(s.mended(v)) for v in (0, worst))
    for left in LEFT_OVERS[name]:
        assert not MODELS[name].registers[left.register].eeprom and left.why


def test_a_servo_that_answers_pings_only_is_said():
    arm, servos = virtual(KOCH)
    servos.put(4, "response_level", 0)
    with pytest.raises(
        ArmError, match=r"^servo 4 \(wrist_flex\) answers a ping and no question, as with response_level 0"
    ):
        arm.check()


def test_a_dynamixel_that_confirms_no_writes_is_made_to():
    arm, servos = virtual(KOCH)
    servos.put(4, "response_level", 1)
    arm.torque_on()
    assert servos.get(4, "response_level") == 2


def test_the_check_asks_little_of_the_bus():
    """One question for who is there, one a servo for doubles, one for all settings, one for where the joints stand."""
    arm, servos = virtual(PLAIN)
    sent = []
    write = arm.bus.port.write

    def tapped(data):
        sent.append(data)
        write(data)

    arm.bus.port.write = tapped
    arm.check()
    assert len(sent) == 3 + 6


# ---- the virtual servos' modes: why the above is refused -------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "mode", "drive"),
    [
        (PLAIN, 1, ("goal_speed", 500)),
        (PLAIN, 2, ("goal_time", 300)),
        (XL330, 1, ("goal_speed", 50)),
        (XL330, 16, ("torque_limit", 300)),
        (XL330, 0, ("goal_current", 500)),
    ],
)
def test_in_a_speed_or_output_mode_a_servo_turns_without_end(config, mode, drive):
    plant = KinematicPlant(np.full(1, 2048.0))
    servos = VirtualBus([1], plant, [MODELS[config.model_names[0]]])
    servos.refresh(0)
    for name, value in (("mode", mode), drive, ("torque_enable", 1)):
        servos.put(1, name, value)
    servos.refresh(10_000 * MS)
    assert plant.position[0] > 2048 + 2000


def test_in_step_mode_a_goal_is_a_way():
    plant = KinematicPlant(np.full(1, 2048.0))
    servos = VirtualBus([1], plant)
    servos.refresh(0)
    servos.put(1, "mode", 3)
    servos.put(1, "torque_enable", 1)
    servos.servos[1].write(42, (100).to_bytes(2, "little"))
    servos.drive(True)
    servos.refresh(1000 * MS)
    assert plant.position[0] == 2148
