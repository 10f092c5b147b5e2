"""What the camera saw, what the world model predicted from it and what came true, as pictures for the page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from runtime.bundle import Bundle
from runtime.observe.episode import Episode
from runtime.observe.records import FutureRecord
from runtime.observe.timeline import jaw_events

AHEAD = ((0.4, "+0.4 s"), (0.8, "+0.8 s"))  # the world model's first two horizons
COLUMNS = 5  # as many tiles as the page has room for
TILE = 192  # px; the page shows them somewhat smaller
NEAR_NS = 60_000_000  # a picture at most this far from an instant is shown for it
NEVER = np.iinfo(np.int64).min  # an instant of which no picture can be near


@dataclass(frozen=True)
class Tile:
    """One picture as a data URL ("": none was recorded), what it shows, and whether the world model made it."""

    picture: str
    caption: str
    predicted: bool = False


def png(rgb: np.ndarray) -> str:
    """A picture uint8[H,W,3] as a data URL."""
    ok, data = cv2.imencode(".png", rgb[..., ::-1])
    assert ok
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def _tile(rgb: np.ndarray) -> str:
    """The central square, as the policy sees it."""
    h, w = rgb.shape[:2]
    x = (w - h) // 2
    smooth = cv2.INTER_AREA if h > TILE else cv2.INTER_CUBIC
    return png(cv2.resize(rgb[:, x : x + h], (TILE, TILE), interpolation=smooth))


def moments(episode: Episode, columns: int = COLUMNS) -> list[FutureRecord]:
    """Predictions spread over the run."""
    if not episode.futures:
        return []
    picks = np.linspace(0, len(episode.futures) - 1, columns + 2).astype(int)[1:-1]
    return [episode.futures[i] for i in picks]


def instants(episode: Episode, shown: list[FutureRecord]) -> np.ndarray:
    """int64[n,4], ns: when each prediction was made and the instants that it is of: 0.4 s and 0.8 s later, and the next
    grasp or release of the run (NEVER after the last)."""
    jaw = np.array([episode.t_ns[k] for k, _ in jaw_events(episode.command[:, -1])] or [NEVER], np.int64)
    rows = []
    for record in shown:
        later = jaw[jaw > record.t_capture_ns]
        event = int(later[0]) if len(later) else NEVER
        rows.append([record.t_capture_ns + int(a * 1e9) for a in (0.0, *(a for a, _ in AHEAD))] + [event])
    return np.array(rows, np.int64).reshape(-1, 4)


def film_strip(
    bundle: Bundle, start_ns: int, shown: list[FutureRecord], wanted: np.ndarray, seen: dict[int, np.ndarray]
) -> list[list[Tile]]:
    """A column for each prediction in `shown`: the camera now, then for each horizon what was predicted and what the
    camera saw then. `wanted`: their `instants`; `seen`: front pictures by capture time. A prediction without a picture
    of its own time is left out."""
    if "decoder" not in bundle.manifest.engines:
        return []
    decoder, times = bundle.engine("decoder"), np.array(sorted(seen), np.int64)

    def at(instant: int) -> str:
        if instant == NEVER or not len(times):
            return ""
        t = int(times[np.argmin(np.abs(times - instant))])
        return _tile(seen[t]) if abs(t - instant) < NEAR_NS else ""

    columns = []
    for record, (now, *later) in zip(shown, wanted.tolist(), strict=True):
        frames = decoder.run({"future": record.future.astype(np.float32)})["frames"]
        tiles = [Tile(at(now), f"camera now, {(now - start_ns) * 1e-9:.1f} s")]
        for frame, instant, horizon in zip(frames, later, [*(words for _, words in AHEAD), ""], strict=True):
            imagined = np.clip((frame.transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.uint8)
            when = "" if instant == NEVER else f" at {(instant - start_ns) * 1e-9:.1f} s"
            tiles.append(Tile(_tile(imagined), f"predicted: {horizon or 'next grasp or release'}", predicted=True))
            tiles.append(Tile(at(instant), f"camera{when} ({horizon or 'gripper event'})"))
        if tiles[0].picture:
            columns.append(tiles)
    return columns
