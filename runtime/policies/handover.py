"""A plan read at the time an action applies, and the continuous hand-over from one plan to the next."""

from __future__ import annotations

import numpy as np


def on_grid(chunk: np.ndarray, grid_ns: np.ndarray, at_ns: float) -> tuple[np.ndarray, np.ndarray]:
    """Value and velocity (per second) float64[A] of `chunk` [K,A] at `at_ns` on its even grid int64[K], linear from
    step to step.

    Outside of the grid its first or last piece goes on: a caller that wants the plan to end there clips `at_ns`.
    """
    step = float(grid_ns[1] - grid_ns[0])
    i = max(min(int((at_ns - grid_ns[0]) / step), len(grid_ns) - 2), 0)
    s = (at_ns - grid_ns[i]) / step
    a, b = chunk[i].astype(float), chunk[i + 1].astype(float)
    return a + s * (b - a), (b - a) / (step * 1e-9)


def remainder(offset: np.ndarray, since_s: float, blend_s: float) -> tuple[np.ndarray, np.ndarray]:
    """What is left, `since_s` after a hand-over, of the difference float64[2,A] (position, velocity) between two plans.

    Cubic Hermite from the difference, at its own velocity, to rest at zero after `blend_s`. Added to the new plan it
    makes position and velocity go on as they were.
    """
    s = min(since_s / blend_s, 1.0)
    h0, h1 = (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2
    d0, d1 = (6 * s * s - 6 * s) / blend_s, (1 - 4 * s + 3 * s * s) / blend_s
    return h0 * offset[0] + h1 * blend_s * offset[1], d0 * offset[0] + d1 * blend_s * offset[1]
