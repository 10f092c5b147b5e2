"""Reads the rows of a recording's tables: joints, times, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from export.lerobot.checks import vectors, whole_numbers
from export.lerobot.layout import VECTORS, DataError, read_table
from export.recordings.layouts import MEND


@dataclass(frozen=True)
class Stored:
    """The T rows of an episode as stored, in order: `state`, `action` float64[T,J]; `t` float64[T] s or None; `task`
    int64[T]; `row` int64[T]: where in the table they lie."""

    state: np.ndarray
    action: np.ndarray
    t: np.ndarray | None
    task: np.ndarray
    row: np.ndarray


def _width(path: Path, table: pa.Table, column: str) -> int:
    for value in table[column].to_pylist()[:1]:
        if isinstance(value, list):
            return len(value)
    raise DataError(f"'{column}' of {path} holds no lists of numbers: {MEND}.")


def read_rows(path: Path, columns: Sequence[int], width: int) -> dict[int, Stored]:
    """The episodes in a table. `columns`: which of the `width` entries are the arm's joints, in its order. Raises
    DataError."""
    table = read_table(path)
    for name in (*VECTORS, "episode_index"):
        if name not in table.column_names:
            raise DataError(f"{path} has no column '{name}': {MEND}.")
    if table.num_rows == 0:
        return {}
    episode = whole_numbers(path, table, "episode_index")
    frame = _numbers(path, table, "frame_index", np.arange(len(episode)))
    task = _numbers(path, table, "task_index", np.zeros(len(episode), np.int64))
    for name in VECTORS:
        if (found := _width(path, table, name)) != width:
            raise DataError(f"'{name}' of {path} has {found} numbers a row and {width} are declared: {MEND}.")
    state, action = (vectors(path, table, name, width)[:, list(columns)].astype(float) for name in VECTORS)
    t = _times(path, table)
    order = np.lexsort((frame, episode))
    numbers, first = np.unique(episode[order], return_index=True)
    out = {}
    for n, a, b in zip(numbers, first, [*first[1:], len(order)]):
        at = order[a:b]
        out[int(n)] = Stored(state[at], action[at], None if t is None else t[at], task[at], at)
    return out


def _numbers(path: Path, table: pa.Table, column: str, default: np.ndarray) -> np.ndarray:
    return whole_numbers(path, table, column) if column in table.column_names else default


def _times(path: Path, table: pa.Table) -> np.ndarray | None:
    if "timestamp" not in table.column_names:
        return None
    found = table["timestamp"]
    if not (pa.types.is_floating(found.type) or pa.types.is_integer(found.type)) or found.null_count:
        raise DataError(f"'timestamp' of {path} does not hold a number in each row: {MEND}.")
    return found.to_numpy().astype(float)
