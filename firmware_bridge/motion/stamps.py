"""Timing of the motor process for the profiler: bus write, read and telemetry of each tick, and the jerk of its
goals."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.slots import SlotError, SlotReader, SlotWriter
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.measurement import Measurement

STAMP_SLOT = "motor-stamps.slot"
SPANS = ("read", "write", "telemetry")
_RECORD = struct.Struct("<qqq6qdd")


@dataclass(frozen=True)
class MotorStamps:
    """Spans of the newest tick by name, (start, duration) in ns; rms and maximum of the goals' jerk since the start,
    rad/s^3."""

    tick: int
    due_ns: int
    began_ns: int
    spans: dict[str, tuple[int, int]]
    jerk_rms: float
    jerk_max: float

    @classmethod
    def unpack(cls, raw: bytes) -> MotorStamps:
        tick, due, began, *rest = _RECORD.unpack(raw)
        spans = {s: (rest[2 * i], rest[2 * i + 1]) for i, s in enumerate(SPANS) if rest[2 * i]}
        return cls(tick, due, began, spans, rest[6], rest[7])


class StampWriter:
    """Times the bus calls of `arm` by wrapping its methods; costs about 3 us per tick."""

    def __init__(self, arm: Arm, slots: Path, motor_hz: float):
        self._slot = SlotWriter(slots / STAMP_SLOT, _RECORD.size)
        self._hz3 = motor_hz**3
        self._spans = dict.fromkeys(SPANS, (0, 0))
        self._goals: np.ndarray | None = None  # the last four goals, float64[4, J] rad
        self._fresh = 0  # goals since the last tick without one
        self._count, self._square, self._most = 0, 0.0, 0.0  # of the jerk: count, sum of squares, maximum
        for span, name in (("read", "read"), ("write", "write_goals"), ("telemetry", "read_telemetry")):
            setattr(arm, name, self._timed(span, getattr(arm, name)))
        arm.exchange = self._timed_exchange(arm, arm.exchange)  # type: ignore[assignment, method-assign]

    def _timed(self, span: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.monotonic_ns()
            result = call(*args)
            self._spans[span] = (began, time.monotonic_ns() - began)
            return result

        return timed

    def _timed_exchange(
        self, arm: Arm, call: Callable[[np.ndarray], Measurement]
    ) -> Callable[[np.ndarray], Measurement]:
        """Counts as "write" until the port has taken all bytes, as "read" from then on."""

        def timed(rad: np.ndarray) -> Measurement:
            began = time.monotonic_ns()
            result = call(rad)
            told = arm.bus.told_ns
            self._spans["write"], self._spans["read"] = (began, told - began), (told, time.monotonic_ns() - told)
            return result

        return timed

    def _smoothness(self, goal: np.ndarray) -> None:
        if self._goals is None:
            self._goals = np.tile(goal, (4, 1))
        self._goals[:3] = self._goals[1:]
        self._goals[3] = goal
        self._fresh += 1
        if self._fresh > 4:
            self._count += 1
            a, b, c, d = self._goals
            jerk = float(np.abs(d - 3 * c + 3 * b - a).max()) * self._hz3
            self._square += jerk * jerk
            self._most = max(self._most, jerk)

    def write(self, tick: int, due_ns: int, began_ns: int, goal: np.ndarray | None) -> None:
        """Write the record of one tick. `due_ns`: when it should have begun, `began_ns`: when it did; `goal` None: no
        goal was made."""
        if goal is None:
            self._goals, self._fresh = None, 0
        else:
            self._smoothness(goal)
        rms = (self._square / max(self._count, 1)) ** 0.5
        flat = [v for s in SPANS for v in self._spans[s]]
        self._slot.write(_RECORD.pack(tick, due_ns, began_ns, *flat, rms, self._most))
        self._spans = dict.fromkeys(SPANS, (0, 0))


class StampReader:
    """Reads the stamps of the newest tick."""

    def __init__(self, slots: Path):
        try:
            self._slot: SlotReader | None = SlotReader(slots / STAMP_SLOT)
        except SlotError:  # a motor process without stamps: the profile then lacks these rows
            self._slot = None
        self._seen = 0  # version of the value returned last

    def newest(self) -> MotorStamps | None:
        """Each tick's stamps once; None while there are no new ones, or without a writer."""
        if self._slot is None or self._slot.newest_version == self._seen:
            return None
        got = self._slot.read()
        if got is None:
            return None
        self._seen = got[1]
        return MotorStamps.unpack(got[0])
