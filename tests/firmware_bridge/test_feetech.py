"""The Feetech protocol: packets of the reference as literal bytes, and the parser against any stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.codecs import feetech as fs
from firmware_bridge.servos.registers import RegisterError, decode_sign, encode_sign
from firmware_bridge.servos.sts3215 import STS3215

SIX = range(1, 7)
goal = lambda v: STS3215.encode("goal_position", v)  # noqa: E731
FAST = STS3215.encode("goal_speed", 1500)

VECTORS = {
    "ping": (fs.ping(1), "FF FF 01 02 01 FB"),
    "ping reply": (fs.status(1, 0), "FF FF 01 02 00 FC"),
    "read position": (fs.read(1, 56, 2), "FF FF 01 04 02 38 02 BE"),
    "reply 2048": (fs.status(1, 0, STS3215.encode("present_position", 2048)), "FF FF 01 04 00 00 08 F2"),
    "reply -100": (fs.status(1, 0, STS3215.encode("present_position", -100)), "FF FF 01 04 00 64 80 16"),
    "reply with overload and temperature": (
        fs.status(1, 0x24, STS3215.encode("present_position", 2048)),
        "FF FF 01 04 24 00 08 CE",
    ),
    "torque on": (fs.write(1, 40, b"\x01"), "FF FF 01 04 03 28 01 CE"),
    "torque off": (fs.write(1, 40, b"\x00"), "FF FF 01 04 03 28 00 CF"),
    "broadcast torque off": (fs.write(254, 40, b"\x00"), "FF FF FE 04 03 28 00 D2"),
    "sync write torque off": (
        fs.sync_write(40, dict.fromkeys(SIX, b"\x00")),
        "FF FF FE 10 83 28 01 01 00 02 00 03 00 04 00 05 00 06 00 30",
    ),
    "lock off": (fs.write(1, 55, b"\x00"), "FF FF 01 04 03 37 00 C0"),
    "homing offset -85": (fs.write(1, 31, STS3215.encode("homing_offset", -85)), "FF FF 01 05 03 1F 55 08 7A"),
    "sync read positions": (fs.sync_read(SIX, 56, 2), "FF FF FE 0A 82 38 02 01 02 03 04 05 06 26"),
    "sync read all": (fs.sync_read(SIX, 56, 15), "FF FF FE 0A 82 38 0F 01 02 03 04 05 06 19"),
    "sync write goals": (
        fs.sync_write(42, {i: goal(2048) for i in SIX}),
        "FF FF FE 16 83 2A 02 01 00 08 02 00 08 03 00 08 04 00 08 05 00 08 06 00 08 F7",
    ),
    "write acc pos time speed": (
        fs.write(1, 41, bytes([50]) + goal(2048) + b"\0\0" + FAST),
        "FF FF 01 0A 03 29 32 00 08 00 00 DC 05 AD",
    ),
    "write acc pos -100": (
        fs.write(2, 41, bytes([50]) + goal(-100) + b"\0\0" + FAST),
        "FF FF 02 0A 03 29 32 64 80 00 00 DC 05 D0",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_verified_packets(name):
    made, text = VECTORS[name]
    assert made == bytes.fromhex(text)


@pytest.mark.parametrize("name", VECTORS)
def test_the_parser_reads_every_verified_packet_back(name):
    raw = VECTORS[name][0]
    (p,) = fs.Parser().feed(raw)
    assert fs.packet(p.servo, p.code, p.params) == raw


packets = st.builds(fs.Packet, st.integers(0, 253), st.integers(0, 255), st.binary(max_size=40))
noise = st.binary(max_size=12).filter(lambda b: b"\xff" not in b)


@given(st.lists(st.tuples(noise, packets), max_size=8), st.data())
def test_packets_survive_noise_between_and_splits_anywhere(stream, data):
    raw = b"".join(n + fs.packet(p.servo, p.code, p.params) for n, p in stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    parser, got = fs.Parser(), []
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        got += parser.feed(raw[a:b])
    assert got == [p for _, p in stream]


@given(st.binary(max_size=300), packets)
def test_the_parser_recovers_after_anything(junk, p):
    """Whatever came before, a packet that is sent often enough is read."""
    parser = fs.Parser()
    parser.feed(junk)
    got = []
    for _ in range(300 // 6 + 2):
        got += parser.feed(fs.packet(p.servo, p.code, p.params))
    assert p in got


@given(packets, st.integers(0, 7), st.data())
def test_a_turned_bit_is_never_taken_for_the_packet(p, bit, data):
    raw = bytearray(fs.packet(p.servo, p.code, p.params))
    at = data.draw(st.integers(2, len(raw) - 1))
    raw[at] ^= 1 << bit
    assert p not in fs.Parser().feed(bytes(raw))


@given(st.sampled_from([10, 11, 15]), st.data())
def test_sign_magnitude_round_trip(bit, data):
    v = data.draw(st.integers(-(1 << bit) + 1, (1 << bit) - 1))
    assert decode_sign(encode_sign(v, bit), bit) == v
    assert encode_sign(v, bit) < 1 << (bit + 1)


def test_minus_zero_is_zero_and_too_much_is_refused():
    assert decode_sign(1 << 15, 15) == 0
    with pytest.raises(RegisterError):
        encode_sign(1 << 15, 15)
    with pytest.raises(fs.PacketError):
        fs.packet(1, fs.WRITE, bytes(250))
    with pytest.raises(fs.PacketError, match="rows"):
        fs.sync_write(42, {i: bytes(8) for i in range(1, 30)})


def test_the_register_table_has_no_overlaps():
    taken: dict[int, str] = {}
    for r in STS3215.registers.values():
        for a in range(r.address, r.address + r.size):
            assert a not in taken, (r.name, taken[a])
            taken[a] = r.name
