"""Stage stamps: which part of a loop took how long and when, by one clock (`time.monotonic_ns`), without allocating."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_whole

CAPACITY = 1 << 16  # newest stamps of a stage that are kept: 11 minutes at 100 Hz
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


class _Ring:
    """Start and duration of the newest spans. All memory is touched at once: it does not grow while the arm moves."""

    def __init__(self, capacity: int):
        self.capacity, self.count = capacity, 0
        self.data = np.full((2, capacity), -1, np.int64)
        self.starts, self.durations = (row.data for row in self.data)

    def add(self, start_ns: int, duration_ns: int) -> None:
        i = self.count % self.capacity
        self.starts[i] = start_ns
        self.durations[i] = duration_ns
        self.count += 1

    def ordered(self) -> np.ndarray:
        """int64[2,n], oldest first."""
        if self.count <= self.capacity:
            return self.data[:, : self.count].copy()
        return np.roll(self.data, -(self.count % self.capacity), axis=1)


class StageTrace:
    """One per thread. `mark("x")` books the time since the previous mark under "x"; `begin()` starts a tick.

    Keeps the newest `capacity` spans of each stage; costs well under 2 us a mark (`benchmarks/trace.py`). `stages` get
    their memory at once, others at their first mark. `inject` (stage -> ms) makes stages slower than they are, by
    really waiting.
    """

    def __init__(
        self, capacity: int = CAPACITY, stages: tuple[str, ...] = (), inject: Mapping[str, float] | None = None
    ):
        self._capacity = capacity
        self._rings: dict[str, _Ring] = {s: _Ring(capacity) for s in stages}
        self._inject = {s: ms * 1e-3 for s, ms in (inject or {}).items()}
        self._last = time.monotonic_ns()

    def begin(self) -> None:
        """Time before this instant belongs to no stage (waiting for a frame)."""
        self._last = time.monotonic_ns()

    def mark(self, stage: str) -> None:
        if self._inject and stage in self._inject:
            time.sleep(self._inject[stage])
        now = time.monotonic_ns()
        last = self._last
        self._last = now
        ring = self._rings.get(stage)
        if ring is None:
            ring = self._rings[stage] = _Ring(self._capacity)
        ring.add(last, now - last)

    def add(self, stage: str, duration_ns: int, start_ns: int | None = None) -> None:
        """Book a duration that was measured elsewhere; without `start_ns` it ends at the call."""
        ring = self._rings.get(stage)
        if ring is None:
            ring = self._rings[stage] = _Ring(self._capacity)
        ring.add(time.monotonic_ns() - duration_ns if start_ns is None else start_ns, duration_ns)

    def clear(self) -> None:
        """Forget everything (after warming up)."""
        for ring in self._rings.values():
            ring.count = 0

    def spans(self) -> dict[str, np.ndarray]:
        """Stage -> int64[2,n]: starts and durations in ns, oldest first. Stages without a mark are left out."""
        return {s: r.ordered() for s, r in self._rings.items() if r.count}

    def durations_ms(self) -> dict[str, np.ndarray]:
        """Stage -> float64[n], milliseconds, oldest first."""
        return {s: spans[1] / 1e6 for s, spans in self.spans().items()}


def percentiles(values: Any) -> dict[str, float]:
    """p50, p90, p99, p999 and max of a series; zeros when it is empty."""
    v = np.asarray(values, float)
    if not len(v):
        return {**dict.fromkeys(PERCENTILES, 0.0), "max": 0.0}
    found = np.percentile(v, list(PERCENTILES.values()))
    return {**{k: round(float(p), 4) for k, p in zip(PERCENTILES, found)}, "max": round(float(v.max()), 4)}


def summary(durations_ms: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Percentiles (`p50_ms` ... `max_ms`) and count of each stage."""
    return {
        s: {**{f"{k}_ms": p for k, p in percentiles(d).items()}, "count": len(d)}
        for s, d in durations_ms.items()
        if len(d)
    }


def _lanes(stages: Mapping[str, np.ndarray]) -> list[list[tuple[int, int, str]]]:
    """The spans (start and duration, ns; stage) of a track in as few rows as keep them apart, by start in each row."""
    lanes: list[list[tuple[int, int, str]]] = [[]]
    ends = [0]  # of the last span of each row, ns
    for start, duration, stage in sorted((*span, s) for s, spans in stages.items() for span in spans.T.tolist()):
        row = next((k for k, end in enumerate(ends) if end <= start), len(ends))
        if row == len(ends):
            lanes.append([])
            ends.append(0)
        lanes[row].append((start, duration, stage))
        ends[row] = start + duration
    return lanes


def write_perfetto(path: Path, tracks: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Trace Event JSON of `tracks` (track -> stage -> int64[2,n] starts and durations, ns): ui.perfetto.dev opens it.

    Format: "Trace Event Format", complete events (ph X), times in microseconds. Perfetto drops a slice that overlaps
    another of the same thread, so spans of a track that overlap (ages longer than a period) become threads of their
    own with the same name.
    """

    def pieces() -> Iterator[str]:
        yield '{"displayTimeUnit": "ms", "traceEvents": [\n'
        yield json.dumps({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "harmowam"}})
        rows = [(track, lane) for track, stages in tracks.items() for lane in _lanes(stages)]
        for tid, (track, lane) in enumerate(rows, 1):
            yield ",\n" + json.dumps({"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": track}})
            for start, duration, stage in lane:
                yield f',\n{{"ph": "X", "pid": 1, "tid": {tid}, "name": {json.dumps(stage)}, '
                yield f'"ts": {start / 1e3:.3f}, "dur": {duration / 1e3:.3f}}}'
        yield "\n]}\n"

    write_whole(path, pieces())
