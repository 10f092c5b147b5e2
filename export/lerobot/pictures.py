"""Reads the pictures of one camera from video files into one array."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from tqdm import tqdm

from calibration.camera import Camera, policy_camera
from common.errors import unreadable
from export.lerobot import video
from export.lerobot.checks import sha256
from export.lerobot.layout import OURS, PICTURES, DataError, check_file
from runtime.preprocess import Warp

SIZE = 96
MOST_PICTURES = 10_000_000  # of a video: a part is shorter by far
# From this number of pictures on, processes decode into the cache. Threads wait for each other at Python's lock (16
# threads on 16 cores read 4,500 pictures per second, two on two cores 5,000 to 7,000, two processes 8,700), but a
# process takes a second to start.
MANY = 20_000
LOOK_S = 0.5  # how often the bar follows what is decoded
Convert = Callable[[np.ndarray, np.ndarray], object]


def geometry_of(stored: Camera) -> tuple[Camera, Convert | None]:
    """The camera of the pictures that are returned, and the warp that makes them from stored ones (None: they are
    equal)."""
    if (stored.width, stored.height) == (SIZE, SIZE) and not np.any(stored.D):
        return stored, None
    target = policy_camera(stored, SIZE)
    return target, Warp(stored, target, mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")


class LostPictures(DataError):
    """Pictures of a file that cannot be decoded. `path`; `lost` int64[k]: which, counted from the file's first."""

    def __init__(self, text: str, path: Path, lost: np.ndarray):
        super().__init__(text, path, lost)  # all of them: an exception comes from another process by its arguments
        self.path, self.lost = path, lost

    def __str__(self) -> str:
        return unreadable(self) or str(self.args[0])


@dataclass(frozen=True)
class VideoFile:
    """One video. `clock`: of its pictures (`video.decode`). Picture `pictures[k]` int64[n] goes to row `rows[k]`
    int64[n]. `stored`: the camera of its pictures. `digest`: SHA-256 of the file, None where it is not known."""

    path: Path
    clock: float | np.ndarray
    stored: Camera
    pictures: np.ndarray
    rows: np.ndarray
    threads: int
    digest: str | None = None

    def into(self, out: np.ndarray | Path, counted: Path, number: int) -> None:
        """Decode into the rows of an array or of an .npy file; entry `number` of the int64 in the file `counted` says
        how many pictures so far. Raises DataError."""
        check_file(self.path)
        count = np.memmap(counted, np.int64, "r+")

        def found() -> None:
            count[number] += 1

        slots = np.load(out, mmap_mode="r+") if isinstance(out, Path) else out
        if (most := int(self.pictures.max()) + 1) > MOST_PICTURES:
            raise DataError(f"{self.path} would hold more than {MOST_PICTURES} pictures: restore it or collect again.")
        place = np.full(most, -1, np.int64)
        place[self.pictures] = self.rows
        try:
            seen = video.decode(
                self.path,
                self.clock,
                place,
                slots,
                convert=geometry_of(self.stored)[1],
                threads=self.threads,
                found=found,
            )
        except (OSError, ValueError, IndexError, av.FFmpegError) as e:
            raise LostPictures(
                f"{self.path} cannot be read ({getattr(e, 'strerror', None) or e}): restore it or collect again.",
                self.path,
                self.pictures,
            ) from e
        lost = np.flatnonzero((place >= 0) & ~seen)
        if len(lost):
            raise LostPictures(
                f"{self.path} is truncated, {len(lost)} of {(place >= 0).sum()} pictures are missing: restore it or "
                "collect again.",
                self.path,
                lost,
            )
        if self.digest is not None and sha256(self.path) != self.digest:
            raise DataError(
                f"{self.path} is damaged or was changed (it does not match its hash in {OURS}): restore it or collect "
                "again."
            )


class File(Protocol):
    """What `Pictures` reads: a video, or a table that holds pictures."""

    @property
    def path(self) -> Path: ...

    @property
    def pictures(self) -> np.ndarray: ...

    @property
    def rows(self) -> np.ndarray: ...

    def into(self, out: np.ndarray | Path, counted: Path, number: int) -> None: ...


def files_of(
    folder: Path,
    info: Mapping[str, Any],
    camera: str,
    stored: Camera,
    chosen: Sequence[Mapping[str, Any]],
    workers: int,
    seal: Mapping[str, str] | None,
) -> list[VideoFile]:
    """The videos of one camera of a dataset of ours, with the rows of the chosen episodes."""
    files: dict[Path, list[np.ndarray]] = {}
    row, fps = 0, float(info["fps"])
    for e in chosen:
        of = {k: e[f"videos/{PICTURES}{camera}/{k}"] for k in ("chunk_index", "file_index", "from_timestamp")}
        path = folder / info["video_path"].format(
            video_key=PICTURES + camera, chunk_index=of["chunk_index"], file_index=of["file_index"]
        )
        span, n = round(of["from_timestamp"] * fps), e["length"]
        if span + n > MOST_PICTURES:
            raise DataError(f"{path} would hold more than {MOST_PICTURES} pictures: restore it or collect again.")
        files.setdefault(path, []).append(np.stack([np.arange(span, span + n), np.arange(row, row + n)]))
        row += n
    threads, out = max(1, workers // len(files)), []
    for path, spans in files.items():
        digest = None if seal is None else seal.get(str(path.relative_to(folder)), "")
        pictures, rows = np.concatenate(spans, 1)
        out.append(VideoFile(path, fps, stored, pictures, rows, threads, digest))
    return out


class Pictures:
    """The pictures of one camera: their files, and how they are read into an array."""

    def __init__(
        self,
        camera: str,
        rows: int,
        files: Sequence[File],
        workers: int,
        bar: tqdm,
        copies: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """`copies`: rows int64[k] that get the same picture as the rows int64[k] which `files` fill."""
        self._camera, self._rows, self._files, self._workers, self._bar = camera, rows, files, workers, bar
        self._copies = copies

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self._rows, 3, SIZE, SIZE

    def decoded(self) -> np.ndarray:
        out = np.empty(self._shape, np.uint8)
        with ThreadPoolExecutor(self._workers) as pool:
            self._all_into(out, pool)
        self._repeat(out)
        return out

    def _repeat(self, out: np.ndarray) -> None:
        if self._copies is not None:
            to, of = self._copies
            for a, b in zip(to, of):  # one by one: fancy indexing would hold all of them in memory
                out[a] = out[b]
            self._bar.update(len(to))

    def cached(self, cache: Path, geometry: str) -> np.ndarray:
        digest = hashlib.sha256(f"{geometry} {self._shape}".encode())
        for file in self._files:
            there = file.path.stat() if file.path.exists() else None
            digest.update(f"{file.path.resolve()} {there and (there.st_size, there.st_mtime_ns)}".encode())
            digest.update(file.pictures.astype(np.int64).tobytes() + file.rows.astype(np.int64).tobytes())
        if self._copies is not None:
            digest.update(b"".join(rows.astype(np.int64).tobytes() for rows in self._copies))
        path = cache / f"{self._camera}-{digest.hexdigest()[:16]}.npy"
        if path.exists():
            self._bar.update(self._rows)
            return np.load(path, mmap_mode="r")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            out = np.lib.format.open_memmap(partial, "w+", np.uint8, self._shape)
            # reserves the space: a full disk is an error here and not a bus error later
            with open(partial, "r+b") as f:
                os.posix_fallocate(f.fileno(), 0, partial.stat().st_size)
            with self._pool() as pool:
                self._all_into(partial, pool)
            self._repeat(out)
            out.flush()
            os.replace(partial, path)
        except OSError as e:
            raise DataError(f"{path} cannot be written ({e.strerror}): mend that, or read without a cache.") from e
        finally:
            partial.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r")

    def _pool(self) -> Executor:
        workers = min(self._workers, len(self._files))
        if self._rows < MANY or workers < 2:
            return ThreadPoolExecutor(workers)
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    def _all_into(self, out: np.ndarray | Path, pool: Executor) -> None:
        with tempfile.NamedTemporaryFile() as counted:  # a process of the pool has no other way to say how far it is
            count = np.memmap(counted.name, np.int64, "w+", shape=(len(self._files),))
            jobs = [pool.submit(f.into, out, Path(counted.name), k) for k, f in enumerate(self._files)]
            try:
                follow(self._bar, jobs, count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def follow(bar: tqdm, jobs: Sequence[Future[None]], count: np.ndarray) -> None:
    """Move the bar by what the jobs add to `count` int64[jobs], until they end: one file may take minutes. Raises what
    a job raises."""
    left, shown = set(jobs), 0
    while left:
        over, left = wait(left, LOOK_S, FIRST_COMPLETED)
        for job in over:
            job.result()
        sofar = int(count.sum())
        bar.update(sofar - shown)
        shown = sofar
