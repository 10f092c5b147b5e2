"""The two-rate loop on the wall clock: fast loop in the main thread, slow loop in a thread, motors in another process.

Both loops call the pure steps of `runtime.policies.harmowam`; what is here is only time, slots, counting and health.

    python -m runtime.loop --help
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from common.clock import Ticker, prefer, real_time
from common.errors import Mendable
from common.slots import SlotReader, SlotWriter
from firmware_bridge.arms import so101
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, Expert, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import COMMAND_SLOT, REQUEST_SLOT
from firmware_bridge.motion.stamps import StampReader
from runtime.bundle import Bundle
from runtime.cameras.sources import CameraSource, Frame
from runtime.cameras.watch import CameraWatch, apart
from runtime.contracts import FastTick, Observation, Prior
from runtime.loop.delay import Lead, roll_forward
from runtime.loop.health import Health, HealthLimits, HealthMonitor, Signs, board_temperature, output_fault
from runtime.observe.log import LogWriter
from runtime.observe.replay import run_meta
from runtime.observe.schemas import Level
from runtime.observe.trace import StageTrace
from runtime.policies.harmowam import FastStep, SlowStep
from runtime.preprocess import on_gpu

FAST_PRIORITY, SLOW_PRIORITY = (
    10,
    5,
)  # below the motor process; both above everything else, for they share Python's lock
MOTOR_SILENT_S = 0.6  # the guard acts after 0.25 s
PHASE_NS = 1_000_000  # the fast clock is led to tick so long before a picture comes,
PHASE_STEP_NS = 200_000  # by at most so much a tick
FIRST_WAIT_NS = 100_000_000  # for the first pictures, whose phase it takes
KEEP_AFTER_S = 0.3  # after so long without targets the arm has come to rest: from then on it is told to stay there
STALE_NS = 75_000_000  # lifetime of such a command
FAST_STAGES = (
    "fast.take", "fast.preprocess", "fast.engine", "fast.gate", "fast.handover", "fast.command", "fast.slot",
    "fast.period_error", "observation.age", "prior.age", "wire", "wire.observation", "wire.overhead",
)  # fmt: skip
SLOW_STAGES = ("slow.preprocess", "slow.world_model", "slow.predictive")
MOTOR_STAGES = ("motor.read", "motor.write", "motor.telemetry", "motor.wake")


class RunError(Mendable):
    """A run that cannot start or had to end; one sentence and the next step."""


@dataclass
class Counts:
    """What the loops did: a miss is a tick whose command was not in its slot within one period, skipped ticks included."""

    ticks: int = 0
    new_frames: int = 0
    repeats: int = 0
    misses: int = 0
    held: int = 0  # ticks after the first command in which the motor process held the arm: it had no command that was still good
    slow: int = 0
    began_ns: int = 0
    ended_ns: int = 0
    first_command_ns: int = 0
    followed: int = 0  # commands whose goals were seen on the wire
    jerk_rms: float = 0.0  # of the motor process's goals, rad/s^3
    jerk_max: float = 0.0
    motor_ns: int = 0  # by the motor's clock, shifts apart, from the first to the last tick that was seen, and
    motor_ticks: int = 0  # how many periods that should be
    motor_shift_ns: int = 0  # by which the motor clock moved out of the commands' way meanwhile
    faults_seen: int = 0  # outputs of a model that were refused


class Policy:
    """Owns the engines, both loops and the slots to the motor process. `state` is that process's slot.

    `inject` (stage -> ms) slows stages down; `compensate` False takes the state and the time of a command as they are now, not
    as they will be when it arrives; `log` is the file that takes every input of the engines, `facts` what else it says of the run.
    `close` it whatever happens.
    """

    def __init__(
        self, bundle: Bundle, task: str, cameras: dict[str, CameraSource], calibrations: dict[str, Camera], slots: Path,
        fast_hz: float, slow_hz: float, policy: str = "gated", *, inject: Mapping[str, float] | None = None,
        compensate: bool = True, log: Path | None = None, facts: Mapping[str, Any] | None = None, limits: HealthLimits | None = None,
    ):  # fmt: skip
        self.cameras, self.fast_hz, self.slow_hz = cameras, fast_hz, slow_hz
        self.fast_trace = StageTrace(stages=FAST_STAGES, inject=inject)
        self.slow_trace = StageTrace(stages=SLOW_STAGES, capacity=1 << 14, inject=inject)
        self.motor_trace = StageTrace(stages=MOTOR_STAGES)
        self.slow = SlowStep(bundle, task, calibrations, trace=self.slow_trace, gpu=on_gpu())
        self.fast = FastStep(bundle, calibrations, trace=self.fast_trace, policy=policy, gpu=on_gpu())
        self.counts = Counts()
        self.health = HealthMonitor(fast_hz, limits)
        self.compensate, self.lead = compensate, Lead()
        joints = bundle.manifest.joints
        self._lower, self._upper = (np.array([getattr(j, k) for j in joints]) for k in ("lower", "upper"))
        self._commands = SlotWriter(slots / COMMAND_SLOT, COMMAND_BYTES)
        self._requests = SlotWriter(slots / REQUEST_SLOT, 16)
        self._slots = slots
        self._state_slot: SlotReader | None = None
        self._stop = threading.Event()
        self._seen = dict.fromkeys(cameras, 0)  # newest picture that the fast loop has used
        self._noted = dict.fromkeys(cameras, 0)  # newest picture that was seen to come while another did not
        self._arrived_ns = dict.fromkeys(cameras, 0)
        self._watches = {
            n: CameraWatch(n, fast_hz, getattr(c, "noisy", False), getattr(c, "delay_ns", 0))
            for n, c in cameras.items()
        }
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._newest: Observation | None = None
        self._prior: Prior | None = None
        self._failure: BaseException | None = None
        self._slow_fault = ""
        self._camera_faults: tuple[str, ...] = ()
        self._temperature = 0.0
        self._sent: Command | None = None
        self._made: dict[
            int, tuple[int, int, int]
        ] = {}  # command -> frames taken, in its slot, time in the step; all ns
        self._reset = True
        self._last_ns = 0
        self.granted: dict[str, bool] = {}
        self.log: LogWriter | None = None
        if log is not None:  # last: a constructor that fails leaves no file and no thread behind
            rates = {"fast_hz": fast_hz, "slow_hz": slow_hz, "compensate": compensate}
            tool = functools.partial(so101.tool, links=so101.Links(**bundle.manifest.links))
            self.log = LogWriter(log, run_meta(bundle, task, policy, calibrations, **rates, **(facts or {})), tool=tool)

    def close(self) -> None:
        """End the loops and finish the log. Closing twice is allowed."""
        self._stop.set()
        if self.log is not None:
            self.log.close()

    def warm_up(self) -> None:
        """First inferences are slow: pay for them before the arm is energised."""
        frames = self._frames()
        q = np.zeros(6, np.float32)
        obs = Observation(time.monotonic_ns(), {k: f.image for k, f in frames.items()}, q, q)
        for _ in range(3):
            prior = self.slow.step(obs.t_capture_ns, obs)
            self.fast.step(obs.t_capture_ns, obs, prior)
        self.slow.reset()
        self.fast.reset()
        self.fast_trace.clear()
        self.slow_trace.clear()

    def _frames(self) -> dict[str, Frame]:
        frames = {}
        for name, camera in self.cameras.items():
            frame = camera.newest()
            if frame is None:
                raise RunError(f"camera '{name}' stopped giving frames: check its cable.")
            shape = self._shapes.setdefault(name, frame.image.shape)
            if frame.image.shape != shape:
                raise RunError(
                    f"camera '{name}' changed from {shape[1]}x{shape[0]} to {frame.image.shape[1]}x{frame.image.shape[0]} while "
                    "driving: stop the program that did it, then start again."
                )
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
            ticker, made_from, looked = Ticker(self.slow_hz), -1, 0.0
            while not self._stop.is_set():
                obs = self._newest
                if obs is None or obs.seq == made_from:  # no news: the Prior may grow old
                    time.sleep(0.002)
                    continue
                self.slow_trace.begin()
                began = time.monotonic_ns()
                made = dataclasses.replace(self.slow.step(began, obs), t_ready_ns=time.monotonic_ns())
                made_from = obs.seq
                if np.isfinite(made.chunk).all() and np.isfinite(made.future).all():
                    if self.log is not None:
                        self.log.prior(made, obs, began)
                    self._prior, self._slow_fault = made, ""
                    self.counts.slow += 1
                else:
                    self._slow_fault = "the slow engine gave numbers that are not finite"
                    self.counts.faults_seen += 1
                if time.monotonic() - looked > 1.0:
                    looked, self._temperature = time.monotonic(), board_temperature()
                ticker.wait()
        except BaseException as e:  # whatever it was, the fast loop must end and the arm be lowered
            self._failure = e
            self._stop.set()

    def _wait_for_frames(self, until_ns: int) -> bool:
        """Whether every camera gave a new picture before `until_ns`; the fast loop takes it the moment it is there."""
        for name, camera in self.cameras.items():
            if not camera.wait(self._seen[name], until_ns):
                self._note_who_came()
                return False
            camera.newest()  # out of its slot while the others are still to come
        return True

    def _note_who_came(self) -> None:
        """Whose picture does not come is then known by name."""
        for name, camera in self.cameras.items():
            if camera.seq > max(self._seen[name], self._noted[name]):
                self._noted[name], self._arrived_ns[name] = camera.seq, time.monotonic_ns()

    def _look(self) -> JointState:
        """The newest joint state; raises RunError when the arm has stopped or nobody drives it any more."""
        state = self.joint_state()
        if state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            raise RunError(f"the motor process stopped the arm ({state.reason}): mend that, then start again.")
        if time.monotonic_ns() - state.t_ns > MOTOR_SILENT_S * 1e9:
            raise RunError("the motor process fell silent: see what is said of the arm, then start again.")
        return state

    def _watch(self, frames: dict[str, Frame], now: int) -> None:
        """Look for faults of the pictures that came at `now`; they change the health, no command, and so can wait for it."""
        stamps = {name: f.t_capture_ns for name, f in frames.items()}
        found = [fault for n, f in frames.items() for fault in self._watches[n].look(now, f.t_capture_ns, f.image)]
        self._camera_faults = (*found, *apart(stamps, int(1e9 / self.fast_hz)))

    def _observe(self, frames: dict[str, Frame], state: JointState, now: int) -> Observation:
        captured = min(f.t_capture_ns for f in frames.values())
        self.fast_trace.add("observation.age", now - captured, captured)
        images = {name: f.image for name, f in frames.items()}
        return Observation(captured, images, state.q_rad, state.qd_rad_s, self.counts.ticks)

    def _fast_tick(self, period: int, state: JointState) -> str:
        """One turn of the fast loop on new pictures; returns what was wrong with the model's output, or nothing."""
        c, trace = self.counts, self.fast_trace
        began = time.monotonic_ns()
        trace.begin()
        frames = self._frames()
        if self._last_ns:
            # Skipped periods are misses; how evenly the loop runs is told by the others.
            trace.add("fast.period_error", abs((began - self._last_ns + period // 2) % period - period // 2), began)
        self._last_ns = began
        self._seen = {name: frame.seq for name, frame in frames.items()}
        self._arrived_ns = dict.fromkeys(frames, began)
        obs = self._observe(frames, state, began)
        self._newest = obs
        prior = self._prior
        now = time.monotonic_ns()
        if self.compensate:
            now += self.lead.ns
            obs = dataclasses.replace(obs, q_rad=roll_forward(state, self._sent, now))
        trace.mark("fast.take")
        engine_ns = time.monotonic_ns()
        command, tick = self.fast.step(now, obs, prior)
        engine_ns = time.monotonic_ns() - engine_ns
        fault = "" if command is None else output_fault(command, self._lower, self._upper, tick.sent_target)
        reset, self._reset = self._reset, False
        c.faults_seen += bool(fault)
        held = bool(fault or self._slow_fault) or self._temperature >= self.health.limits.hottest_c
        if held:  # what is not sent must not live on in its memory: neither a number that is not finite nor where the arm never went
            self._reset = True
            self.fast.reset()
        elif command is not None:
            self._send(command, began, engine_ns)
        trace.mark("fast.slot")
        self._watch(frames, began)
        c.new_frames += 1
        if prior is not None:
            trace.add("prior.age", now - prior.t_capture_ns, prior.t_capture_ns)
        self._record(now, obs, frames, prior, command, tick, reset=reset, sent=command is not None and not held)
        return fault

    def _record(
        self, now: int, obs: Observation, frames: dict[str, Frame], prior: Prior | None, command: Command | None, tick: FastTick,
        *, reset: bool, sent: bool,
    ) -> None:  # fmt: skip
        if self.log is not None:
            targets = np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target])
            number = -1 if prior is None else prior.seq
            self.log.tick(now, obs, frames, number, command, targets, reset=reset, sent=sent)

    def _send(self, command: Command, taken_ns: int, engine_ns: int) -> None:
        self._commands.write(command.pack())
        now = time.monotonic_ns()
        self._sent = command
        self._made[command.seq] = (taken_ns, now, engine_ns)
        if len(self._made) > 64:
            del self._made[next(iter(self._made))]
        self.counts.first_command_ns = self.counts.first_command_ns or now

    def _stay(self, state: JointState, now: int) -> None:
        """Keep the arm where it came to rest: without commands the motor process would lower it. Expires like any command."""
        still = np.zeros_like(state.goal_rad)
        stay = Command(now, now + STALE_NS, state.goal_rad, still, Expert.NONE)
        self._commands.write(stay.pack())
        self._sent = None

    def _wire(self, state: JointState, stamps: StampReader, seen: int) -> int:
        """Book what the motor process did since the last look; returns the number of the newest command on the wire."""
        if state.command_seq != seen and state.t_wire_ns:
            seen = state.command_seq
            self.counts.followed += 1
            taken_ns, slot_ns, engine_ns = self._made.get(seen, (0, 0, 0))
            if slot_ns:
                total = state.t_wire_ns - state.t_command_capture_ns
                self.fast_trace.add("wire", state.t_wire_ns - slot_ns, slot_ns)
                self.fast_trace.add("wire.observation", total, state.t_command_capture_ns)
                self.fast_trace.add("wire.overhead", state.t_wire_ns - taken_ns - engine_ns, taken_ns)
                self.lead.see(state, slot_ns)
        new = stamps.newest()
        if new is not None:
            for name, (start, duration) in new.spans.items():
                self.motor_trace.add(f"motor.{name}", duration, start)
            self.motor_trace.add("motor.wake", new.began_ns - new.due_ns, new.due_ns)
            self.counts.jerk_rms, self.counts.jerk_max = new.jerk_rms, new.jerk_max
        return seen

    def _judge(self, now: int, fault: str, commanded: bool, misses: int) -> Health:
        prior = self._prior
        signs = Signs(
            camera_age_s={name: (now - t) * 1e-9 for name, t in self._arrived_ns.items()},
            camera_faults=self._camera_faults,
            prior_age_s=-1.0 if prior is None else (now - prior.t_capture_ns) * 1e-9,
            output_fault=fault or self._slow_fault, commanded=commanded, misses=misses, temperature_c=self._temperature,
            recording_fault="" if self.log is None else self.log.fault,
        )  # fmt: skip
        health = self.health.step(now, signs)
        if self.log is not None and (change := self.health.changed) is not None:
            self.log.health(now, change.state, change.reasons)
        return health

    def _in_phase(self) -> Ticker:
        """The fast clock, begun in the phase of the cameras: to be led there takes seconds, in which no command comes evenly."""
        self._seen = {name: camera.seq for name, camera in self.cameras.items()}
        came = self._wait_for_frames(time.monotonic_ns() + FIRST_WAIT_NS)
        ticker = Ticker(self.fast_hz)
        if came:
            ticker.shift(-PHASE_NS)
            self._seen = {name: camera.seq for name, camera in self.cameras.items()}
        return ticker

    def _drive(self, end_ns: int, until: Callable[[], bool] | None) -> None:
        c = self.counts
        ticker, stamps = self._in_phase(), StampReader(self._slots)
        period = ticker.period_ns
        asked_ns = targets_ns = c.began_ns
        self._arrived_ns = dict.fromkeys(self.cameras, c.began_ns)
        wire_seq, fault, misses = 0, "", 0
        first = self.joint_state()
        while not self._stop.is_set():
            due = ticker.wait()
            if due > end_ns:
                break
            c.ticks, misses = c.ticks + 1 + ticker.missed, ticker.missed
            ticker.missed = 0
            new = self._wait_for_frames(due + period // 2)
            state = self._look()
            c.held += (1 + misses) * (c.first_command_ns > 0 and state.safety == SafetyState.HOLD)
            now = time.monotonic_ns()
            if new:
                # A picture that waits for the tick only grows old: let the clock's phase follow the cameras.
                ticker.shift(min(max((now - due - PHASE_NS) // 4, -PHASE_STEP_NS), PHASE_STEP_NS))
                fault = self._fast_tick(period, state)
                misses += time.monotonic_ns() > due + period
            else:
                c.repeats += 1
            c.misses += misses
            if self.log is not None:
                self.log.state(state)
            health = self._judge(now, fault, c.first_command_ns > 0, misses)
            if health == Health.STOPPED:
                mend = "check its cable" if self.health.reasons[0].startswith("camera") else "look at `harmowam doctor`"
                raise RunError(f"{self.health.reasons[0]}: {mend}, then start again.")
            if health != Health.HOLDING:
                targets_ns = now
            elif now - targets_ns > KEEP_AFTER_S * 1e9:
                self._stay(state, now)
            wire_seq = self._wire(state, stamps, wire_seq)
            c.motor_shift_ns = state.shifted_ns - first.shifted_ns
            c.motor_ns = state.t_ns - first.t_ns - c.motor_shift_ns
            c.motor_ticks = state.tick + state.missed_ticks - first.tick - first.missed_ticks
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
        except RunError as e:
            if self.log is not None:
                self.log.message(time.monotonic_ns(), Level.FATAL, str(e))
            raise
        finally:
            c.ended_ns = time.monotonic_ns()
            self._stop.set()
            slow.join(2.0)
            prefer(0)
            self.close()
        if self._failure is not None:
            raise self._failure
        return c

    def why_held(self) -> str:
        """Why no command of the models reached the servos in a run that came to its end; empty where one did."""
        if self.counts.followed:
            return ""
        return "; ".join(self.health.reasons) or "no command reached the servos"
