"""What a run leaves: counts, stamps of every stage, a log. Writing it costs the loops microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from firmware_bridge.motion.messages import Command, JointState
from runtime.cameras.frames import Frame
from runtime.contracts import FastTick, Observation, Prior
from runtime.loop.health import Change
from runtime.observe.log import LogWriter
from runtime.observe.schemas import Level
from runtime.observe.trace import StageTrace

FAST_STAGES = (  # what the fast loop marks before and after a policy's own stages
    "fast.take",
    "fast.slot",
    "fast.period_error",
    "observation.age",
    "prior.age",
    "wire",
    "wire.observation",
    "wire.overhead",
)
MOTOR_STAGES = ("motor.read", "motor.write", "motor.telemetry", "motor.wake")


@dataclass
class Counts:
    """What the loops did: a miss is a tick whose command was not in its slot within one period, skipped ticks
    included."""

    ticks: int = 0
    new_frames: int = 0
    repeats: int = 0
    misses: int = 0
    # ticks after the first command in which the motor process held the arm: it had no command that was still good
    held: int = 0
    slow: int = 0
    began_ns: int = 0
    ended_ns: int = 0
    first_command_ns: int = 0
    followed: int = 0  # commands whose goals were seen on the wire
    jerk_rms: float = 0.0  # of the motor process's goals, rad/s^3
    jerk_max: float = 0.0
    motor_ns: int = 0  # from the first to the last motor tick that was seen, by the motor clock without its shifts
    motor_ticks: int = 0  # periods in that time
    motor_shift_ns: int = 0  # by how much the motor clock moved out of the commands' way in that time
    faults_seen: int = 0  # outputs of a model that were refused


class RunRecord:
    """`stages`: the policy's own. `inject` (stage -> ms) slows stages down; `log` is the run's recording."""

    def __init__(self, stages: tuple[str, ...] = (), inject: Mapping[str, float] | None = None):
        fast = tuple(s for s in stages if s.startswith("fast."))
        slow = tuple(s for s in stages if s.startswith("slow."))
        self.counts = Counts()
        self.fast_trace = StageTrace(stages=(*fast, *FAST_STAGES), inject=inject)
        self.slow_trace = StageTrace(stages=slow, capacity=1 << 14, inject=inject)
        self.motor_trace = StageTrace(stages=MOTOR_STAGES)
        self.log: LogWriter | None = None

    @property
    def fault(self) -> str:
        """Why the log ended before the run, empty where it has not."""
        return "" if self.log is None else self.log.fault

    def prior(self, made: Prior, obs: Observation, began_ns: int) -> None:
        """One slow step, before its Prior is used."""
        if self.log is not None:
            self.log.prior(made, obs, began_ns)
        self.counts.slow += 1

    def tick(
        self,
        now_ns: int,
        obs: Observation,
        frames: Mapping[str, Frame],
        prior: Prior | None,
        command: Command | None,
        tick: FastTick,
        *,
        reset: bool,
        sent: bool,
    ) -> None:
        """One fast step: what went in, what came out. `reset`: its memory was cleared before; `sent`: its command went
        to the arm."""
        if self.log is not None:
            targets = np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target])
            number = -1 if prior is None else prior.number
            self.log.tick(now_ns, obs, frames, number, command, targets, reset=reset, sent=sent)

    def state(self, state: JointState) -> None:
        if self.log is not None:
            self.log.state(state)

    def health(self, now_ns: int, change: Change | None) -> None:
        if self.log is not None and change is not None:
            self.log.health(now_ns, change.state, change.reasons)

    def said(self, now_ns: int, what: str) -> None:
        """Put what the policy said into the log, for people."""
        if self.log is not None:
            self.log.message(now_ns, Level.INFO, what)

    def ended(self, now_ns: int, why: str) -> None:
        """Put the error that ended the run into its log, for people."""
        if self.log is not None:
            self.log.message(now_ns, Level.FATAL, why)

    def clear(self) -> None:
        """Forget the stamps of warming up."""
        self.fast_trace.clear()
        self.slow_trace.clear()

    def close(self) -> None:
        """Finish the log. Closing twice is allowed."""
        if self.log is not None:
            self.log.close()
