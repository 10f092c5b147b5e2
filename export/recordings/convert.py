"""Writes recordings out clean, as one LeRobotDataset v3 of this project: rad, an even clock, one task an episode.

Pictures keep their size and are encoded again (H.264); a camera that is a view of the policy gets the view's name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calibration.camera import Camera
from export.lerobot import CHUNK_SIZE, Episode, finish, write_part
from export.lerobot.layout import DataError
from export.recordings.clock import linear, nearest, times_at
from export.recordings.findings import Examined, Problem, Take
from export.recordings.pictures import pictures
from export.recordings.read import refusal
from export.recordings.units import to_rad


def convert(founds: Sequence[Examined], out: Path) -> tuple[int, list[Problem]]:
    """Write the usable episodes of `founds` to the folder `out`, which must not exist. Returns how many, and what kept
    others out. Raises DataError where the recordings do not fit together, or nothing can be written."""
    bad = next((f for f in founds if not f.accepted), None)
    if bad is not None:
        raise refusal(bad)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name a new folder with --out.")
    first = founds[0]
    names = _names(first)
    fps = float(round(first.fps)) if abs(first.fps - round(first.fps)) < 0.02 * first.fps else first.fps
    for f in founds[1:]:
        same = {n: (k.width, k.height) for n, k in zip(_names(f).values(), f.cameras.values())}
        if f.arm is not first.arm or same != {names[n]: (k.width, k.height) for n, k in first.cameras.items()}:
            raise DataError(
                f"{f.folder} has another arm, other cameras or sizes than {first.folder}: convert them one by one, "
                "`harmowam train` takes several datasets."
            )
    takes = [(f, t, part) for f in founds for t in f.takes for part in t.parts]
    each = -(-len(takes) // CHUNK_SIZE)
    said, written, number = list[Problem](), 0, 0
    assert first.arm is not None
    with tempfile.TemporaryDirectory(dir=_made(out)) as scratch, tqdm(total=len(takes), unit="episode", delay=1) as bar:
        for k in range(0, len(takes), each):
            episodes = []
            for j, (f, take, part) in enumerate(takes[k : k + each]):
                try:
                    episodes.append(_episode(f, take, part, fps, Path(scratch), j))
                except DataError as e:
                    detail, _, fix = str(e).rpartition(": ")
                    said.append(Problem("pictures", take.number, detail, fix.rstrip("."), True))
                bar.update()
            if episodes:
                write_part(out, number, episodes, fps, first.arm.JOINTS)
                number, written = number + 1, written + len(episodes)
    finish(out, fps, first.arm.LEROBOT[0], first.arm.JOINTS, _calibrated(first))
    return written, said


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{out} cannot be written ({e.strerror}): name another folder with --out.") from e
    return out


def _names(found: Examined) -> dict[str, str]:
    """Camera of the recording -> its name in the new dataset."""
    views = {name: view for view, name in found.views.items()}
    return {name: views.get(name, name) for name in found.cameras}


def _calibrated(found: Examined) -> dict[str, Camera]:
    known = found.how.calibration
    return {new: c for name, new in _names(found).items() if (c := known.get(new) or known.get(name)) is not None}


def _episode(
    found: Examined, take: Take, part: tuple[int, int, str], fps: float, scratch: Path, number: int
) -> Episode:
    """One part of an episode at an even rate; its pictures lie in files of `scratch`, not in memory."""
    a, b, text = part
    assert found.arm is not None
    t = take.t[a:b]
    at = times_at(t, fps)
    chosen = a + nearest(t, at)
    state, action = (
        linear(t, to_rad(x[a:b], found.units, found.arm), at).astype(np.float32) for x in (take.state, take.action)
    )
    images = dict[str, np.ndarray]()
    for name, new in _names(found).items():
        film = found.cameras[name]
        path = scratch / f"{number}-{len(images)}.rgb"
        held = np.memmap(path, np.uint8, "w+", shape=(len(at), film.height, film.width, 3))
        for k, (_, coloured) in enumerate(pictures(found, take, name)):
            for row in np.flatnonzero(chosen == k):
                held[row] = coloured()
        images[new] = held
    return Episode(images, state, action, text, {})
