"""Observations of the time before the newest one, for policies that see motion in them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

from runtime.contracts import Observation


def earlier(name: str, steps: int) -> str:
    """The name of an engine's input that is `steps` steps older than the newest observation."""
    return f"{name}-{steps}" if steps else name


class History:
    """Adds to each observation its `past`: for every entry of `back_ns` the one whose pictures were taken closest to so
    long before, the newest first. At the beginning of an episode that is the first observation itself."""

    def __init__(self, back_ns: Sequence[int]):
        self.back_ns = tuple(back_ns)
        self._seen: deque[Observation] = deque()

    def reset(self) -> None:
        """Forget the episode before."""
        self._seen.clear()

    def __call__(self, obs: Observation) -> Observation:
        if not self.back_ns:
            return obs
        self._seen.append(obs)
        wanted = [obs.t_capture_ns - back for back in self.back_ns]
        while len(self._seen) > 1 and self._seen[1].t_capture_ns <= min(wanted):
            self._seen.popleft()
        past = (min(self._seen, key=lambda o: abs(o.t_capture_ns - t)) for t in wanted)
        return dataclasses.replace(obs, past=tuple(past))
