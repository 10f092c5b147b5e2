"""The slow loop: a thread that makes one Prior after the other, each from the newest observation."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence

import numpy as np

from common.clock import Ticker, prefer
from common.timing import SLOW_PRIORITY
from runtime.contracts import Observation, Prior
from runtime.loop.health import board_temperature
from runtime.loop.record import RunRecord
from runtime.policies import SlowStep
from runtime.policies.finish import Finish


class SlowLoop:
    """The fast loop writes `newest` and reads `prior`, `fault` (what was wrong with the newest output) and
    `temperature` (of the board).

    `failure` is the exception that ended it, if one did; `stop` is then set. It is set, too, when the policy says that
    the last task is done (`said_done`): by `finish`, and None never says it. `then` are the tasks after the first.
    """

    def __init__(
        self,
        step: SlowStep,
        hz: float,
        record: RunRecord,
        stop: threading.Event,
        finish: Finish | None = None,
        then: Sequence[str] = (),
    ):
        self.step, self.hz, self.record = step, hz, record
        self.finish, self.then, self.said_done = finish, list(then), False
        self.newest: Observation | None = None
        self.prior: Prior | None = None
        self.fault = ""
        self.temperature = 0.0
        self.failure: BaseException | None = None
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="slow-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        prefer(SLOW_PRIORITY)
        try:
            ticker, made_from, looked = Ticker(self.hz), -1, 0.0
            while not self._stop.is_set():
                obs = self.newest
                if obs is None or obs.number == made_from:  # no new observation: the Prior grows old
                    time.sleep(0.002)
                    continue
                self._make(obs)
                made_from = obs.number
                if time.monotonic() - looked > 1.0:
                    looked, self.temperature = time.monotonic(), board_temperature()
                ticker.wait()
        except BaseException as e:  # whatever it was: the fast loop must end and the arm be lowered
            self.failure = e
            self._stop.set()

    def _make(self, obs: Observation) -> None:
        self.record.slow_trace.begin()
        began = time.monotonic_ns()
        made = dataclasses.replace(self.step.step(began, obs), t_ready_ns=time.monotonic_ns())
        if np.isfinite(made.chunk).all() and np.isfinite(made.future).all():
            self.record.prior(made, obs, began)
            self.prior, self.fault = made, ""
            self._go_on(made)
        else:
            self.fault = "the slow engine gave numbers that are not finite"
            self.record.counts.faults_seen += 1

    def _go_on(self, made: Prior) -> None:
        """Begin the next task where the policy says that this one is done, or end the run after the last one."""
        if self.finish is None or self.said_done or not self.finish.told(made):
            return
        self.finish.reset()
        if self.then:
            self.step.set_task(self.then.pop(0))
            self.record.said(made.t_ready_ns, f"the policy said done, and goes on: {self.step.task}")
        else:
            self.said_done = True
            self.record.said(made.t_ready_ns, "the policy said done")
            self._stop.set()
