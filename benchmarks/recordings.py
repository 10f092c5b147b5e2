"""How fast recordings of others are examined, read and shown: `python -m benchmarks.recordings [--seconds S]`.

Writes recordings of two cameras at 30 fps (tests/recordings.py: an arm that moves on a table with a pattern) in several
sizes and codecs, then examines each, reads it at 20 Hz with one thread and makes its page with as many threads as there
are processors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from export.config import Config
from export.recordings import How, examine, read
from export.recordings.page import checked, page
from tests.recordings import Spec, write

T = TypeVar("T")
KINDS = ((96, 96, "h264"), (640, 480, "h264"), (640, 480, "av1"), (640, 480, "mpeg4"))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    rows = round(30 * args.seconds)
    print("stored                examine     read at 20 Hz, 1 thread                 page")
    for version, (width, height, codec) in [("v3.0", k) for k in KINDS]:
        with tempfile.TemporaryDirectory() as folder:
            cameras = dict.fromkeys(("front", "wrist"), (width, height, codec))
            lengths = [rows] * args.episodes
            path = write(Path(folder) / "set", Spec(version, cameras=cameras, lengths=lengths, delay_s=0.0))
            found, examined_s = timed(lambda at=path: examine(at, How()))  # type: ignore[misc]
            (data, _), read_s = timed(lambda f=found: read(f, Config.rate_hz, workers=1))  # type: ignore[misc]
            _, page_s = timed(lambda f=found: page([checked(f)], Config.rate_hz))  # type: ignore[misc]
        taken, stored = 2 * len(data.state), 2 * found.rows
        print(
            f"{width:4}x{height:<4} {codec:6} {examined_s:9.2f} s {read_s:8.2f} s: {stored / read_s:6.0f} decoded, "
            f"{taken / read_s:6.0f} kept a second {page_s:7.2f} s, {os.cpu_count()} threads"
        )


if __name__ == "__main__":
    main()
