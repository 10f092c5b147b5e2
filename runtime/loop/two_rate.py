"""The two-rate loop on the wall clock: fast loop in the main thread, slow loop in a thread, motors in another process.

Both loops call the pure steps of a policy (`runtime.policies`); this module adds time, counting and health.
`harmowam run` builds the driver.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from common.clock import Ticker, prefer, real_time
from common.slots import SlotReader
from common.timing import FAST_PRIORITY
from firmware_bridge.motion.messages import RequestKind, SafetyState
from runtime.bundle import Bundle
from runtime.cameras.sources import CameraSource
from runtime.compute import REPORTED, Chosen
from runtime.contracts import Observation, Prior
from runtime.loop.errors import RunError
from runtime.loop.eyes import Eyes
from runtime.loop.fast import FastLoop
from runtime.loop.health import Health, HealthLimits, HealthMonitor, Signs
from runtime.loop.motor_link import MotorLink
from runtime.loop.record import Counts, RunRecord
from runtime.loop.slow import SlowLoop
from runtime.observe.log import LogWriter
from runtime.observe.records import VERSION
from runtime.observe.replay import run_meta
from runtime.policies import kind_of, open_policy
from runtime.policies.finish import finish_of
from runtime.policies.protocol import Ends

PHASE_NS = 1_000_000  # lead of the fast clock's tick before the arrival of a picture (phase lock)
PHASE_STEP_NS = 200_000  # largest correction of that phase in a tick
FIRST_WAIT_NS = 100_000_000  # limit for the first pictures, whose phase the fast clock takes
KEEP_AFTER_S = 0.3  # without targets for this long the arm has come to rest, and is told to stay there
ASK_NS = 100_000_000  # period at which `until` is called


def _over_s(now: int, prior: Prior | None) -> float:
    """See `Signs.plan_over_s`."""
    if prior is None or prior.space != "joints":
        return 0.0
    return float(now - prior.t_capture_ns - prior.grid_ns[-1]) * 1e-9


class Driver:
    """Owns a policy's steps (`policy`), both loops (`fast`, `slow`), their eyes, the link to the motor process and what
    the run leaves (`record`).

    `mode`: how the policy drives (None: its usual way); `compute`: what its engines run on. `inject` (stage -> ms)
    slows stages down; `compensate` as in FastLoop; `log` is the file that takes every input of the engines; `meta` says
    what the run is, with `facts` in it; `ends`: of this robot's joints (None: the bundle's); `then`: tasks that follow
    `task`, each when the policy says that the one before is done; `to_the_end`: go on whatever the policy says. `close`
    it whatever happens.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: str,
        cameras: dict[str, CameraSource],
        calibrations: dict[str, Camera],
        slots: Path,
        fast_hz: float,
        slow_hz: float,
        mode: str | None = None,
        *,
        compute: Chosen = Chosen(),
        inject: Mapping[str, float] | None = None,
        compensate: bool = True,
        log: Path | None = None,
        facts: Mapping[str, Any] | None = None,
        limits: HealthLimits | None = None,
        ends: Ends | None = None,
        then: Sequence[str] = (),
        to_the_end: bool = False,
    ):
        self.fast_hz, self.slow_hz, self.compute = fast_hz, slow_hz, compute
        self.stages = kind_of(bundle).stages
        self.record = RunRecord(self.stages, inject)
        self.policy = open_policy(
            bundle,
            task,
            calibrations,
            mode=mode,
            engine=compute.engine,
            gpu=compute.gpu,
            slow_trace=self.record.slow_trace,
            fast_trace=self.record.fast_trace,
            ends=ends,
        )
        self.health = HealthMonitor(fast_hz, limits)
        self.eyes = Eyes(cameras, fast_hz)
        self.link = MotorLink(slots, self.record)
        self._stop = threading.Event()
        finish = None if to_the_end else finish_of(bundle)
        self.slow = SlowLoop(self.policy.slow, slow_hz, self.record, self._stop, finish, then)
        self._joints = bundle.manifest.joints
        lower, upper = (np.array([getattr(j, k) for j in self._joints]) for k in ("lower", "upper"))
        parts = self.policy.fast, self.eyes, self.slow, self.link, self.record, self.health
        self.fast = FastLoop(*parts, bundle.family, lower, upper, compensate)
        self.granted: dict[str, bool] = {}
        how = {"fast_hz": fast_hz, "slow_hz": slow_hz, "compensate": compensate, "engine": compute.engine}
        more = {**how, **(facts or {}), **({"then": list(then)} if then else {})}
        meta = run_meta(bundle, task, self.policy.mode, calibrations, ends=ends, **more)
        self.meta: dict[str, Any] = {"version": VERSION, **meta}
        if log is not None:  # last: a constructor that fails leaves no file and no thread behind
            self.record.log = LogWriter(log, self.meta, tool=bundle.family.tool)

    @property
    def counts(self) -> Counts:
        return self.record.counts

    @property
    def compute_report(self) -> dict[str, str]:
        """What its engines and its pre-processing run on, as reports say it."""
        return {"engine": REPORTED[self.compute.engine], "preprocess": "gpu" if self.compute.gpu else "cpu"}

    def close(self) -> None:
        """End the loops and finish the log. Closing twice is allowed."""
        self._stop.set()
        self.record.close()

    def warm_up(self) -> None:
        """Run both steps three times: first inferences are slow, and must not come when the arm is energised."""
        frames = self.eyes.frames()
        q = np.zeros(len(self._joints), np.float32)
        obs = Observation(time.monotonic_ns(), {k: f.image for k, f in frames.items()}, q, q)
        for _ in range(3):
            prior = self.policy.slow.step(obs.t_capture_ns, obs)
            self.policy.fast.step(obs.t_capture_ns, obs, prior)
        self.policy.slow.reset()
        self.policy.fast.reset()
        self.record.clear()

    def enable_torque(self, states: SlotReader) -> None:
        """Ask for torque and wait until the motor process holds the arm; raises RunError with its reason."""
        self.link.enable_torque(states)

    def request(self, kind: RequestKind) -> None:
        self.link.request(kind)

    def stop(self) -> None:
        self._stop.set()

    def _judge(self, now: int, fault: str, misses: int) -> Health:
        """The run's health; raises RunError when it has stopped."""
        prior = self.slow.prior
        signs = Signs(
            camera_age_s={name: (now - t) * 1e-9 for name, t in self.eyes.arrived_ns.items()},
            camera_faults=self.eyes.faults,
            prior_age_s=-1.0 if prior is None else (now - prior.t_capture_ns) * 1e-9,
            plan_over_s=_over_s(now, prior),
            output_fault=fault or self.slow.fault,
            commanded=self.counts.first_command_ns > 0,
            misses=misses,
            temperature_c=self.slow.temperature,
            recording_fault=self.record.fault,
        )
        health = self.health.step(now, signs)
        self.record.health(now, self.health.changed)
        if health == Health.STOPPED:
            why = self.health.reasons[0]
            mend = "check its cable" if why.startswith("camera") else "look at `harmowam doctor`"
            raise RunError(f"{why}: {mend}, then start again.")
        return health

    def _in_phase(self) -> Ticker:
        """The fast clock, started in the phase of the cameras: the phase lock alone takes seconds to get there, and
        commands come unevenly until then."""
        self.eyes.pass_over()
        came = self.eyes.wait(time.monotonic_ns() + FIRST_WAIT_NS)
        ticker = Ticker(self.fast_hz)
        if came:
            ticker.shift(-PHASE_NS)
            self.eyes.pass_over()
        return ticker

    def _drive(self, end_ns: int, until: Callable[[], bool] | None) -> None:
        c = self.counts
        ticker = self._in_phase()
        period = ticker.period_ns
        asked_ns = targets_ns = c.began_ns
        self.eyes.begin(c.began_ns)
        self.link.begin()
        fault = ""
        while not self._stop.is_set():
            due = ticker.wait()
            if due > end_ns:
                break
            c.ticks, misses = c.ticks + 1 + ticker.missed, ticker.missed
            ticker.missed = 0
            new = self.eyes.wait(due + period // 2)
            state = self.link.look()
            c.held += (1 + misses) * (c.first_command_ns > 0 and state.safety == SafetyState.HOLD)
            now = time.monotonic_ns()
            if new:
                # Phase lock: a picture that waits for the tick grows old, so the clock follows the cameras.
                ticker.shift(min(max((now - due - PHASE_NS) // 4, -PHASE_STEP_NS), PHASE_STEP_NS))
                fault = self.fast.tick(period, state)
                misses += time.monotonic_ns() > due + period
            else:
                c.repeats += 1
            c.misses += misses
            self.record.state(state)
            if self._judge(now, fault, misses) != Health.HOLDING:
                targets_ns = now
            elif now - targets_ns > KEEP_AFTER_S * 1e9:
                self.link.stay(state, now)
            self.link.book(state)
            if until is not None and now - asked_ns > ASK_NS:
                asked_ns = now
                if until():
                    break

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> Counts:
        """Drive for `seconds`, or until `stop()`, or until the policy says that the last task is done.

        `until()` is asked ten times a second and ends the run when true.

        Raises RunError when a camera or the motor process falls silent or the arm was stopped, and whatever the loops
        raise; the caller then lowers the arm.
        """
        self.granted = {**real_time(), "sched_fifo": prefer(FAST_PRIORITY)}
        c = self.counts
        self.slow.start()
        c.began_ns = time.monotonic_ns()
        try:
            self._drive(c.began_ns + int(seconds * 1e9), until)
        except RunError as e:
            self.record.ended(time.monotonic_ns(), str(e))
            raise
        finally:
            c.ended_ns = time.monotonic_ns()
            self._stop.set()
            self.slow.join(2.0)
            prefer(0)
            self.close()
        if self.slow.failure is not None:
            raise self.slow.failure
        return c

    def why_held(self) -> str:
        """Why no command of the models reached the servos in a run that came to its end; empty where one did."""
        if self.counts.followed:
            return ""
        return "; ".join(self.health.reasons) or "no command reached the servos"
