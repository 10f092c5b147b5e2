"""The times of an episode's rows, and the rows of another rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LONGEST_GAP_S = 0.5  # within an episode; a longer one hides what happened
LATE = 1.5  # of the usual distance of two rows: one is missing between them
TIE_S = 1e-4  # rows are equally near within this: times may be rounded to float32
UNEVEN = 0.1  # spread of the distances, as a share of the usual one, from which a clock is irregular


@dataclass(frozen=True)
class Clock:
    """`fps`: of the usual (median) distance of two rows; `jitter_ms`: standard deviation of the distances; `late`: how
    many are longer than `LATE` of the usual; `doubled`: how many are 0; `longest_s`."""

    fps: float
    jitter_ms: float
    late: int
    doubled: int
    longest_s: float

    @property
    def irregular(self) -> bool:
        return self.jitter_ms / 1000 * self.fps > UNEVEN


def clock_of(t: np.ndarray) -> Clock | None:
    """The clock of rows at times float64[T] (s, not decreasing); None for fewer than two different times."""
    steps = np.diff(t)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    if usual <= 0:
        return None
    late = int((steps > LATE * usual).sum())
    return Clock(1 / usual, float(steps.std() * 1000), late, int((steps == 0).sum()), float(steps.max()))


def times_at(t: np.ndarray, rate_hz: float) -> np.ndarray:
    """Times float64[K] (s) of rows at `rate_hz` from the first to the last of `t`, which may be rounded (float32)."""
    return t[0] + np.arange(int(np.floor((t[-1] - t[0]) * rate_hz + 0.01)) + 1) / rate_hz


def nearest(t: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Index int64[K] of the row of `t` (increasing) that is nearest to each time `at`; the earlier of two."""
    after = np.clip(np.searchsorted(t, at), 1, max(len(t) - 1, 1))
    if len(t) == 1:
        return np.zeros(len(at), np.int64)
    return np.where(at - t[after - 1] <= t[after] - at + TIE_S, after - 1, after)


def linear(t: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`values` float64[T,J] at times `at` float64[K], linear between the rows."""
    return np.stack([np.interp(at, t, x) for x in values.T], 1)
