"""What an arm's servos say of themselves, in radians and SI units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Status bits 0..5 are Feetech's conditions: voltage, encoder, temperature, current, -, overload. Ours:
TWIN = 0x10  # the joint's second servo stands elsewhere than the first
DOUBTED = 0x40  # the position jumped as no motor can; the last good one stands in
NO_REPLY = 0x80  # the servo did not answer; the last position stands in


class Measurement(NamedTuple):
    """float64[J] position (rad) and velocity (rad/s), uint8[J] status bits (with NO_REPLY, DOUBTED, TWIN)."""

    q: np.ndarray
    qd: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True)
class Telemetry:
    """What is read in turn, float32[J]: current (A), temperature (deg C), voltage (V); bool[J] `limp`: torque is off in
    the servo.

    A joint with two servos has the first one's current, the higher temperature, the lower voltage, and is limp when
    either is.
    """

    current: np.ndarray
    temperature: np.ndarray
    voltage: np.ndarray
    limp: np.ndarray
