"""Limits position, velocity, acceleration and jerk of the goals sent to the motors, for any input.

Two stages. `limit_step` is exact in discrete time for position, velocity and acceleration. A moving average over its
last n goals then limits the jerk: an average of goals lies within their range, its velocity and acceleration are
averages of theirs, and its acceleration changes by (newest - oldest) / n <= 2 a_max / n per tick. So every limit holds
by construction. The average delays the goals by (n - 1) / 2 ticks.
"""

from __future__ import annotations

from collections import deque

import numpy as np


def limit_step(
    target: np.ndarray,
    last: np.ndarray,
    last_velocity: np.ndarray,
    dt: float,
    velocity: np.ndarray,
    acceleration: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Next goal and its velocity, float64[J]: one tick from `last` towards `target`, slow enough to stop at the target.

    All arrays are float64[J] in rad, rad/s, rad/s^2; `dt` in s; `lower` and `upper` are the position limits. A move
    that starts at v and brakes by a*dt per tick stops after n ticks and n*v*dt - a*dt^2*n*(n-1)/2. Solved for v with
    the smallest n that covers the distance, this is the exact speed limit near a target: no overshoot, no harder
    braking.
    """
    away = np.minimum(np.maximum(target, lower), upper) - last
    quantum = acceleration * dt * dt
    n = np.maximum(np.ceil(0.5 * (np.sqrt(1 + 8 * np.abs(away) / quantum) - 1)), 1)
    braking = np.abs(away) / (n * dt) + 0.5 * acceleration * dt * (n - 1)
    want = np.sign(away) * np.minimum(braking, velocity)
    change = acceleration * dt
    v = np.minimum(np.maximum(want, last_velocity - change), last_velocity + change)
    goal = np.minimum(np.maximum(last + v * dt, np.minimum(lower, last)), np.maximum(upper, last))
    return goal, (goal - last) / dt


class Limiter:
    """Turns targets into goals within the limits, one per tick; float64[J] arrays, rad, rad/s, rad/s^2, rad/s^3."""

    def __init__(self, dt: float, acceleration: np.ndarray, jerk: np.ndarray, lower: np.ndarray, upper: np.ndarray):
        self.dt, self.acceleration = dt, acceleration
        self.lower, self.upper = lower, upper
        self.window = max(1, int(np.ceil(2 * acceleration / (jerk * dt) - 1e-9).max()))
        self.lag_s = (self.window - 1) / 2 * dt
        self.reset(np.zeros_like(acceleration))

    def reset(self, q: np.ndarray) -> None:
        """Start again, at rest at `q` float64[J] rad."""
        self._ahead, self._rate = q.copy(), np.zeros_like(q)  # first stage: goal and velocity
        self._recent = deque([q.copy()] * self.window, self.window)  # goals of the first stage, for the average
        self._before = (self._ahead, self._rate, self._recent[0])  # what `undo` needs
        self.goal: np.ndarray = q.copy()

    @property
    def ahead(self) -> np.ndarray:
        """Goal of the first stage, float64[J] rad: `goal` follows it `lag_s` later."""
        return self._ahead

    @property
    def at_rest(self) -> bool:
        """Whether the goal stands still, and stays so when no target is given."""
        return not self._rate.any() and bool((self._recent[0] == self._recent[-1]).all())

    def step(self, target: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Next goal towards `target`, float64[J] rad. A joint faster than `velocity` first brakes, within its
        acceleration."""
        ahead, rate = limit_step(
            target, self._ahead, self._rate, self.dt, velocity, self.acceleration, self.lower, self.upper
        )
        return self._average(ahead, rate)

    def limited(self, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two bool[J] about the last step: the joint moves at its velocity limit, or changes speed at its acceleration
        limit."""
        change = np.abs(self._rate - self._before[1])
        almost = 1 - 1e-9
        return np.abs(self._rate) >= velocity * almost, change >= self.acceleration * self.dt * almost

    def undo(self) -> None:
        """Forget the last step, so that the next one replaces it. The limits hold between the steps that are kept."""
        self._ahead, self._rate, oldest = self._before
        self._recent.pop()
        self._recent.appendleft(oldest)

    def _average(self, ahead: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Second stage: the goal, the average of the last `window` goals of the first stage."""
        self._before = (self._ahead, self._rate, self._recent[0])
        self._ahead, self._rate = ahead, rate
        self._recent.append(ahead)
        self.goal = np.add.reduce(self._recent) / self.window
        return self.goal

    def brake(self) -> np.ndarray:
        """Next goal, braking every joint at its acceleration limit."""
        slower = np.maximum(np.abs(self._rate) - self.acceleration * self.dt, 0.0)
        rate = np.sign(self._rate) * slower
        return self._average(self._ahead + rate * self.dt, rate)
