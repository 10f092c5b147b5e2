"""Other arms than the SO-101 on the same code: Koch (two supplies), ViperX (second servos), SCS (big-endian); EEPROM is
left alone."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import PortError
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.motion.estop import _EVENT, EStop, EStopError
from firmware_bridge.motion.measurement import DOUBTED, TWIN
from firmware_bridge.service import Found, look, set_id
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import KOCH, MIDDLE, SO101
from firmware_bridge.virtual.line import MemoryPort
from firmware_bridge.virtual.plant import KinematicPlant
from tests.firmware_bridge.virtual_arm import VIPERX, virtual

SERVO = MODELS["STS3215"]


def settle(arm):
    for _ in range(40):  # a Dynamixel that hears nothing for 0.2 s stops
        arm.bus.port.time_ns += 50_000_000
        m = arm.read()
    return m


@pytest.mark.parametrize("config", [SO101, KOCH, VIPERX], ids=["so101", "koch", "viperx"])
def test_every_arm_is_checked_moved_measured_and_released(config):
    arm, servos = virtual(config)
    arm.check()
    assert np.allclose(arm.read().q, MIDDLE, atol=2e-3)
    arm.torque_on()
    arm.write_goals(np.full(6, 0.25))
    assert np.allclose(settle(arm).q, 0.25, atol=2e-3)
    for _ in range(12):
        arm.read_telemetry()
    volts = [MODELS[m].registers["present_voltage"].default / 10 for m in config.model_names]
    assert np.allclose(arm.voltage, volts) and np.allclose(arm.temperature, 30) and not arm.limp.any()
    assert arm.torque_off() == [] and not arm.energised()
    assert not [k for k in arm.bus.errors if k[1] != "no reply"] and not arm.bus.errors


def test_the_second_servo_of_a_joint_goes_its_own_way_round_and_is_watched():
    arm, servos = virtual(VIPERX, np.zeros(6))
    arm.torque_on()
    arm.write_goals(np.array([0, 0.4, 0.4, 0, 0, 0.5]))
    settle(arm)
    step = {i: servos.get(i, "present_position") - 2048 for i in servos.ids}
    assert step[2] == -step[3] == 261 and step[4] == -step[5] == -261 and step[9] == 652
    assert not arm.read().bits.any()
    servos.faults.inject("jump", servo=3)
    assert arm.read().bits.tolist() == [0, TWIN, 0, 0, 0, 0]


def test_fast_sync_read_gives_the_same_and_falls_back_when_a_servo_is_silent():
    arm, servos = virtual(KOCH)
    slow = arm.bus.sync_read(KOCH.ids, 128, 8)
    arm.bus.fast = True
    assert arm.bus.sync_read(KOCH.ids, 128, 8) == slow
    servos.faults.inject("silent-servo", servo=4)
    assert sorted(arm.bus.sync_read(KOCH.ids, 128, 8)) == [1, 2, 3, 5, 6]
    assert sorted(arm.bus.sync_read(KOCH.ids, 128, 8)) == [1, 2, 3, 5, 6]
    servos.faults.clear()
    assert len(arm.bus.sync_read(KOCH.ids, 128, 8)) == 6


def test_big_endian_servos_without_sync_read():
    config = dataclasses.replace(SO101, models=("SCS0009",) * 6, eeprom=(), zero_step=(512,) * 6)
    arm, servos = virtual(config, np.zeros(6))
    arm.check()
    servos.plant.position = np.full(6, 700.0)
    assert np.allclose(arm.read().q, (700 - 512) * 2 * np.pi / 1024)
    assert arm.bus.read(1, 56, 2).data == (700).to_bytes(2, "big")


def test_eeprom_that_differs_from_the_file_is_named_and_left_alone():
    arm, servos = virtual(SO101)
    servos.put(2, "homing_offset", -85)
    with pytest.raises(ArmError, match=r"servo 2 \(shoulder_lift\) holds homing_offset -85, the robot file says 0"):
        arm.check()
    assert arm.fingerprint() != virtual(SO101)[0].fingerprint() == virtual(SO101)[0].fingerprint()


def test_an_alert_is_looked_up_at_once():
    arm, servos = virtual(KOCH)
    arm.torque_on()
    servos.faults.inject("dxl-alert", servo=5)
    arm.read()
    arm.read_telemetry()
    assert arm.read().bits[4] == 4  # temperature


def telemetry(arm, seconds):
    """Read and ask as the motor process does; the last measurement."""
    for _ in range(round(seconds * 100)):
        arm.bus.port.time_ns += 10_000_000
        measured = arm.read()
        arm.read_telemetry()
    return measured


def test_a_second_servo_that_overheats_is_seen_and_the_others_telemetry_goes_on():
    arm, servos = virtual(VIPERX)
    arm.torque_on()
    assert not telemetry(arm, 0.5).bits.any() and not arm.limp.any()
    servos.servos[3].temperature = 85.0  # the second of the shoulder: it shuts down
    servos.servos[6].temperature = 50.0
    servos.put(9, "torque_enable", 0)
    measured = telemetry(arm, 0.5)
    assert measured.bits.tolist() == [0, 4, 0, 0, 0, 0]
    assert arm.limp.tolist() == [False, True, False, False, False, True]
    assert arm.temperature.tolist() == [30, 85, 30, 50, 30, 30]


def test_of_a_joint_with_two_servos_the_worse_one_counts():
    arm, servos = virtual(VIPERX)
    arm.torque_on()
    servos.servos[3].supply_v, servos.servos[4].supply_v = 9.0, 10.0  # the shoulder's second one, the elbow's first
    servos.servos[3].temperature, servos.servos[4].temperature = 45.0, 50.0
    telemetry(arm, 0.5)
    assert np.allclose(arm.voltage, [12, 9, 10, 12, 12, 12]) and arm.temperature.tolist() == [30, 45, 50, 30, 30, 30]


def test_a_flag_that_means_nothing_keeps_nobody_waiting():
    arm, servos = virtual(KOCH)
    arm.torque_on()
    servos.put(2, "hardware_error", 2)  # a bit that no manual knows
    servos.servos[6].temperature = 55.0
    assert not telemetry(arm, 0.5).bits.any() and arm.temperature[5] == 55


@pytest.mark.parametrize(("config", "cap", "full"), [(SO101, "max_torque", 1000), (KOCH, "pwm_limit", 885)])
def test_no_servo_is_given_more_torque_than_its_eeprom_allows(config, cap, full):
    arm, servos = virtual(config)
    servos.put(6, cap, 500)  # LeRobot sets an SO-101's gripper so
    servos.power_cycle(6, 0)
    assert servos.get(6, "torque_limit") == 500
    arm.torque_on()
    assert [servos.get(i, "torque_limit") for i in config.ids] == [full] * 5 + [500]
    assert arm.torque_share() == 1.0
    arm.set_torque(0.5)
    assert [servos.get(i, "torque_limit") for i in config.ids] == [full // 2] * 5 + [250]
    guards = Arm(arm.bus, config)  # it takes over a ramp where the motor process left it
    assert guards.torque_share() == pytest.approx(0.5, abs=0.01)
    guards.set_torque(0.4)
    assert [servos.get(i, "torque_limit") for i in config.ids] == [int(full * 0.4)] * 5 + [200]
    guards.set_torque(0.0)
    assert guards.torque_off() == []  # and whoever drives the arm next has its strength again
    assert [servos.get(i, "torque_limit") for i in config.ids] == [full] * 5 + [500]


def test_an_arm_is_not_switched_on_while_a_servo_does_not_tell_what_it_is_allowed():
    arm, servos = virtual(SO101)
    servos.faults.inject("silent-servo", servo=6)
    with pytest.raises(
        ArmError, match=r"servo 6 \(gripper\) does not answer when its settings are read: check its cable"
    ):
        arm.torque_on()
    assert not any(servos.get(i, "torque_enable") for i in SO101.ids)


def test_a_position_that_jumps_is_doubted_and_one_that_was_silent_for_long_is_not_guessed():
    arm, servos = virtual(SO101)
    arm.torque_on()
    for _ in range(30):
        arm.bus.port.time_ns += 10_000_000
        arm.read()
    servos.faults.inject("jump", servo=3)
    for _ in range(40):
        arm.bus.port.time_ns += 10_000_000
        m = arm.read()
        assert m.bits[2] == DOUBTED and m.q[2] == pytest.approx(MIDDLE[2], abs=2e-3)
    servos.faults.clear()
    assert not arm.read().bits.any()


def test_a_big_endian_servo_is_known_by_its_number():
    servos = VirtualBus([3], KinematicPlant(np.full(1, 512.0)), [MODELS["SCS0009"]])
    found = look(Bus(MemoryPort(servos)), 3)
    assert found is not None and found.model is not None and found.model.name == "SCS0009"


def test_a_servo_gets_a_new_id_and_keeps_it_only_because_it_was_unlocked():
    servos = VirtualBus([7], KinematicPlant(np.full(1, 2048.0)))
    master = Bus(MemoryPort(servos))
    found = look(master, 7)
    assert (
        found is not None
        and found.model.name == "STS3215"
        and found.values["present_voltage"] == 74
        and not found.double
    )
    assert look(master, 8) is None
    servos.handle(fs.write(7, 13, b"\x50"), 0)  # locked: gone after the next power-on
    set_id(master, found, 9)
    assert servos.ids == [9] and servos.servos[9].stored[5] == 9 and servos.get(9, "lock") == 1
    servos.power_cycle(9, 0)
    assert servos.get(9, "max_temperature") == 70 and servos.get(9, "id") == 9
    at_nine = look(master, 9)
    assert at_nine is not None
    set_id(master, at_nine, 9)  # the id that it has, as every servo has id 1 when it is delivered
    assert servos.ids == [9]
    for new, why in ((300, "none of 0..252"), (9, "taken")):
        with pytest.raises(ArmError, match=why):
            set_id(master, found, new)
    with pytest.raises(ArmError, match="not known"):
        set_id(master, Found(1, 4321, "feetech", 1_000_000, {}), 2)


def test_a_dynamixel_shuts_down_refuses_and_comes_back_by_reboot():
    arm, servos = virtual(KOCH)
    arm.torque_on()
    servos.servos[3].temperature = 75.0
    servos.refresh(10**9)
    assert servos.get(3, "torque_enable") == 0 and servos.get(3, "hardware_error") == 4
    assert arm.bus.write(3, 64, b"\x01") and servos.get(3, "torque_enable") == 0  # taken, without effect
    assert not arm.bus.write(1, 11, b"\x04")  # EEPROM while torque is on: access error
    assert arm.bus.errors[1, "refused (access)"]
    servos.servos[3].temperature = 40.0
    arm.bus.reboot(3)
    assert (
        servos.get(3, "hardware_error") == 0 and arm.bus.write(3, 64, b"\x01") and servos.get(3, "torque_enable") == 1
    )


def test_a_feetech_overload_latches_until_the_next_goal():
    _, servos = virtual(SO101)
    s = servos.servos[2]
    for k in range(40):
        s.refresh(k * 100_000_000, 2048, 0, 0.95, 0.0)
    assert s.latched and s.share() == 0.2 and s.bits() & 32
    s.write(42, b"\x00\x08")
    assert not s.latched and s.share() == 1.0


class Turned(KinematicPlant):
    """Joints that somebody else turns: they stand where they were put, with this velocity (steps/s) and load on every
    servo."""

    def __init__(self, position, velocity=0.0, load=0.0):
        super().__init__(position)
        self.velocity, self.load = np.full(len(position), velocity), np.full(len(position), load)

    def present(self, now_ns):
        return self.position, self.velocity, self.load


@pytest.mark.parametrize("steps", [-100, 0, 4300])
def test_steps_beyond_a_turn_are_read_and_written_with_their_sign(steps):
    arm, servos = virtual(SO101)
    servos.plant = Turned(np.full(6, float(steps)))
    q = arm.read().q
    assert np.allclose(q, (steps - np.array(SO101.zero_step)) * 2 * np.pi / 4096 * np.array(SO101.direction))
    arm.write_goals(q)
    assert [servos.get(i, "goal_position") for i in SO101.ids] == [steps] * 6


@pytest.mark.parametrize("steps_s", [-500.0, 500.0])
@pytest.mark.parametrize("config", [SO101, KOCH], ids=["so101", "koch"])
def test_a_joint_that_turns_has_its_velocity_with_its_sign(config, steps_s):
    arm, servos = virtual(config)
    servos.plant = Turned(servos.plant.position, velocity=steps_s)
    resolution = max(m.speed_steps_s * m.rad_per_step for m in arm.models)
    assert np.allclose(arm.read().qd, steps_s * 2 * np.pi / 4096 * np.array(config.direction), atol=resolution)


@pytest.mark.parametrize("load", [-0.5, 0.5])
def test_a_loaded_joint_has_its_current_in_ampere(load):
    arm, servos = virtual(SO101)
    servos.plant = Turned(servos.plant.position, load=load)
    for _ in SO101.ids:
        arm.read_telemetry()
    assert np.allclose(arm.current, [m.current_a * servos.get(1, "present_current") for m in arm.models])
    assert np.allclose(arm.current, 1.2 * load, atol=arm.model.current_a)  # the virtual servo's 1.2 A at full load


def test_a_servo_that_does_not_say_that_its_torque_is_on_counts_as_limp():
    arm, servos = virtual(SO101)
    write = servos.servos[3].write

    def falls_silent(address, data):
        if address == SERVO.registers["torque_enable"].address:
            servos.faults.inject("silent-servo", servo=3)
        return write(address, data)

    servos.servos[3].write = falls_silent
    with pytest.raises(ArmError, match=r"^servo 3 did not switch its torque on"):
        arm.torque_on()
    assert not arm.watchful


def test_an_arm_that_was_released_may_be_moved_by_hand_as_fast_as_one_likes():
    arm, servos = virtual(SO101)
    arm.torque_on()
    arm.read()
    assert arm.torque_off() == []
    servos.plant.position += 700
    by_hand = arm.read()
    assert not by_hand.bits.any()
    assert np.allclose(by_hand.q - np.array(MIDDLE), 700 * 2 * np.pi / 4096 * np.array(SO101.direction), atol=2e-3)


def test_a_dynamixel_whose_master_died_is_calmed_where_it_stands_and_takes_goals_again():
    arm, servos = virtual(KOCH)
    arm.torque_on()
    arm.write_goals(np.full(6, 0.25))
    arm.bus.port.time_ns += 500_000_000  # nobody speaks
    servos.refresh(arm.bus.port.time_ns)
    assert [servos.get(i, "watchdog") for i in KOCH.ids] == [-1] * 6
    servos.plant.position -= 100.0  # it has sunk a little since
    guards = Arm(arm.bus, KOCH)
    guards.calm()
    assert [servos.get(i, "watchdog") for i in KOCH.ids] == [0] * 6
    assert [servos.get(i, "goal_position") for i in KOCH.ids] == [servos.get(i, "present_position") for i in KOCH.ids]
    guards.write_goals(np.full(6, 0.25))
    assert np.allclose(settle(guards).q, 0.25, atol=2e-3)


def test_an_unplugged_bus_is_said():
    arm, _ = virtual(SO101)
    arm.bus.port.lost = True
    with pytest.raises(PortError, match="unplugged"):
        arm.read()


def test_an_emergency_key_latches_and_what_cannot_be_read_counts_as_pressed(tmp_path):
    import os

    path = tmp_path / "key"
    os.mkfifo(path)
    stop = EStop.open(f"key:{path}")
    writer = os.open(path, os.O_WRONLY)
    assert not stop.pressed()
    os.write(writer, _EVENT.pack(0, 0, 0, 0, 0))  # a synchronisation event
    assert not stop.pressed()
    os.write(writer, _EVENT.pack(0, 0, 1, 30, 1) + _EVENT.pack(0, 0, 1, 30, 0))
    assert stop.pressed() and stop.pressed()
    stop.close()
    again = EStop.open(f"key:{path}")
    os.close(writer)  # pulled out
    assert again.pressed()
    again.close()
    assert again.pressed()
    for where in ("key:/nowhere", "gpio:/dev/gpiochip99:4", "gpio:x", "bell:1"):
        with pytest.raises(EStopError):
            EStop.open(where)
