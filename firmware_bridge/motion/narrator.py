"""The log of the motor process: changes of state; at debug level rejected commands, bus errors, missed and shifted
ticks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.logger import Logger
from firmware_bridge.motion.messages import JointState, SafetyState
from firmware_bridge.motion.safety import CUTS

LOG_FILE = "motor.log"  # in the folder of the slots: JSON lines
LOOK_EVERY = 100  # ticks between lines about bus errors and about targets that the limiter cut off


class Narrator:
    """Logs what changed since the previous tick. `joints`: names of the J joints."""

    def __init__(self, log: Logger, joints: tuple[str, ...]):
        self._log, self._joints = log, joints
        self._cut: np.ndarray = np.zeros((len(CUTS), len(joints)), int)  # ticks since the last line
        self._state = SafetyState.DISARMED
        self._reason = ""
        self._rejected = self._shifted_ns = self._missed = self._errors = 0

    def tick(
        self, state: JointState, rejected: int, errors: Mapping[tuple[int, str], int], cut: np.ndarray | None = None
    ) -> None:
        """Call once per tick, at its end.

        `rejected`: commands rejected since the start. `errors`: count of damaged, late or missing packets since the
        start, by servo id (-1: not known) and kind. `cut` bool[4, J]: what cut off the target (`Safety.cut`).
        """
        if (state.safety, state.reason) != (self._state, self._reason):
            self._log.info("state", was=self._state.name, now=state.safety.name, reason=state.reason, tick=state.tick)
            self._state, self._reason = state.safety, state.reason
        if rejected != self._rejected:
            self._log.debug("command rejected", count=rejected, tick=state.tick)
            self._rejected = rejected
        if state.shifted_ns != self._shifted_ns:
            self._log.debug("clock shifted", ms=(state.shifted_ns - self._shifted_ns) / 1e6, tick=state.tick)
            self._shifted_ns = state.shifted_ns
        if state.missed_ticks != self._missed:
            self._log.debug("ticks missed", count=state.missed_ticks - self._missed, tick=state.tick)
            self._missed = state.missed_ticks
        if cut is not None:
            self._cut += cut
        if state.tick % LOOK_EVERY == 0:
            self._look(errors)

    def _look(self, errors: Mapping[tuple[int, str], int]) -> None:
        if self._cut.any():
            counts = {
                kind: {n: c for n, c in zip(self._joints, row, strict=True) if c}
                for kind, row in zip(CUTS, self._cut.tolist(), strict=True)
            }
            self._log.debug("limiter", ticks=LOOK_EVERY, **{k: v for k, v in counts.items() if v})
            self._cut[:] = 0
        if (total := sum(errors.values())) != self._errors:
            self._log.debug("bus", **{f"{kind} ({servo})": count for (servo, kind), count in errors.items()})
            self._errors = total
