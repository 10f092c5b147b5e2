"""What the registers of a virtual servo hold, and what becomes of it: positions, goals, EEPROM, baud rates."""

import numpy as np
import pytest

from firmware_bridge.bus.master import Bus
from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import MemoryPort
from firmware_bridge.virtual.plant import KinematicPlant

S = 1_000_000_000
LIMIT, ACCESS = 6, 7


def bus(*ids, model="STS3215", at=2048.0):
    return VirtualBus(ids, KinematicPlant(np.full(len(ids), at)), [MODELS[model]] * len(ids))


def reads(servos, now_ns=1):
    servos.refresh(now_ns)
    return servos.get(1, "present_position")


def write(servos, register, value, now_ns=1):
    """Write one register of servo 1 by a packet; the error number of the answer."""
    model = servos.servos[1].model
    raw = servos.handle(servos.codec.write(1, model.registers[register].address, model.encode(register, value)), now_ns)
    (answer,) = servos.codec.new_parser().feed(raw)
    return servos.codec.answer(answer)[0]


# ---- positions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("offset", "at", "read"),
    [(-2047, 3000, 951), (-2047, 2048, 4095), (-2047, 2049, 0), (1000, 500, 3596), (0, 4095, 4095)],
)
def test_an_sts_that_does_not_count_turns_reads_within_its_turn(offset, at, read):
    servos = bus(1, at=float(at))
    servos.put(1, "homing_offset", offset)
    assert reads(servos) == read
    servos.put(1, "phase", 12 | 16)
    assert reads(servos) == at - offset


def test_an_sts_whose_sum_was_wrapped_goes_to_its_goals_and_never_across_its_end():
    servos = bus(1, at=3000.0)
    servos.put(1, "homing_offset", -2047)
    servos.put(1, "torque_enable", 1)
    write(servos, "goal_position", 951)
    assert reads(servos, S) == 951 and servos.plant.position[0] == 3000
    write(servos, "goal_position", 4000, S)
    assert reads(servos, 3 * S) == 4000 and servos.plant.position[0] == 3000 + 3049  # not 1047 the other way


def test_an_sts_that_was_turned_across_its_end_by_hand_runs_back_all_the_way():
    servos = bus(1, at=2040.0)
    servos.put(1, "homing_offset", -2047)
    write(servos, "goal_position", 4087)
    servos.plant.position[0] = 2060.0  # it reads 11 now
    servos.put(1, "torque_enable", 1)
    assert reads(servos) == 11 and reads(servos, 3 * S) == 4087
    assert servos.plant.position[0] == 2040 + 4096


def test_a_wheel_reads_within_its_turn_for_ever():
    servos = bus(1)
    servos.put(1, "mode", 1)
    servos.put(1, "torque_enable", 1)
    write(servos, "goal_speed", 3000)
    for k in range(1, 40):
        assert reads(servos, k * S) == round(servos.plant.position[0]) % 4096
    assert servos.plant.position[0] > 100_000


def test_a_dynamixel_adds_an_offset_of_32_bits_in_its_multi_turn_modes():
    servos = bus(1, model="XL330-M288")
    servos.put(1, "mode", 4)
    servos.put(1, "homing_offset", 1_000_000)
    assert reads(servos) == 1_002_048
    servos.put(1, "mode", 3)  # where an offset of more than a quarter turn is passed over
    assert reads(servos) == 2048


def test_a_register_stays_at_its_end_where_the_truth_lies_beyond():
    servos = bus(1, at=50_000.0)
    servos.put(1, "phase", 16)
    assert reads(servos) == 32767


# ---- goals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("register", "value", "settings"),
    [
        ("goal_position", 5000, {"min_position": 1000, "max_position": 3000}),
        ("goal_position", 999, {"min_position": 1000, "max_position": 3000}),
        ("torque_limit", -501, {"pwm_limit": 500}),
        ("goal_current", 301, {"current_limit": 300}),
        ("goal_speed", 201, {"velocity_limit": 200}),
    ],
)
def test_a_dynamixel_refuses_a_goal_beyond_its_limit(register, value, settings):
    servos = bus(1, model="XL330-M288")
    for name, limit in settings.items():
        servos.put(1, name, limit)
    held = servos.get(1, register)
    assert write(servos, register, value) == LIMIT and servos.get(1, register) == held
    servos.handle(
        dxl.sync_write(
            servos.servos[1].model.registers[register].address, {1: servos.servos[1].model.encode(register, value)}
        ),
        1,
    )
    assert servos.get(1, register) == held


def test_a_dynamixel_takes_goals_beyond_its_turn_in_its_multi_turn_modes():
    servos = bus(1, model="XL330-M288")
    servos.put(1, "mode", 4)
    assert write(servos, "goal_position", 1_048_575) == 0 and write(servos, "goal_position", 1_048_576) == 4
    assert servos.get(1, "goal_position") == 1_048_575


def test_a_feetech_goes_to_its_limit_when_its_goal_lies_beyond():
    servos = bus(1)
    servos.put(1, "max_position", 3000)
    servos.put(1, "torque_enable", 1)
    assert write(servos, "goal_position", 3500) == 0
    assert reads(servos, S) == 3000


# ---- EEPROM and baud rate --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lock", [0, 1])
def test_an_sts_keeps_its_new_id_and_baud_rate_through_a_power_cycle_only_when_it_was_unlocked(lock):
    servos = bus(1)
    servos.put(1, "lock", lock)
    write(servos, "baud", 4)
    write(servos, "id", 44)
    assert servos.ids == [44] and servos.get(44, "baud") == 4  # both act at once
    servos.power_cycle(44, 1)
    assert servos.ids == [1 if lock else 44] and servos.get(servos.ids[0], "baud") == (0 if lock else 4)
    assert servos.handle(fs.ping(servos.ids[0]), 1) == fs.status(servos.ids[0], 0)
    assert lock == 0 or servos.handle(fs.ping(44), 1) == b""


def test_a_dynamixel_takes_a_new_id_for_good_and_none_under_torque():
    servos = bus(1, model="XL330-M288")
    servos.put(1, "torque_enable", 1)
    assert write(servos, "id", 44) == ACCESS and servos.ids == [1]
    servos.put(1, "torque_enable", 0)
    assert write(servos, "id", 44) == 0
    servos.power_cycle(44, 1)
    assert servos.ids == [44]


def at(servos, baud, packet):
    """What the servos say to a host of this rate."""
    return b"".join(raw for _, raw in servos.serve(packet, 1, baud))


@pytest.mark.parametrize(
    ("model", "code", "baud"),
    [("STS3215", 1, 500_000), ("STS3215", 7, 38_400), ("XL330-M288", 0, 9_600), ("XL330-M288", 6, 4_000_000)],
)
def test_a_servo_answers_a_host_of_its_own_baud_rate_only(model, code, baud):
    servos = bus(1, 2, model=model)
    servos.set_baud(1_000_000)
    register, codec = servos.servos[1].model.registers["baud"], servos.codec
    told = at(servos, 1_000_000, codec.write(1, register.address, bytes([code])))
    assert told == codec.status(1, 0)  # it acknowledges at the rate at which it was told
    pong = [at(servos, rate, codec.ping(1)) for rate in (1_000_000, baud)]
    assert not pong[0] and pong[1]
    assert at(servos, 1_000_000, codec.ping(2)) and not at(servos, baud, codec.ping(2))
    everybody = [at(servos, rate, codec.ping(254)) for rate in (1_000_000, baud)]
    assert [[p.servo for p in codec.new_parser().feed(raw)] for raw in everybody] == [[2], [1]]


def test_a_line_begins_with_host_and_servos_at_its_rate():
    servos = bus(1, model="XL330-M288")  # delivered at 57600
    port = MemoryPort(servos, 1_000_000)
    assert servos.get(1, "baud") == 3 and Bus(port, protocol="dynamixel").ping(1)
    servos.put(1, "baud", 1)
    assert not Bus(port, protocol="dynamixel").ping(1)
