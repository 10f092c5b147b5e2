"""Dynamixel Protocol 2.0: the vendor's packets as literal bytes, stuffing both ways, and the parser against any
stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.codecs.feetech import Packet, PacketError
from firmware_bridge.servos.models import BY_NUMBER, MODELS

SIX = range(1, 7)
VECTORS = {
    "ping": (dxl.ping(1), "FF FF FD 00 01 03 00 01 19 4E"),
    "ping status": (dxl.status(1, 0, bytes.fromhex("060426")), "FF FF FD 00 01 07 00 55 00 06 04 26 65 5D"),
    "read position": (dxl.read(1, 132, 4), "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
    "write goal 512": (
        dxl.write(1, 116, (512).to_bytes(4, "little")),
        "FF FF FD 00 01 09 00 03 74 00 00 02 00 00 CA 89",
    ),
    "sync read": (dxl.sync_read([1, 2], 132, 4), "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA"),
    "sync write": (
        dxl.sync_write(116, {1: (150).to_bytes(4, "little"), 2: (170).to_bytes(4, "little")}),
        "FF FF FD 00 FE 11 00 83 74 00 04 00 01 96 00 00 00 02 AA 00 00 00 82 87",
    ),
    "fast sync read": (dxl.fast_sync_read([3, 7, 4], 132, 4), "FF FF FD 00 FE 0A 00 8A 84 00 04 00 03 07 04 20 F2"),
    "reboot": (dxl.reboot(1), "FF FF FD 00 01 03 00 08 2F 4E"),
    "torque on": (dxl.write(1, 64, b"\x01"), "FF FF FD 00 01 06 00 03 40 00 01 DB 66"),
    "torque off": (dxl.write(1, 64, b"\x00"), "FF FF FD 00 01 06 00 03 40 00 00 DE E6"),
    "sync torque off": (
        dxl.sync_write(64, dict.fromkeys(SIX, b"\x00")),
        "FF FF FD 00 FE 13 00 83 40 00 01 00 01 00 02 00 03 00 04 00 05 00 06 00 56 FD",
    ),
    "watchdog 100 ms": (dxl.write(1, 98, b"\x05"), "FF FF FD 00 01 06 00 03 62 00 05 68 E4"),
    "watchdog clear": (dxl.write(1, 98, b"\x00"), "FF FF FD 00 01 06 00 03 62 00 00 76 E4"),
    "alert and range error": (dxl.status(1, 0x84), "FF FF FD 00 01 04 00 55 84 B9 0F"),
    "sync read six": (dxl.sync_read(SIX, 132, 4), "FF FF FD 00 FE 0D 00 82 84 00 04 00 01 02 03 04 05 06 B2 9B"),
    "fast sync read six": (
        dxl.fast_sync_read(SIX, 132, 4),
        "FF FF FD 00 FE 0D 00 8A 84 00 04 00 01 02 03 04 05 06 B1 B1",
    ),
    "stuffed status": (
        dxl.status(1, 0, bytes.fromhex("FFFF FDFFFFFF D1070000")),
        "FF FF FD 00 01 0F 00 55 00 FF FF FD FD FF FF FF D1 07 00 00 A2 24",
    ),
    "stuffed goal": (
        dxl.write(1, 116, (0x00FDFFFF).to_bytes(4, "little")),
        "FF FF FD 00 01 0A 00 03 74 00 FF FF FD FD 00 21 E7",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_verified_packets_and_back(name):
    made, text = VECTORS[name]
    assert made == bytes.fromhex(text)
    (p,) = dxl.Parser().feed(made)
    assert dxl.packet(p.servo, p.code, p.params) == made


def test_the_crc_is_the_catalogues_umts():
    assert dxl.crc16(b"123456789") == 0xFEE8


@given(st.lists(st.sampled_from([b"\xff", b"\xfd", b"\x00", b"\xff\xff\xfd", b"\x55"]), max_size=30).map(b"".join))
def test_stuffing_is_undone_at_every_offset(data):
    raw = dxl.status(1, 0, data)
    assert all(raw[k + 3] == 0xFD for k in range(8, len(raw) - 5) if raw[k : k + 3] == b"\xff\xff\xfd")
    (p,) = dxl.Parser().feed(raw)
    assert dxl.answer(p) == (0, data)


packets = st.builds(Packet, st.integers(0, 252), st.integers(0, 255), st.binary(max_size=40))


@given(st.lists(st.tuples(st.binary(max_size=9).filter(lambda b: b"\xff" not in b), packets), max_size=6), st.data())
def test_packets_survive_noise_between_and_splits_anywhere(stream, data):
    raw = b"".join(n + dxl.packet(*p) for n, p in stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    parser, got = dxl.Parser(), []
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        got += parser.feed(raw[a:b])
    assert got == [p for _, p in stream]


@given(st.binary(max_size=300), packets)
def test_after_any_junk_a_packet_is_found_once_the_line_is_quiet(junk, p):
    parser = dxl.Parser()
    got = parser.feed(junk) + parser.feed(dxl.packet(*p)) + parser.flush()
    assert p in got


def test_a_joint_answer_is_taken_apart_and_checked():
    answers = [(i, 0x80 if i == 2 else 0, (2000 + i).to_bytes(4, "little")) for i in (1, 2, 3)]
    raw = dxl.fast_status(answers)
    assert len(raw) == 8 + 3 * 8
    (p,) = dxl.Parser().feed(raw)
    assert dxl.fast_answers(p, [1, 2, 3], 4) == answers
    assert dxl.fast_answers(p, [1, 3, 2], 4) == [] and dxl.fast_answers(p, [1, 2], 4) == [] and dxl.answer(p) is None
    assert dxl.Parser().feed(raw[:10] + bytes([raw[10] ^ 1]) + raw[11:]) == []


def test_what_the_protocol_cannot_carry_is_refused():
    for servo in (-1, 253, 255):
        with pytest.raises(PacketError):
            dxl.ping(servo)
    with pytest.raises(PacketError):
        dxl.write(1, 0, bytes(1100))
    with pytest.raises(PacketError):
        dxl.sync_write(64, {1: b"\x00", 2: b"\x00\x00"})


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_register_tables_have_no_overlaps_and_round_trip(model):
    taken: dict[int, str] = {}
    for r in model.registers.values():
        for a in range(r.address, r.address + r.size):
            assert a not in taken, (r.name, taken[a])
            taken[a] = r.name
        values = (0, 1, r.default, *((-1, -3) if r.sign is not None or r.signed else ()))
        for v in values:
            assert model.decode(r.name, b"\x55" + model.encode(r.name, v), 1) == v
    assert BY_NUMBER[model.number] is model
