"""Looks at every picture and row of a recording once, and measures what a person wants to know before training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from export.lerobot.layout import DataError
from export.recordings import sync
from export.recordings.clock import clock_of
from export.recordings.findings import Examined, Take
from export.recordings.pictures import pictures
from export.recordings.units import to_rad

STRIP = 96  # height of the pictures on the page, pixels
MOST_STRIPS = 1600  # pictures on the page
SAME = 0.15  # change of a picture, as a share of those around it, below which it repeats the one before
DARK, BRIGHT = 40.0, 215.0  # mean brightness, of 255
BLURRED = 25.0  # variance of the Laplacian of a picture of height 120, below which it is blurred


@dataclass(frozen=True)
class Look:
    """One camera in one episode. `strip`: JPEGs; `motion` float64[T-1]: mean change from picture to picture, of 255
    levels; `brightness` of 255; `sharpness`: variance of the Laplacian; `doubled`: pictures that repeat the one before
    while the arm moves."""

    camera: str
    strip: tuple[bytes, ...]
    motion: np.ndarray
    brightness: float
    sharpness: float
    doubled: int


@dataclass(frozen=True)
class Seen:
    """One episode. `tasks`: the instruction of each of its parts. `q`, `goal` float64[T,J] rad; `jitter_ms`, `late`: of
    its rows (`clock.Clock`)."""

    number: int
    tasks: tuple[str, ...]
    seconds: float
    q: np.ndarray
    goal: np.ndarray
    jitter_ms: float
    late: int
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Survey:
    """`lag_ms`: how much later the positions are than the goals; `alike`: pairs of nearly the same episodes."""

    episodes: tuple[Seen, ...]
    syncs: tuple[sync.Sync, ...]
    lag_ms: float | None
    alike: tuple[tuple[int, int], ...]


def survey(found: Examined, workers: int | None = None) -> Survey:
    """Decode every picture of the usable episodes once. An episode whose pictures cannot be decoded has no `looks`."""
    assert found.arm is not None
    count = int(np.clip(MOST_STRIPS / max(1, len(found.takes) * len(found.cameras)), 3, 8))
    jobs = [(take, name) for take in found.takes for name in found.cameras]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        looks = list(pool.map(lambda job: _look(found, job[0], job[1], count), jobs))
    seen = []
    for k, take in enumerate(found.takes):
        mine = looks[k * len(found.cameras) : (k + 1) * len(found.cameras)]
        q, goal = (to_rad(x, found.units, found.arm) for x in (take.state, take.action))
        clock = clock_of(take.t)
        seen.append(
            Seen(
                take.number,
                tuple(p[2] for p in take.parts),
                float(take.t[-1]),
                q,
                goal,
                clock.jitter_ms if clock else 0.0,
                clock.late if clock else 0,
                tuple(look for look in mine if look is not None),
            )
        )
    moved = [sync.travel(found.arm, s.q) for s in seen]
    syncs = []
    for name in found.cameras:
        pairs = [(look.motion, m) for s, m in zip(seen, moved) for look in s.looks if look.camera == name]
        syncs.append(sync.find(name, pairs, found.fps))
    goals = [(m, sync.travel(found.arm, s.goal)) for s, m in zip(seen, moved)]
    lag = sync.find("joints", goals, found.fps).delay_ms
    return Survey(tuple(seen), tuple(syncs), lag, tuple(_alike(seen)))


def _look(found: Examined, take: Take, name: str, count: int) -> Look | None:
    """None where the pictures cannot be decoded."""
    chosen = set(np.linspace(0, len(take.rows) - 1, count).round().astype(int).tolist())
    grey, strip = [], []
    brightness, sharpness = [], []
    try:
        for k, (small, coloured) in enumerate(pictures(found, take, name)):
            grey.append(small)
            if k in chosen:
                whole = coloured()
                brightness.append(float(small.mean()))
                size = (max(1, round(whole.shape[1] * 120 / whole.shape[0])), 120)
                plain = cv2.cvtColor(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
                sharpness.append(float(cv2.Laplacian(plain, cv2.CV_64F).var()))
                strip.append(_jpeg(whole))
    except DataError:
        return None
    if len(grey) < 2:
        return None
    steps = np.array([float(np.abs(np.subtract(b, a, dtype=np.int16)).mean()) for a, b in zip(grey, grey[1:])])
    assert found.arm is not None
    moved = sync.travel(found.arm, to_rad(take.state, found.units, found.arm))[: len(steps)]
    doubled = int((_repeats(steps)[: len(moved)] & (moved > 0.25 * float(np.quantile(moved, 0.9)))).sum())
    return Look(name, tuple(strip), steps, float(np.mean(brightness)), float(np.mean(sharpness)), doubled)


def _repeats(steps: np.ndarray) -> np.ndarray:
    """bool[T-1]: which pictures hardly differ from the one before, while those within three of it do, on either side: a
    codec leaves a little of its own even between equal pictures."""
    padded = np.concatenate([np.zeros(3), steps, np.zeros(3)])
    near = np.lib.stride_tricks.sliding_window_view(padded, 7)
    return steps < SAME * np.minimum(near[:, :3].max(1), near[:, 4:].max(1))


def _jpeg(picture: np.ndarray) -> bytes:
    size = (max(1, round(picture.shape[1] * STRIP / picture.shape[0])), STRIP)
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1]
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 65])[1].tobytes()


def _alike(seen: Sequence[Seen], within_rad: float = 0.05) -> list[tuple[int, int]]:
    """Pairs of episodes whose joints, at 20 times spread over each, differ by less than that (root mean square)."""
    if not seen:
        return []
    rows = np.stack([s.q[np.linspace(0, len(s.q) - 1, 20).astype(int)].ravel() for s in seen])
    out = []
    for k in range(len(rows)):
        away = np.sqrt(((rows[k + 1 :] - rows[k]) ** 2).mean(1))
        out += [(seen[k].number, seen[k + 1 + int(j)].number) for j in np.flatnonzero(away < within_rad)]
    return out
