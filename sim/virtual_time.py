"""The two-rate loop in virtual time: one process, an event queue, the very steps that run on the robot.

Time is a number that jumps from event to event: camera frame, slow step begins, Prior ready, command ready, motor tick.
Computing takes no virtual time; each engine's latency is given, so that success can be read against latency.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from firmware_bridge.motion.messages import Command, JointState
from runtime.contracts import FastTick, Observation, Prior
from runtime.policies import FastStep, SlowStep
from sim.tasks import REST_S
from sim.world import World

S = 1_000_000_000
MS = 1_000_000


@dataclass(frozen=True)
class Schedule:
    """Rates (Hz) and latencies (ms) of the virtual robot. The defaults are what the real-time loop shows on two cores.

    The slow loop begins at `slow_hz`, or when it is done with what it began before if that is later. Success must last
    for `rest_s`; what that is longer than usual comes on top of the limit.
    """

    camera_hz: float = 25.0
    slow_hz: float = 8.0
    motor_hz: float = 100.0
    world_model_ms: float = 35.0
    predictive_ms: float = 5.0
    fast_ms: float = 8.0
    rest_s: float = REST_S


@dataclass
class Episode:
    """What happened in one virtual episode. `ended`: "success", "time", or why the watcher stopped it."""

    success: bool = False
    seconds: float = 0.0
    ended: str = "time"
    ticks: list[FastTick] = field(default_factory=list)
    states: list[JointState] = field(default_factory=list)
    priors: list[Prior] = field(default_factory=list)


MotorTick = Callable[[int, Command | None], JointState]
Watcher = Callable[[int, Observation], str]  # called at every frame, before the policy; a text ends the episode


def run_episode(
    world: World,
    slow: SlowStep,
    fast: FastStep,
    motor_tick: MotorTick,
    schedule: Schedule = Schedule(),
    limit_s: float = 12.0,
    watch: Watcher | None = None,
) -> Episode:
    """Drive `world` (already reset) to success or `limit_s` of virtual time. `motor_tick(now, newest command)` moves
    the servos.

    Pictures are rendered only when a step will look at them: a fast step that does not listen leaves most frames to
    nobody.
    """
    out = Episode()
    fast.reset()
    start = 1 * S  # virtual clocks do not start at zero: a zero time means "none" on the wire
    end = start + int((limit_s + max(schedule.rest_s - REST_S, 0.0)) * S)
    frame_ns, slow_ns, motor_ns = (int(S / hz) for hz in (schedule.camera_hz, schedule.slow_hz, schedule.motor_hz))
    busy_ns = int((schedule.world_model_ms + schedule.predictive_ms) * MS)
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
    next_slow = start + 1
    push(next_slow, "slow")
    while queue:
        at, _, kind, value = heapq.heappop(queue)
        if at > end:
            break
        if at > now:
            world.advance((at - now) / S)
            now = at
        if kind == "camera":
            seq += 1
            seen = fast.listens or next_slow < now + frame_ns
            frames = {"front": world.render("front"), "wrist": world.render("wrist")} if seen else {}
            obs = Observation(now, frames, state.q_rad, state.qd_rad_s, seq)
            out.ended = watch(now, obs) if watch is not None else ""
            if out.ended:
                break
            made, tick = fast.step(now, obs, prior)
            out.ticks.append(tick)
            if made is not None:
                push(now + int(schedule.fast_ms * MS), "command", made)
            push(now + frame_ns, "camera")
        elif kind == "slow":
            if obs is not None:
                push(now + busy_ns, "prior", slow.step(now, obs))
            next_slow = now + max(slow_ns, busy_ns)
            push(next_slow, "slow")
        elif kind == "prior" and isinstance(value, Prior):
            prior = dataclasses.replace(value, t_ready_ns=now)
            out.priors.append(prior)
        elif kind == "command" and isinstance(value, Command):
            command = value
        elif kind == "motor":
            state = motor_tick(now, command)
            out.states.append(state)
            held_ns = held_ns + motor_ns if world.success() else 0
            if held_ns >= schedule.rest_s * S:
                out.success, out.ended = True, "success"
                break
            push(now + motor_ns, "motor")
    out.ended = out.ended or "time"
    out.seconds = (now - start) / S
    return out
