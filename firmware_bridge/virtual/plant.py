"""What turns under the virtual servos: positions in, positions out, in servo steps. `sim` fills it with MuJoCo."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Plant(Protocol):
    """n joints. The virtual bus tells it goals whenever a goal, speed, torque or limit register changes."""

    def drive(self, goal: np.ndarray, torque_on: np.ndarray, speed: np.ndarray, torque_limit: np.ndarray) -> None:
        """float64[n] goal (steps), bool[n], float64[n] speed limit (step/s, 0 = the servo's own), float64[n] in [0,
        1]."""

    def present(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position (steps), velocity (step/s) and load ([-1, 1]) at `now_ns`, float64[n] each."""


class KinematicPlant:
    """Joints that go to their goals at constant speed: enough to test a bus with."""

    def __init__(self, start: np.ndarray, speed: float = 3200.0):
        self.position: np.ndarray = np.asarray(start, float).copy()
        self.goal: np.ndarray = self.position.copy()
        self.torque: np.ndarray = np.zeros(len(self.position), bool)
        self.limit: np.ndarray = np.ones(len(self.position))
        self.speed: np.ndarray = np.full(len(self.position), speed)
        self._max = speed
        self._then: int | None = None

    def drive(self, goal: np.ndarray, torque_on: np.ndarray, speed: np.ndarray, torque_limit: np.ndarray) -> None:
        self.goal = np.array(goal, float)
        self.torque = np.array(torque_on, bool)
        self.limit = np.array(torque_limit, float)
        self.speed = np.where(np.asarray(speed) > 0, np.minimum(speed, self._max), self._max)

    def present(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dt = 0.0 if self._then is None else max(now_ns - self._then, 0) * 1e-9
        self._then = now_ns
        reach = self.speed * dt * (self.torque & (self.limit > 0.02))
        move = np.minimum(np.maximum(self.goal - self.position, -reach), reach)
        self.position = self.position + move
        velocity = move / dt if dt > 0 else np.zeros_like(move)
        return self.position, velocity, np.zeros_like(move)
