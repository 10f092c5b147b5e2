"""The last gate before the motors: a state machine over a limiter, pure functions of time and inputs.

DISARMED -> ARMING -> HOLD <-> ACTIVE -> SAFE_STOP (latched), and FAULT (latched) from anywhere. What comes out is
finite, in range, and within velocity, acceleration and jerk of the goals sent before. This is a protective function,
not a certified one.

SAFE_STOP brakes, moves to the rest pose (`firmware_bridge.lowering`) and lets the torque down in a ramp; FAULT trusts
no position, so it brakes where it is and ramps down.
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
DROOP_WARN = 0.88  # of the supply voltage at the beginning, as the next three
DROOP_SLOW = 0.8
DROOP_STOP = 0.7
SURGE_STOP = 1.2
SLOW_SCALE = 0.4  # of the velocity limits
STALL_SHARE = 0.6  # of follow_rad: a joint that is further behind,
STALL_SPEED = 0.05  # rad/s: slower than this,
STALL_S = 1.0  # s: and for longer than this, is blocked
BLEND_S = 0.6  # after arming, limits grow from a fifth to full
FIRST_COMMAND_S = 10.0  # an armed arm that nobody commands is lowered
MAX_LIFE_S = 1.0  # a command that claims to be good for longer is rejected
INSIST_S = 3.0  # so long a servo that does not let go is told again: a stalled bus may come back
VOLTAGE, ENCODER, TEMPERATURE, CURRENT, OVERLOAD = 1, 2, 4, 8, 32  # condition bits
CUTS = ("range", "lead", "speed", "acceleration")  # what limits a target: see `Safety.cut`


class Level(enum.IntEnum):
    """What a condition leads to."""

    FAULT = 0
    STOP = 1
    SLOW = 2
    WARN = 3


class Row(enum.IntEnum):
    """What can be wrong with a joint, the worst first: of several at once the first is reported."""

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


NAMES = tuple(Row.__members__)  # 18 looks at an enum cost 50 us a tick on Python 3.11
CONDITIONS = {  # what it leads to, how long it must last (s), what is said of the joint
    Row.SILENT: (Level.FAULT, 0.3, "does not answer"),
    Row.JUMPED: (Level.FAULT, 0.05, "reports a position that it cannot have reached"),
    Row.APART: (Level.FAULT, 0.1, "and its second servo stand apart"),
    Row.ENCODER: (Level.FAULT, 0.1, "reports an encoder fault"),
    Row.LIMP: (Level.FAULT, 0.15, "has lost its torque"),
    Row.BEHIND: (Level.FAULT, 0.0, "does not follow its goal"),  # lasting: ArmConfig.follow_s
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
    """What the motor process has to do now. `torque` is the torque share (None: leave as it is)."""

    goal: np.ndarray | None
    state: SafetyState
    reason: str
    arm: bool = False  # switch torque on at the measured pose
    torque: float | None = None
    release: bool = False  # torque off, finished


def blind(measured: Measurement) -> bool:
    """Whether no servo's word can be taken."""
    return bool((measured.bits & (NO_REPLY | DOUBTED)).all())


def lowering_s(config: ArmConfig) -> float:
    """The longest that a lowering from anywhere within the limits can take, in s: braking, the way to rest, braking
    there, the torque's ramp, and a servo that does not let go. Who asks for one waits at least this long."""
    velocity, acceleration, jerk = (np.array(v) for v in (config.max_velocity, config.max_acceleration, config.jerk))
    braking = float((velocity / acceleration + 2 * acceleration / jerk).max()) + 2 / config.motor_hz
    return longest_s(config) + 2 * braking + config.release_s + INSIST_S


class Safety:
    """`step` is called once a tick, `revise` when something new is known before the next: goals are made nowhere else.

    `energised`: the arm holds a pose that nobody commands (the port was lost and is back): it waits to be armed or
    lowered.
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
        self._descent: Descent | None = None  # SAFE_STOP: the way to rest
        self._lasting_ns = np.array([int(CONDITIONS[row][1] * 1e9) for row in Row])[:, None]
        self._lasting_ns[Row.BEHIND] = int(config.follow_s * 1e9)
        self._since_ns: np.ndarray = np.zeros((len(Row), len(config.joints)))
        self._supply_v: np.ndarray = np.zeros(len(config.joints))
        self._was_active = False
        self._scale = 1.0  # of the velocity limits in the tick at hand
        # What the newest command asked for, and the pose that was measured then.
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
        """Finite, of the right size, and not good for longer than a second; anything else is rejected whole, never
        repaired.

        That second counts from when the command applies and from now: times of another clock than the monotonic one
        (time.time_ns()) agree with each other, and would keep a command alive for decades.
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
        """bool[condition, joint]: what is wrong at this moment."""
        bits, warm, volt = measured.bits, telemetry.temperature, telemetry.voltage
        # The first that was read; arms may have two supplies.
        self._supply_v = np.where(self._supply_v > 0, self._supply_v, volt)
        behind = np.abs(self.goal - measured.q)
        behind[-1] = 0.0  # a gripper that holds something lags, and should
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
        """The worst condition that has lasted long enough, and its sentence."""
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
        """One tick: `command` and `request` are the newest there are (stale ones included); `pressed`: the emergency
        stop."""
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
        forgotten = now_ns - self._began_ns > FIRST_COMMAND_S * 1e9
        lower = self.energised and (request == RequestKind.LOWER or forgotten)
        if request != RequestKind.ARM and not lower:
            return Decision(None, self.state, self.reason)
        if pressed or (measured.bits & (NO_REPLY | TWIN)).any():
            why = (
                "the emergency stop is pressed" if pressed else "a servo does not answer, or two of a joint stand apart"
            )
            self.reason = f"cannot arm: {why}"
            return Decision(None, self.state, self.reason)
        self.limiter.reset(measured.q)
        self._armed_ns = now_ns
        if lower:
            self._enter(SafetyState.SAFE_STOP, "lowering an arm that was left energised", now_ns)
        else:
            self._enter(SafetyState.ARMING, "torque on at the measured pose", now_ns)
        return Decision(self.goal, self.state, self.reason, arm=True)

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
                self._held_ns = now_ns  # patience begins when the request ends
            patience_s = self.config.stop_after_s if self._was_active else FIRST_COMMAND_S
            if request != RequestKind.HOLD and now_ns - self._held_ns > patience_s * 1e9:
                self._enter(SafetyState.SAFE_STOP, f"no command for {patience_s:.1f} s", now_ns)
                return self._stop(now_ns, measured)
            return Decision(self.limiter.brake(), self.state, self.reason)
        self._enter(SafetyState.ACTIVE, f"warning: {trouble}" if trouble else "", now_ns)
        self._was_active = True
        self._scale = min(1.0, 0.2 + 0.8 * (now_ns - self._armed_ns) * 1e-9 / BLEND_S)
        if level == Level.SLOW:
            self._scale *= SLOW_SCALE
        return Decision(self._towards(now_ns, command, measured), self.state, self.reason)

    def _towards(self, now_ns: int, command: Command, measured: Measurement) -> np.ndarray:
        """The tick's goal, within all limits of the goals before."""
        ahead = min(max((now_ns - command.t_apply_ns) * 1e-9 + self.limiter.lag_s, 0.0), 0.1)
        target = command.q_rad.astype(float) + command.qd_rad_s.astype(float) * ahead
        lead, q = self.config.max_lead, measured.q
        self._asked = (target, q)
        target = np.minimum(np.maximum(target, q - lead), q + lead)
        return self.limiter.step(target, self.velocity * self._scale)

    def cut(self) -> np.ndarray | None:
        """bool[4, J], rows as in `CUTS`: what was cut off the target of the tick at hand; None where no command was
        followed. For the log, when the tick's work is done."""
        if self._asked is None or self.state != SafetyState.ACTIVE:
            return None
        target, q = self._asked
        lead = np.abs(target - q) > self.config.max_lead
        beyond = (target < self.limiter.lower) | (target > self.limiter.upper)
        return np.array([beyond, lead, *self.limiter.limited(self.velocity * self._scale)])

    def revise(self, now_ns: int, command: Command, measured: Measurement) -> np.ndarray | None:
        """The goal of the tick at `now_ns` made again, for a `command` that came after it or for what was `measured`
        since.

        It starts from the goal before that tick, so the goals that stand at the end of each tick keep every limit as if
        the command had come in time; what it takes back is never more than j_max dt^3. When no servo answers any more
        it brakes. None where the arm follows no commands at present, or cannot follow this one: the next tick then says
        so.
        """
        if self.state != SafetyState.ACTIVE or now_ns >= command.t_stale_ns or not self.valid(command, now_ns):
            return None
        self.limiter.undo()
        if blind(measured):
            self._enter(SafetyState.HOLD, "no servo answers", now_ns)
            return self.limiter.brake()
        return self._towards(now_ns, command, measured)

    def _stop(self, now_ns: int, measured: Measurement) -> Decision:
        """SAFE_STOP: brake, then go down to the rest pose. FAULT: brake. Then the torque goes down in a ramp, and
        off."""
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
            return Decision(None, self.state, self.reason, torque=share)
        return Decision(None, self.state, self.reason, release=True)
