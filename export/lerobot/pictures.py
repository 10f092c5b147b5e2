"""The pictures of one camera, from video files into one array."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from calibration.camera import Camera, policy_camera
from export.lerobot import video
from export.lerobot.layout import PICTURES, DataError
from runtime.preprocess import Warp

SIZE = 96
Convert = Callable[[np.ndarray, np.ndarray], object]


def geometry_of(stored: Camera) -> tuple[Camera, Convert | None]:
    """The camera of the pictures as they are handed out, and what makes them from stored ones (None: they are the same)."""
    if (stored.width, stored.height) == (SIZE, SIZE) and not np.any(stored.D):
        return stored, None
    target = policy_camera(stored, SIZE)
    return target, Warp(stored, target, mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")


class Pictures:
    """The pictures of one camera: where they lie, and how they get into an array."""

    def __init__(
        self, folder: Path, info: Mapping[str, Any], camera: str, chosen: Sequence[Mapping[str, Any]],
        convert: Convert | None, workers: int, bar: tqdm,
    ):  # fmt: skip
        self._fps, self._convert, self._workers, self._bar = info["fps"], convert, workers, bar
        self._camera, self._rows = camera, sum(e["length"] for e in chosen)
        self._files: dict[Path, list[tuple[int, int, int]]] = {}  # first picture in the file, first row, how many
        row = 0
        for e in chosen:
            of = {k: e[f"videos/{PICTURES}{camera}/{k}"] for k in ("chunk_index", "file_index", "from_timestamp")}
            path = folder / info["video_path"].format(
                video_key=PICTURES + camera, chunk_index=of["chunk_index"], file_index=of["file_index"]
            )
            self._files.setdefault(path, []).append((round(of["from_timestamp"] * self._fps), row, e["length"]))
            row += e["length"]
        self._lock = threading.Lock()

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        return self._rows, 3, SIZE, SIZE

    def decoded(self) -> np.ndarray:
        out = np.empty(self._shape, np.uint8)
        self._into(out)
        return out

    def cached(self, cache: Path, geometry: str) -> np.ndarray:
        digest = hashlib.sha256(f"{geometry} {self._fps} {self._shape}".encode())
        for path, spans in self._files.items():
            there = path.stat() if path.exists() else None
            digest.update(f"{path.resolve()} {there and (there.st_size, there.st_mtime_ns)} {spans}".encode())
        path = cache / f"{self._camera}-{digest.hexdigest()[:16]}.npy"
        if path.exists():
            self._bar.update(self._rows)
            return np.load(path, mmap_mode="r")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            out = np.lib.format.open_memmap(partial, "w+", np.uint8, self._shape)
            with open(partial, "r+b") as f:  # a full disk says so now, not as a bus error later
                os.posix_fallocate(f.fileno(), 0, partial.stat().st_size)
            self._into(out)
            out.flush()
            os.replace(partial, path)
        except OSError as e:
            raise DataError(f"{path} cannot be written ({e.strerror}): mend that, or read without a cache.") from e
        finally:
            partial.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r")

    def _into(self, out: np.ndarray) -> None:
        with ThreadPoolExecutor(self._workers) as pool:  # threads: the codec runs without Python's lock
            jobs = [pool.submit(self._file_into, path, out) for path in self._files]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _file_into(self, path: Path, out: np.ndarray) -> None:
        spans = self._files[path]
        place = np.full(max(start + n for start, _, n in spans), -1, np.int64)
        for start, row, n in spans:
            place[start : start + n] = np.arange(row, row + n)
        try:
            seen = video.decode(
                path, self._fps, place, out, convert=self._convert, progress=self._progress,
                threads=max(1, self._workers // len(self._files)),
            )  # fmt: skip
        except (OSError, ValueError, IndexError, av.FFmpegError) as e:
            raise DataError(
                f"{path} cannot be read ({getattr(e, 'strerror', None) or e}): restore it or collect again."
            ) from e
        if lost := int(((place >= 0) & ~seen).sum()):
            raise DataError(
                f"{path} is truncated, {lost} of {(place >= 0).sum()} pictures are missing: restore it or collect again."
            )

    def _progress(self, n: int) -> None:
        with self._lock:
            self._bar.update(n)
