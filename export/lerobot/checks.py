"""What the files of a dataset must look like before anything is taken from them, and the seal of those that we wrote.

Format: LeRobotDataset v3.0 of huggingface/lerobot, `lerobot.datasets.utils`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from common.schema import Malformed, Text, shaped
from export.lerobot.layout import (
    EXTRA,
    INFO,
    OURS,
    PICTURES,
    SEALED,
    DataError,
    check_file,
    read_json,
    read_table,
)

Count = Annotated[int, Meta(ge=0, le=10**9)]
Part = Annotated[int, Meta(ge=0, le=10**6)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]
AGAIN = "restore it or collect again."


class Feature(msgspec.Struct, frozen=True):
    dtype: Text
    shape: Annotated[list[Count], Meta(max_length=8)]
    names: Any = None


class Info(msgspec.Struct, frozen=True):
    """meta/info.json. It may hold more than is declared here: lerobot adds to it."""

    fps: Annotated[float, Meta(ge=0.01, le=1000)]
    features: dict[Text, Feature]
    data_path: Text
    video_path: Text | None = None  # None where no camera is stored as video
    robot_type: Text | None = None
    splits: dict[Text, Text] | None = None
    total_episodes: Count | None = None
    total_frames: Count | None = None


def check_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Raises DataError unless `info`, the content of meta/info.json, can be worked with."""
    try:
        known = shaped(info, Info)
        if known.video_path is None and any(f.dtype == "video" for f in known.features.values()):
            raise Malformed("'video_path' is missing")
        for key, path in (("data_path", known.data_path), ("video_path", known.video_path or "")):
            try:
                at = Path(path.format(chunk_index=0, file_index=0, video_key="x"))
            except (LookupError, ValueError, AttributeError, TypeError) as e:
                raise Malformed(f"'{key}' is no path with chunk_index and file_index") from e
            if at.is_absolute() or ".." in at.parts:
                raise Malformed(f"'{key}' leads out of the dataset")
    except Malformed as e:
        raise DataError(f"{folder / INFO} is damaged ({e}): {AGAIN}") from e


def episode_table(folder: Path, info: Mapping[str, Any], cameras: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of meta/episodes, by number and without statistics. Raises DataError where one cannot be used, or where
    they are not those that meta/info.json counts."""
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        table = read_table(path)
        rows += table.select([k for k in table.column_names if not k.startswith("stats/")]).to_pylist()
    kinds: dict[str, Any] = {"episode_index": Count, "length": Annotated[int, Meta(ge=1, le=10**9)]}
    kinds |= {"tasks": Annotated[list[str], Meta(min_length=1)], "data/chunk_index": Part, "data/file_index": Part}
    for c in cameras:
        kinds |= {f"videos/{PICTURES}{c}/{k}": Part for k in ("chunk_index", "file_index")}
        kinds[f"videos/{PICTURES}{c}/from_timestamp"] = Seconds
    for row in rows:
        for key, kind in kinds.items():
            try:
                msgspec.convert(row.get(key), kind)
            except (msgspec.ValidationError, UnicodeEncodeError):
                raise DataError(f"the episode table of {folder} has no usable '{key}': {AGAIN}") from None
    rows.sort(key=lambda row: row["episode_index"])
    told = info.get("total_episodes") or len(rows)
    if rows and [row["episode_index"] for row in rows] != list(range(told)):
        raise DataError(
            f"the episode table of {folder} does not hold the {told} episodes of {INFO}, each once: {AGAIN}"
        )
    frames = sum(row["length"] for row in rows)
    if rows and frames != (info.get("total_frames") or frames):
        raise DataError(
            f"the episodes of {folder} have {frames} rows where {INFO} counts {info['total_frames']}: {AGAIN}"
        )
    return rows


def extra_columns(folder: Path, chosen: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Our own columns of the episode table: name -> one value for each chosen episode."""
    out = {}
    for key in (k for k in chosen[0] if k.startswith(EXTRA)):
        values = [row.get(key) for row in chosen]
        if len(kinds := {type(v) for v in values}) > 1 or kinds & {type(None), list, dict, bytes}:
            raise DataError(f"the episode table of {folder} has no usable '{key}': {AGAIN}")
        out[key.removeprefix(EXTRA)] = np.array(values)
    return out


def whole_numbers(path: Path, table: pa.Table, column: str) -> np.ndarray:
    """A column of whole numbers, int64[N]. Raises DataError where it is none."""
    found = table[column]
    if not pa.types.is_integer(found.type) or found.null_count:
        raise DataError(f"'{column}' of {path} does not hold a whole number in each row: restore it or record again.")
    return found.to_numpy().astype(np.int64)


def vectors(path: Path, table: pa.Table, column: str, width: int) -> np.ndarray:
    """A column of lists of `width` numbers, float32[N,width]. Raises DataError where it is none."""
    found, wrong = table[column], f"'{column}' of {path} does not hold {width} numbers in each row: "
    kind = found.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    number = is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    if not number or found.null_count or pc.any(pc.not_equal(pc.list_value_length(found), width)).as_py():
        raise DataError(wrong + "restore it or record again.")
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in found.chunks]
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, which is refused
        return np.concatenate([np.zeros(0), *parts]).astype(np.float32).reshape(-1, width)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sealed(folder: Path, ours: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """`ours`, the content of meta/harmowam.json, with the SHA-256 of every table and video, of `info`, the content of
    meta/info.json (without its splits, which are the user's to change), and of itself."""
    held = [p for kind in ("data", "meta/episodes", "videos") for p in sorted((folder / kind).rglob("file-*.*"))]
    files = {str(p.relative_to(folder)): sha256(p) for p in held}
    whole = {**ours, "files": {**files, INFO: _digest(info, "splits")}}
    return {**whole, "digest": _digest(whole, "digest")}


def _digest(content: Mapping[str, Any], without: str) -> str:
    """SHA-256 of what a JSON file means: of its JSON with sorted keys and no spaces, without one key."""
    rest = {k: v for k, v in content.items() if k != without}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal_of(folder: Path) -> dict[str, str] | None:
    """File -> SHA-256 as meta/harmowam.json says; None for a dataset without (by lerobot, or older). Raises DataError
    where that file is damaged."""
    path = folder / OURS
    if not path.exists():
        return None
    ours = read_json(path)
    if ours["schema"] < SEALED and not {"files", "digest"} & ours.keys():
        return None
    files = ours.get("files")
    if ours["schema"] < SEALED or ours.get("digest") != _digest(ours, "digest") or not isinstance(files, dict):
        raise DataError(f"{path} is damaged (it does not match its own hash): {AGAIN}")
    return files


def check_seal(folder: Path, seal: Mapping[str, str], info: Mapping[str, Any], tables: Sequence[Path]) -> None:
    """Raises DataError unless `info`, the content of meta/info.json, and these tables are as they were when the dataset
    was finished."""
    found = {folder / INFO: _digest(info, "splits")}
    for path in tables:
        check_file(path)
        found[path] = sha256(path)
    for path, digest in found.items():
        if digest != seal.get(str(path.relative_to(folder))):
            raise DataError(
                f"{path} is damaged or was changed (it does not match its hash in {OURS}): restore it or collect again."
            )
