"""Both parsers against every damage that a line can do to a packet. `benchmarks/fuzz.py` does the same for ten million bytes."""

import random

import pytest

from firmware_bridge import dynamixel as dxl
from firmware_bridge import feetech as fs
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


@pytest.mark.parametrize(("module", "vectors"), PROTOCOLS)
def test_a_packet_behind_any_cut_packet_is_read_when_the_line_is_quiet(module, vectors):
    raws = [raw for raw, _ in vectors.values()]
    for a, b in zip(raws, raws[1:], strict=False):
        (want,) = parse(module, b)
        for n in range(len(a) + 1):
            got = parse(module, a[:n] + b)
            # The cut packet may take the other's head for its own data: then only its checksum stands between, 1 in 256 or 65536.
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
