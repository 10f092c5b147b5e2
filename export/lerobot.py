"""LeRobotDataset v3 folders, written and read without lerobot: tables (parquet), pictures (mp4), meta.

    data/chunk-000/file-NNN.parquet                          a row per control step: observation.state, action, indices
    videos/observation.images.<camera>/chunk-000/file-NNN.mp4
    meta/episodes/chunk-000/file-NNN.parquet                 a row per episode: where its rows and pictures lie, statistics, our extras
    meta/info.json, stats.json, tasks.parquet                features, totals, statistics, instructions
    meta/harmowam.json                                       ours: units of state and action, the cameras that took the pictures

Workers write *parts* (one file of each kind, `NNN` = part) with indices that count from the part's start; `finish` numbers
through and writes the rest, info.json last. Layout and names: github.com/huggingface/lerobot, docs "LeRobotDataset v3.0".
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from calibration.camera import Camera
from export import video

VERSION, SCHEMA, CHUNK_SIZE = "v3.0", 1, 1000
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
EXTRA = "harmowam/"
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
SIZE = 96


class DataError(Exception):
    """A dataset that cannot be used; the text says why and what to do next."""


@dataclass(frozen=True)
class Episode:
    """One demonstration of T rows at the dataset's rate.

    `images`: camera name -> uint8[T,H,W,3] (RGB); `state`: float32[T,6] measured joint positions and `action`: float32[T,6] joint
    goals, rad, gripper last; `task`: the instruction; `extra`: what else is to be kept of it, one value a name.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    task: str
    extra: dict[str, float | int | str]


@dataclass(frozen=True)
class Dataset:
    """All N rows of a dataset end to end, in memory (pictures may be a read-only memory map)."""

    images: dict[str, np.ndarray]  # camera -> uint8[N,3,96,96], RGB
    state: np.ndarray  # float32[N,6], rad
    action: np.ndarray  # float32[N,6], rad
    episode: np.ndarray  # int32[N], from 0
    last: np.ndarray  # int32[N]: last row of the same episode
    tasks: list[str]  # the instruction of each episode
    extra: dict[str, np.ndarray]  # name -> one value an episode
    cameras: dict[str, Camera]  # the geometry of `images`
    fps: float


def _key(camera: str) -> str:
    return f"observation.images.{camera}"


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, also when the power goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written ({e.strerror}): make room and run the same command again.") from e


def _write_table(path: Path, table: pa.Table) -> None:
    out = io.BytesIO()
    pq.write_table(table, out)
    _write(path, out.getvalue())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())


# Statistics, in the shapes that lerobot normalises with


def _vector_stats(x: np.ndarray) -> dict[str, Any]:
    """Of float[n,k]: lists of k numbers."""
    x = x.astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0)))
    return {k: v.tolist() for k, v in stats.items()} | {"count": [len(x)]}


def _picture_stats(x: np.ndarray) -> dict[str, Any]:
    """Of uint8[n,H,W,3]: numbers in 0..1 of shape [3,1,1], exact through histograms."""
    stats: dict[str, list[Any]] = {k: [] for k in ("min", "max", "mean", "std", *QUANTILES)}
    level = np.arange(256) / 255
    for channel in range(3):
        counts = np.bincount(x[..., channel].ravel(), minlength=256)
        share, cumulative = counts / counts.sum(), np.cumsum(counts)
        mean = float(share @ level)
        there = np.flatnonzero(counts)
        values = {
            "min": level[there[0]], "max": level[there[-1]], "mean": mean, "std": np.sqrt(share @ (level - mean) ** 2),
        } | {k: level[np.searchsorted(cumulative, q * cumulative[-1])] for k, q in QUANTILES.items()}  # fmt: skip
        for k, v in values.items():
            stats[k].append([[float(v)]])
    return stats | {"count": [len(x)]}


def _merge_stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Exact for min, max, mean and std; a quantile becomes the mean of the episodes' quantiles, as in lerobot."""
    a = {k: np.array([p[k] for p in parts], np.float64) for k in ("min", "max", "mean", "std", *QUANTILES)}
    count = np.array([p["count"][0] for p in parts])

    def average(x: np.ndarray) -> np.ndarray:
        return np.average(x, axis=0, weights=count)

    mean = average(a["mean"])
    out = {"min": a["min"].min(0), "max": a["max"].max(0), "mean": mean}
    out["std"] = np.sqrt(average(a["std"] ** 2 + (a["mean"] - mean) ** 2))
    out |= {k: average(a[k]) for k in QUANTILES}
    return {k: v.tolist() for k, v in out.items()} | {"count": [int(count.sum())]}


# Writing


def part_exists(folder: Path, part: int) -> bool:
    """Whether `write_part` finished this part: its episode table comes last."""
    return (Path(folder) / EPISODES.format(chunk_index=0, file_index=part)).exists()


def _check_episodes(episodes: Sequence[Episode], joints: int) -> None:
    if not episodes:
        raise DataError("a part without episodes cannot be written: collect at least one.")
    shapes = {name: x.shape[1:] for name, x in episodes[0].images.items()}
    for i, e in enumerate(episodes):
        n = len(e.state)
        if n == 0 or e.state.shape != (n, joints) or e.action.shape != (n, joints):
            raise DataError(
                f"episode {i} has state {e.state.shape} and action {e.action.shape}: give T x {joints} each."
            )
        if not (np.isfinite(e.state).all() and np.isfinite(e.action).all()):
            raise DataError(f"episode {i} ('{e.task}') holds joint positions that are not numbers: record it again.")
        for name, x in e.images.items():
            if x.dtype != np.uint8 or x.shape != (n, *shapes.get(name, ())) or x.shape[-1] != 3:
                raise DataError(f"episode {i}, camera '{name}': pictures {x.dtype}{list(x.shape)} do not fit {n} rows.")
        if e.images.keys() != shapes.keys() or e.extra.keys() != episodes[0].extra.keys():
            raise DataError(f"episode {i} has other cameras or extra columns than episode 0: give each the same.")


def write_part(folder: Path, part: int, episodes: Sequence[Episode], fps: float, joint_names: Sequence[str]) -> None:
    """Write `episodes` as part `part` (0..999) of the dataset in `folder`; a part that is complete there is kept as it is.

    Several processes may write, each its own parts. Keep a part below 1,000 s: lerobot compares picture times in float32
    with a tolerance of 0.1 ms. Raises DataError for what cannot be stored.
    """
    folder = Path(folder)
    if not 0 <= part < CHUNK_SIZE:
        raise ValueError(f"part {part} is not within 0..{CHUNK_SIZE - 1}")
    if part_exists(folder, part):
        return
    _check_episodes(episodes, len(joint_names))
    lengths = np.array([len(e.state) for e in episodes])
    first = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    frame = np.arange(total) - np.repeat(first, lengths)

    def column(rows: Sequence[np.ndarray]) -> pa.Array:
        flat = pa.array(np.concatenate(rows).astype(np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, len(joint_names))

    rows = pa.table(
        {
            "observation.state": column([e.state for e in episodes]), "action": column([e.action for e in episodes]),
            "timestamp": (frame / fps).astype(np.float32), "frame_index": frame,
            "episode_index": np.repeat(np.arange(len(episodes)), lengths), "index": np.arange(total),
            "task_index": np.zeros(total, np.int64),
        }
    )  # fmt: skip
    where = {"chunk_index": 0, "file_index": part}
    cameras = list(episodes[0].images)
    for name in cameras:
        pictures = (picture for e in episodes for picture in e.images[name])
        _write(folder / VIDEO.format(video_key=_key(name), **where), video.encode(pictures, fps))
    _write_table(folder / DATA.format(**where), rows)

    table: list[dict[str, Any]] = []
    for i, e in enumerate(episodes):
        stats = {"observation.state": _vector_stats(e.state), "action": _vector_stats(e.action)}
        stats |= {_key(name): _picture_stats(e.images[name]) for name in cameras}
        row: dict[str, Any] = {"episode_index": i, "tasks": [e.task], "length": int(lengths[i])}
        row |= {f"data/{k}": v for k, v in where.items()}
        row |= {"dataset_from_index": int(first[i]), "dataset_to_index": int(first[i] + lengths[i])}
        for name in cameras:
            row |= {f"videos/{_key(name)}/{k}": v for k, v in where.items()}
            row |= {
                f"videos/{_key(name)}/from_timestamp": float(first[i] / fps),
                f"videos/{_key(name)}/to_timestamp": float((first[i] + lengths[i]) / fps),
            }
        row |= {f"meta/episodes/{k}": v for k, v in where.items()}
        row |= {f"{EXTRA}{k}": v for k, v in e.extra.items()}
        table.append(row | {f"stats/{key}/{k}": v for key, s in stats.items() for k, v in s.items()})
    sizes = {name: list(x.shape[1:]) for name, x in episodes[0].images.items()}
    note = json.dumps({"fps": fps, "joints": list(joint_names), "pictures": sizes}, sort_keys=True)
    _write_table(
        folder / EPISODES.format(**where), pa.Table.from_pylist(table).replace_schema_metadata({"harmowam": note})
    )


def _feature(dtype: str, shape: Sequence[int], names: Sequence[str] | None, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": None if names is None else list(names), **more}


def _features(fps: float, joint_names: Sequence[str], pictures: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    names = [f"{j.removesuffix('.pos')}.pos" for j in joint_names]
    features = {k: _feature("float32", [len(names)], names) for k in ("observation.state", "action")}
    for name, (height, width, channels) in pictures.items():
        info = {
            "video.height": height, "video.width": width, "video.codec": video.CODEC, "video.pix_fmt": video.PIXELS,
            "video.is_depth_map": False, "video.fps": _whole(fps), "video.channels": channels, "has_audio": False,
        }  # fmt: skip
        features[_key(name)] = _feature("video", [height, width, channels], ["height", "width", "channels"], info=info)
    return features | {k: _feature("float32" if k == "timestamp" else "int64", [1], None) for k in COUNTERS}


def _whole(fps: float) -> float:
    return int(fps) if float(fps).is_integer() else float(fps)


def finish(
    folder: Path, fps: float, robot_type: str, joint_names: Sequence[str], cameras: Mapping[str, Camera]
) -> None:
    """Number the parts in `folder` through and write what is one a dataset. May be run again after more parts came.

    `cameras` took the pictures: `Camera` of the stored size. Raises DataError when parts are missing or do not belong together.
    """
    folder = Path(folder)
    paths = sorted((folder / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise DataError(f"{folder} holds no finished part: collect with `harmowam collect --out {folder}`.")
    (folder / "meta/info.json").unlink(missing_ok=True)  # until it is back, this is no dataset
    tables = [_read_table(p) for p in paths]
    notes = [(t.schema.metadata or {}).get(b"harmowam", b"") for t in tables]
    for path, note in zip(paths, notes):
        if note != notes[0]:
            raise DataError(
                f"{path} was collected with other settings than {paths[0].name}: delete it or use a new folder."
            )
    note = json.loads(notes[0])
    if note["fps"] != fps or note["joints"] != list(joint_names) or note["pictures"].keys() != cameras.keys():
        raise DataError(f"the parts in {folder} have other rate, joints or cameras than asked: use a new folder.")
    for name, (height, width, _) in note["pictures"].items():
        if (cameras[name].height, cameras[name].width) != (height, width):
            raise DataError(f"camera '{name}' stored pictures of {width}x{height}, its geometry has another size.")

    rows = [t.to_pylist() for t in tables]
    everything = [row for part in rows for row in part]
    instructions = list(dict.fromkeys(row["tasks"][0] for row in everything))
    extras = {k for row in everything for k in row if k.startswith(EXTRA)}
    for k in extras:
        if any(row.get(k) is None for row in everything):
            raise DataError(f"some parts of {folder} lack the column '{k}': collect into a new folder.")
        if any(isinstance(row[k], float) for row in everything):
            for row in everything:
                row[k] = float(row[k])
    episode = index = 0
    for path, part in zip(paths, rows):
        data_path = folder / DATA.format(chunk_index=0, file_index=part[0]["data/file_index"])
        data = _read_table(data_path)
        lengths = [row["length"] for row in part]
        if data.num_rows != sum(lengths):
            raise DataError(
                f"{data_path} has {data.num_rows} rows instead of {sum(lengths)}: delete {path}, collect again."
            )
        columns = {
            "episode_index": np.repeat(np.arange(episode, episode + len(part)), lengths),
            "index": np.arange(index, index + data.num_rows),
            "task_index": np.repeat([instructions.index(row["tasks"][0]) for row in part], lengths),
        }
        for k, v in columns.items():
            data = data.set_column(data.schema.get_field_index(k), k, pa.array(v.astype(np.int64)))
        _write_table(data_path, data)
        for row in part:
            row |= {"episode_index": episode, "dataset_from_index": index, "dataset_to_index": index + row["length"]}
            episode, index = episode + 1, index + row["length"]
        _write_table(path, pa.Table.from_pylist(part).replace_schema_metadata({"harmowam": notes[0]}))

    features = _features(fps, joint_names, note["pictures"])
    stats = {
        key: _merge_stats([{k: row[f"stats/{key}/{k}"] for k in ("min", "max", "mean", "std", "count", *QUANTILES)} for row in everything])
        for key in features if key not in COUNTERS
    }  # fmt: skip
    _write_json(folder / "meta/stats.json", stats)
    _write_table(folder / "meta/tasks.parquet", _task_table(instructions))
    _write_json(
        folder / "meta/harmowam.json",
        {"schema": SCHEMA, "units": "rad", "cameras": {k: c.to_json() for k, c in cameras.items()}},
    )
    info = {
        "codebase_version": VERSION, "robot_type": robot_type, "total_episodes": episode, "total_frames": index,
        "total_tasks": len(instructions), "chunks_size": CHUNK_SIZE, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        "fps": _whole(fps), "splits": {"train": f"0:{episode}"}, "data_path": DATA, "video_path": VIDEO, "features": features,
    }  # fmt: skip
    _write_json(folder / "meta/info.json", info)


def _task_table(instructions: Sequence[str]) -> pa.Table:
    """lerobot reads it with pandas and looks tasks up by the index: the metadata says which column that is."""
    table = pa.table({"task_index": np.arange(len(instructions)), "__index_level_0__": list(instructions)})
    note = {
        "index_columns": ["__index_level_0__"], "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
    }  # fmt: skip
    return table.replace_schema_metadata({"pandas": json.dumps(note)})


def _read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return pq.ParquetFile(path).read(columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path} cannot be read ({e}): restore it or collect again.") from e


# Reading


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read ({e}): restore it or collect again.") from e
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: restore it or collect again.")
    return content


def _check_features(folder: Path, info: Mapping[str, Any], cameras: Sequence[str]) -> None:
    features = info["features"]
    wanted = [f"{j}.pos" for j in JOINTS]
    for k in ("observation.state", "action"):
        if k not in features:
            raise DataError(f"{folder} has no '{k}': record it with the joints {', '.join(wanted)}.")
        names = features[k].get("names")
        if isinstance(names, dict):  # as converted from older versions: {"motors": [...]}
            names = next(iter(names.values()), None)
        if list(features[k]["shape"]) != [len(wanted)] or list(names or []) != wanted:
            raise DataError(
                f"'{k}' of {folder} is {names or features[k]['shape']}, not {wanted}: use a dataset of an SO-101."
            )
    stored = {k.removeprefix("observation.images."): f["dtype"] for k, f in features.items() if k.startswith(_key(""))}
    for name in cameras:
        if name not in stored:
            raise DataError(
                f"{folder} has no camera '{name}', only {', '.join(stored) or 'none'}: record it with "
                f"a camera of that name, or choose cameras that are there."
            )
        if stored[name] != "video":
            raise DataError(f"camera '{name}' of {folder} is stored as {stored[name]}: convert it to videos first.")


def _episode_table(folder: Path, cameras: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        table = _read_table(path)
        rows += table.select([k for k in table.column_names if not k.startswith("stats/")]).to_pylist()
    needed = {"episode_index", "length", "tasks", "data/chunk_index", "data/file_index"} | {
        f"videos/{_key(c)}/{k}" for c in cameras for k in ("chunk_index", "file_index", "from_timestamp")
    }
    for row in rows:
        if missing := sorted(k for k in needed if row.get(k) is None):
            raise DataError(f"the episode table of {folder} lacks '{missing[0]}': restore it or collect again.")
    return sorted(rows, key=lambda row: row["episode_index"])


def _split(folder: Path, info: Mapping[str, Any], split: str | None, count: int) -> range:
    if split is None:
        return range(count)
    splits = info.get("splits", {})
    if split not in splits:
        raise DataError(f"{folder} has no split '{split}', only {', '.join(splits) or 'none'}: choose one of these.")
    first, last = (int(v) for v in splits[split].split(":"))
    return range(first, min(last, count))


def _read_rows(
    folder: Path, info: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """State and action float32[N,6] of the chosen episodes, in their order."""
    files: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    parts = []
    for e in chosen:
        name = info["data_path"].format(chunk_index=e["data/chunk_index"], file_index=e["data/file_index"])
        if name not in files:
            files[name] = _episodes_of(folder / name)
        rows = files[name].get(e["episode_index"])
        if rows is None or len(rows[0]) != e["length"]:
            raise DataError(
                f"{folder / name} has {0 if rows is None else len(rows[0])} rows of episode {e['episode_index']} instead "
                f"of {e['length']}: restore it or collect again."
            )
        for what, x in zip(("state", "action"), rows):
            if not np.isfinite(x).all():
                row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
                raise DataError(
                    f"the {what} in row {row} of episode {e['episode_index']} of {folder} is not a number: remove that "
                    f"episode or record it again."
                )
        parts.append(rows)
    return np.concatenate([s for s, _ in parts]), np.concatenate([a for _, a in parts])


def _episodes_of(path: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    columns = ["observation.state", "action", "episode_index", "frame_index"]
    table = _read_table(path, columns)
    if missing := [c for c in columns if c not in table.column_names]:
        raise DataError(f"{path} has no column '{missing[0]}': restore it or collect again.")
    episode, frame = (table[c].to_numpy() for c in columns[2:])
    order = np.lexsort((frame, episode))
    state, action = (
        np.array(table[c].combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32).reshape(
            -1, len(JOINTS)
        )[order]
        for c in columns[:2]
    )
    numbers, first = np.unique(episode[order], return_index=True)
    ends = [*first[1:], len(order)]
    return {int(n): (state[a:b], action[a:b]) for n, a, b in zip(numbers, first, ends)}


def _geometry(name: str, stored: Camera) -> tuple[Camera, Any]:
    """The camera of the pictures as they are handed out, and what makes them from stored ones (None: they are the same)."""
    if (stored.width, stored.height) == (SIZE, SIZE) and not np.any(stored.D):
        return stored, None
    from export.data import policy_camera  # which itself writes datasets with this module
    from runtime.preprocess import Warp

    target = policy_camera(stored, SIZE)
    return target, Warp(stored, target, mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")


def _decode_camera(
    folder: Path, info: Mapping[str, Any], name: str, chosen: Sequence[Mapping[str, Any]], out: np.ndarray,
    convert: Any, workers: int, bar: tqdm,
) -> None:  # fmt: skip
    fps, key = info["fps"], _key(name)
    files: dict[str, list[tuple[int, int, Mapping[str, Any]]]] = {}
    row = 0
    for e in chosen:
        path = info["video_path"].format(
            video_key=key, chunk_index=e[f"videos/{key}/chunk_index"], file_index=e[f"videos/{key}/file_index"]
        )
        files.setdefault(path, []).append((round(e[f"videos/{key}/from_timestamp"] * fps), row, e))
        row += e["length"]
    lock = threading.Lock()

    def progress(n: int) -> None:
        with lock:
            bar.update(n)

    def one(path: str) -> None:
        spans = files[path]
        place = np.full(max(start + e["length"] for start, _, e in spans), -1, np.int64)
        for start, first, e in spans:
            place[start : start + e["length"]] = np.arange(first, first + e["length"])
        try:
            seen = video.decode(
                folder / path,
                fps,
                place,
                out,
                convert=convert,
                threads=max(1, workers // len(files)),
                progress=progress,
            )
        except (OSError, av.FFmpegError) as e:
            raise DataError(f"{folder / path} cannot be read ({e.strerror}): restore it or collect again.") from e
        lost = (place >= 0) & ~seen
        if lost.any():
            raise DataError(
                f"{folder / path} is truncated: {int(lost.sum())} of {int((place >= 0).sum())} pictures are missing; restore it "
                f"or delete the part and collect again."
            )

    with ThreadPoolExecutor(workers) as pool:  # the codec runs without Python's lock
        for _ in pool.map(one, files):
            pass


def load(
    folder: Path, cameras: Sequence[str] = ("front", "wrist"), *, fps: float | None = None, split: str | None = None,
    units: str | None = None, calibration: Mapping[str, Camera] | None = None, workers: int | None = None,
) -> Dataset:  # fmt: skip
    """Read a dataset of an SO-101, ours or one that lerobot recorded.

    `fps`: refuse any other rate; `split`: only these episodes. A dataset without meta/harmowam.json (recorded by lerobot) says neither
    its units nor its cameras: give `units` "degrees" (joints in degrees, gripper 0..100) or "rad", and `calibration`, the `Camera` of each
    stored picture. Pictures of another size than 96x96 go through the robot's pre-processing. Raises DataError.
    """
    folder = Path(folder)
    if not (folder / "meta/info.json").exists():
        raise DataError(f"{folder} holds no finished dataset: collect one with `harmowam collect --out {folder}`.")
    info = _read_json(folder / "meta/info.json")
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise DataError(f"{folder} is LeRobotDataset {version}, v3 is read here: convert it with lerobot's own script.")
    if fps is not None and abs(info["fps"] - fps) > 1e-6:
        raise DataError(f"{folder} has {info['fps']} rows/s, {fps:g} are asked for: record at that rate.")
    _check_features(folder, info, cameras)
    stored = _stored_cameras(folder, info, cameras, units, calibration)
    table = _episode_table(folder, cameras)
    chosen = [table[i] for i in _split(folder, info, split, len(table))]
    if not chosen:
        raise DataError(f"{folder} holds no episodes{f' in split {split}' if split else ''}: collect some.")
    state, action = _read_rows(folder, info, chosen)
    if units == "degrees":
        state, action = _radians(state), _radians(action)

    n = len(state)
    images = {name: np.empty((n, 3, SIZE, SIZE), np.uint8) for name in cameras}
    geometry: dict[str, Camera] = {}
    with tqdm(total=n * len(cameras), unit="picture", desc=f"reading {folder}") as bar:
        for name in cameras:
            geometry[name], convert = _geometry(name, stored[name])
            _decode_camera(folder, info, name, chosen, images[name], convert, workers or os.cpu_count() or 1, bar)
    lengths = np.array([e["length"] for e in chosen])
    extras = [k for k in chosen[0] if k.startswith(EXTRA)]
    return Dataset(
        images, state, action, np.repeat(np.arange(len(chosen)), lengths).astype(np.int32),
        np.repeat(np.cumsum(lengths) - 1, lengths).astype(np.int32), [e["tasks"][0] for e in chosen],
        {k.removeprefix(EXTRA): np.array([e[k] for e in chosen]) for k in extras}, geometry, float(info["fps"]),
    )  # fmt: skip


def _stored_cameras(
    folder: Path, info: Mapping[str, Any], cameras: Sequence[str], units: str | None, calibration: Mapping[str, Camera] | None
) -> dict[str, Camera]:  # fmt: skip
    path = folder / "meta/harmowam.json"
    if path.exists():
        ours = _read_json(path)
        if ours.get("units") != "rad" or units not in (None, "rad"):
            raise DataError(f"{path} says units {ours.get('units')}, {units or 'rad'} is asked for: leave units away.")
        found = {k: Camera.from_json(v, str(path)) for k, v in ours["cameras"].items()}
    elif units is None or calibration is None:
        raise DataError(
            f"{folder} was not recorded by harmowam and says neither its units nor its cameras: add --units degrees (lerobot's SO-101) "
            f"and --cameras FOLDER with a calibration of each camera."
        )
    elif units not in ("degrees", "rad"):
        raise DataError(f"units are degrees or rad, not '{units}': give one of these.")
    else:
        found = {}
    found |= calibration or {}
    for name in cameras:
        if name not in found:
            raise DataError(
                f"camera '{name}' of {folder} has no calibration: add {name}.json to the folder of --cameras."
            )
        height, width = info["features"][_key(name)]["shape"][:2]
        if (found[name].height, found[name].width) != (height, width):
            raise DataError(
                f"camera '{name}' of {folder} stored {width}x{height}, its calibration is for "
                f"{found[name].width}x{found[name].height}: calibrate it at the recorded size."
            )
    return found


def _radians(joints: np.ndarray) -> np.ndarray:
    """lerobot's SO-101: degrees, and 0 (shut) to 100 (open) for the gripper."""
    from runtime.kinematics import SO101_LOWER, SO101_UPPER

    out = np.radians(joints)
    out[:, -1] = SO101_LOWER[-1] + joints[:, -1] / 100 * (SO101_UPPER[-1] - SO101_LOWER[-1])
    return out.astype(np.float32)
