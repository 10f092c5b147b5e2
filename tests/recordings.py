"""Small recordings as other people's lerobot leaves them: v2.0, v2.1 and v3, of any rate, names, units and codec."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.recordings import Examined
from firmware_bridge.arms.so101 import FAMILY as so101

os.environ.setdefault("SVT_LOG", "0")  # of the AV1 encoder, which tells its settings

ENCODERS = {
    "h264": ("libx264", "yuv420p", {"crf": "20", "preset": "veryfast"}),
    "av1": ("libsvtav1", "yuv420p", {"crf": "35", "preset": "13", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", "yuv420p", {"qscale": "3"}),
}
STEP_DEG = 360 / 4096
RANGES = np.array([2703, 2389, 2211, 2345, 3979])  # steps between the stops that an owner swept
POSITIONS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
OLD = [f"main_{n}" for n in POSITIONS]


@dataclass(frozen=True)
class Spec:
    """What a recording is like. `cameras`: name -> (width, height, codec). `told`: units of the joints as stored."""

    version: str = "v2.1"
    fps: float = 30.0
    robot: str | None = "so101_follower"
    names: Any = field(default_factory=lambda: [f"{n}.pos" for n in POSITIONS])
    cameras: Mapping[str, tuple[int, int, str]] = field(default_factory=lambda: {"front": (64, 48, "h264")})
    lengths: Sequence[int] = (45, 40)
    tasks: Sequence[str] = ("pick up the cube", "put the cube into the box")
    told: str = "degrees"
    video_fps: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    # of real episodes, in place of made-up ones: joint angles (rad, stored in degrees) and pictures uint8[rows,H,W,3]
    shot: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    delay_s: float | None = None  # the pictures show the arm that much later than the joints; None: numbered pictures


def motion(rows: int, seed: int, fps: float) -> np.ndarray:
    """Joint angles float64[rows,5] in whole servo steps from the middle of the ranges, with rests between moves."""
    rng = np.random.default_rng(seed)
    moves = max(2, round(rows / fps / 0.8))
    places = rng.uniform(-500, 500, (moves + 1, 5)) * [1, 0.6, 1, 1, 1]
    at = np.linspace(0, moves, rows)
    k = np.minimum(at.astype(int), moves - 1)
    share = np.clip((at - k - 0.2) / 0.6, 0, 1)
    share = share**3 * (10 - 15 * share + 6 * share**2)  # least jerk
    return np.round(places[k] + (places[k + 1] - places[k]) * share[:, None])


def values(spec: Spec, seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State and action float32[rows,6] as stored, and the true angles float64[rows,6] in rad."""
    if spec.shot:
        true = spec.shot[seed][0]
        stored = so101.to_lerobot(true)
        return stored.astype(np.float32), stored.astype(np.float32), true
    steps, jaw = motion(rows, seed, spec.fps), np.linspace(2, 80, rows)
    true = np.column_stack(
        [np.radians(steps * STEP_DEG), so101.LOWER[5] + jaw / 100 * np.ptp([so101.LOWER[5], so101.UPPER[5]])]
    )
    if spec.told == "degrees":
        stored = np.column_stack([steps * STEP_DEG, jaw])
    elif spec.told == "normalised":  # position - range_min in whole steps, so the middle of an odd range is half a step
        stored = np.column_stack([2 * (steps + RANGES // 2) / RANGES * 100 - 100, jaw])
        true[:, :5] = np.radians((steps + RANGES // 2 - RANGES / 2) * STEP_DEG)
    else:
        stored = true
    action = np.roll(stored, -2, 0)
    action[-2:] = stored[-1]
    return stored.astype(np.float32), action.astype(np.float32), true


def picture(i: int, episode: int, width: int, height: int, shift: float = 0.0) -> np.ndarray:
    """A grey picture with a bright square that moves, and its number in six bits below: uint8[height,width,3]."""
    out = np.full((height, width, 3), 40 + 30 * episode, np.uint8)
    x = int((width - 12) * (0.5 + 0.45 * np.sin(0.3 * (i - shift))))
    cv2.rectangle(out, (x, height // 3), (x + 8, height // 3 + 8), (230, 60, 40), -1)
    side = min(width, height)
    block, left, low = side / 8, (width - side) / 2, (height + side) / 2
    for k in range(6):
        ends = round(left + block * (k + 1)), round(left + block * (k + 2))
        out[round(low - block) : round(low), slice(*ends)] = 235 if i >> k & 1 else 20
    return out


def encode(path: Path, pictures: Sequence[np.ndarray], fps: float, codec: str) -> None:
    name, pixels, options = ENCODERS[codec]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.thread_count = pixels, 1
        for p in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format="rgb24")))
        container.mux(stream.encode())


def features(spec: Spec) -> dict[str, Any]:
    vector = {"dtype": "float32", "shape": [6], "names": spec.names}
    found: dict[str, Any] = {"action": vector, "observation.state": vector}
    for name, (width, height, codec) in spec.cameras.items():
        found[f"observation.images.{name}"] = {
            "dtype": "image" if codec == "png" else "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": None if codec == "png" else {"video.fps": spec.fps, "video.codec": codec},
        }
    for k in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        found[k] = {"dtype": "float32" if k == "timestamp" else "int64", "shape": [1], "names": None}
    return found


def drawn(spec: Spec, name: str, number: int, rows: int) -> list[np.ndarray]:
    """The arm as a line from above on a table with a pattern, `spec.delay_s` late, with noise."""
    width, height, _ = spec.cameras[name]
    rng, t = np.random.default_rng(number), np.arange(rows) / spec.fps
    q = np.stack([np.interp(t - (spec.delay_s or 0.0), t, x) for x in truth(spec)[number].T], 1)
    soft = np.random.default_rng(7).integers(90, 190, (9, 12, 3)).astype(np.uint8)
    table = cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC)
    at = np.concatenate([so101.frames(q)[..., :3, 3], so101.tool(q)[:, None, :3, 3]], 1)
    px = np.stack([width / 2 - at[..., 1] / 0.9 * width, height * 0.95 - at[..., 0] / 0.5 * height * 0.9], -1)
    noise = np.round(rng.normal(0, 2, table.shape)).astype(np.int16)
    out = []
    for line in px:
        picture = table.copy()
        cv2.polylines(picture, [line.astype(np.int32)], False, (240, 240, 235), max(3, width // 40))
        moved = np.roll(noise.ravel(), rng.integers(noise.size)).reshape(noise.shape)
        out.append(np.clip(picture + moved, 0, 255).astype(np.uint8))
    return out


def films(spec: Spec, name: str, number: int, rows: int) -> list[np.ndarray]:
    if spec.shot:
        return list(spec.shot[number][1])
    if spec.delay_s is not None:
        return drawn(spec, name, number, rows)
    width, height, _ = spec.cameras[name]
    return [picture(i, number, width, height) for i in range(rows)]


def table(spec: Spec, number: int, first: int) -> pa.Table:
    rows = spec.lengths[number]
    state, action, _ = values(spec, number, rows)
    columns: dict[str, Any] = {
        "action": list(action),
        "observation.state": list(state),
        "timestamp": (np.arange(rows) / spec.fps).astype(np.float32),
        "frame_index": np.arange(rows),
        "episode_index": np.full(rows, number),
        "index": np.arange(first, first + rows),
        "task_index": np.full(rows, number % len(spec.tasks)),
    }
    for name, (_, _, codec) in spec.cameras.items():
        if codec == "png":
            stored = [cv2.imencode(".png", p[..., ::-1])[1].tobytes() for p in films(spec, name, number, rows)]
            columns[f"observation.images.{name}"] = [
                {"bytes": b, "path": f"frame_{i:06d}.png"} for i, b in enumerate(stored)
            ]
    return pa.table(columns)


def write(folder: Path, spec: Spec) -> Path:
    """Write a recording of `spec.lengths` rows an episode; episode k asks for task k."""
    (folder / "meta").mkdir(parents=True)
    firsts = np.cumsum([0, *spec.lengths])
    info: dict[str, Any] = {
        "codebase_version": spec.version,
        "robot_type": spec.robot,
        "total_episodes": len(spec.lengths),
        "total_frames": int(firsts[-1]),
        "total_tasks": len(spec.tasks),
        "chunks_size": 1000,
        "fps": spec.fps,
        "splits": {"train": f"0:{len(spec.lengths)}"},
        "features": features(spec),
    }
    tables = [table(spec, n, int(firsts[n])) for n in range(len(spec.lengths))]
    (_write_3 if spec.version.startswith("v3") else _write_2)(folder, spec, info, tables)
    info = {k: v for k, v in (info | dict(spec.info)).items() if v != "absent"}
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def _write_2(folder: Path, spec: Spec, info: dict[str, Any], tables: Sequence[pa.Table]) -> None:
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "data/chunk-000").mkdir(parents=True)
    for n, rows in enumerate(tables):
        pq.write_table(rows, folder / f"data/chunk-000/episode_{n:06d}.parquet")
        for name, (_, _, codec) in spec.cameras.items():
            if codec != "png":
                path = folder / f"videos/chunk-000/observation.images.{name}/episode_{n:06d}.mp4"
                encode(path, films(spec, name, n, rows.num_rows), spec.video_fps or spec.fps, codec)
    lines = [
        {"episode_index": n, "tasks": [spec.tasks[n % len(spec.tasks)]], "length": rows}
        for n, rows in enumerate(spec.lengths)
    ]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    asked = [{"task_index": k, "task": text} for k, text in enumerate(spec.tasks)]
    (folder / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))


def _write_3(folder: Path, spec: Spec, info: dict[str, Any], tables: Sequence[pa.Table]) -> None:
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    for part in ("data/chunk-000", "meta/episodes/chunk-000"):
        (folder / part).mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), folder / "data/chunk-000/file-000.parquet")
    rows, first = [], 0
    for n, length in enumerate(spec.lengths):
        row: dict[str, Any] = {"episode_index": n, "tasks": [spec.tasks[n % len(spec.tasks)]], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        for name, (_, _, codec) in spec.cameras.items():
            if codec != "png":
                key = f"videos/observation.images.{name}"
                row |= {f"{key}/chunk_index": 0, f"{key}/file_index": 0}
                row |= {f"{key}/from_timestamp": first / spec.fps, f"{key}/to_timestamp": (first + length) / spec.fps}
        rows.append(row)
        first += length
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    asked = pa.table({"task_index": np.arange(len(spec.tasks)), "__index_level_0__": list(spec.tasks)})
    pq.write_table(asked, folder / "meta/tasks.parquet")
    for name, (_, _, codec) in spec.cameras.items():
        if codec != "png":
            pictures = [p for n, length in enumerate(spec.lengths) for p in films(spec, name, n, length)]
            path = folder / f"videos/observation.images.{name}/chunk-000/file-000.mp4"
            encode(path, pictures, spec.video_fps or spec.fps, codec)


def like(spec: Spec, **changes: Any) -> Spec:
    return dataclasses.replace(spec, **changes)


def truth(spec: Spec) -> list[np.ndarray]:
    """The true joint angles of each episode, float64[rows,6] in rad."""
    return [values(spec, n, rows)[2] for n, rows in enumerate(spec.lengths)]


def edit_rows(path: Path, column: str, change: Any) -> None:
    """Replace a column of a table by `change` of its values as a list."""
    rows = pq.read_table(path)
    values = pa.array(change(rows[column].to_pylist()))
    pq.write_table(rows.set_column(rows.column_names.index(column), column, values), path)


def kinds(found: Examined, fatal: bool | None = None) -> list[str]:
    return [p.kind for p in found.problems if fatal is None or p.fatal is fatal]


def said(found: Examined, kind: str) -> str:
    return " | ".join(str(p) for p in found.problems if p.kind == kind)


def shown(pictures: np.ndarray) -> np.ndarray:
    """The numbers that the pictures show in six bits (`tests.recordings.picture`)."""
    bits = [pictures[:, :, 87:93, 15 + 12 * k : 21 + 12 * k].mean((1, 2, 3)) > 128 for k in range(6)]
    return sum(b.astype(int) << k for k, b in enumerate(bits))


def smooth(folder: Path, scale: float = 1.0, most: float = 100.0) -> None:
    """Values between the servo's steps, as a simulation or a filter leaves them."""
    rng = np.random.default_rng(1)

    def off_the_steps(rows: list[Any]) -> list[Any]:
        moved = np.array(rows) * scale + rng.uniform(-0.5, 0.5, (len(rows), 6))
        return list(np.clip(moved, -most, most).astype(np.float32))

    for path in folder.rglob("episode_*.parquet"):
        for column in ("observation.state", "action"):
            edit_rows(path, column, off_the_steps)
