"""A recorded run for people: rows and pictures from its log, and its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_whole
from firmware_bridge.motion.messages import Command, Expert, JointState
from firmware_bridge.motion.narrator import LOG_FILE
from runtime.observe.log import LogWriter
from runtime.observe.log_reader import read_log, read_meta
from runtime.observe.records import CUT, DAMAGED, FrameRecord, FutureRecord, TickRecord

LOG, CONFIG, REPORT = "run.mcap", "config.json", "report.json"  # what a run's folder holds, beside page and film
PICTURE_PERIOD_NS = 66_000_000  # a film shows about 15 pictures a second


@dataclass(frozen=True)
class Episode:
    """`t_ns` int64[n]: the fast steps; `picture_ns` int64[p]: capture times of the pictures that a film shows;
    `command` (rad, NaN where a step gave none) and `gate` float32[n, ...], `expert` uint8[n]; `state_ns` int64[m] and
    `measured` float32[m,J] (rad): the motor process. `wire_ms` float64[k]: capture to bytes on the wire of every
    command that got there. `gap` says why the log ends early, if it does."""

    t_ns: np.ndarray
    picture_ns: np.ndarray
    command: np.ndarray
    gate: np.ndarray
    expert: np.ndarray
    state_ns: np.ndarray
    measured: np.ndarray
    wire_ms: np.ndarray
    futures: tuple[FutureRecord, ...]
    gap: str = ""


def _to_be_shown(captured: list[int]) -> list[int]:
    """The capture times that are at least `PICTURE_PERIOD_NS` after the one shown before."""
    shown: list[int] = []
    for t in captured:
        if not shown or t - shown[-1] >= PICTURE_PERIOD_NS:
            shown.append(t)
    return shown


def _wire_ms(states: list[JointState]) -> list[float]:
    first = {s.command_number: s for s in reversed(states) if s.t_wire_ns > 0}
    return [(s.t_wire_ns - s.t_command_capture_ns) / 1e6 for _, s in sorted(first.items())]


def load_episode(log: Path) -> Episode:
    """All but the pictures, up to where the log ends. Raises LogError."""
    read_meta(log)
    ticks: list[TickRecord] = []
    states: list[JointState] = []
    futures: list[FutureRecord] = []
    gap = ""
    for record in read_log(log):
        if isinstance(record, TickRecord):
            ticks.append(record)
        elif isinstance(record, JointState):
            states.append(record)
        elif isinstance(record, FutureRecord):
            futures.append(record)
        elif isinstance(record, dict) and record.get("kind") in (CUT, DAMAGED):
            gap = record["why"]
    commands = [Command.unpack(t.command) if t.command else None for t in ticks]
    joints = len((ticks or states)[0].q_rad) if ticks or states else 0
    nothing = np.full(joints, np.nan, np.float32)
    return Episode(
        np.array([t.t_ns for t in ticks], np.int64),
        np.array(_to_be_shown([t.t_capture_ns for t in ticks]), np.int64),
        np.array([nothing if c is None else c.q_rad for c in commands], np.float32).reshape(len(ticks), joints),
        np.array([0.0 if c is None else c.gate for c in commands], np.float32),
        np.array([Expert.NONE if c is None else c.expert for c in commands], np.uint8),
        np.array([s.t_ns for s in states], np.int64),
        np.array([s.q_rad for s in states], np.float32).reshape(len(states), joints),
        np.array(_wire_ms(states)),
        tuple(futures),
        gap,
    )


def pictures(log: Path, times: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """For each fast step whose capture time is in `times`: that time, and each camera's uint8[H,W,3] RGB. One set of
    pictures is in memory at a time."""
    wanted, newest = set(times.tolist()), dict[str, FrameRecord]()
    for record in read_log(log):
        if isinstance(record, FrameRecord):
            newest[record.camera] = record
        elif isinstance(record, TickRecord) and record.t_capture_ns in wanted:
            wanted.remove(record.t_capture_ns)
            yield record.t_capture_ns, {name: f.image for name, f in newest.items()}


def keep_motor_log(slots: Path, folder: Path) -> None:
    """Copy the motor process's log out of the run's slots, in place of an earlier run's. Raises OSError."""
    for old in folder.glob(f"{LOG_FILE}*"):
        old.unlink()
    for part in slots.glob(f"{LOG_FILE}*"):  # it rotates
        shutil.copyfile(part, folder / part.name)


def keep(folder: Path, report: dict[str, Any], config: dict[str, Any], log: LogWriter | None) -> None:
    """Write the report's numbers and what the run was. Raises OSError.

    A run whose `log` stayed empty removes the log of an earlier run from the folder, which would not belong to this
    report.
    """
    if log is not None and log.empty:
        (folder / LOG).unlink(missing_ok=True)
    for name, data in ((REPORT, report), (CONFIG, config)):
        write_whole(folder / name, json.dumps(data, indent=1, sort_keys=True) + "\n")
