"""Where the episodes of a LeRobotDataset v2.0, v2.1 or v3 lie.

v2 has a table and a video per episode, with lists of episodes and tasks as JSON lines; v3 has many episodes in a file,
and tables of both. Source: `lerobot.datasets.utils` of huggingface/lerobot, versions 0.1 to 0.4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq

from common.schema import Malformed, parse_json, read_bounded
from export.lerobot.checks import Count, Part, Seconds
from export.lerobot.layout import INFO, MOST_BYTES, PICTURES, DataError, check_file, read_json, read_table
from export.recordings.findings import Problem

DATA_2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
LFS = "lfs"
MEND = "restore the file or download the dataset again"


@dataclass(frozen=True)
class Place:
    """A video, and where an episode begins in it (s; None: the episode is the whole file)."""

    path: Path
    from_s: float | None


@dataclass(frozen=True)
class Listed:
    number: int
    length: int | None
    tasks: tuple[str, ...]
    table: Path
    videos: Mapping[str, Place]


@dataclass(frozen=True)
class Header:
    """What a dataset says about itself. `features`: name -> dtype, shape, names; `cameras`: name -> feature."""

    folder: Path
    version: str
    fps: float | None
    robot: str | None
    features: Mapping[str, Mapping[str, Any]]
    cameras: Mapping[str, str]
    episodes: tuple[Listed, ...]
    tasks: Mapping[int, str]


def problem_of(kind: str, episode: int | None, error: DataError, fatal: bool = True) -> Problem:
    """A refusal, which names what is wrong and the next step, as a finding."""
    said = str(error)
    if "git lfs pull" in said:
        kind = LFS
    detail, _, fix = said.rpartition(": ")
    return Problem(kind, episode, detail or said, fix.rstrip("."), fatal)


def read_header(folder: Path, problems: list[Problem]) -> Header | None:
    """None where too little can be read to go on; adds to `problems`."""
    try:
        info = read_json(folder / INFO)
    except DataError as e:
        problems.append(problem_of("info", None, e))
        return None
    version = str(info.get("codebase_version"))
    number = version.removeprefix("v")
    if not number.startswith(("2.0", "2.1", "3.")):
        problems.append(
            Problem(
                "version",
                None,
                f"{folder} is LeRobotDataset {version[:40]}, and v2.0, v2.1 and v3 are read",
                "convert it with the lerobot that recorded it, or update harmowam",
                True,
            )
        )
        return None
    try:
        features = _features(folder, info)
        cameras = {
            k.removeprefix(PICTURES).removeprefix("observation."): k
            for k, f in features.items()
            if f.get("dtype") in ("video", "image")
        }
        videos = [k for k in cameras.values() if features[k].get("dtype") == "video"]
        listing = _listed_3 if number.startswith("3") else _listed_2
        episodes = listing(folder, info, videos)
        tasks = _tasks(folder)
    except DataError as e:
        problems.append(problem_of("meta", None, e))
        return None
    robot = info.get("robot_type")
    return Header(
        folder,
        "v" + number,
        _rate(info.get("fps")),
        robot if isinstance(robot, str) else None,
        features,
        cameras,
        tuple(episodes),
        tasks,
    )


def _rate(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0.01 <= value <= 1000
    return float(value) if good else None


def _features(folder: Path, info: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The features that meta/info.json declares; of a dataset without, those of its first table and its folders of
    videos."""
    declared = info.get("features")
    if isinstance(declared, dict) and declared:
        if not all(isinstance(f, dict) for f in declared.values()):
            raise DataError(f"'features' of {folder / INFO} is damaged: {MEND}.")
        return declared
    tables = sorted((folder / "data").rglob("*.parquet"))
    if not tables:
        raise DataError(f"{folder} holds no tables (data/*/*.parquet): {MEND}.")
    check_file(tables[0])
    try:
        names = pq.read_schema(tables[0]).names
    except (OSError, ValueError) as e:
        raise DataError(f"{tables[0]} cannot be read ({' '.join(str(e).split())}): {MEND}.") from e
    found: dict[str, Mapping[str, Any]] = {k: {"dtype": "float32", "names": None} for k in names}
    found |= {k: {"dtype": "image"} for k in names if k.startswith("observation.image")}
    dirs = (folder / "videos").glob("chunk-*/*") if (folder / "videos").is_dir() else ()
    return found | {p.name: {"dtype": "video"} for p in sorted(dirs) if p.is_dir()}


def _path(folder: Path, key: str, pattern: Any, **values: Any) -> Path:
    try:
        at = Path(pattern.format(**values))
    except (LookupError, ValueError, AttributeError, TypeError) as e:
        raise DataError(f"'{key}' of {folder / INFO} is no path of a file: {MEND}.") from e
    if at.is_absolute() or ".." in at.parts or "\0" in str(at):
        raise DataError(f"'{key}' of {folder / INFO} leads out of the dataset: {MEND}.")
    return folder / at


def _lines(path: Path) -> list[dict[str, Any]]:
    check_file(path)
    try:
        rows = [parse_json(line) for line in read_bounded(path, MOST_BYTES).splitlines() if line.strip()]
    except (OSError, Malformed) as e:
        raise DataError(f"{path} cannot be read ({e}): {MEND}.") from e
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is damaged (a line is no object): {MEND}.")
    return rows


def _value(path: Path, row: Mapping[str, Any], key: str, kind: Any) -> Any:
    try:
        return msgspec.convert(row.get(key), kind)
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise DataError(f"{path} has no usable '{key}': {MEND}.") from None


def _texts(value: Any) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value
    good = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    return tuple(value) if good else ()


def _once(path: Path, found: list[Listed]) -> list[Listed]:
    if len({e.number for e in found}) != len(found):
        raise DataError(f"{path} lists an episode twice: {MEND}.")
    return sorted(found, key=lambda e: e.number)


def _listed_2(folder: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[Listed]:
    path = folder / "meta/episodes.jsonl"
    size = info.get("chunks_size", 1000)
    size = size if isinstance(size, int) and size > 0 else 1000
    found = []
    for row in _lines(path):
        n = _value(path, row, "episode_index", Count)
        where = {"episode_chunk": n // size, "episode_index": n}
        of = {
            k: Place(_path(folder, "video_path", info.get("video_path") or VIDEO_2, video_key=k, **where), None)
            for k in videos
        }
        table = _path(folder, "data_path", info.get("data_path") or DATA_2, **where)
        found.append(Listed(n, _value(path, row, "length", Count | None), _texts(row.get("tasks")), table, of))
    return _once(path, found)


def _listed_3(folder: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[Listed]:
    found = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        table = read_table(path)
        for row in table.select([k for k in table.column_names if not k.startswith("stats/")]).to_pylist():
            at = {k: _value(path, row, f"data/{k}", Part) for k in ("chunk_index", "file_index")}
            of = {}
            for key in videos:
                lies = {k: _value(path, row, f"videos/{key}/{k}", Part) for k in ("chunk_index", "file_index")}
                start = _value(path, row, f"videos/{key}/from_timestamp", Seconds)
                of[key] = Place(_path(folder, "video_path", info.get("video_path"), video_key=key, **lies), start)
            found.append(
                Listed(
                    _value(path, row, "episode_index", Count),
                    _value(path, row, "length", Count),
                    _texts(row.get("tasks")),
                    _path(folder, "data_path", info.get("data_path"), **at),
                    of,
                )
            )
    return _once(folder / "meta/episodes", found)


def _tasks(folder: Path) -> dict[int, str]:
    """Instructions by task_index; in v3 the text is the table's index, whatever pandas calls it."""
    path = folder / "meta/tasks.parquet"
    if path.exists():
        table = read_table(path)
        if "task_index" not in table.column_names:
            raise DataError(f"{path} has no column 'task_index': {MEND}.")
        text = [c for c in table.column_names if c != "task_index"]
        rows: list[tuple[Any, Any]] = list(
            zip(table["task_index"].to_pylist(), table[text[0]].to_pylist() if text else [])
        )
    elif (folder / "meta/tasks.jsonl").exists():
        rows = [(row.get("task_index"), row.get("task")) for row in _lines(folder / "meta/tasks.jsonl")]
    else:
        rows = []
    return {k: v for k, v in rows if isinstance(k, int) and isinstance(v, str)}


def dumped(value: Any) -> str:
    """A value of a header in a sentence, short."""
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
