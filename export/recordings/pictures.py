"""The pictures of an episode, one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa

from export.lerobot.layout import DataError, read_table
from export.recordings.films import column, key_of, picture_of
from export.recordings.findings import Examined, Take
from export.recordings.layouts import MEND

SMALL = 64  # height of the grey pictures in which motion is measured, pixels
Picture = tuple[np.ndarray, Callable[[], np.ndarray]]  # grey uint8[64,w], and what gives RGB uint8[H,W,3]


def pictures(found: Examined, take: Take, name: str) -> Iterator[Picture]:
    """The pictures of the rows of `take` in order. Raises DataError where one cannot be decoded."""
    lies = take.pictures[name]
    if lies.pts is None:
        yield from _stored(found.folder, lies.path, name, lies.numbers)
        return
    left = lies.pts[lies.numbers].tolist()[::-1]
    try:
        with av.open(str(lies.path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(int(left[-1]), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts < left[-1]:
                    continue
                if frame.pts != left.pop() or frame.is_corrupt:
                    break
                width = max(2, round(frame.width * SMALL / frame.height))
                small = frame.reformat(width=width, height=SMALL, format="gray").to_ndarray()
                yield small, functools.partial(frame.to_ndarray, format="rgb24")
                if not left:
                    return
    except (OSError, ValueError, av.FFmpegError) as e:
        raise DataError(f"{lies.path} cannot be read ({getattr(e, 'strerror', None) or e}): {MEND}.") from e
    raise DataError(f"{lies.path} lacks a picture of episode {take.number}: {MEND}.")


def _stored(folder: Path, path: Path, name: str, rows: np.ndarray) -> Iterator[Picture]:
    key = key_of(path, name)
    values: pa.ChunkedArray = column(path, read_table(path, [key]), key)
    for row in rows:
        whole = picture_of(values[int(row)].as_py(), folder)
        width = max(2, round(whole.shape[1] * SMALL / whole.shape[0]))
        plain = cv2.cvtColor(whole, cv2.COLOR_RGB2GRAY)
        yield cv2.resize(plain, (width, SMALL), interpolation=cv2.INTER_AREA), functools.partial(np.array, whole)
