"""Transit or interaction, told in hindsight from proprioception and commands: the rule that the gate is trained by and scored with."""

from __future__ import annotations

import numpy as np

from sim.tasks import CLOSED, OPEN

TOUCH_M = 0.055  # a lowest point of the tool below this is an event even when the jaw does not move (pressing a button)
WINDOW_S, LOW_M = (
    0.35,
    0.062,
)  # as `export.config.Config` has them: time round an event, and height, that are interaction


def find_events(pose: np.ndarray, target: np.ndarray, last: np.ndarray, rate_hz: float) -> np.ndarray:
    """Rows int32[E] where the gripper opens or closes, or touches something from above; from proprioception and commands alone.

    `pose`, `target` [N,6] are measured and commanded poses of whole episodes end to end, `last` [N] the last row of each row's episode.
    """
    n = len(pose)
    shut = target[:, 5] < 0.5 * (OPEN + CLOSED)
    same = last[1:] == last[:-1]
    flips = np.flatnonzero((shut[1:] != shut[:-1]) & same) + 1
    reach = round(0.6 * rate_hz)
    dips = []
    z = pose[:, 2]
    for i in np.flatnonzero((z[1:-1] < TOUCH_M) & (z[1:-1] <= z[:-2]) & (z[1:-1] < z[2:])) + 1:
        a, b = max(0, i - reach), min(n, i + reach + 1)
        window = last[a:b] == last[i]
        lowest = z[i] <= z[a:b][window].min()
        if lowest and not ((flips >= a) & (flips < b)).any():
            dips.append(i)
    return np.unique(np.concatenate([flips, np.array(dips, int)])).astype(np.int32)


def interaction(pose: np.ndarray, target: np.ndarray, rate_hz: float) -> np.ndarray:
    """bool[N]: the phase of every row of one episode; `pose` and `target` as in `find_events`."""
    n = len(pose)
    near = np.zeros(n, bool)
    window = round(WINDOW_S * rate_hz)
    for e in find_events(pose, target, np.full(n, n - 1), rate_hz):
        near[max(e - window, 0) : e + window + 1] = True
    return near | (pose[:, 2] < LOW_M)
