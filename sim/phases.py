"""Phases of an episode, transit or interaction, found afterwards from measured poses and commands: the rule behind the
gate's labels and its score."""

from __future__ import annotations

import numpy as np

from firmware_bridge.motion.messages import Expert
from runtime.contracts import FastTick
from sim.tasks import CLOSED, OPEN

# a local minimum of the tool's height below this is an event even when the jaw does not move (pressing a button)
TOUCH_M = 0.055
# Interaction, with the values of `export.config.Config`: time around an event, height of the tool, horizontal distance
# to the next event.
WINDOW_S, LOW_M, NEAR_M = 0.35, 0.062, 0.030


def find_events(pose: np.ndarray, target: np.ndarray, last: np.ndarray, rate_hz: float) -> np.ndarray:
    """Rows int32[E] in which the gripper opens or closes, or touches an object from above; uses poses and commands
    only.

    `pose`, `target` [N,6] are measured and commanded poses of whole episodes, concatenated; `last` [N] is the last row
    of each row's episode.
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
    """Row int32[N] of each row's next event, or the last row of its episode where there is none; `events`, `last` as in
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
    """bool[N]: whether each row is interaction; `pose`, `events` and `last` as in `find_events`.

    A row is interaction when the tool is low, when an event is near in time, or when the tool is above the position of
    the next event, because the rest of the motion is precise then.
    """
    near = pose[:, 2] < low_m
    window = round(window_s * rate_hz)
    for e in events:
        a, b = max(0, e - window), e + window + 1
        near[a:b] |= last[a:b] == last[e]
    following = next_events(events, last)
    aside = np.linalg.norm(pose[:, :2] - pose[following, :2], axis=1)
    return near | ((aside < near_m) & np.isin(following, events))


def gate_score(pose: list[np.ndarray], ticks: list[FastTick], rate_hz: float) -> tuple[int, int]:
    """Frames in which the chosen expert equals the gate's label, and frames with a choice.

    The labels come from `interaction`, applied to the episode's measured poses and commands. `pose`: tool
    pose float64[6] of every frame.
    """
    n = len(ticks)  # the policy did not act on a frame that ended the episode
    chosen = np.array([t.expert for t in ticks])
    sent = np.array([t.sent_target for t in ticks])
    sent[chosen == Expert.NONE] = np.array(pose[:n])[chosen == Expert.NONE]
    been, last = np.array(pose[:n]), np.full(n, n - 1)
    wanted = interaction(been, find_events(been, sent, last, rate_hz), last, rate_hz)
    acted = chosen != Expert.NONE
    return int(((chosen == Expert.PREDICTIVE) == wanted)[acted].sum()), int(acted.sum())
