"""Demonstrations: collecting them with the scripted expert, and reading them back as arrays.

A dataset is a folder of shards (`shard-000.npz`) plus `meta.json`. A row is one control step at `rate_hz`: both views as
the pre-processing kernel gives them (uint8 planar RGB, 96x96), the measured pose, the expert's clean target, and the
frame index of the next gripper event.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calibration.camera import Camera
from export.config import Config
from export.lerobot import DataError
from runtime.preprocess import Warp
from sim.expert import Follower, joints_for, plan_pick_place
from sim.world import World, sample_layout

CONTROL_HZ = 50.0


def policy_camera(native: Camera, size: int = 96) -> Camera:
    """The training geometry: the central square of the native picture, `size` pixels wide."""
    side = min(native.width, native.height)
    K = native.K.copy()
    K[0, 2] -= (native.width - side) / 2
    K[1, 2] -= (native.height - side) / 2
    return Camera(native.name, side, side, K, np.zeros(0), native.T_base_from_cam).scaled(size, size)


def record_episode(
    world: World, warps: dict[str, Warp], seed: int, rate_hz: float
) -> tuple[dict[str, np.ndarray], bool]:
    """One demonstration on `world`; arrays of its rows, and whether it succeeded."""
    rng = np.random.default_rng([seed, 1])
    world.reset(sample_layout(rng))
    follower = Follower(world, plan_pick_place(world, rng), rng)
    every = round(CONTROL_HZ / rate_hz)
    dt = 1.0 / CONTROL_HZ
    rows: dict[str, list[np.ndarray]] = {k: [] for k in ("front", "wrist", "pose", "target")}
    clean: list[np.ndarray] = []
    events: list[int] = []
    tick, done, success = 0, False, False
    while not done:
        if tick % every == 0:
            rows["front"].append(warps["front"](world.render("front")))
            rows["wrist"].append(warps["wrist"](world.render("wrist")))
            rows["pose"].append(world.pose)
            rows["target"].append(follower.clean())
        executed, event, done = follower.step(dt)
        if event:
            events.append(len(rows["front"]) - 1)
        clean.append(follower.clean())
        world.set_goals(joints_for(executed))
        world.advance(dt)
        success = success or world.success()
        tick += 1
    n = len(rows["front"])
    next_event = np.full(n, n - 1)
    for e in reversed(events):
        next_event[:e] = e
    out = {
        "front": np.stack(rows["front"]), "wrist": np.stack(rows["wrist"]),
        "pose": np.stack(rows["pose"]).astype(np.float32), "target": np.stack(rows["target"]).astype(np.float32),
        "next_event": next_event.astype(np.int32), "events": np.array(events, np.int32),
    }  # fmt: skip
    return out, success


def _worker(args: tuple[int, int, int, str, float]) -> tuple[int, int, int]:
    """Collect `count` successful episodes from seeds `first`, `first + 1`, ...; write one shard."""
    shard, first, count, folder, rate_hz = args
    world = World(0)
    warps = {
        c: Warp(world.camera(c), policy_camera(world.camera(c)), mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")
        for c in ("front", "wrist")
    }
    episodes: list[dict[str, np.ndarray]] = []
    instructions: list[str] = []
    tried, seed = 0, first
    while len(episodes) < count:
        rows, success = record_episode(world, warps, seed, rate_hz)
        tried, seed = tried + 1, seed + 1
        if success:
            episodes.append(rows)
            instructions.append(world.instruction)
    world.close()
    lengths = np.array([len(e["front"]) for e in episodes], np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    stacked = {k: np.concatenate([e[k] for e in episodes]) for k in ("front", "wrist", "pose", "target")}
    stacked["next_event"] = np.concatenate(
        [e["next_event"] + o for e, o in zip(episodes, offsets, strict=True)]
    ).astype(np.int32)
    stacked["events"] = np.concatenate([e["events"] + o for e, o in zip(episodes, offsets, strict=True)]).astype(
        np.int32
    )
    path = Path(folder) / f"shard-{shard:03d}.npz"
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, lengths=lengths, instructions=np.array(instructions), **stacked)
    os.replace(partial, path)
    return shard, count, tried


def collect(
    folder: Path, episodes: int, seed: int = 0, workers: int | None = None, rate_hz: float = Config.rate_hz
) -> dict[str, int]:
    """Collect `episodes` successful demonstrations into `folder`; returns how many were kept and tried. Shards that exist are kept."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    per_shard = 20
    jobs = []
    for shard in range((episodes + per_shard - 1) // per_shard):
        if not (folder / f"shard-{shard:03d}.npz").exists():
            # Seeds of different shards never meet, however many tries fail.
            jobs.append(
                (
                    shard,
                    seed * 10_000_000 + shard * 1000,
                    min(per_shard, episodes - shard * per_shard),
                    str(folder),
                    rate_hz,
                )
            )
    kept = tried = 0
    with (
        mp.get_context("spawn").Pool(workers or os.cpu_count()) as pool,
        tqdm(total=sum(j[2] for j in jobs), unit="episode") as bar,
    ):
        for _, count, n in pool.imap_unordered(_worker, jobs):
            kept, tried = kept + count, tried + n
            bar.update(count)
    world = World(0)
    cameras = {c: policy_camera(world.camera(c)).to_json() for c in ("front", "wrist")}
    meta = {"schema": 1, "rate_hz": rate_hz, "seed": seed, "episodes": episodes, "cameras": cameras}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))
    return {"kept": kept, "tried": tried}


@dataclass(frozen=True)
class Demonstrations:
    """All rows of a dataset, end to end; `episode` int32[N] numbers them, `last` int32[N] is the last row of the same episode."""

    front: np.ndarray  # uint8[N,3,96,96]
    wrist: np.ndarray
    pose: np.ndarray  # float32[N,6]
    target: np.ndarray  # float32[N,6]
    next_event: np.ndarray  # int32[N]
    events: np.ndarray  # int32[E]
    episode: np.ndarray
    last: np.ndarray
    instructions: list[str]  # one an episode
    cameras: dict[str, Camera]
    rate_hz: float


def _shard(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as f, np.load(f) as arrays:  # np.load leaves a damaged file open when it opens it itself
        return dict(arrays)


def load(folder: Path) -> Demonstrations:
    """Read a dataset; raises DataError when it is absent, empty or damaged."""
    folder = Path(folder)
    shards = sorted(p for p in folder.glob("shard-*.npz") if ".partial" not in p.name)
    if not shards or not (folder / "meta.json").exists():
        raise DataError(f"{folder} holds no demonstrations: collect some with `harmowam collect --out {folder}`.")
    try:
        meta = json.loads((folder / "meta.json").read_text())
        parts = [_shard(p) for p in shards]
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise DataError(
            f"a shard of {folder} is damaged ({e}): delete it and run `harmowam collect --out {folder}` again."
        ) from e
    base = episodes = 0
    fields: dict[str, list[np.ndarray]] = {
        k: [] for k in ("front", "wrist", "pose", "target", "next_event", "events", "episode", "last")
    }
    instructions: list[str] = []
    for part in parts:
        for k in ("front", "wrist", "pose", "target"):
            fields[k].append(part[k])
        for k in ("next_event", "events"):
            fields[k].append(part[k] + base)
        lengths = part["lengths"]
        fields["episode"].append(np.repeat(np.arange(len(lengths)) + episodes, lengths))
        fields["last"].append(np.repeat(np.cumsum(lengths) - 1 + base, lengths))
        instructions += [str(s) for s in part["instructions"]]
        base, episodes = base + int(lengths.sum()), episodes + len(lengths)
    arrays = {k: np.concatenate(v) for k, v in fields.items()}
    if not all(np.isfinite(arrays[k]).all() for k in ("pose", "target")):
        raise DataError(f"{folder} holds poses or targets that are not numbers: collect it again.")
    cameras = {k: Camera.from_json(v, f"{folder}/meta.json") for k, v in meta["cameras"].items()}
    return Demonstrations(**arrays, instructions=instructions, cameras=cameras, rate_hz=float(meta["rate_hz"]))
