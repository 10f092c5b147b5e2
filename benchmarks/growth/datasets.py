"""More episodes: a dataset by the real writer, opened and drawn from as a training does."""

from __future__ import annotations

import resource
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from benchmarks.growth.apart import apart, own_mb, peak_mb, spread, timed
from benchmarks.growth.table import Row, Table
from calibration.camera import policy_camera
from export.data import PER_PART, VIEWS
from export.lerobot import Episode, finish, write_part
from firmware_bridge.arms.so101 import FAMILY as so101
from tests.dataset import camera

EPISODES = (100, 300, 1000)
WRITTEN = 4  # parts that are encoded; the others repeat their files under other numbers
ROWS, FPS = 40, 20.0  # of an episode
BATCH = 64
REPEATED = 3  # what is done in a second: the quietest of so many


def _film(rng: np.random.Generator) -> np.ndarray:
    """A soft background and a square that moves: uint8[ROWS,96,96,3]."""
    soft = cv2.resize(rng.integers(60, 200, (6, 6, 3)).astype(np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
    out = np.repeat(soft[None], ROWS, 0)
    for i, picture in enumerate(out):
        cv2.rectangle(picture, (10 + i, 20 + i), (17 + i, 27 + i), (220, 30, 30), -1)
    return out


def _episode(seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    q = np.cumsum(rng.normal(0, 0.01, (ROWS, 6)), 0).astype(np.float32)
    q[:, -1] = 0.1 + 0.4 * (np.arange(ROWS) > ROWS // 2)  # the jaw opens once
    return Episode({n: _film(rng) for n in VIEWS}, q, q, f"instruction {seed % 6}", {"task": "plate", "play": 0})


def write(folder: str) -> dict[str, float]:
    """The parts that are encoded."""

    def all_parts() -> None:
        for part in range(WRITTEN):
            episodes = [_episode(PER_PART * part + i) for i in range(PER_PART)]
            write_part(Path(folder), part, episodes, FPS, so101.JOINTS)

    _, seconds, used = timed(all_parts)
    return {"episodes/s": WRITTEN * PER_PART / seconds, "processor, s": used, "peak memory, MB": peak_mb()}


def repeated(source: Path, folder: Path, parts: int) -> None:
    """A folder of so many parts: the files of `source`, each again under further numbers."""
    for file in sorted(source.rglob("file-*.*")):
        first = int(file.stem.removeprefix("file-"))
        for part in range(first, parts, WRITTEN):
            to = folder / file.relative_to(source).with_name(f"file-{part:03d}{file.suffix}")
            to.parent.mkdir(parents=True, exist_ok=True)
            if "episodes" not in file.parts:
                shutil.copyfile(file, to)
                continue
            table = pq.read_table(file)
            for k in [k for k in table.column_names if k.endswith("/file_index")]:
                at = table.schema.get_field_index(k)
                table = table.set_column(at, table.schema.field(at), [[part] * table.num_rows])
            pq.write_table(table, to)


def finished(folder: str) -> dict[str, float]:
    """The pass that numbers parts and seals the folder."""
    cameras = {n: policy_camera(camera(n)) for n in VIEWS}
    runs = [timed(finish, Path(folder), FPS, "so101_follower", so101.JOINTS, cameras)[1:] for _ in range(REPEATED)]
    seconds, used = map(min, zip(*runs, strict=True))
    return {"seconds": seconds, "processor, s": used, "peak memory, MB": peak_mb()}


def opened(folder: str, times: int) -> dict[str, float]:
    """As a training opens it: through a cache, which the first opening fills."""
    from export.data import load_demonstrations

    runs = [timed(load_demonstrations, Path(folder), Path(folder, "cache")) for _ in range(times)]
    data, seconds, used = runs[0][0], min(r[1] for r in runs), min(r[2] for r in runs)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    used += children.ru_utime + children.ru_stime
    rows = float(len(data.front))
    return {"rows": rows, "seconds": seconds, "processor, s": used, "peak memory, MB": peak_mb()}


def sampled(folder: str, batches: int) -> dict[str, float]:
    """Batches of rows of both views: each row once in random order, then drawn at random."""
    from export.data import load_demonstrations

    data = load_demonstrations(Path(folder), Path(folder, "cache"))
    rng = np.random.default_rng(0)

    def batch(rows: np.ndarray) -> int:
        return len(data.front[rows]) + len(data.wrist[rows])

    order = rng.permutation(len(data.front))[: len(data.front) // BATCH * BATCH].reshape(-1, BATCH)
    first = [1e3 * timed(batch, rows)[2] for rows in order]
    drawn = [timed(batch, rng.integers(len(data.front), size=BATCH)) for _ in range(batches)]
    p50, p99 = spread([1e3 * seconds for _, seconds, _ in drawn])
    return {
        "rows/s": 1e3 * BATCH / p50,
        "batch p50, ms": p50,
        "batch p99, ms": p99,
        "processor a batch, ms": spread([1e3 * used for *_, used in drawn])[0],
        "the first time, ms": spread(first)[0],
        "own memory, MB": own_mb(),
        "with mapped pages, peak MB": peak_mb(),
    }


def tables(small: bool) -> list[Table]:
    """Finishing, opening twice, drawing from; one process each."""
    counts = (100, 200) if small else EPISODES
    rows: dict[str, list[Row]] = {k: [] for k in ("finished", "first", "again", "sampled")}
    with tempfile.TemporaryDirectory() as folder:
        written = apart("datasets", "write", folder=f"{folder}/parts")
        for n in counts:
            at = f"{folder}/{n}"
            repeated(Path(folder, "parts"), Path(at), n // PER_PART)
            cost = {"finished": apart("datasets", "finished", folder=at)}
            for k, times in (("first", 1), ("again", REPEATED)):
                cost[k] = apart("datasets", "opened", folder=at, times=times)
            cost["sampled"] = apart("datasets", "sampled", folder=at, batches=50 if small else 400)
            for k, figures in cost.items():
                rows[k].append(Row(f"{n} episodes", n, figures))
            shutil.rmtree(at)
    watched = ("processor, s", "peak memory, MB")
    about = (
        f"Episodes of {ROWS} rows at {FPS:g} a second with two views of 96x96, {PER_PART} a part. {WRITTEN} parts are "
        f"encoded ({written['episodes/s']:.1f} episodes a second, {written['peak memory, MB']:.0f} MB), the others are "
        "the same files under other numbers."
    )
    drawing = (
        f"Batches of {BATCH} random rows, both views, from the mapped cache. `the first time`: processor "
        "time of a batch whose pages the process has not touched. `own memory` is without the cache's pages, which the "
        "system takes back where it needs room; where they do not fit, every batch waits for the disk, and the rate "
        "bends there."
    )
    return [
        Table("Finishing a dataset", "episodes", tuple(rows["finished"]), watched, about),
        Table(
            "Opening it for the first time",
            "episodes",
            tuple(rows["first"]),
            watched,
            "Checks, index, and every picture decoded into the cache, by as many processes as there are processors "
            "from 20,000 rows on; each takes about a second of processor to start, and their memory is not counted.",
        ),
        Table("Opening it again", "episodes", tuple(rows["again"]), watched, "Checks and index; the cache is mapped."),
        Table(
            "Drawing batches",
            "episodes",
            tuple(rows["sampled"]),
            ("processor a batch, ms", "the first time, ms", "own memory, MB"),
            drawing,
        ),
    ]
