"""The last gate before the motors: a state machine and a limiter, pure functions of time and inputs.

DISARMED -> ARMING -> HOLD <-> ACTIVE -> SAFE_STOP (latched), and FAULT (latched) from anywhere. What comes out is finite, in
range, and within velocity and acceleration of the last goal sent. This is a protective function, not a certified one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_bridge.arm import NO_REPLY, ArmConfig, Measurement
from firmware_bridge.messages import Command, RequestKind, SafetyState

TEMPERATURE_SLOW, TEMPERATURE_STOP = 60.0, 65.0  # deg C; the servo's own limit is 70
SILENT_S = 0.3  # a servo that says nothing for so long is a fault
OVERLOAD_S = 0.5
OVERLOAD = 1 << 5
BLEND_S = 0.6  # after arming, limits grow from a fifth to full
FIRST_COMMAND_S = 10.0  # an armed arm that nobody commands is lowered
REST_TOLERANCE, REST_TIMEOUT_S = 0.06, 6.0


def limit_step(
    target: np.ndarray, last: np.ndarray, last_velocity: np.ndarray, dt: float, velocity: np.ndarray, acceleration: np.ndarray,
    lower: np.ndarray, upper: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Next goal and its velocity: towards `target`, within the limits of the last goal sent, able to stop at the target.

    A move that starts at v and brakes by a*dt a tick stops after n ticks and n*v*dt - a*dt^2*n*(n-1)/2; solved for v with the
    smallest n that covers the distance, that is the exact speed limit near a target (no overshoot, no harder braking).
    """
    away = np.clip(target, lower, upper) - last
    quantum = acceleration * dt * dt
    n = np.maximum(np.ceil(0.5 * (np.sqrt(1 + 8 * np.abs(away) / quantum) - 1)), 1)
    braking = np.abs(away) / (n * dt) + 0.5 * acceleration * dt * (n - 1)
    want = np.sign(away) * np.minimum(braking, velocity)
    v = np.clip(want, last_velocity - acceleration * dt, last_velocity + acceleration * dt)
    v = np.clip(v, -velocity, velocity)
    goal = np.clip(last + v * dt, np.minimum(lower, last), np.maximum(upper, last))
    return goal, (goal - last) / dt


@dataclass(frozen=True)
class Decision:
    """What the motor process has to do now. `torque` is the torque share (None: leave as it is)."""

    goal: np.ndarray | None
    state: SafetyState
    reason: str
    arm: bool = False  # switch torque on at the measured pose
    torque: float | None = None
    release: bool = False  # torque off, finished


class Safety:
    """`step` is called once a tick and is the only place where goals are made."""

    def __init__(self, config: ArmConfig):
        self.config = config
        self.dt = 1.0 / config.motor_hz
        self.lower, self.upper = np.array(config.lower), np.array(config.upper)
        self.velocity, self.acceleration = np.array(config.max_velocity), np.array(config.max_acceleration)
        self.rest = np.array(config.rest)
        n = len(config.joints)
        self.state, self.reason = SafetyState.DISARMED, "not armed"
        self.goal, self.goal_velocity = np.zeros(n), np.zeros(n)
        self.rejected = 0
        self._armed_ns = self._held_ns = self._stop_ns = self._ramp_ns = 0
        self._silent_ns: np.ndarray = np.zeros(n, np.int64)
        self._overload_ns: np.ndarray = np.zeros(n, np.int64)
        self._was_active = False

    def _enter(self, state: SafetyState, reason: str, now_ns: int) -> None:
        if state == SafetyState.HOLD and self.state != SafetyState.HOLD:
            self._held_ns = now_ns
        if state in (SafetyState.SAFE_STOP, SafetyState.FAULT) and self.state not in (
            SafetyState.SAFE_STOP,
            SafetyState.FAULT,
        ):
            self._stop_ns, self._ramp_ns = now_ns, 0
        self.state, self.reason = state, reason

    def valid(self, command: Command) -> bool:
        """Finite and of the right size; anything else is rejected whole, never repaired."""
        n = len(self.lower)
        q, qd = command.q_rad, command.qd_rad_s
        return q.shape == (n,) and qd.shape == (n,) and bool(np.isfinite(q).all() and np.isfinite(qd).all())

    def _health(self, now_ns: int, measured: Measurement, temperature: np.ndarray) -> str:
        """Reason to stop, or nothing."""
        silent = (measured.bits & NO_REPLY) > 0
        self._silent_ns = np.where(silent, np.where(self._silent_ns == 0, now_ns, self._silent_ns), 0)
        loaded = ~silent & ((measured.bits & OVERLOAD) > 0)
        self._overload_ns = np.where(loaded, np.where(self._overload_ns == 0, now_ns, self._overload_ns), 0)
        names = self.config.joints
        lost = (self._silent_ns > 0) & (now_ns - self._silent_ns > SILENT_S * 1e9)
        if lost.any():
            return f"{names[int(lost.argmax())]} does not answer"
        if (temperature >= TEMPERATURE_STOP).any():
            return f"{names[int(temperature.argmax())]} is at {temperature.max():.0f} C"
        over = (self._overload_ns > 0) & (now_ns - self._overload_ns > OVERLOAD_S * 1e9)
        if over.any():
            return f"{names[int(over.argmax())]} is overloaded"
        return ""

    def step(
        self, now_ns: int, command: Command | None, request: RequestKind, measured: Measurement, temperature: np.ndarray
    ) -> Decision:
        """One tick: `command` and `request` are the newest there are (stale ones included)."""
        if self.state == SafetyState.DISARMED:
            if request != RequestKind.ARM:
                return Decision(None, self.state, self.reason)
            if (measured.bits & NO_REPLY).any():
                self.reason = "cannot arm: a servo does not answer"
                return Decision(None, self.state, self.reason)
            self.goal, self.goal_velocity = measured.q.copy(), np.zeros_like(measured.q)
            self._armed_ns = now_ns
            self._enter(SafetyState.ARMING, "torque on at the measured pose", now_ns)
            return Decision(self.goal, self.state, self.reason, arm=True, torque=1.0)
        trouble = self._health(now_ns, measured, temperature)
        if trouble and self.state not in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            self._enter(SafetyState.FAULT if "answer" in trouble else SafetyState.SAFE_STOP, trouble, now_ns)
        if request == RequestKind.LOWER and self.state not in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            self._enter(SafetyState.SAFE_STOP, "lowering on request", now_ns)
        if self.state in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            return self._stop(now_ns, measured)
        return self._follow(now_ns, command, request, measured, temperature)

    def _follow(
        self, now_ns: int, command: Command | None, request: RequestKind, measured: Measurement, temperature: np.ndarray
    ) -> Decision:
        usable = command is not None and now_ns < command.t_stale_ns and request != RequestKind.HOLD
        if usable and command is not None and not self.valid(command):
            self.rejected += 1
            usable = False
        if usable and command is not None:
            self._enter(SafetyState.ACTIVE, "", now_ns)
            self._was_active = True
            ahead = min(max((now_ns - command.t_apply_ns) * 1e-9, 0.0), 0.1)
            target = command.q_rad.astype(float) + command.qd_rad_s.astype(float) * ahead
        else:
            why = (
                "held on request"
                if request == RequestKind.HOLD
                else "no command yet"
                if command is None
                else "command is stale or was rejected"
            )
            self._enter(SafetyState.HOLD, why, now_ns)
            patience_s = self.config.stop_after_s if self._was_active else FIRST_COMMAND_S
            if request != RequestKind.HOLD and now_ns - self._held_ns > patience_s * 1e9:
                self._enter(SafetyState.SAFE_STOP, f"no command for {patience_s:.1f} s", now_ns)
                return self._stop(now_ns, measured)
            # Where it comes to rest when it brakes now.
            v = self.goal_velocity
            target = self.goal + np.sign(v) * v * v / (2 * self.acceleration)
        scale = min(1.0, 0.2 + 0.8 * (now_ns - self._armed_ns) * 1e-9 / BLEND_S)
        if (temperature >= TEMPERATURE_SLOW).any():
            scale *= 0.4
        target = np.clip(target, measured.q - self.config.max_lead, measured.q + self.config.max_lead)
        self._move(target, np.maximum(self.velocity * scale, np.abs(self.goal_velocity) - self.acceleration * self.dt))
        return Decision(self.goal, self.state, self.reason)

    def _move(self, target: np.ndarray, velocity: np.ndarray) -> None:
        self.goal, self.goal_velocity = limit_step(
            target, self.goal, self.goal_velocity, self.dt, velocity, self.acceleration, self.lower, self.upper
        )

    def _stop(self, now_ns: int, measured: Measurement) -> Decision:
        """Down to the rest pose (not blindly: a FAULT has no trustworthy positions and stays where it is), then let go in a ramp."""
        elapsed = (now_ns - self._stop_ns) * 1e-9
        there = bool((np.abs(measured.q - self.rest)[:-1] < REST_TOLERANCE).all())
        if self._ramp_ns == 0 and self.state == SafetyState.SAFE_STOP and not there and elapsed < REST_TIMEOUT_S:
            slow = np.full_like(self.velocity, self.config.lower_speed)
            self._move(
                self.rest,
                np.maximum(np.minimum(slow, self.velocity), np.abs(self.goal_velocity) - self.acceleration * self.dt),
            )
            return Decision(self.goal, self.state, self.reason)
        if self._ramp_ns == 0:
            self._ramp_ns = now_ns
        share = 1.0 - (now_ns - self._ramp_ns) * 1e-9 / self.config.release_s
        if share > 0:
            return Decision(None, self.state, self.reason, torque=share)
        return Decision(None, self.state, self.reason, release=True)
