"""Pictures to H.264 and back, through PyAV.

Settings were chosen by measurement on rendered 96x96 pictures (`benchmarks/dataset.py` of commit 94199e5,
docs/data.md): no chroma subsampling, because small coloured objects are what the policy looks for; a key frame every
10, so that a reader that wants one picture decodes ten at most; no B-frames, so that pictures are stored in the order
in which they are shown.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

PIXELS = "yuv444p"
OPTIONS = {"crf": "10", "g": "10", "bf": "0", "preset": "veryfast"}
# the colour space that libswscale makes from RGB, written into the file for decoders
COLOUR = {"colorspace": "smpte170m", "color_range": "tv"}


def rate(fps: float) -> Fraction:
    """`fps` as the fraction that a container stores; exact for whole numbers and for 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def encode(pictures: Iterable[np.ndarray], fps: float, options: dict[str, str] | None = None) -> bytes:
    """Write an mp4 of pictures uint8[H,W,3] (RGB); picture i is shown at i / fps seconds."""
    out, reformat = io.BytesIO(), VideoReformatter()
    with av.open(out, "w", format="mp4") as container:
        stream = None
        for i, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream("libx264", rate=rate(fps))
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt, stream.options = PIXELS, (options or OPTIONS) | COLOUR
                stream.codec_context.thread_count = 1  # one thread per encoder: several workers write at the same time
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = reformat.reformat(frame, format=PIXELS)
            frame.pts, frame.time_base = i, 1 / rate(fps)
            container.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("a video needs at least one picture")
        container.mux(stream.encode())
    return out.getvalue()


def _planar(frame: av.VideoFrame, reformat: VideoReformatter, out: np.ndarray) -> None:
    height, width = out.shape[1:]
    for channel, plane in zip((1, 2, 0), reformat.reformat(frame, format="gbrp").planes, strict=True):
        out[channel] = np.frombuffer(bytes(plane), np.uint8).reshape(height, plane.line_size)[:, :width]


def decode(
    path: Path,
    clock: float | np.ndarray,
    place: np.ndarray,
    out: np.ndarray,
    *,
    convert: Callable[[np.ndarray, np.ndarray], object] | None = None,
    threads: int = 1,
    found: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Decode one file; picture i goes to `out[place[i]]` (planar RGB) where `place[i]` >= 0.

    `clock`: picture i is shown at i / clock seconds; or int64[n], sorted: at clock[i] in units of the stream's clock.
    `convert` gets uint8[H,W,3] and the slot to fill; without it the stored size must equal that of `out`. `found` is
    called after each picture. Returns
    bool[len(place)]: which pictures were found; damaged ones count as missing. Raises OSError or av.FFmpegError where
    nothing can be read, and ValueError for pictures of another size.
    """
    seen, reformat = np.zeros(len(place), bool), VideoReformatter()
    each = None if isinstance(clock, np.ndarray) else rate(clock)
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        stream = container.streams.video[0]
        if not hasattr(stream, "codec_context") or stream.codec_context is None:
            raise ValueError("its pictures are in no format that is known")
        if convert is None and (stream.height, stream.width) != out.shape[2:]:
            raise ValueError(f"pictures of {stream.width}x{stream.height} instead of {out.shape[3]}x{out.shape[2]}")
        stream.thread_type, stream.codec_context.thread_count = "AUTO" if threads > 1 else "SLICE", threads
        try:
            for frame in container.decode(stream):
                if frame.pts is None or frame.is_corrupt:
                    continue
                i = (
                    int(np.searchsorted(clock, frame.pts))
                    if each is None
                    else round(frame.pts * frame.time_base * each)
                )
                if 0 <= i < len(place) and place[i] >= 0:
                    if convert is None:
                        _planar(frame, reformat, out[place[i]])
                    else:
                        convert(reformat.reformat(frame, format="rgb24").to_ndarray(), out[place[i]])
                    if not seen[i]:
                        seen[i] = True
                        found()
        except av.error.InvalidDataError:
            pass  # the caller sees in `seen` what is missing
        return seen
