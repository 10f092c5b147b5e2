"""Parsers against ten million bytes of damaged packets: `python -m benchmarks.fuzz [--bytes N] [--seed S]`.

Valid packets are mixed with noise, cut, merged, and their bytes turned over. Counted: exceptions, and packets that were
accepted though they were never sent whole. A checksum lets 1 of 256 (Feetech) or 65536 (Dynamixel) random candidates
pass; Feetech's is a sum, so two opposite flips of the same bit pass always. (Behind the parser stand id, length, order
and the plausibility of the position.)
"""

from __future__ import annotations

import argparse
import random
import time
from types import ModuleType

from firmware_bridge.codecs import dynamixel, feetech


def fuzz(module: ModuleType, total: int, rng: random.Random) -> str:
    parser, candidates, accepted, wrong, fed = module.Parser(), 0, 0, 0, 0
    began = time.perf_counter()
    recent: list[bytes] = []
    while fed < total:
        stream = b""
        for _ in range(50):
            raw = module.packet(rng.randrange(253), rng.randrange(256), rng.randbytes(rng.randrange(20)))
            recent = [*recent[-120:], raw]
            kind = rng.random()
            if kind < 0.25:
                raw = raw[: rng.randrange(len(raw))]
            elif kind < 0.5:
                damaged = bytearray(raw)
                for _ in range(rng.randrange(1, 4)):
                    damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                raw = bytes(damaged)
            elif kind < 0.6:
                raw += rng.choice([b"\xff", b"\xff\xff", b"\xff\xff\xfd\x00", rng.randbytes(9)])
            stream += raw
        candidates += stream.count(b"\xff\xff" if module is feetech else dynamixel.HEADER)
        at = 0
        while at < len(stream):
            n = rng.randrange(1, 64)
            for p in parser.feed(stream[at : at + n]):
                accepted += 1
                wrong += module.packet(*p) not in recent
            at += n
        fed += len(stream)
    bound = candidates / (256 if module is feetech else 65536)
    speed = fed / (time.perf_counter() - began) / 1e6
    return (
        f"{module.__name__.split('.')[-1]:10} {fed:,} bytes, {accepted:,} packets accepted, {wrong} never sent "
        f"(1 in {256 if module is feetech else 65536} candidates passes: {bound:.0f}), 0 exceptions, {speed:.1f} MB/s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for module in (feetech, dynamixel):
        print(fuzz(module, args.bytes, random.Random(args.seed)))
