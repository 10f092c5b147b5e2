"""What a video or a stored picture is: size, codec, and the times of its pictures, without decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.lerobot.layout import PICTURES, DataError, check_file
from export.recordings.layouts import MEND

LARGEST = 16384  # pixels


@dataclass(frozen=True)
class Probe:
    """`pts` int64[n]: times of the pictures in units of the stream's clock, in the order in which they are shown."""

    width: int
    height: int
    codec: str
    fps: float
    pts: np.ndarray


def probe(path: Path) -> Probe:
    """Look at a video without decoding it. Raises DataError."""
    check_file(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it holds no video")
            stream = container.streams.video[0]
            context = getattr(stream, "codec_context", None)
            if context is None or not stream.time_base:
                raise ValueError("its pictures are in no format that is known")
            pts = np.sort([p.pts for p in container.demux(stream) if p.pts is not None and p.size])
            width, height = int(context.width or 0), int(context.height or 0)
            if not (8 <= width <= LARGEST and 8 <= height <= LARGEST and len(pts)):
                raise ValueError("it holds no pictures")
            steps = np.diff(pts)
            tick = float(np.median(steps)) * float(stream.time_base) if len(steps) else 0.0
            rate = 1 / tick if tick > 0 else float(stream.average_rate or 0)
            return Probe(width, height, str(context.codec.canonical_name), rate, pts.astype(np.int64))
    except (OSError, ValueError, OverflowError, av.FFmpegError) as e:
        raise DataError(f"{path} cannot be read ({getattr(e, 'strerror', None) or e}): {MEND}.") from e


def picture_of(value: object, folder: Path) -> np.ndarray:
    """The picture uint8[H,W,3] (RGB) of an entry of a table of pictures: bytes, or a file's name. Raises DataError."""
    raw, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if raw is None:
        path = folder / str(name)
        if not isinstance(name, str) or ".." in Path(name).parts:
            raise DataError(f"a picture of {folder} is neither stored nor named: {MEND}.")
        check_file(path)
        raw = path.read_bytes()
    found = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) if isinstance(raw, bytes) and raw else None
    if found is None:
        raise DataError(f"a picture of {folder} cannot be read: {MEND}.")
    return np.ascontiguousarray(found[..., ::-1])


def codec_of(value: object) -> str:
    raw = value.get("bytes") if isinstance(value, dict) else None
    return "png" if not isinstance(raw, bytes) or raw.startswith(b"\x89PNG") else "jpeg"


def column(path: Path, table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(f"{path} has no column '{name}': {MEND}.")
    return table[name]


def key_of(path: Path, camera: str) -> str:
    """The column of a table that holds the pictures of `camera`."""
    names = pq.read_schema(path).names
    return next((k for k in (PICTURES + camera, "observation." + camera) if k in names), camera)
