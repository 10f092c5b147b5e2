"""Stage stamps: which part of a loop took how long, by one clock, without allocating."""

from __future__ import annotations

import time

import numpy as np


class StageTrace:
    """One per thread. `mark("x")` books the time since the previous mark under "x"; `begin()` starts a tick.

    Keeps the newest `capacity` durations of each stage in a ring; costs well under 2 us a mark.
    """

    def __init__(self, capacity: int = 1 << 16):
        self._capacity = capacity
        self._rings: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._last = time.monotonic_ns()

    def begin(self) -> None:
        """Time before this instant belongs to no stage (waiting for a frame)."""
        self._last = time.monotonic_ns()

    def mark(self, stage: str) -> None:
        now = time.monotonic_ns()
        self.add(stage, now - self._last)
        self._last = now

    def add(self, stage: str, duration_ns: int) -> None:
        """Book a duration that was measured elsewhere."""
        ring = self._rings.get(stage)
        if ring is None:
            ring = self._rings[stage] = np.zeros(self._capacity, np.int64)
            self._counts[stage] = 0
        ring[self._counts[stage] % self._capacity] = duration_ns
        self._counts[stage] += 1

    def clear(self) -> None:
        """Forget everything (after warming up)."""
        self._rings.clear()
        self._counts.clear()

    def durations_ms(self) -> dict[str, np.ndarray]:
        """Stage -> float64[n], milliseconds, in no particular order once the ring has wrapped."""
        return {s: r[: min(self._counts[s], self._capacity)] / 1e6 for s, r in self._rings.items()}


def summary(durations_ms: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """p50, p99 and max (ms) and count of each stage."""
    return {
        s: {
            "p50_ms": round(float(np.percentile(d, 50)), 4), "p99_ms": round(float(np.percentile(d, 99)), 4),
            "max_ms": round(float(d.max()), 4), "count": len(d),
        }
        for s, d in durations_ms.items() if len(d)
    }  # fmt: skip
