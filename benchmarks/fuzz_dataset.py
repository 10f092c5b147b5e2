"""Damaged datasets: `python -m benchmarks.fuzz_dataset [--count N]`.

Every damage is one of: a file (table, JSON, video) with a bit turned over, bytes overwritten, cut out or doubled, or
cut short; a file that is gone, a folder, a pipe, a device, empty, or a pointer of Git LFS in its place; a valid JSON
file (or a line of JSON lines) with one value replaced or left out; a valid table with values replaced (NaN, none,
negative, huge), a column without its values' type, shape or name, rows left out, doubled or in another order; a valid
video of another size, length, rate or of something else. Each is done to a dataset of ours and to recordings of others:
v2.1 with videos and with pictures in its tables, v3, v2.0 without features.

A dataset of ours may be refused in a sentence, or read as what it was: the same numbers, episodes, instructions,
cameras and rate, and as many pictures. A recording is examined, which raises nothing, and then refused in a sentence or
read: no seal says what it was, so those read with another meaning are counted apart. Counted: what was read with
another meaning, what ended in any other exception, what took longer than 5 s.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz_bundle import damaged
from benchmarks.fuzz_calibration import Judged, judge, replace, report
from benchmarks.fuzz_log import odd_json
from calibration.camera import Camera
from common.errors import Mendable
from export.lerobot import Dataset, Episode, finish, load, video, write_part
from export.recordings import How, examine, read
from export.recordings.page import checked, page
from firmware_bridge.arms.so101 import FAMILY
from tests.recordings import Spec, write

FPS = 20.0
K = np.array([[115.0, 0, 47.5], [0, 115, 47.5], [0, 0, 1]])
CAMERAS = {
    "front": Camera("front", 96, 96, K, np.zeros(0), np.eye(4)),
    "wrist": Camera("wrist", 96, 96, K, np.zeros(0)),
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n"
ODD: tuple[Any, ...] = (None, float("nan"), float("inf"), -1, 0, 1, 1e30, 10**12, -(2**63), "x", "", [], [None], [1e9])


def made(folder: Path) -> Path:
    """A dataset of three short episodes in two parts."""
    rng = np.random.default_rng(0)

    def episode(rows: int, task: str) -> Episode:
        images = {name: rng.integers(0, 255, (rows, 6, 6, 3), np.uint8).repeat(16, 1).repeat(16, 2) for name in CAMERAS}
        state, action = rng.uniform(-1.5, 1.5, (2, rows, 6)).astype(np.float32)
        return Episode(images, state, action, task, {"play": rows % 2, "environment": "seen"})

    for part, lengths in enumerate([(5, 4), (6,)]):
        write_part(folder, part, [episode(n, f"task {n % 2}") for n in lengths], FPS, FAMILY.JOINTS)
    finish(folder, FPS, "so101_follower", FAMILY.JOINTS, CAMERAS)
    return folder


def meaning(folder: Path) -> Any:
    """What training takes from a dataset of ours, without the pictures' values."""
    return plainly(load(folder, workers=1))


def recorded(folder: Path) -> Any:
    """The same of a recording of others, at the policy's rate, after its page was made."""
    try:
        found = examine(folder, How(cameras={"front": "top"}))
        json.dumps(found.to_json(), allow_nan=False)
        page([checked(found)], FPS)
    except Mendable as e:
        raise AssertionError(f"examining raised {e}") from e
    return plainly(read(found, FPS, workers=1)[0])


def plainly(got: Dataset) -> Any:
    arrays = {"state": got.state, "action": got.action, "episode": got.episode, "last": got.last, **got.extra}
    plain = {k: (v.dtype.str, v.tolist()) for k, v in arrays.items()}
    cameras = {k: c.to_json() for k, c in got.cameras.items()}
    return plain, got.tasks, cameras, got.fps, got.arm.NAME, {k: v.shape for k, v in got.images.items()}


def odd_table(path: Path, rng: random.Random) -> str:
    """A valid table with one thing about it changed."""
    table = pq.read_table(path)
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = rng.choice(["value", "value", "value", "dropped", "renamed", "type", "shape", "rows", "order"])
    if kind == "dropped":
        table = table.drop_columns([name])
    elif kind == "renamed":
        table = table.rename_columns([f"{n}x" if n == name else n for n in table.column_names])
    elif kind == "rows":
        first = rng.randrange(table.num_rows)
        parts = rng.choice([[table.slice(0, first)], [table.slice(first)], [table, table], [table, table.slice(first)]])
        table = pa.concat_tables(parts)
    elif kind == "order":
        table = table.take(rng.sample(range(table.num_rows), table.num_rows))
    else:
        values: Any = column.to_pylist()
        row = rng.randrange(len(values))
        if kind == "type":
            values = (
                [rng.choice([str(v), [v], None]) for v in values] if rng.random() < 0.3 else [str(v) for v in values]
            )
        elif kind == "shape":
            values = [v[:-1] if isinstance(v, list) and v else [v, v] for v in values]
        elif isinstance(values[row], list) and values[row]:
            values[row][rng.randrange(len(values[row]))] = rng.choice(ODD)
        else:
            values[row] = rng.choice(ODD)
        try:
            array = pa.array(values, column.type if kind == "value" else None)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            try:
                array = pa.array(values)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                array = pa.nulls(len(values))
        table = table.set_column(at, name, array)
    pq.write_table(table, path)
    return f"{path.name}: {name}: {kind}"


def odd_video(path: Path, rng: random.Random) -> str:
    kind = rng.choice(["size", "long", "short", "rate", "other", "text"])
    rows, size, fps = 9, 96, FPS
    rows = {"long": 40, "short": 2}.get(kind, rows)
    size = {"size": rng.choice([2, 64, 128])}.get(kind, size)
    fps = {"rate": rng.choice([1.0, 5.0, 400.0])}.get(kind, fps)
    picture = np.random.default_rng(rng.randrange(99)).integers(0, 255, (size, size, 3), np.uint8)
    path.write_bytes(b"no video at all" if kind == "text" else video.encode([picture] * rows, fps))
    return f"{path.name}: {kind}"


def damage(path: Path, rng: random.Random) -> str:
    """Damage one file; returns what was done."""
    kind = rng.random()
    if kind < 0.15:
        return replace(path, rng)
    if kind < 0.2:
        path.write_bytes(POINTER % rng.randrange(10**9))
        return f"{path.name}: LFS pointer"
    if kind < 0.75 and path.suffix == ".json":
        path.write_bytes(odd_json(path.read_bytes(), rng))
        return f"{path.name}: odd JSON"
    if kind < 0.75 and path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = odd_json(lines[at], rng)
        path.write_bytes(b"\n".join(lines))
        return f"{path.name}: odd line"
    if kind < 0.75 and path.suffix == ".parquet":
        return odd_table(path, rng)
    if kind < 0.45 and path.suffix == ".mp4":
        return odd_video(path, rng)
    raw, what = damaged(path.read_bytes(), rng)
    path.write_bytes(raw)
    return f"{path.name}: {what}"


def put_back(work: Path, whole: Path, changed: list[Path]) -> None:
    for path in changed:
        there = work / path
        if there.is_dir():
            there.rmdir()
        else:
            there.unlink(missing_ok=True)
        shutil.copy(whole / path, there)


SMALL = {"top": (32, 32, "h264"), "side": (24, 32, "mpeg4")}
RECORDINGS = {
    "v2.1": Spec("v2.1", cameras=SMALL, lengths=(12, 10)),
    "v3": Spec("v3.0", cameras=SMALL, lengths=(12, 10), told="normalised"),
    "pictures": Spec("v2.1", cameras={"top": (32, 32, "png")}, lengths=(12, 10)),
    "early": Spec("v2.0", cameras=SMALL, lengths=(12, 10), info={"features": "absent"}),
}


def fuzz(whole: Path, work: Path, count: int, seed: int) -> Judged:
    """Read `count` damaged forms, made in copies at `work`, in turn of the dataset `whole` and of a recording of each
    kind."""
    rng, found = random.Random(seed), Judged()
    ours = Path(shutil.copytree(whole, work / "ours"))
    ways: list[tuple[Path, Path, Callable[[], Any], Any]] = [
        (ours, whole, functools.partial(meaning, ours), meaning(whole))
    ]
    for name, spec in RECORDINGS.items():
        original = write(work / "whole" / name, spec)
        copy = Path(shutil.copytree(original, work / name))
        recorded(copy)
        ways.append((copy, original, functools.partial(recorded, copy), None))
    for k in range(count):
        copy, original, take, expected = ways[k % len(ways)]
        files = [p.relative_to(copy) for p in sorted(copy.rglob("*")) if p.is_file()]
        changed = rng.sample(files, rng.choice([1, 1, 1, 2]))
        what = "; ".join(f"{path.parent}/{damage(copy / path, rng)}" for path in changed)
        judge(found, f"{copy.name}: {what}", take, expected)
        put_back(copy, original, changed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(made(Path(folder) / "whole"), Path(folder) / "work", args.count, args.seed)
    report(found, args.count, "datasets")


if __name__ == "__main__":
    main()
