"""A small LeRobotDataset of drawn pictures, for tests that write, read and damage one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibration.camera import Camera
from export.lerobot import Episode, finish, write_part
from firmware_bridge.arms.so101 import FAMILY as so101

FPS = 20.0
TASKS = ("put the red cube on the blue plate", "press the buttons: left, right")


def camera(name: str, width: int = 96, height: int = 96, D: tuple[float, ...] = ()) -> Camera:
    K = np.array([[height * 1.2, 0, (width - 1) / 2], [0, height * 1.2, (height - 1) / 2], [0, 0, 1]])
    return Camera(name, width, height, K, np.array(D), np.eye(4) if name == "front" else None)


CAMERAS = {name: camera(name) for name in ("front", "wrist")}


def film(rows: int, seed: int, width: int = 96, height: int = 96) -> np.ndarray:
    """A soft background, a small sharp square that moves and a disc that does not: uint8[rows,height,width,3]."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.integers(60, 200, (6, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    out = np.repeat(soft[None], rows, 0)
    for i, picture in enumerate(out):
        x, y = (10 + 3 * i) % (width - 20), (20 + i) % (height - 20)
        cv2.rectangle(picture, (x, y), (x + 7, y + 7), (220, 30, 30), -1)
        cv2.circle(picture, (width // 2, height - 25), 9, (30, 60, 210), -1)
    return out


def episode(seed: int, rows: int) -> Episode:
    rng = np.random.default_rng(seed)
    state, action = rng.uniform(-1.5, 1.5, (2, rows, 6)).astype(np.float32)
    images = {"front": film(rows, seed), "wrist": film(rows, 100 + seed)}
    extra: dict[str, float | int | str] = {
        "task_id": TASKS[seed % 2].split()[0],
        "play": seed % 2,
        "seed": 1000 + seed,
        "friction": 0.5 * seed,
    }
    return Episode(images, state, action, TASKS[seed % 2], extra)


PARTS = {0: [episode(0, 23), episode(1, 12)], 1: [episode(2, 31)], 4: [episode(3, 9), episode(5, 1)]}
EPISODES = [e for part in PARTS.values() for e in part]


def write_all(folder: Path) -> None:
    for part, episodes in PARTS.items():
        write_part(folder, part, episodes, FPS, so101.JOINTS)
    finish(folder, FPS, "so101_follower", so101.JOINTS, CAMERAS)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_column(path: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path)
    i = table.schema.get_field_index(column)
    values = change(table[column].to_pylist())
    pq.write_table(table.set_column(i, table.schema.field(i), pa.array(values, table.schema.field(i).type)), path)
