"""What the servos of an arm hold and report, for its joint calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibration.camera import CalibrationError
from calibration.joints import Kept
from firmware_bridge.motion.arm import Arm


def _answered(arm: Arm, got: dict[int, Any]) -> None:
    silent = [i for i in arm.ids if i not in got]
    if silent:
        raise CalibrationError(f"servo {silent[0]} does not answer: check its cable and the arm's power.")


def eeprom(arm: Arm) -> dict[int, Kept]:
    """What every servo holds that makes its steps, by id; raises CalibrationError when one does not answer."""
    names = sorted(("homing_offset", "mode"), key=lambda n: arm.model.registers[n].address)
    got = arm.read_span(*names)
    _answered(arm, got)
    return {i: Kept(v["homing_offset"], v["mode"] if arm.bus.dynamixel else None) for i, v in got.items()}


def reported_steps(arm: Arm) -> np.ndarray:
    """int64[S] as the servos report them, second ones last; raises CalibrationError when one does not answer."""
    got = arm.read_steps()
    _answered(arm, got)
    return np.array([got[i] for i in arm.ids])
