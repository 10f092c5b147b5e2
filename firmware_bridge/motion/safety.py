"""The safety machine: a state machine and a limiter that make every goal sent to the motors, from time and inputs only.

DISARMED -> ARMING -> HOLD <-> ACTIVE -> SAFE_STOP (latched), and FAULT (latched) from any state. Every goal is finite,
in range, and within the limits of velocity, acceleration and jerk relative to the goals sent before. It is a protective
function, not a certified safety function.

SAFE_STOP brakes, moves to the rest pose (`lowering.py`) and ramps the torque down. FAULT does not rely on measured
positions: it brakes and ramps the torque down where the arm is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.motion.limits import Limiter
from firmware_bridge.motion.lowering import Descent, longest_s
from firmware_bridge.motion.measurement import DOUBTED, NO_REPLY, TWIN, Measurement, Telemetry
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState

TEMPERATURE_WARN = 55.0  # deg C; the servo's own limit is 70
TEMPERATURE_SLOW = 60.0  # deg C
TEMPERATURE_STOP = 65.0  # deg C
# Shares of the supply voltage that was read first.
DROOP_WARN = 0.88
DROOP_SLOW = 0.8
DROOP_STOP = 0.7
SURGE_STOP = 1.2
SLOW_SCALE = 0.4  # share of the velocity limits at Level.SLOW
# A joint is blocked when it is further from its goal than STALL_SHARE * follow_rad and slower than STALL_SPEED (rad/s)
# for STALL_S.
STALL_SHARE = 0.6
STALL_SPEED = 0.05
STALL_S = 1.0
BLEND_S = 0.6  # after arming, the velocity limits grow from a fifth to full in this time
FIRST_COMMAND_S = 10.0  # an armed arm that gets no command for this long is lowered
MAX_LIFE_S = 1.0  # a command that is valid for longer is rejected
INSIST_S = 3.0  # torque-off is repeated for this long to a servo that keeps its torque: a stalled bus may recover
VOLTAGE, ENCODER, TEMPERATURE, CURRENT, OVERLOAD = 1, 2, 4, 8, 32  # condition bits, Feetech register 65
CUTS = ("range", "lead", "speed", "acceleration")  # what can cut off a target: see `Safety.cut`


class Level(enum.IntEnum):
    """Reaction to a condition, the strongest first: fault, safe stop, slower motion, a warning in the state."""

    FAULT = 0
    STOP = 1
    SLOW = 2
    WARN = 3


class Row(enum.IntEnum):
    """Conditions of a joint, the worst first: of several at once the first is reported. The number is the row of the
    condition in `Safety._masks`."""

    SILENT = 0
    JUMPED = 1
    APART = 2
    ENCODER = 3
    LIMP = 4
    BEHIND = 5
    BLOCKED = 6
    HOTTEST = 7
    OVERHEATING = 8
    UNDER_VOLTAGE = 9
    OVER_VOLTAGE = 10
    VOLTAGE = 11
    CURRENT = 12
    OVERLOAD = 13
    HOT = 14
    LOW_VOLTAGE = 15
    WARM = 16
    SAGGING = 17


NAMES = tuple(Row.__members__)  # strings, because 18 enum look-ups cost 50 us per tick on Python 3.11
CONDITIONS = {  # reaction, how long the condition must last (s), what the reason says about the joint
    Row.SILENT: (Level.FAULT, 0.3, "does not answer"),
    Row.JUMPED: (Level.FAULT, 0.05, "reports a position that it cannot have reached"),
    Row.APART: (Level.FAULT, 0.1, "and its second servo stand apart"),
    Row.ENCODER: (Level.FAULT, 0.1, "reports an encoder fault"),
    Row.LIMP: (Level.FAULT, 0.15, "has lost its torque"),
    Row.BEHIND: (Level.FAULT, 0.0, "does not follow its goal"),  # must last ArmConfig.follow_s
    Row.BLOCKED: (Level.FAULT, STALL_S, "is blocked"),
    Row.HOTTEST: (Level.STOP, 0.2, "is too hot"),
    Row.OVERHEATING: (Level.STOP, 0.2, "reports overheating"),
    Row.UNDER_VOLTAGE: (Level.STOP, 0.2, "has too little voltage"),
    Row.OVER_VOLTAGE: (Level.STOP, 0.2, "has too much voltage"),
    Row.VOLTAGE: (Level.STOP, 0.3, "reports a voltage out of range"),
    Row.CURRENT: (Level.STOP, 0.5, "reports too much current"),
    Row.OVERLOAD: (Level.STOP, 0.5, "is overloaded"),
    Row.HOT: (Level.SLOW, 0.2, "is hot"),
    Row.LOW_VOLTAGE: (Level.SLOW, 0.2, "has low voltage"),
    Row.WARM: (Level.WARN, 0.2, "is warm"),
    Row.SAGGING: (Level.WARN, 0.2, "has a sagging voltage"),
}


@dataclass(frozen=True)
class Decision:
    """What the motor process has to do in this tick."""

    goal: np.ndarray | None  # float64[J] rad; None: send no goal
    state: SafetyState
    reason: str
    torque_on: bool = False  # switch the torque on at the measured pose
    torque_share: float | None = None  # torque limit, 0..1 of what the EEPROM allows; None: leave it as it is
    release: bool = False  # switch the torque off and finish


def blind(measured: Measurement) -> bool:
    """Whether no joint has a valid measurement."""
    return bool((measured.bits & (NO_REPLY | DOUBTED)).all())


def lowering_s(config: ArmConfig) -> float:
    """Upper bound in s on lowering the arm from any pose within the limits: braking, motion to rest, braking there, the
    torque ramp, and repeated torque-off. A caller waits at least this long."""
    velocity, acceleration, jerk = (np.array(v) for v in (config.max_velocity, config.max_acceleration, config.jerk))
    braking = float((velocity / acceleration + 2 * acceleration / jerk).max()) + 2 / config.motor_hz
    return longest_s(config) + 2 * braking + config.release_s + INSIST_S


class Safety:
    """Makes the goals: `step` once per tick, `revise` when a command or a measurement comes between two ticks.

    `energised`: the torque is already on, because the port was lost and is back; the arm waits to be armed or lowered.
    """

    def __init__(self, config: ArmConfig, energised: bool = False):
        self.config, self.energised = config, energised
        self.velocity = np.array(config.max_velocity)
        self.limiter = Limiter(
            1.0 / config.motor_hz,
            np.array(config.max_acceleration),
            np.array(config.jerk),
            np.array(config.lower),
            np.array(config.upper),
        )
        self.state, self.reason = SafetyState.DISARMED, "not armed"
        self.rejected = 0
        self._began_ns = self._armed_ns = self._held_ns = self._ramp_ns = 0
        self._descent: Descent | None = None  # the motion to rest in SAFE_STOP
        self._lasting_ns = np.array([int(CONDITIONS[row][1] * 1e9) for row in Row])[:, None]
        self._lasting_ns[Row.BEHIND] = int(config.follow_s * 1e9)
        self._since_ns: np.ndarray = np.zeros((len(Row), len(config.joints)))
        self._supply_v: np.ndarray = np.zeros(len(config.joints))
        self._was_active = False
        self._scale = 1.0  # share of the velocity limits in this tick
        # Target of the newest command, before it was clipped, and the pose measured then.
        self._asked: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def goal(self) -> np.ndarray:
        """The goal that was made last, float64[J] rad."""
        return self.limiter.goal

    def _enter(self, state: SafetyState, reason: str, now_ns: int) -> None:
        if state == SafetyState.HOLD and self.state != SafetyState.HOLD:
            self._held_ns = now_ns
        self.state, self.reason = state, reason

    def valid(self, command: Command, now_ns: int) -> bool:
        """Whether the command is finite, has one value per joint and is valid for at most `MAX_LIFE_S`; a command that
        is not is rejected as a whole.

        The life counts from the earlier of `t_apply_ns` and now. So a command with times of another clock
        (time.time_ns()), which would be valid for decades, is rejected too.
        """
        n = len(self.velocity)
        q, qd = command.q_rad, command.qd_rad_s
        return (
            q.shape == (n,)
            and qd.shape == (n,)
            and bool(np.isfinite(q).all() and np.isfinite(qd).all())
            and command.t_stale_ns - min(command.t_apply_ns, now_ns) <= MAX_LIFE_S * 1e9
        )

    def _masks(self, measured: Measurement, telemetry: Telemetry) -> np.ndarray:
        """Conditions that are present in this tick, bool[len(Row), J]."""
        bits, warm, volt = measured.bits, telemetry.temperature, telemetry.voltage
        # The first voltage read, by joint: an arm may have two supplies.
        self._supply_v = np.where(self._supply_v > 0, self._supply_v, volt)
        behind = np.abs(self.goal - measured.q)
        behind[-1] = 0.0  # a gripper that holds something does not reach its goal
        still = np.abs(measured.qd) < STALL_SPEED
        masks = {
            "SILENT": (bits & (NO_REPLY | DOUBTED)) != 0,
            "JUMPED": (bits & DOUBTED) != 0,
            "APART": (bits & TWIN) != 0,
            "ENCODER": (bits & ENCODER) != 0,
            "LIMP": telemetry.limp,
            "BEHIND": behind > self.config.follow_rad,
            "BLOCKED": (behind > self.config.follow_rad * STALL_SHARE) & still,
            "HOTTEST": warm >= TEMPERATURE_STOP,
            "OVERHEATING": (bits & TEMPERATURE) != 0,
            "UNDER_VOLTAGE": volt < DROOP_STOP * self._supply_v,
            "OVER_VOLTAGE": volt > SURGE_STOP * self._supply_v,
            "VOLTAGE": (bits & VOLTAGE) != 0,
            "CURRENT": (bits & CURRENT) != 0,
            "OVERLOAD": (bits & OVERLOAD) != 0,
            "HOT": warm >= TEMPERATURE_SLOW,
            "LOW_VOLTAGE": volt < DROOP_SLOW * self._supply_v,
            "WARM": warm >= TEMPERATURE_WARN,
            "SAGGING": volt < DROOP_WARN * self._supply_v,
        }
        return np.array([masks[name] for name in NAMES])

    def _health(self, now_ns: int, measured: Measurement, telemetry: Telemetry) -> tuple[Level | None, str]:
        """Reaction to the worst condition that has lasted long enough, and its reason; None and "" without one."""
        masks = self._masks(measured, telemetry)
        self._since_ns = np.where(masks, np.where(self._since_ns > 0, self._since_ns, now_ns), 0)
        lasting = masks & (now_ns - self._since_ns >= self._lasting_ns)
        if not lasting.any():
            return None, ""
        row = int(lasting.any(axis=1).argmax())
        level, _, says = CONDITIONS[Row(row)]
        return level, f"{self.config.joints[int(lasting[row].argmax())]} {says}"

    def step(
        self,
        now_ns: int,
        command: Command | None,
        request: RequestKind,
        measured: Measurement,
        telemetry: Telemetry,
        pressed: bool = False,
    ) -> Decision:
        """Decide for one tick. `command` and `request`: the newest, even if stale; `pressed`: the emergency stop."""
        self._asked = None
        if self.state == SafetyState.DISARMED:
            return self._disarmed(now_ns, request, measured, pressed)
        level, trouble = self._health(now_ns, measured, telemetry)
        if pressed:
            level, trouble = Level.FAULT, "emergency stop pressed"
        if self.state != SafetyState.FAULT and level == Level.FAULT and self._ramp_ns == 0:
            self._enter(SafetyState.FAULT, trouble, now_ns)
        if self.state not in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            if level == Level.STOP:
                self._enter(SafetyState.SAFE_STOP, trouble, now_ns)
            elif request == RequestKind.LOWER:
                self._enter(SafetyState.SAFE_STOP, "lowering on request", now_ns)
        if self.state in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            return self._stop(now_ns, measured)
        return self._follow(now_ns, command, request, measured, level, trouble)

    def _disarmed(self, now_ns: int, request: RequestKind, measured: Measurement, pressed: bool) -> Decision:
        self._began_ns = self._began_ns or now_ns
        timed_out = now_ns - self._began_ns > FIRST_COMMAND_S * 1e9
        lower_arm = self.energised and (request == RequestKind.LOWER or timed_out)
        if request != RequestKind.ARM and not lower_arm:
            return Decision(None, self.state, self.reason)
        if pressed or (measured.bits & (NO_REPLY | TWIN)).any():
            why = (
                "the emergency stop is pressed" if pressed else "a servo does not answer, or two of a joint stand apart"
            )
            self.reason = f"cannot arm: {why}"
            return Decision(None, self.state, self.reason)
        self.limiter.reset(measured.q)
        self._armed_ns = now_ns
        if lower_arm:
            self._enter(SafetyState.SAFE_STOP, "lowering an arm that was left energised", now_ns)
        else:
            self._enter(SafetyState.ARMING, "torque on at the measured pose", now_ns)
        return Decision(self.goal, self.state, self.reason, torque_on=True)

    def _follow(
        self,
        now_ns: int,
        command: Command | None,
        request: RequestKind,
        measured: Measurement,
        level: Level | None,
        trouble: str,
    ) -> Decision:
        why = (
            "held on request"
            if request == RequestKind.HOLD
            else "no command yet"
            if command is None
            else "command is stale"
            if now_ns >= command.t_stale_ns
            else "no servo answers"
            if blind(measured)
            else ""
        )
        if not why and command is not None and not self.valid(command, now_ns):
            self.rejected += 1
            why = "command was rejected"
        if why or command is None:
            self._enter(SafetyState.HOLD, why, now_ns)
            if request == RequestKind.HOLD:
                self._held_ns = now_ns  # the wait for a command begins when the request ends
            longest_s = self.config.stop_after_s if self._was_active else FIRST_COMMAND_S
            if request != RequestKind.HOLD and now_ns - self._held_ns > longest_s * 1e9:
                self._enter(SafetyState.SAFE_STOP, f"no command for {longest_s:.1f} s", now_ns)
                return self._stop(now_ns, measured)
            return Decision(self.limiter.brake(), self.state, self.reason)
        self._enter(SafetyState.ACTIVE, f"warning: {trouble}" if trouble else "", now_ns)
        self._was_active = True
        self._scale = min(1.0, 0.2 + 0.8 * (now_ns - self._armed_ns) * 1e-9 / BLEND_S)
        if level == Level.SLOW:
            self._scale *= SLOW_SCALE
        return Decision(self._towards(now_ns, command, measured), self.state, self.reason)

    def _towards(self, now_ns: int, command: Command, measured: Measurement) -> np.ndarray:
        """Goal of this tick towards the command's target, float64[J] rad, within all limits.

        The target is extrapolated to the time when the limiter's delay is over, 0.1 s after `t_apply_ns` at most.
        """
        ahead = min(max((now_ns - command.t_apply_ns) * 1e-9 + self.limiter.lag_s, 0.0), 0.1)
        target = command.q_rad.astype(float) + command.qd_rad_s.astype(float) * ahead
        lead, q = self.config.max_lead, measured.q
        self._asked = (target, q)
        target = np.minimum(np.maximum(target, q - lead), q + lead)
        return self.limiter.step(target, self.velocity * self._scale)

    def cut(self) -> np.ndarray | None:
        """What limited the target of this tick, bool[4, J], rows as in `CUTS`; None when no command was followed.

        For the log: call it at the end of the tick.
        """
        if self._asked is None or self.state != SafetyState.ACTIVE:
            return None
        target, q = self._asked
        lead = np.abs(target - q) > self.config.max_lead
        beyond = (target < self.limiter.lower) | (target > self.limiter.upper)
        return np.array([beyond, lead, *self.limiter.limited(self.velocity * self._scale)])

    def revise(self, now_ns: int, command: Command, measured: Measurement) -> np.ndarray | None:
        """Make the goal of the tick at `now_ns` again, for a `command` or a measurement that came after it.

        It starts from the goal of the previous tick, so the goals at the end of each tick keep every limit as if the
        command had come in time; it differs from the goal that it replaces by at most j_max dt^3. When no servo
        answers it brakes. Returns None when the state is not ACTIVE or the command is stale or invalid; the next
        `step` then reports that.
        """
        if self.state != SafetyState.ACTIVE or now_ns >= command.t_stale_ns or not self.valid(command, now_ns):
            return None
        self.limiter.undo()
        if blind(measured):
            self._enter(SafetyState.HOLD, "no servo answers", now_ns)
            return self.limiter.brake()
        return self._towards(now_ns, command, measured)

    def _stop(self, now_ns: int, measured: Measurement) -> Decision:
        """SAFE_STOP: brake, then move to the rest pose. FAULT: brake. Then ramp the torque down and switch it off."""
        if self._ramp_ns == 0 and self.state == SafetyState.SAFE_STOP:
            if self._descent is None and self.limiter.at_rest:
                self._descent = Descent(self.config, self.limiter, measured.q)
            goal = self._descent.step(now_ns, measured.q) if self._descent is not None else None
            if goal is not None:
                return Decision(goal, self.state, self.reason)
        if self._ramp_ns == 0 and not self.limiter.at_rest:
            return Decision(self.limiter.brake(), self.state, self.reason)
        self._ramp_ns = self._ramp_ns or now_ns
        share = 1.0 - (now_ns - self._ramp_ns) * 1e-9 / self.config.release_s
        if share > 0:
            return Decision(None, self.state, self.reason, torque_share=share)
        return Decision(None, self.state, self.reason, release=True)
