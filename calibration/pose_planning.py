"""Which poses the arm visits for a hand-eye calibration: safe ones that show the board and turn the gripper much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibration.camera import CalibrationError
from calibration.transforms import distance
from calibration.views import Forward

MARGIN = 0.1  # of a joint's range, kept free at each end
POOL = 15  # candidates for each pose that is chosen


def clear_path(forward: Forward, start: np.ndarray, end: np.ndarray, floor: float) -> bool:
    """Whether the tool stays above `floor` (m) while the joints move on a straight line from `start` to `end` (rad)."""
    return all(forward(start + (end - start) * s)[2, 3] > floor for s in np.linspace(0, 1, 15))


def propose(
    rng: np.random.Generator,
    forward: Forward,
    lower: np.ndarray,
    upper: np.ndarray,
    visible: Callable[[np.ndarray], bool],
    count: int = 15,
    floor: float = 0.09,
    tries: int = 20000,
) -> np.ndarray:
    """Arm poses float64[count,J] (rad): random ones well inside the limits `lower` and `upper` whose tool is above
    `floor` (m) and whose board is `visible`, spread out over rotation and position. Raises CalibrationError when too
    few are found."""
    pool: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    low, high = lower + MARGIN * (upper - lower), upper - MARGIN * (upper - lower)
    for _ in range(tries):
        q = rng.uniform(low, high)
        if pool and rng.random() < 0.7:  # near one that is known to be good
            q = np.clip(pool[int(rng.integers(len(pool)))] + rng.normal(0, 0.25, len(q)), low, high)
        T = forward(q)
        if T[2, 3] > floor and visible(q):
            pool.append(q)
            frames.append(T)
            if len(pool) >= POOL * count:
                break
    if len(pool) < count:
        raise CalibrationError(
            f"only {len(pool)} safe arm poses show the board, {count} are needed: aim the camera at the space above "
            "the table."
        )
    return np.array([pool[k] for k in _spread_out(frames, count)])


def _spread_out(frames: list[np.ndarray], count: int) -> list[int]:
    """Indices of `count` of the tool poses `frames`: the first, then each time the one farthest in rotation and
    position from those chosen; 30 degrees count as 0.1 m."""
    chosen = [0]
    gap = np.full(len(frames), np.inf)
    while len(chosen) < count:
        last = frames[chosen[-1]]
        for k, T in enumerate(frames):
            degrees, metres = distance(last, T)
            gap[k] = min(gap[k], degrees / 30 + metres / 0.1)
        chosen.append(int(gap.argmax()))
    return chosen
