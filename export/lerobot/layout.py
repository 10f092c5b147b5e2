"""Names, types and file operations that writer and reader share; files are written whole or not at all."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibration.camera import Camera
from common.errors import Mendable
from common.files import write_whole
from common.schema import Malformed, parse_json, read_bounded
from firmware_bridge.arms.family import Family

VERSION = "v3.0"
# Version of meta/harmowam.json: 3 = with the hash of every file and of itself; 2 = joint angles as the maker counts
# them; 1 = pan and roll mirrored, jaw shut at 0.
SCHEMA = SEALED = 3
PART_SCHEMA = 2  # of the note in each part
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO, OURS = "meta/info.json", "meta/harmowam.json"
EXTRA = "harmowam/"  # prefix of our columns in the episode table
PICTURES = "observation.images."
VECTORS = ("observation.state", "action")
MOST_BYTES = 64 * 1024 * 1024  # of a JSON file
POINTER = b"version https://git-lfs.github.com/spec/"


class DataError(Mendable):
    """A dataset that cannot be used; the text says why and what to do next."""


@dataclass(frozen=True)
class Episode:
    """One demonstration of T rows at the dataset's rate.

    `images`: camera name -> uint8[T,H,W,3] (RGB); `state`: float32[T,J] measured joint positions and `action`:
    float32[T,J] joint goals, rad, gripper last; `task`: the instruction; `extra`: further columns, one value per name
    for the episode.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    task: str
    extra: dict[str, float | int | str]


@dataclass(frozen=True)
class Dataset:
    """All N rows of a dataset, one episode after the other, in memory (pictures may be a read-only memory map)."""

    images: dict[str, np.ndarray]  # camera -> uint8[N,3,96,96], RGB
    state: np.ndarray  # float32[N,J], rad
    action: np.ndarray  # float32[N,J], rad
    episode: np.ndarray  # int32[N], from 0
    last: np.ndarray  # int32[N]: last row of the same episode
    tasks: list[str]  # the instruction of each episode
    extra: dict[str, np.ndarray]  # name -> one value per episode
    cameras: dict[str, Camera]  # the geometry of `images`
    fps: float
    arm: Family
    uncalibrated: tuple[str, ...] = ()  # cameras whose geometry is that of a usual webcam


def write(path: Path, content: bytes) -> None:
    """Write the whole file or nothing; raises DataError."""
    try:
        write_whole(path, content)
    except OSError as e:
        raise DataError(f"{path} cannot be written ({e.strerror}): mend that and run the same command again.") from e


def write_table(path: Path, table: pa.Table) -> None:
    out = io.BytesIO()
    pq.write_table(table, out)
    write(path, out.getvalue())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


def check_file(path: Path) -> None:
    """Raises DataError for what is no file with a content of its own: absent, a folder, a pipe, a Git LFS pointer."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{path} is no file: restore it or collect again.")
        with open(path, "rb") as f:
            if f.read(len(POINTER)) == POINTER:
                raise DataError(
                    f"{path} is a pointer of Git LFS in the place of the file: run `git lfs pull` in the dataset's "
                    "repository, or download it again."
                )
    except (OSError, ValueError) as e:  # ValueError: a name that can be none
        why = e.strerror if isinstance(e, OSError) else e
        raise DataError(f"{path} cannot be read ({why}): restore it or collect again.") from e


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table, or these columns only; raises DataError where one is missing."""
    check_file(path)
    try:
        with pq.ParquetFile(path) as file:
            if missing := [c for c in columns or () if c not in file.schema_arrow.names]:
                raise DataError(f"{path} has no column '{missing[0]}': restore it or collect again.")
            table = file.read(columns=None if columns is None else list(columns))
            table.validate(full=True)  # text that is none, offsets beyond the end
            return table
    except (OSError, ValueError, pa.ArrowException, OverflowError) as e:
        why = " ".join(str(e).split())
        raise DataError(f"{path} cannot be read ({why}): restore it or collect again.") from e


def read_json(path: Path) -> dict[str, Any]:
    check_file(path)
    try:
        content = parse_json(read_bounded(path, MOST_BYTES))
    except (OSError, Malformed) as e:
        raise DataError(f"{path} cannot be read ({e}): restore it or collect again.") from e
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged (no object): restore it or collect again.")
    return content
