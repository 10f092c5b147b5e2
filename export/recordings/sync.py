"""The delay between a camera and the joints of a recording, from what moves in the pictures and in the joints.

An arm that moves changes the picture. What changes from one picture to the next is compared with how far the arm's
links moved between the same two rows, at every delay: the delay at which both rise and fall together is the camera's.
The correlation is summed over episodes as a spectrum below `HIGHEST_HZ` (video codecs flicker above) and evaluated
between the rows, so the result is finer than a picture's duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firmware_bridge.arms.family import Family

MOST_S = 0.5  # delays that are looked for, to either side
STEP_S = 0.001
LOWEST_HZ, HIGHEST_HZ = 0.15, 4.0
LEAST = 0.35  # correlation below which nothing is said
SURE_MS = 15.0  # standard deviation above which nothing is said
LATE_MS = 30.0  # a delay that is worth a word
TIME = np.arange(-MOST_S, MOST_S + STEP_S / 2, STEP_S)


@dataclass(frozen=True)
class Sync:
    """`delay_ms`: how much later the pictures are than the joints; `sd_ms`: its standard deviation (episodes drawn
    again); None where the motion does not tell. `curve` float64[n]: correlation at the delays `TIME`."""

    camera: str
    delay_ms: float | None
    sd_ms: float | None
    correlation: float
    curve: np.ndarray


def travel(arm: Family, q: np.ndarray) -> np.ndarray:
    """How far the arm's links move from row to row, float64[T-1] m: mean over the links' origins and the tool."""
    points = np.concatenate([arm.frames(q)[..., 1:, :3, 3], arm.tool(q)[..., None, :3, 3]], axis=-2)
    return np.linalg.norm(np.diff(points, axis=0), axis=-1).mean(-1)


def _spectra(pairs: Sequence[tuple[np.ndarray, np.ndarray]], fps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies float64[F] (Hz), cross-spectra complex[E,F] and powers float64[E,F,2] of E pairs of motion (picture,
    joints) float64[n] each."""
    size = 1 << int(np.ceil(np.log2(max(len(a) for a, _ in pairs) + 2 * MOST_S * fps + 1)))
    f = np.fft.rfftfreq(size, 1 / fps)
    band = (f >= LOWEST_HZ) & (f <= HIGHEST_HZ)
    cross, power = [], []
    for seen, moved in pairs:
        a, b = (np.fft.rfft(_calm(x), size)[band] for x in (seen, moved))
        cross.append(a * b.conj())
        power.append(np.stack([np.abs(a) ** 2, np.abs(b) ** 2], -1))
    return f[band], np.array(cross), np.array(power)


def _calm(x: np.ndarray) -> np.ndarray:
    """Square root, so that one large motion does not decide; without its mean, and faded at both ends."""
    y = np.sqrt(np.maximum(x, 0.0))
    y = y - y.mean()
    ends = min(8, len(y) // 4)
    if ends:
        ramp = np.ones(len(y))
        ramp[:ends] = np.linspace(0, 1, ends)
        ramp[-ends:] = ramp[:ends][::-1]
        y = y * ramp
    spread = float(y.std())
    return y / spread if spread > 0 else y


def _curve(f: np.ndarray, cross: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Correlation float64[len(TIME)] of spectra summed over episodes."""
    whole = np.sqrt(power[..., 0].sum() * power[..., 1].sum())
    if whole <= 0:
        return np.zeros(len(TIME))
    turned = np.exp(2j * np.pi * np.outer(TIME, f))
    return (turned @ cross.sum(0)).real / whole


def find(camera: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], fps: float, seed: int = 0) -> Sync:
    """The delay of `camera` from E pairs of picture motion and joint motion, float64[n] each, at `fps` rows/s."""
    pairs = [p for p in pairs if len(p[0]) >= 2 * fps * MOST_S and p[0].std() > 0 and p[1].std() > 0]
    if not pairs:
        return Sync(camera, None, None, 0.0, np.zeros(len(TIME)))
    f, cross, power = _spectra(pairs, fps)
    curve = _curve(f, cross, power)
    best = int(curve.argmax())
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(pairs), size=len(pairs)) for _ in range(20)] if len(pairs) > 2 else []
    again = [TIME[_curve(f, cross[d], power[d]).argmax()] for d in draws]
    sd = float(np.std(again)) * 1000 if again else None
    at_end = best in (0, len(TIME) - 1)
    told = curve[best] >= LEAST and not at_end and (sd is None or sd <= SURE_MS)
    return Sync(camera, round(float(TIME[best]) * 1000, 1) if told else None, sd, float(curve[best]), curve)
