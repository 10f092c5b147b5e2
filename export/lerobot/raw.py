"""Single observations of a dataset as they are stored: pictures at their own size, joint values in their own units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from calibration.camera import Camera
from export.lerobot import video
from export.lerobot.checks import episode_table
from export.lerobot.layout import OURS, PICTURES, DataError, check_file, read_json
from export.lerobot.reader import check_features, read_info, read_rows, schema_of
from firmware_bridge.arms.family import Family


@dataclass(frozen=True)
class Raw:
    """`pictures`: camera -> uint8[n,3,h,w]; `state` float32[n,J], the arm's joints in its order; `instructions` [n].

    `cameras`: what calibrated pictures show, by name; empty for a dataset that does not say.
    """

    pictures: dict[str, np.ndarray]
    state: np.ndarray
    instructions: list[str]
    cameras: dict[str, Camera]


def raw_observations(folder: Path, cameras: Sequence[str], arm: Family, fps: float, count: int, seed: int = 0) -> Raw:
    """`count` observations (or all, where there are fewer), drawn over all episodes. Raises DataError for a dataset
    that cannot be used, is of another arm or rate, or lacks a camera."""
    if schema_of(folder) == 1:
        raise DataError(f"{folder} has mirrored joint angles (schema 1): collect it again.")
    info = read_info(folder, fps)
    columns = check_features(folder, info, cameras, arm)
    episodes = episode_table(folder, info, cameras)
    if not episodes:
        raise DataError(f"{folder} holds no episodes: record some.")
    _, state, _ = read_rows(folder, info, episodes, columns)
    rows = np.sort(np.random.default_rng(seed).choice(len(state), min(count, len(state)), replace=False))
    first = np.cumsum([0, *(e["length"] for e in episodes)])
    owner = np.searchsorted(first, rows, "right") - 1
    ours = read_json(folder / OURS) if schema_of(folder) else {}
    return Raw(
        {c: _pictures(folder, info, c, episodes, rows, owner, first) for c in cameras},
        state[rows],
        [episodes[k]["tasks"][0] for k in owner],
        {k: Camera.from_json(v, str(folder / OURS)) for k, v in ours.get("cameras", {}).items()},
    )


def _pictures(
    folder: Path,
    info: Mapping[str, Any],
    camera: str,
    episodes: Sequence[Mapping[str, Any]],
    rows: np.ndarray,
    owner: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    key = PICTURES + camera
    height, width = info["features"][key]["shape"][:2]
    out = np.zeros((len(rows), 3, height, width), np.uint8)
    files: dict[Path, list[tuple[int, int]]] = {}  # where a picture lies in its file, and where it goes
    for place, (row, k) in enumerate(zip(rows, owner, strict=True)):
        of = {name: episodes[k][f"videos/{key}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp")}
        at = {name: of[name] for name in ("chunk_index", "file_index")}
        path = folder / info["video_path"].format(video_key=key, **at)
        files.setdefault(path, []).append((round(of["from_timestamp"] * info["fps"]) + int(row - first[k]), place))
    for path, wanted in files.items():
        check_file(path)
        where = np.full(max(i for i, _ in wanted) + 1, -1, np.int64)
        for i, place in wanted:
            where[i] = place
        try:
            seen = video.decode(path, info["fps"], where, out)
        except (OSError, ValueError, IndexError, av.FFmpegError) as e:
            raise DataError(f"{path} cannot be read ({getattr(e, 'strerror', None) or e}): record it again.") from e
        if not seen[where >= 0].all():
            raise DataError(f"{path} is truncated, pictures are missing: restore it or record again.")
    return out
