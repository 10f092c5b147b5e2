"""A recorded run for people: rows and pictures from its log, and its folder."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator
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
MOST_FUTURES = 128  # a page shows a few of them, an hour holds 29,000 and 400 MB


@dataclass(frozen=True)
class Episode:
    """`t_ns` int64[n]: the fast steps; `picture_ns` int64[p]: capture times of the pictures that a film shows;
    `command` (rad, NaN where a step gave none) and `gate` float32[n, ...], `expert` uint8[n]; `state_ns` int64[m] and
    `measured` float32[m,J] (rad): the motor process. `wire_ms` float64[k]: capture to bytes on the wire of every
    command that got there. `futures`: predictions spread over the run, every one of them where they are fewer than
    `MOST_FUTURES`. `gap` says why the log ends early, if it does."""

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


def _to_be_shown(captured: Iterable[int]) -> list[int]:
    """The capture times that are at least `PICTURE_PERIOD_NS` after the one shown before."""
    shown: list[int] = []
    for t in captured:
        if not shown or t - shown[-1] >= PICTURE_PERIOD_NS:
            shown.append(t)
    return shown


class _Rows:
    """Numbers of the records that were read so far. The records themselves, a hundred bytes of numbers in a kilobyte of
    objects, are not kept: an hour has 540,000 of them."""

    def __init__(self) -> None:
        self.t_ns, self.captured_ns, self.state_ns = array("q"), array("q"), array("q")
        self.command, self.gate, self.measured = array("f"), array("f"), array("f")
        self.expert = array("B")
        self.joints = 0
        self.wire_ms: dict[int, float] = {}  # of each command, when it was first seen on the wire
        self.futures: list[FutureRecord] = []
        self._every = 1  # of the predictions so many are counted for one that is kept
        self._predicted = 0

    def tick(self, r: TickRecord) -> None:
        command = Command.unpack(r.command) if r.command else None
        self.joints = len(r.q_rad)
        self.t_ns.append(r.t_ns)
        self.captured_ns.append(r.t_capture_ns)
        self.command.extend([np.nan] * self.joints if command is None else command.q_rad.tolist())
        self.gate.append(0.0 if command is None else command.gate)
        self.expert.append(Expert.NONE if command is None else command.expert)

    def state(self, s: JointState) -> None:
        self.joints = len(s.q_rad)
        self.state_ns.append(s.t_ns)
        self.measured.extend(s.q_rad.tolist())
        if s.t_wire_ns > 0:
            self.wire_ms.setdefault(s.command_number, (s.t_wire_ns - s.t_command_capture_ns) / 1e6)

    def future(self, r: FutureRecord) -> None:
        if self._predicted % self._every == 0:
            self.futures.append(r)
        self._predicted += 1
        if len(self.futures) == MOST_FUTURES:
            self.futures = self.futures[::2]
            self._every *= 2


def load_episode(log: Path) -> Episode:
    """All but the pictures, up to where the log ends. Raises LogError."""
    read_meta(log)
    rows, gap = _Rows(), ""
    for record in read_log(log):
        if isinstance(record, TickRecord):
            rows.tick(record)
        elif isinstance(record, JointState):
            rows.state(record)
        elif isinstance(record, FutureRecord):
            rows.future(record)
        elif isinstance(record, dict) and record.get("kind") in (CUT, DAMAGED):
            gap = record["why"]
    return Episode(
        np.array(rows.t_ns, np.int64),
        np.array(_to_be_shown(rows.captured_ns), np.int64),
        np.array(rows.command, np.float32).reshape(len(rows.t_ns), rows.joints),
        np.array(rows.gate, np.float32),
        np.array(rows.expert, np.uint8),
        np.array(rows.state_ns, np.int64),
        np.array(rows.measured, np.float32).reshape(len(rows.state_ns), rows.joints),
        np.array([ms for _, ms in sorted(rows.wire_ms.items())]),
        tuple(rows.futures),
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
