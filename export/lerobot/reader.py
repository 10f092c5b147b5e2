"""Reads one dataset of this project as arrays, or raises one sentence that says why not."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calibration.camera import Camera
from calibration.store import Store, load_camera
from common.files import barred
from export.lerobot.checks import (
    check_info,
    check_seal,
    episode_table,
    extra_columns,
    seal_of,
    vectors,
    whole_numbers,
)
from export.lerobot.layout import (
    INFO,
    OURS,
    PICTURES,
    SCHEMA,
    VECTORS,
    DataError,
    Dataset,
    read_json,
    read_table,
)
from export.lerobot.pictures import Pictures, files_of, geometry_of
from firmware_bridge.arms import FAMILIES
from firmware_bridge.arms.family import Family
from sim.tasks import ARM

Row = Mapping[str, Any]  # columns of the episode table
Columns = Mapping[str, tuple[int, tuple[int, ...]]]  # per vector: width, and the columns of the joints


def load(
    folder: Path,
    cameras: Sequence[str] = ("front", "wrist"),
    *,
    fps: float | None = None,
    split: str | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    arm: Family | None = None,
) -> Dataset:
    """Read a dataset that this project wrote, of an arm of that family (None: of the one that it names);
    `export.recordings` reads those of others.

    `fps`: refuse any other rate. `split`: only the episodes of that split. Pictures of another size than 96x96 or with
    lens distortion are cropped and warped to the central square by the robot's pre-processing. `cache`: keep decoded
    pictures in that folder and map them into memory: the next load, or another process, then takes neither time nor
    memory of its own. `workers`: how many decode at the same time, by default one per processor; for a large cache they
    are processes, so a script that calls this needs its `if __name__ == "__main__":`. Raises DataError for a dataset
    that cannot be used, and CalibrationError for a file that is no camera calibration.
    """
    folder = Path(folder)
    info = read_info(folder, fps)
    arm = _family_of(info) if arm is None else arm
    columns = check_features(folder, info, cameras, arm)
    stored = _stored_cameras(folder, info, cameras)
    table = episode_table(folder, info, cameras)
    chosen = [table[i] for i in _split(folder, info, split, len(table))]
    if not chosen:
        raise DataError(f"{folder} holds no episodes{f' in split {split!r}' if split else ''}: collect or record some.")
    tables, state, action = read_rows(folder, info, chosen, columns)
    _check_units(folder, state, action)
    extra, seal = extra_columns(folder, chosen), _check_sealed(folder, info, tables)
    if schema_of(folder) == 1:
        state, action = (ARM.from_mirrored(x).astype(np.float32) for x in (state, action))
    images, geometry = dict[str, np.ndarray](), dict[str, Camera]()
    with tqdm(total=len(state) * len(cameras), unit=" pictures", desc=f"reading {folder}", delay=1) as bar:
        for name in cameras:
            geometry[name], _ = geometry_of(stored[name])
            many = workers or os.cpu_count() or 1
            files = files_of(folder, info, name, stored[name], chosen, many, seal)
            pictures = Pictures(name, len(state), files, many, bar)
            digest = json.dumps([stored[name].to_json(), geometry[name].to_json()])
            images[name] = pictures.cached(Path(cache), digest) if cache else pictures.decoded()
    lengths = np.array([e["length"] for e in chosen])
    return Dataset(
        images,
        state,
        action,
        np.repeat(np.arange(len(chosen)), lengths).astype(np.int32),
        np.repeat(np.cumsum(lengths) - 1, lengths).astype(np.int32),
        [e["tasks"][0] for e in chosen],
        extra,
        geometry,
        float(info["fps"]),
        arm,
    )


def read_cameras(folder: Path) -> dict[str, Camera]:
    """The calibrations `front.json`, `wrist.json`, ... in a folder, or the current ones of a calibration store, by
    camera name. Raises CalibrationError, and DataError where there is none."""
    if said := barred(folder):
        raise DataError(said)
    found = {path.stem: load_camera(path) for path in sorted(Path(folder).glob("*.json"))}
    for pointer in sorted(Path(folder).glob("*/current")):
        if Store(folder).get(pointer.parent.name)["kind"] == "camera":
            found[pointer.parent.name] = load_camera(pointer.parent)
    if not found:
        raise DataError(
            f"{folder} holds no camera calibrations: put front.json and wrist.json there, or name a calibration store."
        )
    return found


def schema_of(folder: Path) -> int | None:
    """The content of meta/harmowam.json; None for a dataset that this project did not write."""
    return int(read_json(folder / OURS)["schema"]) if (folder / OURS).exists() else None


def read_info(folder: Path, fps: float | None) -> dict[str, Any]:
    for part in (folder, folder / "meta/episodes"):  # searched for files, and an unreadable folder shows none
        if said := barred(part):
            raise DataError(said)
    if not (folder / INFO).exists():
        raise DataError(f"{folder} holds no finished dataset: collect one with `harmowam collect --out {folder}`.")
    info = read_json(folder / INFO)
    version = info.get("codebase_version")
    if not str(version).startswith("v3."):
        raise DataError(
            f"{folder} is LeRobotDataset {version}, v3 is read here: convert it with lerobot's script for that."
        )
    check_info(folder, info)
    if fps is not None and not math.isclose(info["fps"], fps, rel_tol=1e-6):
        raise DataError(f"{folder} has {info['fps']} rows/s and {fps:g} are asked for: record it at that rate.")
    return info


def _family_of(info: Mapping[str, Any]) -> Family:
    """The arm family that the dataset's `robot_type` names. An unknown name, as in a copy of an old recording, is taken
    as the arm of the tasks."""
    return next((f for f in FAMILIES.values() if info.get("robot_type") in f.LEROBOT), ARM)


def check_features(folder: Path, info: Mapping[str, Any], cameras: Sequence[str], arm: Family) -> Columns:
    """Width of each vector, and its columns that hold the arm's joints, in the arm's order."""
    features, columns = info["features"], {}
    other = [f.NAME for f in FAMILIES.values() if info.get("robot_type") in f.LEROBOT and f.NAME != arm.NAME]
    if other:
        raise DataError(
            f"{folder} was recorded with a {other[0]} ({info['robot_type']}): use a dataset of a {arm.NAME}."
        )
    for k in VECTORS:
        names = features.get(k, {}).get("names")
        if isinstance(names, dict):  # form of datasets converted from older versions: {"motors": [...]}
            names = next(iter(names.values()), None)
        found = arm.lerobot_columns(names) if isinstance(names, list) else None
        if found is None:
            raise DataError(
                f"'{k}' of {folder} is {names}, not {', '.join(f'{j}.pos' for j in arm.JOINTS)}: use a dataset of a "
                f"{arm.NAME}."
            )
        columns[k] = (len(names), found)
    stored = {k.removeprefix(PICTURES): f.get("dtype") for k, f in features.items() if k.startswith(PICTURES)}
    for name in cameras:
        if name not in stored:
            raise DataError(
                f"{folder} has no camera '{name}', only {', '.join(stored) or 'none'}: record it with a camera of "
                "that name."
            )
        if stored[name] != "video":
            raise DataError(f"camera '{name}' of {folder} is stored as {stored[name]}: record it with videos.")
    return columns


def _stored_cameras(folder: Path, info: Mapping[str, Any], cameras: Sequence[str]) -> dict[str, Camera]:
    path = folder / OURS
    if not path.exists():
        raise DataError(
            f"{folder} was not recorded by harmowam ({OURS} is missing): see `harmowam data check {folder}`."
        )
    ours = read_json(path)
    if not isinstance(ours.get("schema"), int) or ours["schema"] > SCHEMA or not isinstance(ours.get("cameras"), dict):
        raise DataError(f"{path} has schema {ours.get('schema')}, this version reads {SCHEMA}: upgrade harmowam.")
    if ours.get("units") != "rad":
        raise DataError(f"{path} says units {ours.get('units')}, and rad is written here: restore it or collect again.")
    found = {k: Camera.from_json(v, str(path)) for k, v in ours["cameras"].items()}
    for name in cameras:
        if name not in found:
            raise DataError(
                f"camera '{name}' of {folder} has no calibration: put {name}.json into a folder for --cameras."
            )
        height, width = info["features"][PICTURES + name]["shape"][:2]
        if (found[name].height, found[name].width) != (height, width):
            raise DataError(
                f"camera '{name}' of {folder} stored {width}x{height} and its calibration is for {found[name].width}x"
                f"{found[name].height}: calibrate it at the stored size."
            )
    return {name: found[name] for name in cameras}


def _split(folder: Path, info: Mapping[str, Any], split: str | None, count: int) -> range:
    if split is None:
        return range(count)
    splits = info.get("splits") or {}
    if split not in splits:
        raise DataError(f"{folder} has no split '{split}', only {', '.join(splits) or 'none'}: choose one of these.")
    try:
        first, last = (int(v) for v in splits[split].split(":"))
    except ValueError as e:
        raise DataError(
            f"the split '{split}' of {folder} is {splits[split]}, not FIRST:LAST: correct it in {INFO}."
        ) from e
    return range(first, min(last, count))


def read_rows(
    folder: Path, info: Mapping[str, Any], chosen: Sequence[Row], columns: Columns
) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """The files that hold the chosen episodes; their state and action float32[N,J], in that order."""
    files: dict[Path, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    parts = []
    for e in chosen:
        path = folder / info["data_path"].format(chunk_index=e["data/chunk_index"], file_index=e["data/file_index"])
        if path not in files:
            files[path] = _rows_by_episode(path, columns)
        rows = files[path].get(e["episode_index"], (np.empty((0, 1)),) * 2)
        if len(rows[0]) != e["length"]:
            raise DataError(
                f"{path} has {len(rows[0])} rows of episode {e['episode_index']} instead of {e['length']}: restore it "
                "or collect again."
            )
        for what, x in zip(VECTORS, rows):
            bad = np.flatnonzero(~np.isfinite(x).all(1))
            if len(bad):
                raise DataError(
                    f"'{what}' in row {bad[0]} of episode {e['episode_index']} of {folder} is not a number: remove "
                    "that "
                    f"episode or record it again."
                )
        parts.append(rows)
    return list(files), np.concatenate([s for s, _ in parts]), np.concatenate([a for _, a in parts])


def _rows_by_episode(path: Path, columns: Columns) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    table = read_table(path, [*VECTORS, "episode_index", "frame_index"])
    episode, frame = (whole_numbers(path, table, c) for c in ("episode_index", "frame_index"))
    order = np.lexsort((frame, episode))
    values = [vectors(path, table, c, columns[c][0])[order][:, columns[c][1]] for c in VECTORS]
    numbers, first = np.unique(episode[order], return_index=True)
    return {int(n): (values[0][a:b], values[1][a:b]) for n, a, b in zip(numbers, first, [*first[1:], len(order)])}


def _check_sealed(folder: Path, info: Mapping[str, Any], tables: Sequence[Path]) -> Mapping[str, str] | None:
    """The dataset's seal, if it has one, after a look at `info` and the tables; after other checks, whose sentences say
    more."""
    seal = seal_of(folder)
    if seal is not None:
        check_seal(folder, seal, info, [*sorted((folder / "meta/episodes").rglob("*.parquet")), *tables])
    return seal


def _check_units(folder: Path, *vectors: np.ndarray) -> None:
    """Refuse what cannot be rad by the largest angle: no joint of an arm turns further than a whole turn."""
    furthest = max(float(np.abs(x[:, :-1]).max()) for x in vectors)
    if furthest > 2 * np.pi:
        raise DataError(f"joints in {folder} reach {furthest:.0f}, these are no radians: restore it or collect again.")
