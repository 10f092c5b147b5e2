"""Writes a dataset: parts by several processes, then one pass that completes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from calibration.camera import Camera
from export.lerobot import stats, video
from export.lerobot.checks import sealed
from export.lerobot.layout import (
    DATA,
    EPISODES,
    EXTRA,
    INFO,
    OURS,
    PART_SCHEMA,
    PICTURES,
    SCHEMA,
    VECTORS,
    VERSION,
    VIDEO,
    DataError,
    Episode,
    read_table,
    write,
    write_json,
    write_table,
)

CHUNK_SIZE = 1000  # files per folder, as in lerobot


def part_exists(folder: Path, part: int) -> bool:
    """Whether `write_part` finished this part: the episode table is written last."""
    return (Path(folder) / EPISODES.format(chunk_index=0, file_index=part)).exists()


def write_part(folder: Path, part: int, episodes: Sequence[Episode], fps: float, joint_names: Sequence[str]) -> None:
    """Write `episodes` as part `part` (0..999) of the dataset in `folder`; a complete part is kept as it is.

    Several processes may write, each its own parts. Keep a part below 1,000 s: lerobot compares picture times in
    float32 with a tolerance of 0.1 ms. Raises DataError for what cannot be stored.
    """
    folder = Path(folder)
    if not 0 <= part < CHUNK_SIZE:
        raise DataError(f"part {part} is not within 0..{CHUNK_SIZE - 1}: put more episodes into a part.")
    if part_exists(folder, part):
        return
    _check(episodes, len(joint_names))
    lengths = np.array([len(e.state) for e in episodes])
    first, total = np.cumsum(lengths) - lengths, int(lengths.sum())
    frame = np.arange(total) - np.repeat(first, lengths)

    def vectors(parts: Sequence[np.ndarray]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(np.concatenate(parts).astype(np.float32).ravel(), len(joint_names))

    where = {"chunk_index": 0, "file_index": part}
    for name in episodes[0].images:
        pictures = (picture for e in episodes for picture in e.images[name])
        write(folder / VIDEO.format(video_key=PICTURES + name, **where), video.encode(pictures, fps))
    rows = {
        "observation.state": vectors([e.state for e in episodes]),
        "action": vectors([e.action for e in episodes]),
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "index": np.arange(total),
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "task_index": np.zeros(total, np.int64),
    }
    write_table(folder / DATA.format(**where), pa.table(rows))
    table = [_episode_row(e, i, int(first[i]), where, fps) for i, e in enumerate(episodes)]
    sizes = {name: list(x.shape[1:]) for name, x in episodes[0].images.items()}
    note = json.dumps(
        {"schema": PART_SCHEMA, "fps": fps, "joints": list(joint_names), "pictures": sizes}, sort_keys=True
    )
    write_table(
        folder / EPISODES.format(**where), pa.Table.from_pylist(table).replace_schema_metadata({"harmowam": note})
    )


def _check(episodes: Sequence[Episode], joints: int) -> None:
    if not episodes:
        raise DataError("a part without episodes cannot be written: collect at least one.")
    like = episodes[0]
    for i, e in enumerate(episodes):
        who, n = f"episode {i} of the part ('{e.task}')", len(e.state)
        if n == 0 or e.state.shape != (n, joints) or e.action.shape != (n, joints):
            raise DataError(
                f"{who} has state {e.state.shape} and action {e.action.shape}: give T x {joints} each, T > 0."
            )
        if not (np.isfinite(e.state).all() and np.isfinite(e.action).all()):
            raise DataError(f"{who} holds joint positions that are not numbers: record it again.")
        if e.images.keys() != like.images.keys() or e.extra.keys() != like.extra.keys():
            raise DataError(f"{who} has other cameras or extra columns than the first: give each the same.")
        for name, x in e.images.items():
            if x.dtype != np.uint8 or x.shape != (n, *like.images[name].shape[1:3], 3):
                raise DataError(
                    f"{who}, camera '{name}': {x.dtype}{list(x.shape)} is not {n} RGB pictures of one size."
                )


def _episode_row(e: Episode, i: int, first: int, where: Mapping[str, int], fps: float) -> dict[str, Any]:
    n = len(e.state)
    row: dict[str, Any] = {"episode_index": i, "tasks": [e.task], "length": n}
    row |= {f"data/{k}": v for k, v in where.items()}
    row |= {"dataset_from_index": first, "dataset_to_index": first + n}
    for name in e.images:
        video_row = {**where, "from_timestamp": first / fps, "to_timestamp": (first + n) / fps}
        row |= {f"videos/{PICTURES}{name}/{k}": v for k, v in video_row.items()}
    row |= {f"meta/episodes/{k}": v for k, v in where.items()}
    row |= {f"{EXTRA}{k}": v for k, v in e.extra.items()}
    measured = {"observation.state": stats.of_vectors(e.state), "action": stats.of_vectors(e.action)}
    measured |= {PICTURES + name: stats.of_pictures(x) for name, x in e.images.items()}
    return row | {f"stats/{feature}/{k}": v for feature, s in measured.items() for k, v in s.items()}


LAYOUT = {
    "codebase_version": VERSION,
    "chunks_size": CHUNK_SIZE,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "data_path": DATA,
    "video_path": VIDEO,
}


def finish(
    folder: Path, fps: float, robot_type: str, joint_names: Sequence[str], cameras: Mapping[str, Camera]
) -> None:
    """Number the parts in `folder` consecutively and write the files that exist once per dataset. May be run again
    after more parts were added.

    `cameras` took the pictures: `Camera` of the stored size, where it is known. Raises DataError when parts are missing
    or do not belong together.
    """
    folder = Path(folder)
    tables = _episode_tables(folder)
    if not tables:
        raise DataError(f"{folder} holds no finished part: collect with `harmowam collect --out {folder}`.")
    note = _common_note(tables)
    if note["fps"] != fps or note["joints"] != list(joint_names) or not cameras.keys() <= note["pictures"].keys():
        raise DataError(
            f"the parts in {folder} have another rate, other joints or cameras than asked for: use a new folder."
        )
    for name, (height, width, _) in note["pictures"].items():
        if name in cameras and (cameras[name].height, cameras[name].width) != (height, width):
            raise DataError(
                f"camera '{name}' stored {width}x{height} and its geometry is of "
                f"{cameras[name].width}x{cameras[name].height}: give the geometry of the stored pictures."
            )
    parts = [t.to_pylist() for t in tables.values()]
    everything = [row for part in parts for row in part]
    _same_types(folder, everything)
    (folder / INFO).unlink(missing_ok=True)  # without this file the folder is no dataset, until it is written again
    for left in folder.rglob(".*.partial"):  # left by a worker that was killed
        left.unlink()
    instructions = {task: i for i, task in enumerate(dict.fromkeys(row["tasks"][0] for row in everything))}
    episode = index = 0
    for path, part, table in zip(tables, parts, tables.values()):
        _number_rows(folder, path, part, episode, index, instructions)
        for row in part:
            row |= {"episode_index": episode, "dataset_from_index": index, "dataset_to_index": index + row["length"]}
            episode, index = episode + 1, index + row["length"]
        write_table(path, pa.Table.from_pylist(part).replace_schema_metadata(table.schema.metadata))

    features = _features(fps, joint_names, note["pictures"])
    measured = {
        feature: stats.merged([{k: row[f"stats/{feature}/{k}"] for k in stats.NAMES} for row in everything])
        for feature in (*VECTORS, *(PICTURES + name for name in note["pictures"]))
    }
    write_json(folder / "meta/stats.json", measured)
    write_table(folder / "meta/tasks.parquet", _task_table(list(instructions)))
    ours = {"schema": SCHEMA, "units": "rad", "cameras": {k: c.to_json() for k, c in cameras.items()}}
    info = {
        "robot_type": robot_type,
        "total_episodes": episode,
        "total_frames": index,
        "total_tasks": len(instructions),
        "fps": _whole(fps),
        "splits": {"train": f"0:{episode}"},
        "features": features,
    }
    write_json(folder / OURS, sealed(folder, ours, LAYOUT | info))
    write_json(folder / INFO, LAYOUT | info)


def _episode_tables(folder: Path) -> dict[Path, pa.Table]:
    return {p: read_table(p) for p in sorted((folder / "meta/episodes").glob("chunk-*/file-*.parquet"))}


def common_note(folder: Path) -> dict[str, Any]:
    """The note that `write_part` stored with the episodes, equal in every part in `folder`; raises DataError for a
    folder of something else."""
    tables = _episode_tables(Path(folder))
    if not tables:
        raise DataError(f"{folder} is not by harmowam: collect into a new folder.")
    return _common_note(tables)


def _common_note(tables: Mapping[Path, pa.Table]) -> dict[str, Any]:
    notes = {p: (t.schema.metadata or {}).get(b"harmowam") for p, t in tables.items()}
    first = next(iter(notes))
    for path, note in notes.items():
        if note is None:
            raise DataError(f"{path} is not by harmowam: collect into a new folder.")
        if note != notes[first]:
            raise DataError(
                f"{path} was collected with other settings than {first.name}: delete it or use a new folder."
            )
    known = dict(json.loads(notes[first] or b"{}"))
    if known.get("schema") != PART_SCHEMA:
        raise DataError(f"{first.parents[3]} holds joint angles of another version: collect into a new folder.")
    return known


def _same_types(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Give each column one type in all files: a number that is whole in one part only becomes a float in all."""
    for k in sorted({k for row in rows for k in row if k.startswith(EXTRA)}):
        kinds = {type(row.get(k)) for row in rows}
        if kinds == {int, float}:
            for row in rows:
                row[k] = float(row[k])
        elif len(kinds) > 1:
            raise DataError(
                f"the column '{k}' is missing or of another type in some parts of {folder}: use a new folder."
            )


def _number_rows(
    folder: Path,
    path: Path,
    part: Sequence[Mapping[str, Any]],
    episode: int,
    index: int,
    instructions: Mapping[str, int],
) -> None:
    data_path = folder / DATA.format(chunk_index=0, file_index=part[0]["data/file_index"])
    data, lengths = read_table(data_path), [row["length"] for row in part]
    if data.num_rows != sum(lengths):
        raise DataError(
            f"{data_path} has {data.num_rows} rows instead of {sum(lengths)}: delete {path} and collect again."
        )
    columns = {
        "episode_index": np.repeat(np.arange(episode, episode + len(part)), lengths),
        "index": np.arange(index, index + data.num_rows),
        "task_index": np.repeat([instructions[row["tasks"][0]] for row in part], lengths),
    }
    for k, v in columns.items():
        data = data.set_column(data.schema.get_field_index(k), k, pa.array(v))
    write_table(data_path, data)


def _whole(fps: float) -> float:
    return int(fps) if float(fps).is_integer() else float(fps)


def _features(fps: float, joint_names: Sequence[str], pictures: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    names = [f"{j.removesuffix('.pos')}.pos" for j in joint_names]
    features: dict[str, Any] = {k: {"dtype": "float32", "shape": [len(names)], "names": names} for k in VECTORS}
    for name, shape in pictures.items():
        info = {
            "video.height": shape[0],
            "video.width": shape[1],
            "video.channels": shape[2],
            "video.fps": _whole(fps),
            "video.codec": "h264",
            "video.pix_fmt": video.PIXELS,
            "video.is_depth_map": False,
            "has_audio": False,
        }
        features[PICTURES + name] = {
            "dtype": "video",
            "shape": list(shape),
            "names": ["height", "width", "channels"],
            "info": info,
        }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    counters = ("frame_index", "episode_index", "index", "task_index")
    return features | {k: {"dtype": "int64", "shape": [1], "names": None} for k in counters}


def _task_table(instructions: Sequence[str]) -> pa.Table:
    """The table of tasks. lerobot reads it with pandas and looks tasks up by the index; the metadata says which column
    that is."""
    index = "__index_level_0__"
    kinds = ((None, index, "unicode", "object"), ("task_index", "task_index", "int64", "int64"))
    note = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, field, kind, numpy in kinds
        ],
    }
    table = pa.table({"task_index": np.arange(len(instructions)), index: list(instructions)})
    return table.replace_schema_metadata({"pandas": json.dumps(note)})
