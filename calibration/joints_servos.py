"""Reads EEPROM registers and present positions of an arm's servos, for its joint calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibration.camera import CalibrationError
from calibration.joints import StepRegisters
from firmware_bridge.motion.arm import Arm


def _refuse_silent(arm: Arm, got: dict[int, Any]) -> None:
    silent = [i for i in arm.ids if i not in got]
    if silent:
        raise CalibrationError(f"servo {silent[0]} does not answer: check its cable and the arm's power.")


def eeprom(arm: Arm) -> dict[int, StepRegisters]:
    """The EEPROM registers that change the steps of a servo, by servo id; raises CalibrationError when one does not
    answer."""
    names = sorted(("homing_offset", "mode"), key=lambda n: arm.model.registers[n].address)
    got = arm.read_span(*names)
    _refuse_silent(arm, got)
    return {i: StepRegisters(v["homing_offset"], v["mode"] if arm.bus.dynamixel else None) for i, v in got.items()}


def reported_steps(arm: Arm) -> np.ndarray:
    """Present positions int64[S] in steps, second servos last; raises CalibrationError when one does not answer."""
    got = arm.read_steps()
    _refuse_silent(arm, got)
    return np.array([got[i] for i in arm.ids])
