"""An arm in numbers for the tests of the safety machine: it follows its goals, and can be made to fail."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from firmware_bridge.motion.measurement import Measurement, Telemetry
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from firmware_bridge.motion.safety import Safety
from tests.firmware_bridge.so101 import CONFIG, LOWER, UPPER

S = 1_000_000_000


TICK = S // 100


COOL = np.full(6, 30.0)


LOW, HIGH = np.array(LOWER), np.array(UPPER)


V, A, DT = np.full(6, 4.0), np.full(6, 30.0), 0.01


class Bench:
    """A safety machine with an arm that goes exactly where it is told."""

    def __init__(self, start=(0.0, -0.5, 0.5, 0.5, 0.0, 0.5), config=CONFIG, **settings):
        self.safety, self.now = Safety(config, **settings), S
        self.q: Any = np.array(start)
        self.bits = np.zeros(6, np.uint8)
        self.volt: Any = np.full(6, 7.4)
        self.limp: Any = np.zeros(6, bool)
        self.qd: Any = np.zeros(6)
        self.temperature: Any = COOL
        self.pressed = False
        self.goals = []
        self.stuck = False

    def tick(self, q=None, request=RequestKind.ARM, age_ns=0, life_ns=75_000_000, qd=None):
        self.now += TICK
        command = None
        if q is not None:
            applied = self.now - age_ns
            q = np.asarray(q, np.float32)
            command = Command(applied, applied + life_ns, q, np.zeros(6, np.float32) if qd is None else qd)
        measured = Measurement(self.q, self.qd, self.bits)
        seen = Telemetry(np.zeros(6), self.temperature, self.volt, self.limp)
        d = self.safety.step(self.now, command, request, measured, seen, self.pressed)
        if d.goal is not None:
            self.q = self.q if self.stuck else d.goal.copy()
            self.goals.append(d.goal.copy())
        return d

    def ticks(self, n, *args, **kwargs):
        return [self.tick(*args, **kwargs) for _ in range(n)]


targets = st.lists(st.lists(st.floats(-4, 4), min_size=6, max_size=6), min_size=3, max_size=40)


def run_to_speed(bench, n=100):
    """Follow a moving target until the arm is fast."""
    for k in range(n):
        bench.tick(np.array([-1 + 0.02 * k, -0.5, 0.5, 0.5, 0.0, 0.5]))


def wrong(joint=3, **values):
    """Make a bench whose arm shows `values` at `joint`."""

    def act(bench):
        for name, value in values.items():
            array = np.array(getattr(bench, name))
            array[joint] = value
            setattr(bench, name, array)

    return act


def lag(rad):
    def act(bench):
        bench.stuck = True
        bench.q = bench.safety.goal.copy()
        bench.q[1] -= rad

    return act


FAULT, STOP = SafetyState.FAULT, SafetyState.SAFE_STOP
