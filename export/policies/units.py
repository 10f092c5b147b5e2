"""LeRobot's joint values from the maker's angles (rad): `value = scale * angle + offset`, joint by joint.

"degrees" (`use_degrees`): from the middle of each joint's range, the jaw 0 (shut) to 100 (open). "normalised"
(LeRobot's default): -100 to 100 over the range that its calibration measured, the jaw 0 to 100; which angle that is,
only that file says. "rad": the maker's angles, as `harmowam collect` records them.

Source: lerobot/motors/motors_bus.py of 0.4 (`_normalize`); `calibration/joints_lerobot.py` for zeros and directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration.joints import Joint, JointCalibration
from firmware_bridge.arms import Family

DEGREES_A_STEP = 360 / 4095  # LeRobot divides by the largest step, not by the number of steps


@dataclass(frozen=True)
class Units:
    """`scale`, `offset` float64[J]."""

    name: str
    scale: np.ndarray
    offset: np.ndarray

    def from_rad(self, q: np.ndarray) -> np.ndarray:
        return np.asarray(q, float) * self.scale + self.offset

    def to_rad(self, values: np.ndarray) -> np.ndarray:
        return (np.asarray(values, float) - self.offset) / self.scale


def units_of(name: str, arm: Family, joints: JointCalibration | None = None, negated: tuple[bool, ...] = ()) -> Units:
    """`name`: "degrees", "rad" or "normalised". `joints`: the arm's calibration as LeRobot measured it, and `negated`
    which of them it negates; "normalised" needs them, and with them "degrees" is exact to the step of a servo (without
    them LeRobot's ranges are taken to be the maker's). Raises ValueError without them."""
    n = len(arm.JOINTS)
    if name == "rad":
        return Units(name, np.ones(n), np.zeros(n))
    if joints is None:
        if name == "normalised":
            raise ValueError("normalised joint values need the calibration that they were normalised by")
        low, high = arm.to_lerobot(np.zeros(n)), arm.to_lerobot(np.ones(n))
        return Units(name, high - low, low)
    rows = [_row(name, j, turned, k == n - 1) for k, (j, turned) in enumerate(zip(joints.joints, negated, strict=True))]
    return Units(name, np.array([a for a, _ in rows]), np.array([b for _, b in rows]))


def _row(name: str, j: Joint, negated: bool, jaw: bool) -> tuple[float, float]:
    """Scale and offset of one joint. Its step is `zero_step + direction * angle / rad_per_step`. LeRobot negates
    normalised values only, never degrees."""
    steps = j.direction / j.rad_per_step
    span = j.range_max - j.range_min
    if name == "degrees" and not jaw:
        middle = (j.range_min + j.range_max) / 2
        return steps * DEGREES_A_STEP, (j.zero_step - middle) * DEGREES_A_STEP
    most, least = (100.0, 0.0) if jaw else (200.0, -100.0)
    scale, offset = steps * most / span, (j.zero_step - j.range_min) * most / span + least
    return (-scale, (100.0 if jaw else 0.0) - offset) if negated else (scale, offset)
