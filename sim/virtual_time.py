"""The two-rate loop in virtual time: one process, an event queue, and the same steps that run on the robot.

Time is a number that jumps from event to event: camera frame, start of a slow step, Prior ready, command ready, motor
tick. Computing takes no virtual time; each engine's latency is a parameter, so that success can be measured against
latency.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from firmware_bridge.motion.messages import Command, JointState
from runtime.contracts import FastTick, Observation, Prior
from runtime.policies import FastStep, SlowStep
from runtime.policies.finish import Finish
from runtime.policies.history import History
from sim.tasks import REST_S
from sim.world import World

S = 1_000_000_000
MS = 1_000_000
START = 1 * S  # virtual clocks do not start at zero, because a zero time means "none" in messages


@dataclass(frozen=True)
class Schedule:
    """Rates (Hz) and latencies (ms) of the virtual robot. The defaults are those of the real-time loop on two cores.

    The slow loop starts a step at `slow_hz`, or when the previous step is done if that is later. Success must last for
    `rest_s`; what it exceeds REST_S by is added to the time limit.
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
    """What happened in one virtual episode. `ended`: "success", "done" (said by the policy), "time", or the watcher's
    reason. `success`: at the end; `ever`: at any time, for as long as the schedule asks."""

    success: bool = False
    ever: bool = False
    seconds: float = 0.0
    ended: str = "time"
    ticks: list[FastTick] = field(default_factory=list)
    states: list[JointState] = field(default_factory=list)
    priors: list[Prior] = field(default_factory=list)
    commands: list[tuple[int, Command]] = field(default_factory=list)  # and when each was ready, ns


MotorTick = Callable[[int, Command | None], JointState]
# called at every frame, before the policy; a returned text ends the episode
Watcher = Callable[[int, Observation], str]


class _Virtual:
    """One episode: the event queue, the newest values, and one method for each kind of event."""

    def __init__(
        self,
        world: World,
        slow: SlowStep,
        fast: FastStep,
        motor_tick: MotorTick,
        schedule: Schedule,
        watch: Watcher | None,
        disturb: Callable[[int], None] | None,
        finish: Finish | None,
    ):
        self.world, self.slow, self.fast, self.motor_tick, self.watch = world, slow, fast, motor_tick, watch
        self.disturb, self.finish = disturb, finish
        self.schedule, self.out = schedule, Episode(ended="")
        rates = (schedule.camera_hz, schedule.slow_hz, schedule.motor_hz)
        self.frame_ns, self.slow_ns, self.motor_ns = (int(S / hz) for hz in rates)
        self.busy_ns = int((schedule.world_model_ms + schedule.predictive_ms) * MS)
        self.queue: list[tuple[int, int, str, object]] = []
        self.order = self.frames = self.held_ns = 0
        self.now = START
        self.next_slow = START + 1
        self.state = motor_tick(START, None)
        self.command: Command | None = None
        self.prior: Prior | None = None
        self.obs: Observation | None = None
        self.history = History(slow.history_ns)

    def push(self, at: int, kind: str, value: object = None) -> None:
        self.order += 1
        heapq.heappush(self.queue, (at, self.order, kind, value))

    def camera(self, _: object) -> None:
        self.frames += 1
        ahead = self.frame_ns + max(self.slow.history_ns, default=0)
        seen = self.fast.uses_pictures or self.next_slow < self.now + ahead
        pictures = {"front": self.world.render("front"), "wrist": self.world.render("wrist")} if seen else {}
        taken = Observation(self.now, pictures, self.state.q_rad, self.state.qd_rad_s, self.frames)
        self.obs = self.history(taken)
        self.out.ended = self.watch(self.now, self.obs) if self.watch is not None else ""
        if self.out.ended:
            return
        made, tick = self.fast.step(self.now, self.obs, self.prior)
        self.out.ticks.append(tick)
        if made is not None:
            self.push(self.now + int(self.schedule.fast_ms * MS), "command", made)
        self.push(self.now + self.frame_ns, "camera")

    def slow_step(self, _: object) -> None:
        if self.obs is not None:
            self.push(self.now + self.busy_ns, "prior", self.slow.step(self.now, self.obs))
        self.next_slow = self.now + max(self.slow_ns, self.busy_ns)
        self.push(self.next_slow, "slow")

    def new_prior(self, value: object) -> None:
        assert isinstance(value, Prior)
        self.prior = dataclasses.replace(value, t_ready_ns=self.now)
        self.out.priors.append(self.prior)
        if self.finish is not None and self.finish.told(self.prior):
            self.out.success, self.out.ended = self.world.success(), "done"

    def new_command(self, value: object) -> None:
        assert isinstance(value, Command)
        self.command = value
        self.out.commands.append((self.now, value))

    def motor(self, _: object) -> None:
        if self.disturb is not None:
            self.disturb(self.now)
        self.state = self.motor_tick(self.now, self.command)
        self.out.states.append(self.state)
        self.held_ns = self.held_ns + self.motor_ns if self.world.success() else 0
        if self.held_ns >= self.schedule.rest_s * S:
            self.out.ever = True
            if self.finish is None:
                self.out.success, self.out.ended = True, "success"
                return
        self.push(self.now + self.motor_ns, "motor")

    def run(self, end: int) -> Episode:
        """Run until an event ends the episode, or until virtual time `end` (ns)."""
        happens = {
            "camera": self.camera,
            "slow": self.slow_step,
            "prior": self.new_prior,
            "command": self.new_command,
            "motor": self.motor,
        }
        self.push(START, "motor")
        self.push(START, "camera")
        self.push(self.next_slow, "slow")
        while not self.out.ended and self.queue:
            at, _, kind, value = heapq.heappop(self.queue)
            if at > end:
                break
            if at > self.now:
                self.world.advance((at - self.now) / S)
                self.now = at
            happens[kind](value)
        self.out.ended = self.out.ended or "time"
        self.out.seconds = (self.now - START) / S
        return self.out


def run_episode(
    world: World,
    slow: SlowStep,
    fast: FastStep,
    motor_tick: MotorTick,
    schedule: Schedule = Schedule(),
    limit_s: float = 12.0,
    watch: Watcher | None = None,
    disturb: Callable[[int], None] | None = None,
    finish: Finish | None = None,
) -> Episode:
    """Run the loop on `world` (already reset) until success, or for `limit_s` of virtual time. With `finish`, a policy
    that says when it is done, until it says so: success is then counted at that moment, and a policy that never says
    so has none.

    `motor_tick(now_ns, newest command)` moves the servos; `disturb(now_ns)` may change the world before every motor
    tick. Pictures are rendered only for frames that a step uses: most frames have none when the fast step does not use
    pictures.
    """
    fast.reset()
    end = START + int((limit_s + max(schedule.rest_s - REST_S, 0.0)) * S)
    if finish is not None:
        finish.reset()
    return _Virtual(world, slow, fast, motor_tick, schedule, watch, disturb, finish).run(end)
