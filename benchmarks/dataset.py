"""What storing pictures as video costs: size, error and time of each quality, then a dataset written and read with the one chosen.

`python -m benchmarks.dataset`. Pictures are rendered 96x96 views of a moving arm; episodes have 120 rows and two cameras.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from calibration.camera import policy_camera
from export.lerobot import Episode, finish, load, video, write_part
from runtime.preprocess import Warp
from sim.tasks import ARM, sample_layout
from sim.world import World

ROWS, EPISODES, FPS = 120, 6, 20.0
CAMERAS = ("front", "wrist")


def episodes() -> list[Episode]:
    """The arm wanders between random poses over a table laid at random."""
    world, rng = World(0), np.random.default_rng(0)
    warps = {
        c: Warp(world.camera(c), policy_camera(world.camera(c)), mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")
        for c in CAMERAS
    }
    out = []
    for _ in range(EPISODES):
        world.reset(sample_layout(rng))
        pictures: dict[str, list[np.ndarray]] = {c: [] for c in CAMERAS}
        state = []
        for i in range(ROWS):
            if i % 15 == 0:
                world.set_goals(world.q + rng.uniform(-0.35, 0.35, 6))
            world.advance(1 / FPS)
            state.append(world.measured)
            for c in CAMERAS:
                pictures[c].append(warps[c](world.render(c)).transpose(1, 2, 0))
        joints = np.array(state, np.float32)
        out.append(Episode({c: np.stack(p) for c, p in pictures.items()}, joints, joints, "wander", {}))
    world.close()
    return out


def quality(some: list[Episode], path: Path) -> None:
    print(
        f"{'setting':28}{'camera':>8}{'kB/episode':>12}{'mean':>7}{'p99':>5}{'max':>5}{'write ms':>10}{'pictures/s':>12}"
    )
    for change in ({"qp": "0"}, {"crf": "6"}, {"crf": "10"}, {"crf": "14"}, {"crf": "18"}):
        options = {k: v for k, v in video.OPTIONS.items() if k != "crf"} | change
        for camera in CAMERAS:
            sizes, errors, write, read = [], [], [], []
            for e in some:
                pictures = e.images[camera]
                begin = time.perf_counter()
                path.write_bytes(video.encode(pictures, FPS, options))
                write.append(time.perf_counter() - begin)
                out = np.empty((len(pictures), 3, 96, 96), np.uint8)
                begin = time.perf_counter()
                assert video.decode(path, FPS, np.arange(len(pictures)), out).all()
                read.append(len(pictures) / (time.perf_counter() - begin))
                sizes.append(path.stat().st_size / 1e3)
                errors.append(np.abs(out.astype(int) - pictures.transpose(0, 3, 1, 2)).astype(np.uint8))
            error = np.stack(errors)
            name = " ".join(f"{k} {v}" for k, v in change.items()) + (
                " (chosen)" if change.items() <= video.OPTIONS.items() else ""
            )
            print(
                f"{name:28}{camera:>8}{statistics.median(sizes):12.0f}{error.mean():7.2f}{np.percentile(error, 99):5.0f}{error.max():5}"
                f"{statistics.median(write) * 1e3:10.0f}{statistics.median(read):12.0f}"
            )


def whole(some: list[Episode], folder: Path) -> None:
    write = []
    for part in range(4):
        begin = time.perf_counter()
        write_part(folder, part, some, FPS, ARM.JOINTS)
        write.append((time.perf_counter() - begin) / len(some))
    world = World(0)
    begin = time.perf_counter()
    finish(folder, FPS, "so101_follower", ARM.JOINTS, {c: policy_camera(world.camera(c)) for c in CAMERAS})
    print(f"\nwrite_part {statistics.median(write):.3f} s an episode, finish {time.perf_counter() - begin:.3f} s")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / (4 * len(some))
    print(f"{size / 1e3:.0f} kB an episode, all files")
    for workers in (1, 2):
        rates = []
        for _ in range(3):
            begin = time.perf_counter()
            rows = len(load(folder, workers=workers).state)
            rates.append(len(CAMERAS) * rows / (time.perf_counter() - begin))
        print(f"load with {workers} thread{'s' * (workers > 1)}: {statistics.median(rates):.0f} pictures/s")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    some = episodes()
    with tempfile.TemporaryDirectory() as folder:
        quality(some, Path(folder) / "film.mp4")
        whole(some, Path(folder) / "set")


if __name__ == "__main__":
    main()
