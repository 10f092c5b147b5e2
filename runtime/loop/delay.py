"""Delay compensation: where the arm will be when a command reaches it."""

from __future__ import annotations

import numpy as np

from firmware_bridge.motion.messages import Command, JointState

MOST_RAD = 0.15  # a servo that lags further is stuck or blocked: the measurement then counts
MOST_LEAD_NS = 60_000_000


class Lead:
    """How long a command takes from its making to the bus, ns: a running median of the measured times."""

    def __init__(self) -> None:
        self.ns = 0
        self._command = 0

    def see(self, state: JointState, made_ns: int) -> None:
        """`made_ns`: when the command that `state` shows on the wire was made. Each command counts once."""
        if state.command_number == self._command or not state.t_wire_ns or not made_ns:
            return
        self._command = state.command_number
        seen = min(max(state.t_wire_ns - made_ns, 0), MOST_LEAD_NS)
        self.ns += 200_000 if seen > self.ns else -200_000  # steps of 0.2 ms: outliers do not count by their size
        self.ns = max(self.ns, 0)


def roll_forward(state: JointState, in_flight: Command | None, t_ns: int) -> np.ndarray:
    """Joint angles float32[J] expected at `t_ns`: the measured ones plus what commands still in flight will add to the
    last goal.

    A position servo follows its goal at a nearly constant distance, so the distance is kept. Never further than
    MOST_RAD from the measurement. The idea: VLASH (mit-han-lab/vlash) feeds a policy the state at which its actions
    will start.
    """
    if in_flight is None or t_ns >= in_flight.t_stale_ns:
        return state.q_rad
    ahead = min(max((t_ns - in_flight.t_apply_ns) * 1e-9, 0.0), 0.1)
    change = in_flight.q_rad + in_flight.qd_rad_s * np.float32(ahead) - state.goal_rad
    return (state.q_rad + np.clip(change, -MOST_RAD, MOST_RAD)).astype(np.float32)
