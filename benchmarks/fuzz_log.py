"""Damaged and crafted logs: `python -m benchmarks.fuzz_log LOG [--count N]`, where LOG is a short log of `--log`.

Checksums find a damage of the file as it lies. So most damages here are made inside, with checksums that fit: bits,
bytes and numbers of messages, JSON values replaced, records left out, doubled and put into another order. A log may be
replayed (whatever comes out), or be refused or given up in a sentence. Counted: what ended in any other exception, and
what took longer than 5 s.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from common.errors import Mendable
from runtime.observe.episode import load_episode
from runtime.observe.replay import replay

SLOW_S = 5.0
ODD: tuple[Any, ...] = (None, -1, 10**30, 1e308, "", "x" * 1000, [], {}, [[[]]], True, "NaN")


@dataclass
class Found:
    """How many were refused or read, and what should not have been."""

    refused: int = 0
    read: int = 0
    failed: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


def odd_json(raw: bytes, rng: random.Random) -> bytes:
    """A JSON text with one value replaced or left out."""
    data = json.loads(raw)
    place: Any = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return json.dumps(data).encode()
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = rng.choice(ODD)
        return json.dumps(data).encode()


def odd_bytes(raw: bytes, rng: random.Random) -> bytes:
    if not raw:
        return rng.randbytes(9)
    at, size = rng.randrange(len(raw)), rng.randrange(1, 16)
    kind = rng.random()
    if kind < 0.4:
        return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
    if kind < 0.6:
        return raw[:at] + rng.choice([b"\xff", b"\0", b"\x7f"]) * size + raw[at + size :]
    return raw[:at] if kind < 0.8 else raw[:at] + rng.randbytes(size) + raw[at:]


def crafted(log: Path, out: Path, rng: random.Random) -> str:
    """Write `log` to `out` with one message or the run's facts changed and checksums that fit; returns what changed."""
    with open(log, "rb") as f:
        reader = make_reader(f)
        found = list(reader.iter_messages(log_time_order=False))
        facts = list(reader.iter_metadata())
    what = rng.choice(["message", "message", "facts", "order", "missing"])
    at = rng.randrange(len(found))
    if what == "missing":
        del found[at : at + rng.randrange(1, 9)]
    elif what == "order":
        other = rng.randrange(len(found))
        found[at], found[other] = found[other], found[at]
    with open(out, "wb") as f:
        writer = Writer(f, compression=CompressionType.LZ4)
        writer.start()
        for record in facts:
            meta = dict(record.metadata)
            if what == "facts":
                key = rng.choice(list(meta))
                meta[key] = odd_json(meta[key].encode(), rng).decode() if key == "json" else "odd"
            writer.add_metadata(record.name, meta)
        channels: dict[int, int] = {}
        for k, (schema, channel, message) in enumerate(found):
            if channel.id not in channels:
                known = 0 if schema is None else writer.register_schema(schema.name, schema.encoding, schema.data)
                channels[channel.id] = writer.register_channel(channel.topic, channel.message_encoding, known)
            data = message.data
            if what == "message" and k == at:
                is_json = channel.message_encoding == "json" and rng.random() < 0.7
                data = odd_json(data, rng) if is_json else odd_bytes(data, rng)
                what = f"message {k} of {channel.topic}"
            times = message.log_time, message.publish_time
            writer.add_message(channels[channel.id], times[0], data, times[1], message.sequence)
        writer.finish()
    return what


def fuzz(log: Path, count: int, seed: int) -> Found:
    """Replay and load `count` damaged forms of `log`."""
    rng, found = random.Random(seed), Found()
    with tempfile.TemporaryDirectory() as folder:
        odd = Path(folder) / "odd.mcap"
        for k in range(count):
            if k % 4:
                what = crafted(log, odd, rng)
            else:
                shutil.copy(log, odd)
                raw = odd.read_bytes()
                odd.write_bytes(odd_bytes(raw, rng))
                what = "the file"
            began = time.monotonic()
            for read in (replay, load_episode):
                try:
                    read(odd)
                    found.read += 1
                except Mendable:
                    found.refused += 1
                except Exception as e:
                    found.failed.append(f"{read.__name__}, {what}: {type(e).__name__}: {str(e)[:80]}")
            if time.monotonic() - began > SLOW_S:
                found.slow.append(what)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = fuzz(args.log, args.count, args.seed)
    print(f"{args.count} damaged logs, each replayed and loaded: {found.read} read, {found.refused} refused")
    for name in ("failed", "slow"):
        print(f"{name}: {len(getattr(found, name))}", *getattr(found, name)[:20], sep="\n  ")


if __name__ == "__main__":
    main()
