"""Settings of a servo that would change a motion: refused by name before torque, mended on request."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.motion.config import ArmError
from firmware_bridge.service import mend
from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.settings import LEFT_OVERS, SETTINGS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import KOCH, MIDDLE
from firmware_bridge.virtual.plant import KinematicPlant
from tests.firmware_bridge.unarmed import MS, PLAIN, XL330, refused, untouched, wait
from tests.firmware_bridge.virtual_arm import virtual

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
    with pytest.raises(ArmError, match=r"^servo 4 \(wrist_flex\) answers a ping but no read, as with response_level 0"):
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
