"""The sign check: the arm moves one joint at a time, and a person says whether it turned in the right direction.

No measurement can find this error: with a wrong sign the arm moves to the wrong side while every reading, limit and
picture looks right.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibration.camera import CalibrationError
from firmware_bridge.motion.config import ArmConfig
from harmowam.calibration_rig import LiveRig
from runtime.robot import Robot

STEP = np.radians(5)
VELOCITY = 0.25  # rad/s
NEAR = 0.5  # rad; further from the zero pose than this the questions would be wrong


def check_signs(
    robot: Robot, calibrated: ArmConfig, port: str, ask: Callable[[str], object], say: Callable[[str], None]
) -> None:
    """Move each joint by 5 degrees from the zero pose and ask in which direction it turned. A person holds the arm
    before and after.

    The arm is released in its zero pose: a motion to the rest pose would use signs that are not checked yet. Raises
    CalibrationError that names the joints that turned in the wrong direction, or says why the arm stopped.
    """
    zero = tuple(float(min(max(0.0, a), b)) for a, b in zip(calibrated.lower, calibrated.upper, strict=True))
    ask(
        f"Hold the arm in its zero pose ({robot.family.ZERO_POSE}): it stiffens, then moves each joint by "
        "5 degrees and back. Press Enter"
    )
    turned = []
    held = dataclasses.replace(robot, arm=dataclasses.replace(calibrated, rest=zero, family=""))
    with tempfile.TemporaryDirectory() as folder, LiveRig(held, Path(folder), port) as rig:
        at = rig.state().q_rad.astype(float)
        if far := [n for n, q, z in zip(calibrated.joints, at[:-1], zero, strict=False) if abs(q - z) > NEAR]:
            raise CalibrationError(
                f"{', '.join(far)} is far from the zero pose: hold the arm as described, then repeat."
            )
        rig.enable_torque()
        start = rig.state().goal_rad.astype(float)
        for k, question in enumerate(robot.family.SEEN_TURNS):
            there = start.copy()
            there[k] += STEP
            rig.move_to(there, VELOCITY, settle_s=0.2)
            if not _yes(ask, f"{calibrated.joints[k]}: {question}? (y/n)"):
                turned.append(calibrated.joints[k])
            rig.move_to(start, VELOCITY, settle_s=0.2)
        say("hold the arm: it lets go")
    if turned:
        raise CalibrationError(
            f"{', '.join(turned)} turned the other way than the angle says: set `direction = -1` (or 1, where it is "
            f"-1) for it under [[arm.joint]] in {robot.path} and calibrate again; nothing was stored."
        )


def _yes(ask: Callable[[str], object], question: str) -> bool:
    """Ask until the answer is y or n; returns whether it is y."""
    while (answer := str(ask(question)).strip().lower()[:1]) not in ("y", "n"):
        continue
    return answer == "y"
