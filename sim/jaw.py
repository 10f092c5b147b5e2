"""How often the goal of the jaw turns back: one that opens and shuts several times before a grasp may lose the item."""

from __future__ import annotations

import numpy as np

from sim.tasks import CLOSED, OPEN

EVENT_NS = 500_000_000  # two changes closer together than this belong to one event
SURE_RAD = 0.1  # beyond the middle between open and closed: a goal counts as open or closed


def reversals(times_ns: np.ndarray, jaw: np.ndarray) -> list[int]:
    """For each event of the jaw's goal, how often it turned back: one less than its changes between open and closed.

    `times_ns` int64[N]: of the commands; `jaw` float64[N]: their goals (opening, rad).
    """
    middle = 0.5 * (OPEN + CLOSED)
    clear = np.abs(jaw - middle) > SURE_RAD
    state, times = jaw[clear] > middle, times_ns[clear]
    changes = times[1:][state[1:] != state[:-1]]
    if not len(changes):
        return []
    ends = np.flatnonzero(np.diff(changes) >= EVENT_NS)
    counts = np.diff([-1, *ends, len(changes) - 1])
    return [int(n) - 1 for n in counts]
