"""Virtual servos answer every valid packet as real ones do, and none of them stops the bus."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.bus.master import Bus
from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.service import look, set_id
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import MemoryPort
from firmware_bridge.virtual.plant import KinematicPlant

RANGE, LENGTH, ACCESS, INSTRUCTION = 4, 5, 7, 2


def bus(*ids, model="STS3215"):
    return VirtualBus(ids, KinematicPlant(np.full(len(ids), 2048.0)), [MODELS[model]] * len(ids))


def said(servos, packet):
    """(id, error byte, data) of every answer."""
    answers = [(p.servo, servos.codec.answer(p)) for p in servos.codec.new_parser().feed(servos.handle(packet, 0))]
    return [(servo, *answer) for servo, answer in answers]


def errors(servos, packet):
    return [(servo, error) for servo, error, _ in said(servos, packet)]


# ---- any packet ------------------------------------------------------------------------------------------------------
IDS = st.sampled_from([1, 1, 2, 3, 254]) | st.integers(0, 252)
VALUES = st.sampled_from([b"\x00", b"\x01", b"\x80", b"\xfd", b"\xff", b"\xff\xff", b"\xff" * 4]) | st.binary(
    max_size=12
)


def packets(model):
    """(id, instruction, parameters): writes and reads where registers are, and anything else."""
    wide = 2 if model.protocol == "dynamixel" else 1
    addresses = st.sampled_from([r.address for r in model.registers.values()]) | st.integers(
        0, 300 if wide == 2 else 255
    )
    known = st.sampled_from([fs.WRITE, fs.REG_WRITE, fs.ACTION, dxl.REBOOT, fs.PING, fs.SYNC_READ, fs.SYNC_WRITE, 0x8A])
    write = st.builds(lambda a, d: a.to_bytes(wide, "little") + d, addresses, VALUES)
    read = st.builds(
        lambda a, n: a.to_bytes(wide, "little") + n.to_bytes(wide, "little"),
        addresses,
        st.integers(0, 2000 if wide == 2 else 255),
    )
    return st.one_of(
        st.tuples(IDS, known, write),
        st.tuples(IDS, st.just(fs.READ), read),
        st.tuples(st.just(254), known, st.builds(lambda r, d: r + d, read, st.binary(max_size=30))),
        st.tuples(IDS, st.integers(0, 255), st.binary(max_size=40)),
    )


@pytest.mark.parametrize("model", ["STS3215", "SCS0009", "XL330-M288", "XM430-W350"])
@settings(max_examples=50)
@given(data=st.data())
def test_no_packet_stops_the_bus(model, data):
    servos = bus(1, 2, 3, model=model)
    for k, packet in enumerate(data.draw(st.lists(packets(MODELS[model]), min_size=1, max_size=20))):
        servos.handle((dxl if servos.dynamixel else fs).packet(*packet), k * 50_000_000)
        servos.refresh(k * 50_000_000 + 1)
    assert [len(s.memory) for s in servos.all] == [256] * 3
    for i in set(servos.ids):
        assert i in [answer[0] for answer in said(servos, servos.codec.ping(i))]


# ---- Feetech ---------------------------------------------------------------------------------------------------------
def test_a_feetech_keeps_silent_when_its_answer_does_not_fit_into_a_packet():
    assert said(bus(1), bytes.fromhex("ff ff 01 04 02 00 f5 03")) == []
    assert len(said(bus(1), fs.read(1, 0, 244))[0][2]) == 244


def test_a_feetech_reads_0_where_it_has_no_register():
    assert said(bus(1), fs.read(1, 200, 4)) == [(1, 0, bytes(4))]
    assert said(bus(1), fs.read(1, 254, 4)) == [(1, 0, bytes(4))]


@pytest.mark.parametrize(("address", "value"), [(5, 255), (5, 254), (6, 8)])
def test_a_feetech_acknowledges_an_id_or_baud_rate_that_does_not_exist_and_keeps_its_own(address, value):
    servos = bus(1)
    servos.put(1, "lock", 0)
    held = bytes(servos.all[0].memory[:40])
    assert errors(servos, fs.write(1, address, bytes([value]))) == [(1, 0)]
    assert bytes(servos.all[0].memory[:40]) == held


@pytest.mark.parametrize("instruction", [fs.WRITE, fs.REG_WRITE, 6, 0x55, 0x92])
def test_a_feetech_keeps_silent_at_what_it_does_not_know(instruction):
    assert said(bus(1), fs.packet(1, instruction, b"\x2a" if instruction in (fs.WRITE, fs.REG_WRITE) else b"")) == []


def test_an_scs_knows_no_sync_read():
    servos = bus(1, model="SCS0009")
    assert said(servos, fs.sync_read([1], 56, 2)) == [] and said(servos, fs.read(1, 56, 2))


# ---- Dynamixel -------------------------------------------------------------------------------------------------------
def test_a_dynamixel_has_an_access_error_beyond_its_table():
    small, large = bus(1, model="XL330-M288"), bus(1, model="XM430-W350")
    assert errors(small, bytes.fromhex("ff ff fd 00 01 07 00 02 00 00 fc 03 27 55")) == [(1, ACCESS)]  # 1020 bytes
    assert errors(small, dxl.read(1, 226, 4)) == [(1, ACCESS)] and errors(large, dxl.read(1, 226, 4)) == [(1, 0)]
    assert errors(large, dxl.read(1, 250, 4)) == [(1, ACCESS)]
    for servos in (small, large):
        assert (
            errors(servos, dxl.write(1, 300, b"\x01"))
            == errors(servos, dxl.packet(1, dxl.REG_WRITE, b"\x2c\x01\x01"))
            == [(1, ACCESS)]
        )
        assert [i for i, e, d in said(servos, dxl.sync_read([1], 240, 20)) if (e, d) == (ACCESS, b"")] == [1]


def test_a_dynamixel_has_an_access_error_for_what_is_read_only():
    assert errors(bus(1, model="XL330-M288"), dxl.write(1, 132, bytes(4))) == [(1, ACCESS)]


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("id", 253),
        ("id", 254),
        ("baud", 7),
        ("homing_offset", 1_044_480),
        ("max_position", 4096),
        ("pwm_limit", 65535),
        ("torque_enable", 2),
    ],
)
def test_a_dynamixel_has_a_range_error_for_what_a_register_cannot_be(register, value):
    servos = bus(1, model="XL330-M288")
    r = servos.all[0].model.registers[register]
    held = bytes(servos.all[0].memory)
    assert errors(servos, dxl.write(1, r.address, value.to_bytes(r.size, "little"))) == [(1, RANGE)]
    assert bytes(servos.all[0].memory) == held
    assert errors(bus(1, model="XL330-M288"), bytes.fromhex("ff ff fd 00 01 06 00 03 07 00 fd bf 61")) == [(1, RANGE)]


def test_a_dynamixel_has_a_length_error_for_a_part_of_a_register_and_for_no_data():
    servos = bus(1, model="XL330-M288")
    assert (
        errors(servos, dxl.write(1, 116, b"\x00\x01"))
        == errors(servos, dxl.write(1, 118, b"\x00\x01"))
        == [(1, LENGTH)]
    )
    assert (
        errors(servos, dxl.write(1, 64, b""))
        == errors(servos, dxl.packet(1, dxl.READ, b"\x84\x00\x04"))
        == [(1, LENGTH)]
    )


def test_a_dynamixel_has_an_instruction_error_for_an_action_without_a_reg_write_and_for_what_it_does_not_know():
    servos = bus(1, model="XL330-M288")
    assert errors(servos, dxl.packet(1, dxl.ACTION)) == errors(servos, dxl.packet(1, 0x77)) == [(1, INSTRUCTION)]
    assert (
        errors(servos, dxl.packet(1, dxl.REG_WRITE, b"\x41\x00\x01"))
        == errors(servos, dxl.packet(1, dxl.ACTION))
        == [(1, 0)]
    )
    assert servos.get(1, "led") == 1


# ---- both ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["STS3215", "XL330-M288"])
def test_a_row_of_a_sync_write_that_is_cut_short_is_not_taken(model):
    servos = bus(1, 2, model=model)
    r, wide = servos.all[0].model.registers["goal_position"], 1 if model == "STS3215" else 2
    goal = (1000).to_bytes(r.size, "little")
    head = r.address.to_bytes(wide, "little") + r.size.to_bytes(wide, "little")
    servos.handle(servos.codec.packet(254, fs.SYNC_WRITE, head + b"\x01" + goal + b"\x02" + goal[:1]), 0)
    assert [servos.get(i, "goal_position") for i in (1, 2)] == [1000, 2048]


def test_a_write_across_the_eeproms_end_leaves_what_lies_behind_it_volatile():
    servos = bus(1, model="XL330-M288")
    assert errors(servos, dxl.write(1, 60, b"\x00\x00\x00\x34\x01")) == [(1, 0)] and servos.get(1, "torque_enable") == 1
    assert servos.all[0].stored[63] == 0x34 and servos.all[0].stored[64] == 0


@pytest.mark.parametrize("model", ["STS3215", "XL330-M288"])
def test_servos_of_one_id_answer_at_once_and_the_line_is_the_and_of_both(model):
    servos = bus(1, 1, 2, model=model)
    one, other = servos.all[:2]
    one.put("return_delay", 0)
    other.put("p_gain", 0x55)
    r = one.model.registers["p_gain"]
    apart = [servos.codec.status(1, 0, bytes(s.memory[r.address : r.address + r.size])) for s in (one, other)]
    assert servos.handle(servos.codec.read(1, r.address, r.size), 0) == bytes(
        a & b for a, b in zip(*apart, strict=True)
    )
    assert said(servos, servos.codec.ping(1)) and said(servos, servos.codec.ping(2))
    assert not said(servos, servos.codec.read(1, r.address, r.size))  # nobody can read that
    servos.handle(servos.codec.write(1, servos.all[0].model.registers["id"].address, b"\x04"), 0)
    assert servos.ids == [4, 4, 2]


@pytest.mark.parametrize("model", ["STS3215", "XL330-M288"])
def test_all_answer_a_broadcast_ping_one_after_another_in_the_order_of_their_ids(model):
    servos = bus(7, 1, 3, model=model)
    assert errors(servos, servos.codec.ping(254)) == [(1, 0), (3, 0), (7, 0)]


def test_a_broadcast_ping_is_six_bytes_of_each_feetech():
    assert bus(1, 2).handle(bytes.fromhex("ff ff fe 02 01 fe"), 0) == bytes.fromhex(
        "ff ff 01 02 00 fc ff ff 02 02 00 fb"
    )


@pytest.mark.parametrize(
    ("model", "level", "answered"),
    [
        ("STS3215", 0, "ping read"),
        ("STS3215", 1, "ping read write"),
        ("XL330-M288", 0, "ping"),
        ("XL330-M288", 1, "ping read"),
        ("XL330-M288", 2, "ping read write"),
    ],
)
def test_the_response_level_says_what_is_answered(model, level, answered):
    """STS: the maker's memory table (8, response status level). Dynamixel: e-manual, Status Return Level (68)."""
    servos = bus(1, model=model)
    servos.put(1, "response_level", level)
    goal, codec = servos.all[0].model.registers["goal_position"], servos.codec
    asked = {
        "ping": codec.ping(1),
        "read": codec.read(1, goal.address, goal.size),
        "sync read": codec.sync_read([1], goal.address, goal.size),
        "write": codec.write(1, goal.address, bytes(goal.size)),
    }
    assert [name for name in asked if said(servos, asked[name])] == [n for n in asked if n.split()[-1] in answered]
    assert servos.get(1, "goal_position") == 0  # written, whether it is answered or not


@pytest.mark.parametrize(
    ("model", "packet"),
    [("STS3215", "ff ff 01 04 03 05 06 ec"), ("XL330-M288", "ff ff fd 00 01 06 00 03 07 00 06 a6 e3")],
)
def test_a_new_id_is_acknowledged_from_the_old_one(model, packet):
    servos = bus(1, 2, model=model)
    assert errors(servos, bytes.fromhex(packet)) == [(1, 0)] and servos.ids == [6, 2]
    assert errors(servos, servos.codec.ping(6)) == [(6, 0)] and not said(servos, servos.codec.ping(1))


class FromTheNewId(MemoryPort):
    """Servos that acknowledge a new id from that id."""

    def read(self, deadline_ns):
        servos = self.line.bus
        answers = [servos.codec.answer(p) for p in servos.codec.new_parser().feed(super().read(deadline_ns))]
        status = dxl.status if servos.dynamixel else fs.status
        return b"".join(status(servos.ids[0], *answer) for answer in answers if answer is not None)


@pytest.mark.parametrize("port", [MemoryPort, FromTheNewId])
@pytest.mark.parametrize("model", ["STS3215", "XL330-M288"])
def test_our_set_id_takes_an_acknowledgement_from_either_id(model, port):
    servos = bus(1, model=model)
    master = Bus(port(servos), protocol=servos.protocol)
    found = look(master, 1)
    assert found is not None
    set_id(master, found, 6)
    assert servos.ids == [6] and servos.all[0].stored[servos.all[0].model.registers["id"].address] == 6


def test_a_broadcast_id_makes_all_servos_one():
    """The vendor's example (FT-SCS protocol, 4.3)."""
    servos = bus(3, 7, 9)
    assert servos.handle(bytes.fromhex("FF FF FE 04 03 05 01 F4"), 0) == b"" and servos.ids == [1, 1, 1]
