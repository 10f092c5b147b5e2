"""Transit or interaction, told in hindsight from proprioception and commands: the rule that the gate is trained by and
scored with."""

from __future__ import annotations

import numpy as np

from sim.tasks import CLOSED, OPEN

TOUCH_M = 0.055  # a lowest point of the tool below this is an event even when the jaw does not move (pressing a button)
# As `export.config.Config` has them: time round an event, height, and distance (sideways) from where the next event
# will be, that are interaction.
WINDOW_S, LOW_M, NEAR_M = 0.35, 0.062, 0.030


def find_events(pose: np.ndarray, target: np.ndarray, last: np.ndarray, rate_hz: float) -> np.ndarray:
    """Rows int32[E] where the gripper opens or closes, or touches something from above; from proprioception and
    commands alone.

    `pose`, `target` [N,6] are measured and commanded poses of whole episodes end to end, `last` [N] the last row of
    each row's episode.
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


def next_events(events: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Row int32[N] of each row's next event, or where its episode ends without one; `events`, `last` as in
    `find_events`."""
    at = np.searchsorted(events, np.arange(len(last)), side="right")
    return np.minimum(np.append(events, len(last))[at], last).astype(np.int32)


def interaction(
    pose: np.ndarray,
    events: np.ndarray,
    last: np.ndarray,
    rate_hz: float,
    window_s: float = WINDOW_S,
    low_m: float = LOW_M,
    near_m: float = NEAR_M,
) -> np.ndarray:
    """bool[N]: the phase of every row of whole episodes, `pose`, `events` and `last` as in `find_events`.

    The tool is low, or something happens about now, or it is above the place where the next thing will: what is left to
    do is precise.
    """
    near = pose[:, 2] < low_m
    window = round(window_s * rate_hz)
    for e in events:
        a, b = max(0, e - window), e + window + 1
        near[a:b] |= last[a:b] == last[e]
    following = next_events(events, last)
    aside = np.linalg.norm(pose[:, :2] - pose[following, :2], axis=1)
    return near | ((aside < near_m) & np.isin(following, events))
