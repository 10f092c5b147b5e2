"""Both parsers against every damage that a line can do to a packet. `benchmarks/fuzz.py` does the same for ten million
bytes."""

import random

import pytest

from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.codecs import feetech as fs
from tests.firmware_bridge import test_dynamixel, test_feetech

PROTOCOLS = [
    pytest.param(fs, test_feetech.VECTORS, id="feetech"),
    pytest.param(dxl, test_dynamixel.VECTORS, id="dynamixel"),
]


def parse(module, raw):
    parser = module.Parser()
    return parser.feed(raw) + parser.flush()


@pytest.mark.parametrize(("module", "vectors"), PROTOCOLS)
def test_no_single_bit_flip_or_truncation_is_accepted_as_another_packet(module, vectors):
    for raw, _ in vectors.values():
        for k in range(len(raw) * 8):
            flipped = bytearray(raw)
            flipped[k // 8] ^= 1 << k % 8
            for p in parse(
                module, bytes(flipped)
            ):  # a shorter packet may lie inside; it must be a whole one with its checksum
                assert module.packet(*p) in bytes(flipped) or p.servo == dxl.BROADCAST
                assert module.packet(*p) != raw
        for n in range(len(raw)):
            assert parse(module, raw[:n]) == []


@pytest.mark.parametrize("module", [fs, dxl], ids=["feetech", "dynamixel"])
def test_only_the_whole_undamaged_answer_of_the_servos_asked_takes_the_short_way(module):
    ids, rng = (1, 2, 3, 4, 5, 6), random.Random(3)
    packets = [module.status(i, 0x80 if i == 4 else 0, rng.randbytes(4)) for i in ids]
    raw = b"".join(packets)
    assert module.whole(raw, ids, 4)
    assert [raw[k * len(packets[0]) + module.DATA_AT - 1] for k in range(6)] == [0, 0, 0, 0x80, 0, 0]
    for k in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[k // 8] ^= 1 << k % 8
        assert not module.whole(bytes(flipped), ids, 4)
    for n in range(len(raw)):
        assert not module.whole(raw[:n], ids, 4) and not module.whole(raw + raw[: n + 1], ids, 4)
    other = b"".join([*packets[:4], packets[5], packets[4]])  # in another order, of others, of another length
    assert not module.whole(other, ids, 4) and not module.whole(raw, (1, 2, 3, 4, 5, 7), 4)
    assert not module.whole(raw, ids, 3) and not module.whole(raw, ids[:5], 4)


@pytest.mark.parametrize(("module", "vectors"), PROTOCOLS)
def test_a_packet_behind_any_cut_packet_is_read_when_the_line_is_quiet(module, vectors):
    raws = [raw for raw, _ in vectors.values()]
    for a, b in zip(raws, raws[1:], strict=False):
        (want,) = parse(module, b)
        for n in range(len(a) + 1):
            got = parse(module, a[:n] + b)
            # The cut packet may take the other's head for its own data: then only its checksum stands between, 1 in 256
            # or 65536.
            assert want in got or any(module.packet(*p) in a[:n] + b for p in got)


@pytest.mark.parametrize(("module", "vectors"), PROTOCOLS)
def test_random_streams_never_raise_and_yield_only_what_was_on_the_line(module, vectors):
    rng = random.Random(7)
    raws = [raw for raw, _ in vectors.values()]
    parser = module.Parser()
    for _ in range(1500):
        piece = bytearray(rng.choice(raws) if rng.random() < 0.6 else rng.randbytes(rng.randrange(40)))
        for _ in range(rng.randrange(3)):
            if piece:
                piece[rng.randrange(len(piece))] = rng.choice([0xFF, 0xFD, 0, rng.randrange(256)])
        parser.feed(bytes(piece))
        assert len(parser._buffer) <= 1100
