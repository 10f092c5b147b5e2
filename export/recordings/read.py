"""Reads an examined recording at the policy's rate: joints linear in time, pictures the nearest."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calibration.camera import Camera
from export.lerobot.layout import DataError, Dataset, read_table
from export.lerobot.pictures import File, LostPictures, Pictures, VideoFile, geometry_of
from export.recordings.cameras import usual_camera
from export.recordings.clock import linear, nearest, times_at
from export.recordings.films import column, key_of, picture_of
from export.recordings.findings import Examined, Problem, Take
from export.recordings.layouts import MEND
from export.recordings.units import to_rad


@dataclass(frozen=True)
class ImageTable:
    """A table that holds pictures: row `pictures[k]` int64[n] of its column `key` goes to row `rows[k]` int64[n]."""

    path: Path
    folder: Path
    key: str
    stored: Camera
    pictures: np.ndarray
    rows: np.ndarray

    def into(self, out: np.ndarray | Path, counted: Path, number: int) -> None:
        """As `VideoFile.into`."""
        count, convert = np.memmap(counted, np.int64, "r+"), geometry_of(self.stored)[1]
        slots = np.load(out, mmap_mode="r+") if isinstance(out, Path) else out
        values = column(self.path, read_table(self.path, [self.key]), self.key)
        lost = []
        for picture, row in zip(self.pictures, self.rows):
            try:
                found = picture_of(values[int(picture)].as_py(), self.folder)
                if found.shape[:2] != (self.stored.height, self.stored.width):
                    raise DataError(f"a picture of {self.path} has another size: {MEND}.")
            except DataError:
                lost.append(picture)
                continue
            if convert is None:
                slots[row] = found.transpose(2, 0, 1)
            else:
                convert(found, slots[row])
            count[number] += 1
        if lost:
            text = f"{self.path}: {len(lost)} pictures of '{self.key}' cannot be read: {MEND}."
            raise LostPictures(text, self.path, np.array(lost))


@dataclass(frozen=True)
class Resampled:
    """A part of an episode at the policy's rate: `state`, `action` float32[K,J] (rad); `rows` int64[K]: rows of the
    episode whose pictures are nearest; `text`: its instruction."""

    take: Take
    state: np.ndarray
    action: np.ndarray
    rows: np.ndarray
    text: str


def resample(found: Examined, rate_hz: float) -> list[Resampled]:
    """Each part of each usable episode at `rate_hz`; parts of a single row are left out."""
    assert found.arm is not None
    out = []
    for take in found.takes:
        state, action = (to_rad(x, found.units, found.arm) for x in (take.state, take.action))
        for a, b, text in take.parts:
            t = take.t[a:b]
            at = times_at(t, rate_hz)
            if len(at) < 2:
                continue
            q, goal = (linear(t, x[a:b], at).astype(np.float32) for x in (state, action))
            out.append(Resampled(take, q, goal, a + nearest(t, at), text))
    return out


def refusal(found: Examined) -> DataError:
    """Everything that stands against reading `found`, in one text."""
    fatal = [p for p in found.problems if p.fatal]
    whole = [p for p in fatal if p.episode is None] or fatal
    said = "; ".join(f"{p.detail} ({p.fix})" for p in whole[:8]) or "it has no usable episode"
    return DataError(f"{found.folder} cannot be used: {said}: `harmowam data check {found.folder}` shows all.")


def read(
    found: Examined, rate_hz: float, cache: Path | None = None, workers: int | None = None
) -> tuple[Dataset, Examined]:
    """The dataset at `rate_hz`, and what was found with what decoding the pictures added to it: an episode whose
    pictures cannot be decoded is left out. `cache`, `workers`: as `export.lerobot.load`. Raises DataError where nothing
    can be read, which names everything that stands against it."""
    while found.accepted:
        try:
            return _read(found, rate_hz, cache, workers or os.cpu_count() or 1), found
        except LostPictures as e:
            found = _without(found, e)
    raise refusal(found)


def _without(found: Examined, lost: LostPictures) -> Examined:
    """`found` without the episodes that need these pictures."""
    kept, said = [], []
    for take in found.takes:
        needs = [p.numbers for p in take.pictures.values() if p.path == lost.path]
        if any(np.isin(n, lost.lost).any() for n in needs):
            why = f"pictures in {lost.path.name} cannot be decoded"
            said.append(Problem("pictures", take.number, why, "it is left out; download or record it again", True))
        else:
            kept.append(take)
    if not said:
        raise lost
    return dataclasses.replace(found, takes=tuple(kept), problems=(*found.problems, *said))


def _read(found: Examined, rate_hz: float, cache: Path | None, workers: int) -> Dataset:
    assert found.arm is not None
    parts = resample(found, rate_hz)
    if not parts:
        raise DataError(f"{found.folder} has no episode of two rows at {rate_hz:g} Hz: record longer ones.")
    lengths = np.array([len(p.state) for p in parts])
    images, geometry, guessed = dict[str, np.ndarray](), dict[str, Camera](), []
    total = int(lengths.sum()) * len(found.views)
    with tqdm(total=total, unit=" pictures", desc=f"reading {found.folder}", delay=1) as bar:
        for view, name in found.views.items():
            stored = found.how.calibration.get(view) or found.how.calibration.get(name)
            if stored is None:
                stored = usual_camera(found.cameras[name])
                guessed.append(view)
            geometry[view] = dataclasses.replace(geometry_of(stored)[0], name=view)
            files, copies = _files(found, name, parts, stored, workers)
            pictures = Pictures(view, int(lengths.sum()), files, workers, bar, copies)
            digest = json.dumps([stored.to_json(), geometry[view].to_json()])
            images[view] = pictures.cached(Path(cache), digest) if cache else pictures.decoded()
    return Dataset(
        images,
        np.concatenate([p.state for p in parts]),
        np.concatenate([p.action for p in parts]),
        np.repeat(np.arange(len(parts)), lengths).astype(np.int32),
        np.repeat(np.cumsum(lengths) - 1, lengths).astype(np.int32),
        [p.text for p in parts],
        {},
        geometry,
        rate_hz,
        found.arm,
        tuple(guessed),
    )


def _files(
    found: Examined, name: str, parts: Sequence[Resampled], stored: Camera, workers: int
) -> tuple[list[File], tuple[np.ndarray, np.ndarray]]:
    """The files of one camera, each picture once, and the rows that repeat a picture of another row."""
    wanted: dict[Path, list[np.ndarray]] = {}
    clocks: dict[Path, np.ndarray | None] = {}
    row = 0
    for p in parts:
        lies = p.take.pictures[name]
        clocks[lies.path] = lies.pts
        wanted.setdefault(lies.path, []).append(np.stack([lies.numbers[p.rows], row + np.arange(len(p.rows))]))
        row += len(p.rows)
    files: list[File] = []
    to, of = [], []
    threads = max(1, workers // len(wanted))
    for path, pairs in wanted.items():
        pictures, rows = np.concatenate(pairs, 1)
        once, first, which = np.unique(pictures, return_index=True, return_inverse=True)
        again = np.setdiff1d(np.arange(len(rows)), first)
        to.append(rows[again])
        of.append(rows[first][which[again]])
        if (pts := clocks[path]) is None:
            files.append(ImageTable(path, found.folder, key_of(path, name), stored, once, rows[first]))
        else:
            files.append(VideoFile(path, pts, stored, once, rows[first], threads))
    return files, (np.concatenate(to), np.concatenate(of))
