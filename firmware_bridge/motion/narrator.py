"""What the motor process writes into its log: changes of state, and at debug level what it rejected, lost or moved."""

from __future__ import annotations

from collections.abc import Mapping

from common.logger import Logger
from firmware_bridge.motion.messages import JointState, SafetyState

LOG_FILE = "motor.log"  # in the folder of the slots: JSON lines
LOOK_EVERY = 100  # ticks between looks at the bus's counters


class Narrator:
    """Compares a tick with the one before and logs what changed. Called once a tick, when the tick's work is done."""

    def __init__(self, log: Logger):
        self._log = log
        self._state = SafetyState.DISARMED
        self._reason = ""
        self._rejected = self._shifted_ns = self._missed = self._errors = 0

    def tick(self, state: JointState, rejected: int, errors: Mapping[tuple[int, str], int]) -> None:
        """`rejected`: commands refused since the start; `errors`: the bus's counts by servo (-1: none in particular)
        and kind."""
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
        if state.tick % LOOK_EVERY == 0 and (total := sum(errors.values())) != self._errors:
            self._log.debug("bus", **{f"{kind} ({servo})": count for (servo, kind), count in errors.items()})
            self._errors = total
