"""The two-rate loop on the wall clock: fast loop in the main thread, slow loop in a thread, motors in another process.

Both loops call the pure steps of `runtime.steps`; what is here is only time, slots and counting.

    python -m runtime.two_rate --help
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import CalibrationError, Camera
from firmware_bridge.clock import Ticker, prefer, real_time
from firmware_bridge.messages import COMMAND_BYTES, JointState, RequestKind, SafetyState
from firmware_bridge.motor import COMMAND_SLOT, REQUEST_SLOT, STATE_SLOT
from firmware_bridge.slots import SlotError, SlotReader, SlotWriter
from runtime.bundle import Bundle, BundleError
from runtime.cameras import CameraError, CameraSource, Frame, calibrations, open_cameras
from runtime.contracts import Observation, Prior
from runtime.engine import EngineError
from runtime.recorder import Recorder
from runtime.robot import RobotError, load_robot
from runtime.steps import FastStep, SlowStep
from runtime.trace import StageTrace, summary

CAMERA_SILENT_S = 0.5  # without a new picture; the motor process has held the arm for most of that time
FAST_PRIORITY, SLOW_PRIORITY = (
    10,
    5,
)  # below the motor process; both above everything else, for they share Python's lock
MOTOR_SILENT_S = 0.6  # the guard acts after 0.25 s
PHASE_NS = 1_000_000  # the fast clock is led to tick so long before a picture comes,
PHASE_STEP_NS = 200_000  # by at most so much a tick


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
        self._seen = dict.fromkeys(cameras, 0)  # newest picture that the fast loop has used
        self._newest: Observation | None = None
        self._prior: Prior | None = None
        self._failure: BaseException | None = None
        self.granted: dict[str, bool] = {}

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
            if time.monotonic() > deadline or state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
                raise RunError(
                    f"the arm could not be armed ({state.reason or state.safety.name.lower()}): mend that and start again."
                )
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()

    def _slow_loop(self) -> None:
        prefer(SLOW_PRIORITY)
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

    def _wait_for_frames(self, until_ns: int) -> bool:
        """Whether every camera gave a new picture before `until_ns`; the fast loop takes it the moment it is there."""
        while any(camera.seq <= self._seen[name] for name, camera in self.cameras.items()):
            if time.monotonic_ns() >= until_ns:
                return False
            time.sleep(0.0004)
        return True

    def _look(self) -> JointState:
        """The newest joint state; raises RunError when the arm has stopped or nobody drives it any more."""
        state = self.joint_state()
        if state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            raise RunError(f"the motor process stopped the arm ({state.reason}): mend that, then start again.")
        if time.monotonic_ns() - state.t_ns > MOTOR_SILENT_S * 1e9:
            raise RunError(
                "the motor process fell silent and the guard took the arm over: see its message, then start again."
            )
        return state

    def _missing_camera(self) -> RunError:
        late = [name for name, camera in self.cameras.items() if camera.seq <= self._seen[name]]
        return RunError(
            f"camera '{(late or list(self.cameras))[0]}' stopped giving frames: check its cable, then start again."
        )

    def _fast_tick(self, due: int, period: int, state: JointState) -> None:
        """One turn of the fast loop on new pictures."""
        c = self.counts
        frames = self._frames()
        self._seen = {name: frame.seq for name, frame in frames.items()}
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
        c.new_frames += 1
        if time.monotonic_ns() > due + period:
            c.misses += 1
        if prior is not None:
            c.prior_age_ms.append((tick.t_ns - prior.t_capture_ns) / 1e6)
        self.recorder.tick(obs, tick, command, state)

    def _drive(self, end_ns: int, until: Callable[[], bool] | None) -> None:
        c = self.counts
        ticker = Ticker(self.fast_hz)
        period = ticker.period_ns
        asked_ns = picture_ns = c.began_ns
        wire_seq = 0
        while not self._stop.is_set():
            due = ticker.wait()
            if due > end_ns:
                break
            c.ticks, c.misses = c.ticks + 1 + ticker.missed, c.misses + ticker.missed
            ticker.missed = 0
            new = self._wait_for_frames(due + period // 2)
            state = self._look()
            now = time.monotonic_ns()
            if new:
                picture_ns = now
                # A picture that waits for the tick only grows old: let the clock's phase follow the cameras.
                ticker.next_ns += min(max((now - due - PHASE_NS) // 4, -PHASE_STEP_NS), PHASE_STEP_NS)
                self._fast_tick(due, period, state)
            else:
                c.repeats += 1
                if now - picture_ns > CAMERA_SILENT_S * 1e9:
                    raise self._missing_camera()
            if state.command_seq != wire_seq and state.t_wire_ns:
                wire_seq = state.command_seq
                c.wire_ms.append((state.t_wire_ns - state.t_command_capture_ns) / 1e6)
            if until is not None and now - asked_ns > 100_000_000:
                asked_ns = now
                if until():
                    break

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> Counts:
        """Drive for `seconds`, or until `stop()`; `until()` is asked ten times a second and ends the run when true.

        Raises RunError when a camera or the motor process falls silent or the arm was stopped, and whatever the loops raise;
        the caller then lowers the arm.
        """
        self.granted = {**real_time(), "sched_fifo": prefer(FAST_PRIORITY)}
        c = self.counts
        slow = threading.Thread(target=self._slow_loop, name="slow-loop", daemon=True)
        slow.start()
        c.began_ns = time.monotonic_ns()
        try:
            self._drive(c.began_ns + int(seconds * 1e9), until)
        finally:
            c.ended_ns = time.monotonic_ns()
            self._stop.set()
            slow.join(2.0)
            prefer(0)
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Policy process: both loops of a robot whose guard already runs on the same slots. "
        "Normally `harmowam run` starts everything."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--robot", required=True, help="a shipped robot or a robot file")
    parser.add_argument("--task", required=True, help="an instruction that the bundle knows")
    parser.add_argument("--slots", type=Path, required=True, help="folder of the slots")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--record", type=Path, help="folder for the recorded episode")
    args = parser.parse_args()
    cameras: dict[str, CameraSource] = {}
    try:
        bundle, robot = Bundle.load(args.bundle), load_robot(args.robot)
        cameras = open_cameras(robot, bundle.manifest.cameras, args.slots)
        known = calibrations(robot, args.slots)
        policy = Policy(bundle, args.task, cameras, known, args.slots, robot.fast_hz, robot.slow_hz)
        policy.recorder.frames = args.record is not None
        policy.warm_up()
        state_slot = SlotReader(args.slots / STATE_SLOT)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: policy.stop())
        try:
            policy.arm(state_slot)
            policy.run(args.seconds)
        finally:
            policy.lower()
        report = timing_report(policy)
        if args.record is not None:
            policy.recorder.save(args.record, report)
        print(json.dumps(report, indent=1, sort_keys=True))
    except (BundleError, RobotError, CameraError, CalibrationError, EngineError, RunError, SlotError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    finally:
        for camera in cameras.values():
            camera.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
