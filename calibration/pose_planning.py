"""Which poses the arm visits for a hand-eye calibration: safe ones that show the board and turn the gripper much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibration.camera import CalibrationError
from calibration.hand_eye import MIN_ROTATION, rotation_spread
from calibration.transforms import distance, inverse, log
from calibration.views import Forward

MARGIN = 0.1  # of a joint's range, kept free at each end
POOL, MOST_POOL = 15, 100  # candidates for each pose that is chosen, at first and at most
SECURE = 1.3  # times the spread about a second axis that a calibration needs: some of the poses will show no board


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
    `floor` (m) and whose board is `visible`, spread out over rotation and position, and turned about two axes. Raises
    CalibrationError when too few are found, or when they turn about one axis only."""
    pool: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    chosen: list[int] = []
    low, high, wanted = lower + MARGIN * (upper - lower), upper - MARGIN * (upper - lower), POOL * count
    for _ in range(tries):
        q = rng.uniform(low, high)
        if pool and rng.random() < 0.7:  # near one that is known to be good
            q = np.clip(pool[int(rng.integers(len(pool)))] + rng.normal(0, 0.25, len(q)), low, high)
        T = forward(q)
        if T[2, 3] > floor and visible(q):
            pool.append(q)
            frames.append(T)
            if len(pool) >= wanted:
                chosen, wanted = _spread_out(frames, count), 2 * wanted
                if _second_axis(frames, chosen) >= SECURE * MIN_ROTATION or len(pool) > MOST_POOL * count:
                    break
    if len(pool) < count:
        raise CalibrationError(
            f"only {len(pool)} safe arm poses show the board, {count} are needed: aim the camera at the space above "
            "the table."
        )
    chosen = chosen or _spread_out(frames, count)
    if (second := _second_axis(frames, chosen)) < MIN_ROTATION:
        raise CalibrationError(
            f"the arm poses that show the board turn about one axis only ({second:.0f} degrees about a second one, "
            f"{MIN_ROTATION:.0f} are needed): place the board where the camera sees it however the gripper tilts."
        )
    return np.array([pool[k] for k in chosen])


def _second_axis(frames: list[np.ndarray], chosen: list[int]) -> float:
    """Spread (deg) of the chosen tool poses' rotations about their second axis."""
    return rotation_spread([frames[k] for k in chosen])[1]


def _spread_out(frames: list[np.ndarray], count: int) -> list[int]:
    """Indices of `count` of the tool poses `frames`: a quarter from each end of the turns about the second axis, since
    hand-eye calibration needs two, then each time the one farthest in rotation and position from those chosen; 30
    degrees count as 0.1 m."""
    middle = min(frames, key=lambda T: sum(distance(T, other)[0] for other in frames[:: max(1, len(frames) // 40)]))
    turns = np.array([log(inverse(middle) @ T)[:3] for T in frames])
    turns -= turns.mean(0)
    second = turns @ np.linalg.svd(turns, full_matrices=False)[2][1]
    places = np.concatenate([np.degrees(turns) / 30, np.array([T[:3, 3] for T in frames]) / 0.1], axis=1)
    order = np.argsort(second)
    end = min(len(frames), max(count // 2, len(frames) // 12))
    chosen: list[int] = []
    gap = np.full(len(frames), np.inf)
    for group, until in (
        (order[:end], count // 4),
        (order[-end:], 2 * (count // 4)),
        (order, count),
    ):
        while len(chosen) < until:
            chosen.append(int(group[gap[group].argmax()]))
            gap = np.minimum(gap, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return chosen
