"""What writing a log costs: `python -m benchmarks.recording run.mcap`. Plays a log's pictures, steps and joint states
into a new one.

Prints how long a call keeps a loop busy, the processor time of the writer for a fast step, and the size on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
import time
from pathlib import Path

import numpy as np

from common.clock import Ticker, prefer
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Command, JointState
from runtime.cameras.frames import Frame
from runtime.contracts import Observation, Prior
from runtime.observe.log import LogWriter
from runtime.observe.log_reader import read_log, read_meta
from runtime.observe.records import FrameRecord, TickRecord

FUTURE = np.random.default_rng(0).normal(size=(3, 16, 12, 12)).astype(np.float32)  # what a Prior carries; packs badly
TOKENS = np.zeros((36, 96), np.float32)


def recorded(log: Path) -> list[tuple[TickRecord, dict[str, Frame], JointState]]:
    """Fast steps with their pictures and the joint state after them."""
    newest: dict[str, Frame] = {}
    tick, steps = None, []
    for record in read_log(log):
        if isinstance(record, FrameRecord):
            newest[record.camera] = Frame(record.t_capture_ns, record.image, record.frame_number)
        elif isinstance(record, TickRecord):
            tick = record, dict(newest)
        elif isinstance(record, JointState) and tick is not None:
            steps.append((*tick, record))
            tick = None
    return steps


def play(
    log: LogWriter, steps: list[tuple[TickRecord, dict[str, Frame], JointState]], seconds: float, hz: float
) -> np.ndarray:
    """The loop's part, in real time; returns how long each fast step's calls took, us."""
    ticker, took = Ticker(hz), []
    for k in range(int(seconds * hz)):
        now = ticker.wait()
        r, frames, state = steps[k % len(steps)]
        frames = {n: dataclasses.replace(f, t_capture_ns=now, frame_number=k + 1) for n, f in frames.items()}
        command = Command.unpack(r.command) if r.command else None
        obs = Observation(now, {n: f.image for n, f in frames.items()}, r.q_rad, r.qd_rad_s, k)
        state = dataclasses.replace(state, t_ns=now)
        prior = Prior(now, now, "", TOKENS, FUTURE, np.zeros((16, 6), np.float32), np.zeros(16, np.int64), k)
        began = time.perf_counter_ns()
        log.tick(now, obs, frames, r.prior_number, command, r.targets, reset=False, sent=True)
        log.state(state)
        if k % round(hz / 8) == 0:
            log.prior(prior, obs, now)
        took.append((time.perf_counter_ns() - began) / 1e3)
    return np.array(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--hz", type=float, default=50.0)
    args = parser.parse_args()
    steps = recorded(args.log)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.mcap"
        log = LogWriter(path, {**read_meta(args.log), "joints": list(so101.JOINTS)}, tool=functools.partial(so101.tool))
        clock = time.pthread_getcpuclockid(log._thread.ident or 0)
        prefer(10)
        took = play(log, steps, args.seconds, args.hz)
        prefer(0)
        spent = time.clock_gettime(clock)
        log.close()
        n = len(took)
        print(
            f"calls of a fast step: {np.median(took):.0f} us, p99 {np.percentile(took, 99):.0f} us; writer: "
            f"{1e3 * spent / n:.2f} ms of "
            f"processor a step; {path.stat().st_size / 1e6 * 60 / args.seconds:.0f} MB a minute; {log.dropped} dropped"
        )


if __name__ == "__main__":
    main()
