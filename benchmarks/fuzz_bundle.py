"""Damaged bundles: `python -m benchmarks.fuzz_bundle [--count N] [--bundle FOLDER]`.

Every damage is one of: a bit of `manifest.json` turned over; a few bytes of it overwritten, cut out or doubled; the
file cut short; the same done to an engine's file. A bundle may be refused in a sentence, or accepted if its manifest
means the same as it did (a space for a tab). Counted: what was accepted with another meaning, what ended in any other
exception, what took longer than 5 s.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from runtime.bundle import Bundle, BundleError

SLOW_S = 5.0


@dataclass
class Found:
    """How many were refused, how many were accepted as what they were, and what should not have been."""

    refused: int = 0
    same: int = 0
    accepted: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


def damaged(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """`raw` with one damage, and what it is."""
    at = rng.randrange(len(raw))
    kind = rng.random()
    if kind < 0.6:
        bit = rng.randrange(8)
        return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :], f"bit {bit} of byte {at}"
    size = rng.randrange(1, 40)
    if kind < 0.7:
        return raw[:at] + rng.randbytes(size) + raw[at + size :], f"{size} bytes from {at} overwritten"
    if kind < 0.8:
        return raw[:at] + raw[at + size :], f"{size} bytes from {at} cut out"
    if kind < 0.9:
        return raw[:at] + raw[at : at + size] + raw[at:], f"{size} bytes from {at} doubled"
    return raw[:at], f"cut short to {at} bytes"


def fuzz(bundle: Path, count: int, seed: int) -> Found:
    """Load `count` damaged forms of `bundle`, which is whole again afterwards."""
    rng, found = random.Random(seed), Found()
    whole = Bundle.load(bundle).manifest
    files = [bundle / "manifest.json"] * 4 + sorted(bundle.glob("onnx/*.onnx"))
    for _ in range(count):
        file = rng.choice(files)
        before = file.read_bytes()
        now, what = damaged(before, rng)
        file.write_bytes(now)
        began, what = time.monotonic(), f"{file.name}: {what}"
        try:
            if Bundle.load(bundle).manifest == whole and (now == before or file.name == "manifest.json"):
                found.same += 1
            else:
                found.accepted.append(what)
        except BundleError:
            found.refused += 1
        except Exception as e:
            found.failed.append(f"{what}: {type(e).__name__}")
        if time.monotonic() - began > SLOW_S:
            found.slow.append(what)
        file.write_bytes(before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=Path("out/so101.bundle"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(args.bundle, Path(folder) / "copy.bundle")
        found = fuzz(copy, args.count, args.seed)
    print(f"{args.count} damaged bundles: {found.refused} refused, {found.same} unchanged in meaning")
    for name in ("accepted", "failed", "slow"):
        print(f"{name}: {len(getattr(found, name))}", *getattr(found, name)[:10], sep="\n  ")


if __name__ == "__main__":
    main()
