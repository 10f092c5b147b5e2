"""Labels of the finish signal, in hindsight: in which rows the instruction is fulfilled and the tool has left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.config import Config
from export.data import Demonstrations
from export.labels import HELD_RAD, Labels

APART = 20  # of as many demonstrations, the last one is kept apart: the signal is calibrated on it and not trained
PLACED = ("plate", "stack", "press")  # tasks whose play reaches the goal wherever it aims at it; the others may miss


@dataclass(frozen=True)
class Finish:
    """`known` are the rows of demonstrations with a label, `apart` those of them that are kept for calibration. `done`
    is a label for the instruction that the row was recorded with.

    `judged` are rows of play with a label for another instruction: `asked` is its row of `Labels.asked`, `judged_done`
    its label. Without them, every release that training sees would be a success.
    """

    done: np.ndarray  # float32[N]
    known: np.ndarray  # bool[N]
    apart: np.ndarray  # bool[N]
    judged: np.ndarray  # int64[M]
    asked: np.ndarray  # int64[M]
    judged_done: np.ndarray  # float32[M]


def finish_labels(data: Demonstrations, cfg: Config, labels: Labels) -> Finish:
    """A demonstration, which is a success, is done from the row on in which the tool has risen after the last event;
    up to the event it is not done, and in between there is no label: the tool has let go and still stands there.

    In play, an instruction that the episode began to follow and did not end (the cube was put elsewhere, another
    button was pressed) is not done afterwards, however similar the motion; one that it followed to the end is done as
    in a demonstration.
    """
    n = len(data.pose)
    done, known, apart = np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, bool)
    judged: list[np.ndarray] = []
    asked: list[np.ndarray] = []
    judged_done: list[np.ndarray] = []

    def judge(rows: np.ndarray, text: int, value: float) -> None:
        judged.append(rows)
        asked.append(np.full(len(rows), text))
        judged_done.append(np.full(len(rows), value, np.float32))

    shown = 0
    for e, rows in enumerate(np.split(np.arange(n), np.flatnonzero(np.diff(data.episode)) + 1)):
        events = data.events[(data.events >= rows[0]) & (data.events <= rows[-1])]
        if not len(events):
            continue
        left = _left(data, int(events[-1]), cfg)
        if not data.play[rows[0]]:
            shown += 1
            done[left] = 1.0
            known[rows[0] : events[-1] + 1] = known[left] = True
            apart[rows] = known[rows] & (shown % APART == 0)
        elif data.scenes[e] in PLACED and labels.told[e] >= 0 and labels.taken[e] >= 0:
            if not labels.throughout[e]:
                judge(np.arange(labels.taken[e] + 1, rows[-1] + 1), labels.told[e], 0.0)
            elif data.scenes[e] == "press" or data.pose[events[-1], 5] >= HELD_RAD:
                judge(left, labels.told[e], 1.0)
    parts = [np.concatenate(p) if p else np.zeros(0, np.int64) for p in (judged, asked, judged_done)]
    return Finish(done, known, apart, *parts)


def _left(data: Demonstrations, event: int, cfg: Config) -> np.ndarray:
    """Rows of the episode from the one on in which the tool has risen after `event`."""
    after = np.arange(event + 1, data.last[event] + 1)
    high = np.flatnonzero(data.pose[after, 2] >= cfg.gate_height_m)
    return after[high[0] :] if len(high) else after[:0]


def calibrated(logits: np.ndarray, done: np.ndarray) -> tuple[float, float]:
    """Scale and shift that turn logits float[N] into those of calibrated probabilities of `done` bool[N] (Platt 1999).

    (1, 0) where one of the classes is absent.
    """
    if done.all() or not done.any():
        return 1.0, 0.0
    target = np.where(done, 1 - 1 / (done.sum() + 2), 1 / ((~done).sum() + 2))  # Platt's targets: no certainty
    x = np.stack([logits.astype(float), np.ones(len(logits))], 1)
    w = np.array([1.0, 0.0])
    for _ in range(50):  # Newton's method on a convex loss
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + 1e-4 * np.eye(2), x.T @ (p - target))
        w = w - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    return float(w[0]), float(w[1])
