"""Several datasets as one: ours, and recordings of others, at the policy's rate and with a weight each."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calibration.camera import Camera
from export.config import Config
from export.data import VIEWS, Demonstrations, demonstrations
from export.lerobot import DataError, Dataset, load
from export.lerobot.layout import INFO, OURS, PICTURES, read_json
from export.recordings import How, examine, read
from firmware_bridge.arms.family import Family


@dataclass(frozen=True)
class Source:
    """A dataset. `weight`: share of the rows drawn from it, relative to the other datasets."""

    folder: Path
    how: How = field(default_factory=How)
    weight: float = 1.0


def load_sources(
    sources: Sequence[Source],
    cache: Path | None = None,
    rate_hz: float = Config.rate_hz,
    arm: Family | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Demonstrations:
    """Read datasets of one arm (`arm`, None: the one that the first names) as one. `say` gets what was found in
    recordings of others, a line each. Raises DataError, which names everything that stands against reading one."""
    parts: list[Dataset] = []
    for source in sources:
        known = arm or (parts[0].arm if parts else None)
        parts.append(_one(source, cache, rate_hz, known, say))
    if len(parts) == 1:
        return demonstrations(parts[0])
    weighted = len({s.weight for s in sources}) > 1
    share = [np.full(len(p.state), s.weight / len(p.state), np.float32) for s, p in zip(sources, parts)]
    return demonstrations(_joined(parts, cache, say), np.concatenate(share) if weighted else None)


def _one(
    source: Source, cache: Path | None, rate_hz: float, arm: Family | None, say: Callable[[str], object]
) -> Dataset:
    if _as_written(source, rate_hz):
        return load(source.folder, VIEWS, fps=rate_hz, cache=cache, arm=source.how.arm or arm)
    found = examine(source.folder, dataclasses.replace(source.how, arm=source.how.arm or arm))
    data, found = read(found, rate_hz, cache)
    say(
        f"{found.folder}: {len(found.takes)} of {found.listed} episodes; joints in {found.units.joints}: "
        f"{found.units.evidence}"
    )
    for p in found.problems:
        say(f"{found.folder}: {p.kind}: {p}")
    return data


def _as_written(source: Source, rate_hz: float) -> bool:
    """Whether a dataset of ours is read as it was written: at its rate, its views by their names and calibrations."""
    if not (source.folder / OURS).exists() or not (source.folder / INFO).exists():
        # a folder that holds nothing is refused by `load`, which says how to collect one
        return not (source.folder / INFO).exists()
    if dataclasses.replace(source.how, arm=None) != How():
        return False
    info, ours = read_json(source.folder / INFO), read_json(source.folder / OURS)
    fps, cameras, features = info.get("fps"), ours.get("cameras"), info.get("features")
    if not isinstance(fps, (int, float)) or not isinstance(cameras, dict) or not isinstance(features, dict):
        return True  # damaged: refused by `load`
    uncalibrated = [v for v in VIEWS if v not in cameras and PICTURES + v in features]
    return math.isclose(fps, rate_hz, rel_tol=1e-6) and not uncalibrated


def _joined(parts: Sequence[Dataset], cache: Path | None, say: Callable[[str], object]) -> Dataset:
    first = parts[0]
    views = set(first.cameras)
    for p in parts[1:]:
        if set(p.cameras) != views:
            raise DataError(
                f"the datasets have different views ({', '.join(sorted(views))}; {', '.join(sorted(p.cameras))}): map "
                "the cameras of each with --camera, or train on one."
            )
    lengths = [len(p.state) for p in parts]
    episodes = np.cumsum([0, *(len(p.tasks) for p in parts)])
    rows = np.cumsum([0, *lengths])
    names = set.intersection(*(set(p.extra) for p in parts))
    apart = tuple(v for v in VIEWS if v in views and any(not alike(first.cameras[v], p.cameras[v]) for p in parts))
    for v in apart:
        say(f"the {v} cameras of the datasets see differently: only ACT is trained on them together")
    return Dataset(
        {v: _stacked([p.images[v] for p in parts], v, cache) for v in first.images},
        np.concatenate([p.state for p in parts]),
        np.concatenate([p.action for p in parts]),
        np.concatenate([p.episode + k for p, k in zip(parts, episodes)]).astype(np.int32),
        np.concatenate([p.last + k for p, k in zip(parts, rows)]).astype(np.int32),
        [t for p in parts for t in p.tasks],
        {k: np.concatenate([p.extra[k] for p in parts]) for k in names},
        first.cameras,
        first.fps,
        first.arm,
        tuple(dict.fromkeys([*(v for p in parts for v in p.uncalibrated), *apart])),
    )


def alike(a: Camera, b: Camera) -> bool:
    """Whether two cameras of a policy see the same: lens and pose."""
    same = _close(a.T_base_from_cam, b.T_base_from_cam) and _close(a.T_tool_from_cam, b.T_tool_from_cam)
    return same and np.allclose(a.K, b.K, atol=0.5)


def _close(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) if a is None or b is None else np.allclose(a, b, atol=1e-3)


def _stacked(images: Sequence[np.ndarray], view: str, cache: Path | None) -> np.ndarray:
    """All pictures uint8[N,3,96,96] in one array; in the folder `cache` as a file that is mapped into memory."""
    if cache is None:
        return np.concatenate(images)
    names = "".join(str(getattr(x, "filename", "")) for x in images)
    path = cache / f"{view}-joined-{hashlib.sha256(names.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        shape = (sum(len(x) for x in images), *images[0].shape[1:])
        try:
            out, row = np.lib.format.open_memmap(partial, "w+", np.uint8, shape), 0
            for x in images:
                out[row : row + len(x)] = x
                row += len(x)
            out.flush()
            partial.replace(path)
        except OSError as e:
            raise DataError(f"{path} cannot be written ({e.strerror}): mend that, or read without a cache.") from e
        finally:
            partial.unlink(missing_ok=True)
    joined: np.ndarray = np.load(path, mmap_mode="r")
    return joined
