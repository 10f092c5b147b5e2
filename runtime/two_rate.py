"""The two-rate loop on the wall clock: fast loop in the main thread, slow loop in a thread, motors in another process.

Both loops call the pure steps of `runtime.steps`; what is here is only time, slots and counting.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from firmware_bridge.clock import Ticker, real_time
from firmware_bridge.messages import COMMAND_BYTES, JointState, RequestKind, SafetyState
from firmware_bridge.motor import COMMAND_SLOT, REQUEST_SLOT
from firmware_bridge.slots import SlotReader, SlotWriter
from runtime.bundle import Bundle
from runtime.cameras import CameraSource, Frame
from runtime.contracts import Observation, Prior
from runtime.recorder import Recorder
from runtime.steps import FastStep, SlowStep
from runtime.trace import StageTrace, summary


class RunError(Exception):
    """A run that cannot start or had to end; one sentence and the next step."""


@dataclass
class Counts:
    """What the loops did: a miss is a tick whose command was not in its slot within one period, skipped ticks included."""

    ticks: int = 0
    new_frames: int = 0
    repeats: int = 0
    misses: int = 0
    slow: int = 0
    prior_age_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1 << 17))
    wire_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1 << 17))
    began_ns: int = 0
    ended_ns: int = 0
    first_command_ns: int = 0


class Policy:
    """Owns the engines, both loops and the slots to the motor process. `state` is that process's slot."""

    def __init__(
        self, bundle: Bundle, task: str, cameras: dict[str, CameraSource], calibrations: dict[str, Camera], slots: Path,
        fast_hz: float, slow_hz: float, policy: str = "gated",
    ):  # fmt: skip
        self.cameras, self.fast_hz, self.slow_hz = cameras, fast_hz, slow_hz
        self.fast_trace, self.slow_trace = StageTrace(), StageTrace()
        self.slow = SlowStep(bundle, task, calibrations, trace=self.slow_trace)
        self.fast = FastStep(bundle, calibrations, trace=self.fast_trace, policy=policy)
        self.counts = Counts()
        self.recorder = Recorder()
        self._commands = SlotWriter(slots / COMMAND_SLOT, COMMAND_BYTES)
        self._requests = SlotWriter(slots / REQUEST_SLOT, 16)
        self._state_slot: SlotReader | None = None
        self._stop = threading.Event()
        self._newest: Observation | None = None
        self._prior: Prior | None = None
        self._failure: BaseException | None = None

    def warm_up(self) -> None:
        """First inferences are slow: pay for them before the arm is energised."""
        frames = self._frames()
        q = np.zeros(6, np.float32)
        obs = Observation(time.monotonic_ns(), {k: f.image for k, f in frames.items()}, q, q)
        for _ in range(3):
            prior = self.slow.step(obs.t_capture_ns, obs)
            self.fast.step(obs.t_capture_ns, obs, prior)
        self.fast.reset()
        self.fast_trace.clear()
        self.slow_trace.clear()

    def _frames(self) -> dict[str, Frame]:
        frames = {}
        for name, camera in self.cameras.items():
            frame = camera.newest()
            if frame is None:
                raise RunError(f"camera '{name}' stopped giving frames: check its cable.")
            frames[name] = frame
        return frames

    def request(self, kind: RequestKind) -> None:
        self._requests.write(bytes([kind]))

    def joint_state(self) -> JointState:
        got = self._state_slot.read() if self._state_slot is not None else None
        if got is None:
            raise RunError("the motor process gives no joint state: check the guard's messages.")
        return JointState.unpack(got[0])

    def arm(self, state_slot: SlotReader, timeout_s: float = 3.0) -> None:
        """Ask for torque and wait until the motor process holds the arm; raises RunError with its reason."""
        self._state_slot = state_slot
        self.request(RequestKind.ARM)
        deadline = time.monotonic() + timeout_s
        while (state := self.joint_state()).safety not in (SafetyState.HOLD, SafetyState.ACTIVE):
            if time.monotonic() > deadline:
                raise RunError(
                    f"the arm could not be armed ({state.reason or state.safety.name.lower()}): mend that and start again."
                )
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()

    def _slow_loop(self) -> None:
        try:
            ticker = Ticker(self.slow_hz)
            while not self._stop.is_set():
                obs = self._newest
                if obs is None:
                    time.sleep(0.002)
                    continue
                self.slow_trace.begin()
                made = self.slow.step(time.monotonic_ns(), obs)
                ready = time.monotonic_ns()
                self._prior = Prior(
                    made.t_capture_ns, ready, made.task, made.tokens, made.future, made.chunk, made.grid_ns, made.seq
                )
                self.counts.slow += 1
                self.recorder.prior(self._prior)
                ticker.wait()
        except BaseException as e:  # whatever it was, the fast loop must end and the arm be lowered
            self._failure = e
            self._stop.set()

    def _wait_for_frame(self, seen: int, until_ns: int) -> bool:
        """Whether a new frame of every camera came before `until_ns`; the fast loop takes it the moment it is there."""
        while min(c.seq for c in self.cameras.values()) <= seen:
            if time.monotonic_ns() >= until_ns:
                return False
            time.sleep(0.0004)
        return True

    def run(self, seconds: float, until: Any = None) -> Counts:
        """Drive for `seconds`, or until `stop()`; `until()` is asked ten times a second and ends the run when true."""
        granted = real_time()
        c = self.counts
        slow = threading.Thread(target=self._slow_loop, name="slow-loop", daemon=True)
        slow.start()
        ticker = Ticker(self.fast_hz)
        period = ticker.period_ns
        c.began_ns = time.monotonic_ns()
        end = c.began_ns + int(seconds * 1e9)
        seen, last_wire, asked_ns = 0, 0, 0
        state = self.joint_state()
        while not self._stop.is_set():
            due = ticker.wait()
            if due > end:
                break
            c.ticks += 1
            new = self._wait_for_frame(seen, due + period // 2)
            if not new:
                c.repeats += 1
                continue
            frames = self._frames()
            seen = min(camera.seq for camera in self.cameras.values())
            state = self.joint_state()
            captured = min(f.t_capture_ns for f in frames.values())
            obs = Observation(captured, {k: f.image for k, f in frames.items()}, state.q_rad, state.qd_rad_s, c.ticks)
            self._newest = obs
            prior = self._prior
            self.fast_trace.begin()
            command, tick = self.fast.step(time.monotonic_ns(), obs, prior)
            if command is not None:
                self._commands.write(command.pack())
                c.first_command_ns = c.first_command_ns or time.monotonic_ns()
            self.fast_trace.mark("fast.slot")
            done = time.monotonic_ns()
            c.new_frames += 1
            if done > due + period:
                c.misses += 1
            if prior is not None:
                c.prior_age_ms.append((tick.t_ns - prior.t_capture_ns) / 1e6)
            if state.command_seq != last_wire and state.t_wire_ns:
                last_wire = state.command_seq
                c.wire_ms.append((state.t_wire_ns - state.t_command_capture_ns) / 1e6)
            self.recorder.tick(obs, tick, command, state)
            if state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
                self._failure = RunError(
                    f"the motor process stopped the arm ({state.reason}): mend that, then start again."
                )
                break
            if until is not None and done - asked_ns > 100_000_000:
                asked_ns = done
                if until():
                    break
        c.ended_ns = time.monotonic_ns()
        c.misses += ticker.missed
        c.ticks += ticker.missed
        self._stop.set()
        slow.join(2.0)
        self.granted = granted
        if self._failure is not None:
            raise self._failure
        return c

    def lower(self, timeout_s: float = 15.0) -> JointState:
        """Ask the motor process to lower the arm, ramp the torque down and end; returns the last state it showed."""
        self.request(RequestKind.LOWER)
        state, deadline = self.joint_state(), time.monotonic() + timeout_s
        seen_at, tick = time.monotonic(), state.tick
        while time.monotonic() < deadline:
            state = self.joint_state()
            if state.tick != tick:
                tick, seen_at = state.tick, time.monotonic()
            elif time.monotonic() - seen_at > 0.5:  # no more ticks: the motor process has finished
                break
            time.sleep(0.02)
        return state


def percentiles(values: Any) -> dict[str, float]:
    """p50, p99, max of a series; zeros when it is empty."""
    v = np.asarray(values, float)
    if not len(v):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    return {
        "p50": round(float(np.percentile(v, 50)), 3),
        "p99": round(float(np.percentile(v, 99)), 3),
        "max": round(float(v.max()), 3),
    }


def timing_report(policy: Policy) -> dict[str, Any]:
    """The `profile` JSON shape: rates, misses, ages and stages of a finished run."""
    c = policy.counts
    seconds = max((c.ended_ns - c.began_ns) * 1e-9, 1e-9)
    budgets = {"fast": 1000 / policy.fast_hz, "slow": 1000 / policy.slow_hz}
    stages = summary({**policy.fast_trace.durations_ms(), **policy.slow_trace.durations_ms()})
    for name, row in stages.items():
        row["budget_ms"] = round(budgets[name.split(".")[0]], 3)
    return {
        "seconds": round(seconds, 2), "fast_hz": round(c.new_frames / seconds, 3), "repeat_hz": round(c.repeats / seconds, 3),
        "slow_hz": round(c.slow / seconds, 3), "ticks": c.ticks, "deadline_misses": c.misses,
        "prior_age_ms": percentiles(c.prior_age_ms), "observation_to_wire_ms": percentiles(c.wire_ms), "stages": stages,
    }  # fmt: skip
