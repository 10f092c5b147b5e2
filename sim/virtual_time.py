"""The two-rate loop in virtual time: one process, an event queue, the very steps that run on the robot.

Time is a number that jumps from event to event: camera frame, slow step begins, Prior ready, command ready, motor tick.
Computing takes no virtual time; each engine's latency is given, so that success can be read against latency.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from firmware_bridge.messages import Command, JointState
from runtime.contracts import FastTick, Observation, Prior
from runtime.steps import FastStep, SlowStep
from sim.world import World

S = 1_000_000_000


@dataclass(frozen=True)
class Schedule:
    """Rates (Hz) and latencies (ms) of the virtual robot. The defaults are what the real-time loop shows on two cores."""

    camera_hz: float = 25.0
    slow_hz: float = 8.0
    motor_hz: float = 100.0
    slow_ms: float = 40.0
    fast_ms: float = 8.0


@dataclass
class Episode:
    """What happened in one virtual episode."""

    success: bool = False
    seconds: float = 0.0
    ticks: list[FastTick] = field(default_factory=list)
    states: list[JointState] = field(default_factory=list)
    priors: list[Prior] = field(default_factory=list)
    distance: list[float] = field(
        default_factory=list
    )  # tool to goal object, for the gate's score; never seen by the policy


MotorTick = Callable[[int, Command | None], JointState]


def run_episode(
    world: World,
    slow: SlowStep,
    fast: FastStep,
    motor_tick: MotorTick,
    schedule: Schedule = Schedule(),
    limit_s: float = 10.0,
) -> Episode:
    """Drive `world` (already reset) to success or `limit_s` of virtual time. `motor_tick(now, newest command)` moves the servos."""
    out = Episode()
    fast.reset()
    start = 1 * S  # virtual clocks do not start at zero: a zero time means "none" on the wire
    end = start + int(limit_s * S)
    queue: list[tuple[int, int, str, object]] = []
    order = 0

    def push(at: int, kind: str, value: object = None) -> None:
        nonlocal order
        order += 1
        heapq.heappush(queue, (at, order, kind, value))

    state = motor_tick(start, None)
    now = start
    command: Command | None = None
    prior: Prior | None = None
    obs: Observation | None = None
    seq = 0
    held_ns = 0
    push(start, "motor")
    push(start, "camera")
    push(start + 1, "slow")
    while queue:
        at, _, kind, value = heapq.heappop(queue)
        if at > end:
            break
        if at > now:
            world.advance((at - now) / S)
            now = at
        if kind == "camera":
            seq += 1
            obs = Observation(
                now, {"front": world.render("front"), "wrist": world.render("wrist")}, state.q_rad, state.qd_rad_s, seq
            )
            made, tick = fast.step(now, obs, prior)
            out.ticks.append(tick)
            if made is not None:
                push(now + int(schedule.fast_ms * 1e6), "command", made)
            push(now + int(S / schedule.camera_hz), "camera")
        elif kind == "slow":
            if obs is not None:
                push(now + int(schedule.slow_ms * 1e6), "prior", slow.step(now, obs))
            push(now + int(S / schedule.slow_hz), "slow")
        elif kind == "prior" and isinstance(value, Prior):
            prior = Prior(
                value.t_capture_ns, now, value.task, value.tokens, value.future, value.chunk, value.grid_ns, value.seq
            )
            out.priors.append(prior)
        elif kind == "command" and isinstance(value, Command):
            command = value
        elif kind == "motor":
            state = motor_tick(now, command)
            out.states.append(state)
            held_ns = held_ns + int(S / schedule.motor_hz) if world.success() else 0
            if held_ns >= S // 5:  # the cube has rested on the plate for 0.2 s
                out.success = True
                break
            push(now + int(S / schedule.motor_hz), "motor")
    out.seconds = (now - start) / S
    return out


def direct_motor(world: World) -> MotorTick:
    """Servos without a bus, for tests of the loop alone: the extrapolated command goes straight to the goal registers."""

    def tick(now_ns: int, command: Command | None) -> JointState:
        if command is not None and now_ns < command.t_stale_ns:
            world.set_goals(command.q_rad + command.qd_rad_s * ((now_ns - command.t_apply_ns) / S))
        zero = np.zeros(6, np.float32)
        return JointState(
            now_ns, world.measured.astype(np.float32), world.qd.astype(np.float32), world._goal.astype(np.float32), zero, zero, zero,
            np.zeros(6, np.uint8),
        )  # fmt: skip

    return tick
