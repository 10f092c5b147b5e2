"""One turn of the fast loop: newest pictures and newest Prior to a command in its slot."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from firmware_bridge.arms.family import Family
from firmware_bridge.motion.messages import JointState
from runtime.cameras.frames import Frame
from runtime.contracts import Observation
from runtime.loop.delay import roll_forward
from runtime.loop.eyes import Eyes
from runtime.loop.health import HealthMonitor, output_fault
from runtime.loop.motor_link import MotorLink
from runtime.loop.record import RunRecord
from runtime.loop.slow import SlowLoop
from runtime.policies import FastStep
from runtime.policies.history import History


class FastLoop:
    """`family`, and `lower`, `upper`, the limits [J] (rad) of its joints: by the bundle. `compensate` False takes the
    state and the time of a command as they are when it is made, not as they will be when it arrives."""

    def __init__(
        self,
        step: FastStep,
        eyes: Eyes,
        slow: SlowLoop,
        link: MotorLink,
        record: RunRecord,
        health: HealthMonitor,
        family: Family,
        lower: np.ndarray,
        upper: np.ndarray,
        compensate: bool = True,
    ):
        self.step, self.eyes, self.slow, self.link, self.record = step, eyes, slow, link, record
        self.compensate, self.health = compensate, health
        self._family, self._lower, self._upper = family, lower, upper
        self._reset = True  # the step's memory was cleared since its last turn
        self._last_ns = 0
        self._history = History(slow.step.history_ns)

    def _observe(self, frames: dict[str, Frame], state: JointState, now: int) -> Observation:
        captured = min(f.t_capture_ns for f in frames.values())
        self.record.fast_trace.add("observation.age", now - captured, captured)
        images = {name: f.image for name, f in frames.items()}
        return self._history(Observation(captured, images, state.q_rad, state.qd_rad_s, self.record.counts.ticks))

    def tick(self, period_ns: int, state: JointState) -> str:
        """One turn on new pictures; returns what was wrong with the model's output, or nothing."""
        c, trace = self.record.counts, self.record.fast_trace
        began = time.monotonic_ns()
        trace.begin()
        frames = self.eyes.take(began)
        if self._last_ns:
            # A skipped period counts as a miss; the period error says how evenly the other ticks come.
            off = (began - self._last_ns + period_ns // 2) % period_ns - period_ns // 2
            trace.add("fast.period_error", abs(off), began)
        self._last_ns = began
        obs = self._observe(frames, state, began)
        self.slow.newest = obs
        prior = self.slow.prior
        now = time.monotonic_ns()
        if self.compensate:
            now += self.link.lead.ns
            obs = dataclasses.replace(obs, q_rad=roll_forward(state, self.link.sent, now))
        trace.mark("fast.take")
        engine_ns = time.monotonic_ns()
        command, tick = self.step.step(now, obs, prior)
        engine_ns = time.monotonic_ns() - engine_ns
        fault = (
            "" if command is None else output_fault(command, self._family, self._lower, self._upper, tick.sent_target)
        )
        reset, self._reset = self._reset, False
        c.faults_seen += bool(fault)
        held = bool(fault or self.slow.fault) or self.slow.temperature >= self.health.limits.hottest_c
        # What is not sent must not stay in the step's memory: neither a number that is not finite nor a pose that the
        # arm never took.
        if held:
            self._reset = True
            self.step.reset()
        elif command is not None:
            self.link.send(command, began, engine_ns)
        trace.mark("fast.slot")
        self.eyes.look(frames, began)
        c.new_frames += 1
        if prior is not None:
            trace.add("prior.age", now - prior.t_capture_ns, prior.t_capture_ns)
        sent = command is not None and not held
        self.record.tick(now, obs, frames, prior, command, tick, reset=reset, sent=sent)
        return fault
