"""Longer logs: written by the real writer at the rates of a run, read by what reads them afterwards."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth.apart import apart, peak_mb, timed
from benchmarks.growth.table import Row, Table
from calibration.camera import Camera
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Command, Expert, JointState, SafetyState
from runtime.bundle import Bundle
from runtime.cameras.frames import Frame
from runtime.contracts import Observation, Prior
from runtime.observe.log import LogWriter
from runtime.observe.log_reader import read_log
from runtime.observe.replay import replay, run_meta
from runtime.policies import open_policy
from tests.tiny import FRONT, TASK, WRIST, tiny_bundle

MINUTES, REPLAYED = (5.0, 20.0, 60.0), (1.0, 4.0)
HZ, MOTOR, SLOW = 50, 2, 6  # fast steps a second, joint states a fast step, fast steps a Prior (8 a second)
SIDE = 48  # px of a picture
PERIOD_NS = 1_000_000_000 // HZ
MOST_WAITING = 128  # records between here and the disk: a run waits between its steps
SWITCHED, GRASPED = 100, 200  # fast steps from one expert to the other, and from one jaw motion to the next
Policy = Callable[[int, Observation], tuple[Command | None, np.ndarray, Prior | None]]


def _scripted(k: int, obs: Observation) -> tuple[Command, np.ndarray, Prior | None]:
    """What a policy gives in a run, without engines: experts in turn, a jaw that opens and closes, Priors at their
    size in a run."""
    q = obs.q_rad.copy()
    q[-1] = 1.0 if k // GRASPED % 2 else 0.1
    which = (Expert.REACTIVE, Expert.PREDICTIVE)[k // SWITCHED % 2]
    t = obs.t_capture_ns
    command = Command(t, t + 75_000_000, q, np.zeros(6, np.float32), which, 0.5, t, k + 1)
    prior = None
    if k % SLOW == 0:
        future = np.full((3, 16, 12, 12), 1e-3 * (k % 1000), np.float32)
        tokens, chunk = np.zeros((36, 96), np.float32), np.tile(q, (16, 1))
        prior = Prior(t, t, TASK, tokens, future, chunk, np.zeros(16, np.int64), k // SLOW + 1)
    return command, np.tile(q, (3, 1)), prior


def _stepped(bundle: Bundle, cameras: dict[str, Camera]) -> Policy:
    """The real steps of a bundle, so that the log can be replayed."""
    policy = open_policy(bundle, TASK, cameras)
    newest: list[Prior | None] = [None]

    def step(k: int, obs: Observation) -> tuple[Command | None, np.ndarray, Prior | None]:
        command, tick = policy.fast.step(obs.t_capture_ns + 5_000_000, obs, newest[0])
        made = policy.slow.step(obs.t_capture_ns, obs) if k % SLOW == 0 else None
        newest[0] = made or newest[0]
        return command, np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target]), made

    return step


def write(bundle_path: str, log: str, marks: list[float], scripted: bool) -> dict[str, dict[str, float]]:
    """A log of a run of `marks[-1]` minutes; at each mark, what was spent so far, and a copy of the log up to there."""
    bundle, path = Bundle.load(Path(bundle_path)), Path(log)
    cameras = {n: Camera.from_json(c).scaled(SIDE, SIDE) for n, c in (("front", FRONT), ("wrist", WRIST))}
    policy = _scripted if scripted else _stepped(bundle, cameras)
    writer = LogWriter(path, run_meta(bundle, TASK, "gated", cameras), tool=functools.partial(so101.tool))
    clock = time.pthread_getcpuclockid(writer._thread.ident or 0)
    zero, bits, number = np.zeros(6, np.float32), np.zeros(6, np.uint8), -1
    steps = [round(m * 60 * HZ) for m in marks]
    calls, found = np.zeros(steps[-1]), dict[str, dict[str, float]]()
    for k in range(steps[-1]):
        t = 1_000_000_000 + k * PERIOD_NS
        frames = {n: Frame(t, np.full((SIDE, SIDE, 3), k % 251, np.uint8), k + 1) for n in cameras}
        q = (0.3 * np.sin(1e-2 * k + np.arange(6))).astype(np.float32)
        obs = Observation(t, {n: f.image for n, f in frames.items()}, q, zero, k)
        command, targets, prior = policy(k, obs)
        called = time.perf_counter()
        writer.tick(t + 5_000_000, obs, frames, number, command, targets, reset=False, sent=command is not None)
        for half in range(MOTOR):
            at, wire, motion = t + half * PERIOD_NS // MOTOR, t + 21_000_000, (q, zero, q, zero, zero, zero, bits)
            writer.state(JointState(at, *motion, SafetyState.ACTIVE, "", wire, t, k + 1, MOTOR * k + half))
        if prior is not None:
            writer.prior(prior, obs, t)
            number = prior.number
        calls[k] = 1e6 * (time.perf_counter() - called)
        while len(writer._waiting) > MOST_WAITING:
            time.sleep(0.0005)
        if k + 1 in steps:
            minutes = marks[steps.index(k + 1)]
            found[f"{minutes:g}"] = _spent(calls[: k + 1], time.clock_gettime(clock), writer)
            if k + 1 < steps[-1]:
                shutil.copyfile(f"{path}.partial", path.with_name(f"{minutes:g}.mcap"))
    writer.close()
    assert not writer.dropped and not writer.fault
    os.replace(path, path.with_name(f"{marks[-1]:g}.mcap"))
    return found


def _spent(calls: np.ndarray, processor: float, writer: LogWriter) -> dict[str, float]:
    p50, p99 = np.percentile(calls, (50, 99))
    return {
        "file, MB": Path(f"{writer.path}.partial").stat().st_size / 1e6,
        "call p50, us": float(p50),
        "call p99, us": float(p99),
        "writer, s of processor": processor,
        "peak memory, MB": peak_mb(),
    }


def _costs(records: int, seconds: float, processor: float) -> dict[str, float]:
    """`records`: how many were gone through; the ones that only other programs read are not counted."""
    return {
        "seconds": seconds,
        "records/s": records / seconds,
        "processor, s": processor,
        "peak memory, MB": peak_mb(),
    }


def read(log: str) -> dict[str, float]:
    """What replay reads: every record, decoded."""
    return _costs(*timed(lambda: sum(1 for _ in read_log(Path(log)))))


def replayed(log: str) -> dict[str, float]:
    """Real steps on engines that cost nothing."""
    result, seconds, used = timed(replay, Path(log))
    assert result.difference is None
    return _costs(result.steps, seconds, used)


def page(log: str) -> dict[str, dict[str, float]]:
    """What `report` does, in its order: index the log, go through the film's pictures, draw; without the encoder."""
    import matplotlib.pyplot  # noqa: F401  (its import is not the page's)

    from runtime.observe import report
    from runtime.observe.episode import load_episode, pictures
    from runtime.observe.timeline import began_ns, events, figure

    episode, seconds, used = timed(load_episode, Path(log))
    found = {"indexed": _costs(len(episode.t_ns) + len(episode.state_ns), seconds, used)}
    shown, seconds, used = timed(lambda: sum(1 for _ in pictures(Path(log), episode.picture_ns)))
    found["filmed"] = _costs(shown, seconds, used)
    told: dict[str, Any] = {"health": {"changes": []}}

    def drawn() -> int:
        zero = began_ns(episode, told)
        parts = [report._figure(figure(episode, told, so101)), report.plot_joints(episode, so101.JOINTS, zero)]
        said = str(events(episode, told))
        return len("".join(parts)) + len(report.plot_wire(episode.wire_ms)) + len(said)

    size, seconds, used = timed(drawn)
    costs = _costs(len(episode.t_ns), seconds, used)
    found["drawn"] = {**costs, "page, MB": size / 1e6}
    return found


READ = (
    "Every record decoded, as `replay` does before it runs an engine. What `profile` advises is not of the log: it "
    "comes from the run's report, whose stamps are the newest 65,536 of each stage, however long the run."
)
READERS = {
    "read": ("Reading a log", READ),
    "indexed": ("Indexing a log", "What `report` and the film know before they look at pictures; records of steps."),
    "filmed": (
        "The film's pictures",
        "After the index, in the same process, without the encoder; `records`: pictures.",
    ),
    "drawn": (
        "The page's events and figures",
        "After the film, in the same process. An expert takes over every 2 s, the jaw moves every 4 s.",
    ),
    "replayed": ("Replay", "Real steps with engines that cost nothing; `records`: fast steps."),
}


def tables(small: bool) -> list[Table]:
    """Writing, then each reader."""
    minutes, again = ([0.1, 0.3], [0.1, 0.2]) if small else (list(MINUTES), list(REPLAYED))
    with tempfile.TemporaryDirectory() as folder:
        bundle, long, short = str(tiny_bundle(Path(folder), gate=0.6)), Path(folder, "long"), Path(folder, "short")
        whole = {"bundle_path": bundle, "log": str(long / "run.mcap"), "marks": minutes, "scripted": True}
        stepped = {"bundle_path": bundle, "log": str(short / "run.mcap"), "marks": again, "scripted": False}
        rows: dict[str, list[Row]] = {name: [] for name in READERS}
        written = apart("logs", "write", **whole)
        for m in minutes:
            log = str(long / f"{m:g}.mcap")
            for name, cost in {"read": apart("logs", "read", log=log), **apart("logs", "page", log=log)}.items():
                rows[name].append(_row(m, cost))
        apart("logs", "write", **stepped)
        rows["replayed"] = [_row(m, apart("logs", "replayed", log=str(short / f"{m:g}.mcap"))) for m in again]
    found = [_writing([_row(m, written[f"{m:g}"]) for m in minutes])]
    for name, (title, note) in READERS.items():
        watched = ("processor, s", "peak memory, MB", *(["page, MB"] if name == "drawn" else []))
        found.append(Table(title, "minutes", tuple(rows[name]), watched, note))
    return found


def _row(minutes: float, cost: dict[str, float]) -> Row:
    return Row(f"{minutes:g} min", minutes, cost)


def _writing(rows: list[Row]) -> Table:
    return Table(
        "Writing a log",
        "minutes",
        tuple(rows),
        ("file, MB", "call p50, us", "writer, s of processor", "peak memory, MB"),
        "One process, looked at on its way: a run's records at a run's rates (50 fast steps, 100 pictures, 100 joint "
        f"states and 8 Priors a second), as fast as they can be written. Pictures are flat ones of {SIDE}x{SIDE}, so "
        "that the disk holds an hour: their number counts here, not their bytes (`python -m benchmarks.recording` has "
        "those). `call`: how long a fast step's calls keep the loop busy; the writer's thread is busy all the time "
        "here, and in a run it is not, so p99 is a wait for Python's lock.",
    )
