"""State of an arm as its servos report it, in radians and SI units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Status bits 0..3 and 5 are Feetech's conditions: voltage, encoder, temperature, current, overload. Added here:
TWIN = 0x10  # the two servos of the joint report different positions
DOUBTED = 0x40  # the position changed faster than a motor can move; the last good position is used
NO_REPLY = 0x80  # the servo did not answer; the last position is used


class Measurement(NamedTuple):
    """float64[J] position (rad) and velocity (rad/s), uint8[J] status bits (with NO_REPLY, DOUBTED, TWIN)."""

    q: np.ndarray
    qd: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True)
class Telemetry:
    """Values read one servo per tick: float32[J] current (A), temperature (deg C), voltage (V); bool[J] `limp`: the
    servo's torque is off.

    For a joint with two servos: the current of the first servo, the higher temperature, the lower voltage, and limp
    when either servo is.
    """

    current: np.ndarray
    temperature: np.ndarray
    voltage: np.ndarray
    limp: np.ndarray
