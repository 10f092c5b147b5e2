"""Health of a run: one state, with its reasons. A pure function of time and what the loops saw; no clock and no I/O
inside.

STARTING -> RUNNING <-> DEGRADED <-> HOLDING -> STOPPED. HOLDING means that no new targets go to the arm: within a tick
the loop stops commanding, the motor process brakes, and the loop then keeps the arm where it came to rest. STOPPED is
latched: the arm is lowered. What the safety machine in the motor process decides stands above all of this.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from firmware_bridge.arms.family import Family
from firmware_bridge.motion.messages import Command


class Health(enum.IntEnum):
    STARTING = 0
    RUNNING = 1
    DEGRADED = 2
    HOLDING = 3
    STOPPED = 4


@dataclass(frozen=True)
class HealthLimits:
    """When something counts as wrong, and for how long a run goes on with it. Times in seconds."""

    camera_late_s: float = 0.15  # without a new picture: hold
    camera_lost_s: float = 10.0  # without a new picture: stop. This is enough time to plug it in again
    prior_late_s: float = 0.5  # the predictive expert gets no plan: degraded
    prior_lost_s: float = 1.5  # nothing to act on: hold
    engine_lost_s: float = 10.0  # held because of a missing Prior, unusable outputs or heat: stop
    miss_share: float = 0.05  # of the ticks of the last second: degraded
    hot_c: float = 90.0  # of the hottest thermal zone: degraded. An Orin throttles from 99
    hottest_c: float = 102.0  # hold: the next step is the board's own emergency shutdown
    start_s: float = 10.0  # without a first command: stop


@dataclass(frozen=True)
class Signs:
    """What one turn of the fast loop saw."""

    camera_age_s: dict[str, float] = field(default_factory=dict)  # since the newest picture of each camera
    camera_faults: tuple[str, ...] = ()  # frozen, black, late, apart: they degrade a run and do not stop it
    prior_age_s: float = -1.0  # -1: none yet
    plan_over_s: float = 0.0  # since the end of the newest plan of joint targets; below 0 while it lasts
    output_fault: str = ""  # what was wrong with the model's output of this tick
    commanded: bool = False  # a command went out in this tick
    misses: int = 0  # deadlines missed in this tick
    temperature_c: float = 0.0
    recording_fault: str = ""


@dataclass(frozen=True)
class Change:
    """The run went into a state, and why; seconds count from its beginning."""

    at_s: float
    state: Health
    reasons: tuple[str, ...]


def _kind(reason: str) -> str:
    """A reason without its figures; names in quotes stay whole."""
    return re.sub(r"'[^']*'|[\d.]+", lambda m: m[0] if m[0].startswith("'") else "", reason)


class HealthMonitor:
    """Call `step` once a tick. Results: `state`, `reasons`, `changed` (by the last step), `history` (the first
    changes)."""

    def __init__(self, fast_hz: float, limits: HealthLimits | None = None, history: int = 256):
        self.limits = limits or HealthLimits()
        self.state = Health.STARTING
        self.reasons: tuple[str, ...] = ("no command yet",)
        self.history: list[Change] = []
        self.changed: Change | None = None  # by the last step
        self._most = history
        self._missed: np.ndarray = np.zeros(max(int(fast_hz), 1), np.int16)  # misses of the last second's ticks
        self._k = 0
        self._began_ns = 0
        self._last_ns = 0
        self._wanting = False  # the last step held although every camera gave pictures
        self._wanting_ns = 0  # for how long that has been so

    def _judge(self, now_ns: int, s: Signs) -> tuple[Health, tuple[str, ...]]:
        limit = self.limits
        late = {name: age for name, age in s.camera_age_s.items() if age > limit.camera_late_s}
        hold = [f"camera '{name}' stopped giving frames" for name in late]
        if s.output_fault:
            hold.append(s.output_fault)
        if s.prior_age_s > limit.prior_lost_s and s.plan_over_s >= 0 and not late:
            hold.append("the slow engine is overdue")
        if s.temperature_c >= limit.hottest_c:
            hold.append(f"the board is at {s.temperature_c:.0f} C")
        if any(age > limit.camera_lost_s for age in late.values()):
            return Health.STOPPED, tuple(hold)
        # Time without pictures does not count against the engines: it has its own limit, and when pictures are back the
        # engines need a moment for a new Prior.
        wanting = bool(hold) and not late
        if wanting and self._wanting:
            self._wanting_ns += now_ns - self._last_ns
        self._wanting = wanting
        if hold:
            return (Health.STOPPED if self._wanting_ns > limit.engine_lost_s * 1e9 else Health.HOLDING), tuple(hold)
        self._wanting_ns = 0
        if self.state == Health.STARTING and not s.commanded:
            if now_ns - self._began_ns > limit.start_s * 1e9:
                return Health.STOPPED, (f"no command within {limit.start_s:.0f} s",)
            return Health.STARTING, ("no command yet",)
        weak = list(s.camera_faults)
        if s.prior_age_s > limit.prior_late_s:
            weak.append("the slow engine is late")
        if s.plan_over_s > 0:
            weak.append(
                f"the plan ended {s.plan_over_s:.1f} s ago and no newer one came: the arm holds its last target"
            )
        share = float(self._missed.sum()) / len(self._missed)
        if share > limit.miss_share:
            weak.append(f"{share:.0%} of the deadlines were missed in the last second")
        if s.temperature_c >= limit.hot_c:
            weak.append(f"the board is at {s.temperature_c:.0f} C")
        if s.recording_fault:
            weak.append(s.recording_fault)
        return (Health.DEGRADED if weak else Health.RUNNING), tuple(weak)

    def step(self, now_ns: int, signs: Signs) -> Health:
        """The new state. STOPPED is final."""
        self._began_ns = self._began_ns or now_ns
        self._missed[self._k % len(self._missed)] = signs.misses
        self._k += 1
        if self.state == Health.STOPPED:
            return self.state
        state, reasons = self._judge(now_ns, signs)
        self._last_ns = now_ns
        # Figures in a reason change all the time: only another state or another kind of reason makes a new entry.
        another = state != self.state or list(map(_kind, reasons)) != list(map(_kind, self.reasons))
        self.changed = Change(round((now_ns - self._began_ns) * 1e-9, 3), state, reasons) if another else None
        if self.changed is not None and len(self.history) < self._most:
            self.history.append(self.changed)
        self.state, self.reasons = state, reasons
        return state


BEYOND_M = 0.2  # a target may lie so far beyond the arm's reach: the kinematics draw it in; farther out is a fault
LOWEST_M = -0.15  # of any target of a table-top arm
MARGIN_RAD = 0.35


def output_fault(command: Command, arm: Family, lower: np.ndarray, upper: np.ndarray, target: np.ndarray) -> str:
    """What is wrong with what a model made, or nothing: not finite, or far out of range.

    `target` [6] is the end-effector target behind the command (base frame). A command a little out of range is left to
    the limiter, which clips it; one far out of range shows that the model does not know this scene.
    """
    q, qd = command.q_rad, command.qd_rad_s
    if not (np.isfinite(q).all() and np.isfinite(qd).all() and np.isfinite(target).all()):
        return "the model gave a number that is not finite"
    if not 0.0 <= command.gate <= 1.0:  # false for NaN, too
        return "the model gave a gate that is no probability"
    away, high = float(np.hypot(target[0], target[1])), float(target[2])
    if away > arm.reach_m + BEYOND_M or not LOWEST_M < high < arm.highest_m + BEYOND_M:
        return "the model asked for a place far out of the arm's reach"
    beyond = np.maximum(lower - q, q - upper)
    if (beyond > MARGIN_RAD).any():
        return f"the model asked for joint {int(beyond.argmax()) + 1} far out of its range"
    return ""


def board_temperature(zones: Path = Path("/sys/class/thermal")) -> float:
    """The hottest thermal zone in degrees C; 0 where the kernel shows none. About 0.1 ms: ask once a second."""
    hottest = 0.0
    for zone in zones.glob("thermal_zone*/temp"):
        try:
            hottest = max(hottest, int(zone.read_text()) / 1000.0)
        except (OSError, ValueError):
            continue
    return hottest
