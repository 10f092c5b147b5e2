"""The fault campaign: every fault of groups 1 to 23 against a moving arm, and what became of it.

Faults of bus, servos and host are played in virtual time (real bytes, paced line, the motor process's own `MotorLoop`);
`campaign_start.py` adds what is found before the arm moves (groups 22 and 26 to 28), `campaign_live.py` what needs
processes and ports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import PortError
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import MemoryPort
from firmware_bridge.virtual.plant import KinematicPlant

MS = 1_000_000
REACT_MS = 100  # allowed over the stated detection limit
# 0.18 rad behind for 1 s, or 0.3 rad for 0.4 s, of a joint that was asked to move (one at rest cannot show it)
BEHIND_MS = 1200
LEAD_MS = 100  # no goal may lie further ahead of the arm than it can move in this time
IDS = (1, 2, 3, 4, 5, 6)
SO101 = ArmConfig(
    joints=("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"),
    ids=IDS,
    lower=(-1.9, -1.7, -1.69, -1.65, -2.7, -0.17),
    upper=(1.9, 1.7, 1.69, 1.65, 2.8, 1.7),
    direction=(1,) * 6,
    zero_step=(2048,) * 6,
    rest=(0.0, -0.6, 0.6, 0.4, 0.0, 0.1),
    max_velocity=(4.0,) * 6,
    max_acceleration=(30.0,) * 6,
    release_s=0.4,
    stop_after_s=0.5,
    eeprom=tuple(
        (i, name, value)
        for i in IDS
        for name, value in (("firmware_major", 3), ("homing_offset", 0), ("min_position", 0), ("max_position", 4095))
    ),
)
KOCH = dataclasses.replace(SO101, models=("XL430-W250",) * 2 + ("XL330-M288",) * 4, eeprom=())
MIDDLE = np.array([0.0, -0.3, 0.4, 0.2, 0.0, 0.5])
SWING = np.array([0.3, 0.3, -0.3, 0.3, 0.3, 0.2])

Policy = Callable[[int, "Rig"], "Command | None"]


def wave(now_ns: int, rig: Rig) -> Command:
    """A smooth swing of all joints, 0.9 rad/s at its fastest."""
    t = max(now_ns - rig.began_ns, 0) * 1e-9 * np.pi
    q, qd = MIDDLE + SWING * np.sin(t), SWING * np.pi * np.cos(t)
    return Command(now_ns, now_ns + 75 * MS, q.astype(np.float32), qd.astype(np.float32), number=now_ns // MS)


@dataclass
class Rig:
    """A virtual arm, its line and the motor loop, driven tick by tick in virtual time."""

    config: ArmConfig
    policy: Policy = wave
    states: list[tuple[int, SafetyState, str]] = field(default_factory=list)
    goals: list[np.ndarray] = field(default_factory=list)
    lead_s: float = 0.0  # the longest way, in time at full speed, that a goal was ahead of the arm
    untruth: float = 0.0  # the largest error of a measurement that was believed, rad
    request: RequestKind = RequestKind.ARM
    pressed: bool = False
    lost: str = ""  # what the port said when it was lost

    def __post_init__(self) -> None:
        models = [MODELS[m] for m in self.config.model_names]
        self.plant = KinematicPlant(MIDDLE * 4096 / (2 * np.pi) + 2048)
        self.bus = VirtualBus(self.config.ids, self.plant, models)
        self.port = MemoryPort(self.bus, self.config.baud, 300_000)
        self.port.time_ns = self.now_ns = self.began_ns = 1000 * MS
        self.loop = MotorLoop(Arm(Bus(self.port, self.config.baud, protocol=self.config.protocol), self.config))

    def tick(self, command: Command | None) -> None:
        """One period, or as many as the last one took too long."""
        period = round(1e9 / self.config.motor_hz)
        self.now_ns += period * max(1, -(-(self.port.time_ns - self.now_ns) // period))
        self.port.time_ns = self.now_ns
        state = self.loop.tick(self.now_ns, command, self.request, 0, self.pressed)
        self.states.append((self.now_ns, state.safety, state.reason))
        self.goals.append(np.array(self.loop.safety.goal))
        truth = (self.plant.position - 2048) * 2 * np.pi / 4096
        if state.safety != SafetyState.DISARMED:
            seen = (state.status_bits & 0xC0) == 0
            self.untruth = (
                self.untruth
                if self.loop.finished
                else max(self.untruth, float(np.abs(state.q_rad - truth)[seen].max(initial=0.0)))
            )
            if state.safety in (SafetyState.ACTIVE, SafetyState.HOLD):
                ahead = np.abs(self.goals[-1] - truth) / np.array(self.config.max_velocity)
                self.lead_s = max(self.lead_s, float(ahead[:-1].max()))

    def run(self, seconds: float) -> None:
        """Up to `seconds`, or until the arm was released or its port lost."""
        end = self.now_ns + int(seconds * 1e9)
        while self.now_ns < end and not self.loop.finished and not self.lost:
            try:
                self.tick(self.policy(self.now_ns, self))
            except PortError as e:
                self.lost = str(e) or "lost"

    def torque(self) -> list[int]:
        return [self.bus.get(i, "torque_enable") for i in self.config.ids]


@dataclass(frozen=True)
class Case:
    """One row of the campaign. `limit_ms`: within what it is detected (0: carried on with, without leaving ACTIVE)."""

    group: int
    name: str
    limit_ms: float = 0
    act: Callable[[Rig], None] | None = None  # default: inject the fault of that name
    config: ArmConfig = SO101
    seconds: float = 3.0


def _inject(name: str, **how: Any) -> Callable[[Rig], None]:
    return lambda rig: rig.bus.faults.inject(name, rig.now_ns + 5 * MS, **how)


def _policy(change: Callable[[Command, Rig], Command | None]) -> Callable[[Rig], None]:
    def act(rig: Rig) -> None:
        rig.bus.faults.hit_ns = rig.now_ns
        rig.policy = lambda now, r: change(wave(now, r), r)

    return act


def _bad(value: float) -> Callable[[Command, Rig], Command]:
    return lambda c, rig: dataclasses.replace(c, q_rad=np.full(6, value, np.float32))


def _pause(ms: float) -> Callable[[Rig], None]:
    """The motor process itself does not run for a while (collector, scheduler)."""

    def act(rig: Rig) -> None:
        rig.bus.faults.hit_ns = rig.now_ns
        rig.port.time_ns += int(ms * MS)

    return act


def _old(c: Command, rig: Rig) -> Command:
    return dataclasses.replace(c, t_apply_ns=c.t_apply_ns - 400 * MS, t_stale_ns=c.t_stale_ns - 400 * MS)


def _for_ever(c: Command, rig: Rig) -> Command:
    return dataclasses.replace(c, t_stale_ns=c.t_stale_ns + 3600 * 1000 * MS)


def _short(c: Command, rig: Rig) -> Command:
    return dataclasses.replace(c, q_rad=c.q_rad[:5])


def _unplug(after_bytes: str) -> Callable[[Rig], None]:
    """Pull the plug when the line is idle, after the request went out, or in the middle of the reply."""

    def act(rig: Rig) -> None:
        rig.bus.faults.hit_ns = rig.now_ns
        if after_bytes == "idle":
            rig.port.lost = True
            return
        write, read = rig.port.write, rig.port.read

        def cut_write(data: bytes) -> None:
            write(data)
            rig.port.lost = after_bytes == "request"

        def cut_read(deadline_ns: int) -> bytes:
            data = read(deadline_ns)
            rig.port.lost = True
            return data[: len(data) // 2]

        if after_bytes == "request":
            rig.port.write = cut_write  # type: ignore[method-assign]
        else:
            rig.port.read = cut_read  # type: ignore[method-assign]

    return act


def _dash(now_ns: int, rig: Rig) -> Command:
    """To and fro at full speed."""
    side = 1 if (now_ns - rig.began_ns) // (400 * MS) % 2 else -1
    return dataclasses.replace(
        wave(now_ns, rig), q_rad=(MIDDLE + 0.9 * side).astype(np.float32), qd_rad_s=np.zeros(6, np.float32)
    )


def _at_full_speed(act: Callable[[Rig], None]) -> Callable[[Rig], None]:
    def fast(rig: Rig) -> None:
        rig.policy = _dash
        rig.run(0.5)
        while np.abs(rig.goals[-1] - rig.goals[-2]).max() * rig.config.motor_hz < 0.97 * max(rig.config.max_velocity):
            rig.run(0.01)
        act(rig)

    return fast


def _lower_then(name: str) -> Callable[[Rig], None]:
    def act(rig: Rig) -> None:
        _inject(name)(rig)
        rig.request = RequestKind.LOWER

    return act


def _press(rig: Rig) -> None:
    rig.bus.faults.hit_ns, rig.pressed = rig.now_ns, True


TOLERATED = (
    (2, "late-reply"),
    (4, "flip-header"),
    (4, "flip-id"),
    (4, "flip-length"),
    (4, "flip-data"),
    (4, "flip-checksum"),
    (5, "truncated"),
    (7, "short-payload"),
    (7, "long-payload"),
    (7, "len-0"),
    (7, "len-1"),
    (7, "len-255"),
    (3, "wrong-id"),
    (3, "duplicate-id"),
)
CASES = (
    Case(1, "silent-servo", 300),
    Case(1, "silent-all", 100),
    Case(2, "late-past-timeout", 300),
    *(Case(g, f"{n} once", 0, _inject(n, count=1)) for g, n in TOLERATED),
    *(Case(g, f"{n} for ever", 300, _inject(n)) for g, n in TOLERATED if n != "late-reply"),
    Case(5, "split"),
    Case(5, "merged"),
    Case(6, "noise-before"),
    Case(6, "noise-after"),
    Case(6, "extra-ff"),
    Case(6, "ff-in-data"),
    Case(8, "babble"),
    Case(9, "echo"),
    Case(10, "stuffing", config=KOCH),
    Case(10, "fast-sync-silent", 0, _inject("fast-sync-silent"), KOCH),
    Case(11, "bit-voltage", 300),
    Case(11, "bit-encoder", 100),
    Case(11, "bit-temperature", 200),
    Case(11, "bit-current", 500),
    Case(11, "bit-overload", 500),
    Case(11, "dxl-alert", 500, config=KOCH),
    *(Case(11, f"dxl-error-{n}", 300, config=KOCH) for n in range(1, 8)),
    Case(12, "overload-latch", 0),
    Case(12, "dxl-shutdown", 300, config=KOCH),
    Case(13, "torque-off-refused", 0, _lower_then("torque-off-refused"), seconds=14.0),
    Case(14, "no-motion", BEHIND_MS),
    Case(15, "brown-out", 250),
    Case(15, "brown-out-torque-on", 0),
    Case(15, "brown-out", 400, config=KOCH),
    Case(16, "jump", 50),
    Case(16, "glitch", 0),
    Case(16, "sign-bit", 50),
    Case(16, "wrap", 50),
    Case(16, "multi-turn", 50),
    Case(17, "frozen", BEHIND_MS),
    Case(18, "hot", 0),
    Case(18, "overheat", 300),
    Case(18, "voltage-sag", 300),
    Case(19, "unplug when idle", 10, _unplug("idle")),
    Case(19, "unplug after the request", 10, _unplug("request")),
    Case(19, "unplug in the reply", 20, _unplug("reply")),
    Case(20, "usb-latency-1"),
    Case(20, "usb-latency-16", 300),
    Case(19, "unplug at full speed", 10, _at_full_speed(_unplug("idle"))),
    Case(20, "usb-stall-2s at full speed", 20, _at_full_speed(_inject("usb-stall-2s"))),
    Case(20, "usb-stall-100ms", 20),
    Case(20, "usb-stall-2s", 20),
    Case(20, "partial-read"),
    Case(21, "policy stalls", 75, _policy(lambda c, r: _stalled(r))),
    Case(21, "command NaN", 10, _policy(_bad(float("nan")))),
    Case(21, "command infinite", 10, _policy(_bad(float("inf")))),
    Case(21, "command out of range", 0, _policy(_bad(9.0))),
    Case(21, "command of wrong size", 10, _policy(_short)),
    Case(21, "command with an old timestamp", 10, _policy(_old)),
    Case(21, "command good for ever (clock step)", 10, _policy(_for_ever)),
    Case(21, "jump of the target", 0, _policy(lambda c, r: dataclasses.replace(c, q_rad=c.q_rad + np.float32(0.8)))),
    Case(21, "pause of 60 ms (collector)", 0, _pause(60)),
    Case(21, "emergency stop", 10, _press),
    Case(23, "watchdog-trip", 400, config=KOCH),
    *(Case(29, name, config=c) for name in ("echo-late", "echo-split") for c in (SO101, KOCH)),
    Case(29, "echo-past-timeout", 300),
)


def _stalled(rig: Rig) -> Command:
    hit = rig.bus.faults.hit_ns
    return wave(hit if hit is not None else 0, rig)


def play(case: Case) -> dict[str, Any]:
    """Run one case; returns its row (JSON shape of `harmowam bus campaign`)."""
    rig = Rig(case.config)
    rig.run(1.3)
    if [s for _, s, _ in rig.states[-1:]] != [SafetyState.ACTIVE]:
        raise RuntimeError(f"the arm did not move before the fault: {rig.states[-1:]}")
    eeprom = [s.stored for s in rig.bus.servos.values()]
    before = dict(rig.loop.arm.bus.errors)
    if case.name.startswith("fast-sync"):
        rig.loop.arm.bus.fast = True
    (case.act or _inject(case.name))(rig)
    first = len(rig.states)
    rig.run(case.seconds)
    hit = rig.now_ns if rig.bus.faults.hit_ns is None else rig.bus.faults.hit_ns
    dt = 1 / case.config.motor_hz
    left = next((k for k in range(first, len(rig.states)) if rig.states[k][1] != SafetyState.ACTIVE), None)
    safe_ms, reacted_ms, said = 0.0, 0.0, ""
    if left is not None:
        reacted_ms, said = (rig.states[left][0] - hit) / MS, rig.states[left][2]
        speed = [np.abs(b - a).max() / dt for a, b in zip(rig.goals[left - 1 :], rig.goals[left:], strict=False)]
        calm = next((left + k for k, v in enumerate(speed) if v <= 1.01 * case.config.lower_speed), None)
        safe_ms = (rig.states[calm][0] - hit) / MS if calm is not None else float("inf")
        said = next((r for _, s, r in rig.states[left:] if s in (SafetyState.FAULT, SafetyState.SAFE_STOP)), said)
    if rig.lost:
        said, safe_ms = "port lost", max((rig.now_ns - hit) / MS, 0.0)
    counted = sorted({kind for (i, kind), n in rig.loop.arm.bus.errors.items() if n > before.get((i, kind), 0)})
    warned = next((r for _, _, r in rig.states[first:] if r.startswith("warning")), "")
    final, torque = rig.states[-1][1], rig.torque()
    released = not any(torque)
    controlled = final in (SafetyState.ACTIVE, SafetyState.HOLD) or not rig.loop.finished
    held = [i for i in rig.loop.holding if i in rig.config.ids]
    ok = (
        safe_ms <= case.limit_ms + REACT_MS
        and (rig.untruth < 0.12 or case.group == 17)  # a frozen encoder lies until it is found out
        and (rig.lead_s * 1000 <= LEAD_MS or case.group == 14)  # there the bus works and the goal waits for the joint
        and (released or controlled or bool(held) or bool(rig.lost))
        and [s.stored for s in rig.bus.servos.values()] == eeprom
    )
    return {
        "group": case.group,
        "name": case.name + (" (Dynamixel)" if case.config is KOCH else ""),
        "detected_as": said or warned or (", ".join(counted) if counted else "absorbed"),
        "time_to_safe_ms": round(safe_ms, 1),
        "reacted_ms": round(reacted_ms, 1),
        "limit_ms": case.limit_ms,
        "lead_ms": round(rig.lead_s * 1000, 1),
        "final_state": "PORT LOST" if rig.lost else final.name,
        "torque": "off"
        if released
        else f"servo {held} refuses: said so"
        if held
        else "out of reach"
        if rig.lost
        else "on, controlled",
        "recovery": "operator" if rig.lost or final in (SafetyState.FAULT, SafetyState.SAFE_STOP) else "by itself",
        "safe": bool(ok),
    }
