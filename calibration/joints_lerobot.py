"""Joint calibrations to and from LeRobot's file, one JSON object a joint.

`homing_offset` is the servo's register, with which it reports `position - homing_offset` (Feetech) or `position +
homing_offset` (Dynamixel); `range_min` and `range_max` are such reported steps, 0 to 4095; 0 degrees is the middle of
the range, and the gripper goes from 0, shut, to 100. LeRobot drives Dynamixel arms in extended position mode and their
gripper in current-based position mode, where every offset counts; a joint without stops has the whole turn for its
range, and the person held it at its middle. `drive_mode` is a matter of arithmetic for Feetech servos, and a
Dynamixel's own register.

Source: LeRobot's koch_follower.py, so_follower.py, motors/dynamixel and motors/feetech.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from calibration.camera import CalibrationError
from calibration.joints import JointCalibration, Mode, Offset, ServoId, joint, zero_at
from common.schema import Malformed, Name, parse_json, read_bounded, shaped
from firmware_bridge.arms import family
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.models import MODELS

MOST_BYTES = 256 * 1024
STEPS = 4096  # a turn of every servo that LeRobot calibrates
BODY_MODE: Mode = 4  # extended position: Dynamixel servos of the body
JAW_MODE: Mode = 5  # current-based position: a Dynamixel gripper


class LeRobotJoint(msgspec.Struct, frozen=True):
    """A joint of LeRobot's file; what else stands there is passed over."""

    id: ServoId
    drive_mode: Literal[0, 1] | bool
    homing_offset: Offset
    range_min: Annotated[int, Meta(ge=0, le=STEPS - 1)]
    range_max: Annotated[int, Meta(ge=0, le=STEPS - 1)]


def to_lerobot(calibration: JointCalibration) -> dict[str, dict[str, int]]:
    """LeRobot's calibration JSON (MotorCalibration a joint). Zeros that are not the middle of the range are lost:
    LeRobot has no place for them, nor for a Dynamixel joint whose angle grows as its steps fall. Raises
    CalibrationError for an arm that it cannot have."""
    out = {}
    for j in calibration.joints:
        model = MODELS[j.model]
        dynamixel = model.protocol == "dynamixel"
        # In LeRobot's modes the offset counts, whether or not it did in ours.
        shift = model.offset_sign * j.homing_offset - model.added(j.homing_offset, j.mode) if dynamixel else 0
        low, high = j.range_min + shift, j.range_max + shift
        if j.second or not 0 <= low <= high < STEPS:
            why = (
                "has two servos" if j.second else f"goes from step {low} to {high}, and LeRobot knows 0 to {STEPS - 1}"
            )
            raise CalibrationError(f"LeRobot has no form for {j.name}, which {why}: keep the calibration as it is.")
        mode = 0 if dynamixel else int(j.direction < 0)
        out[j.name] = {
            "id": j.id,
            "drive_mode": mode,
            "homing_offset": j.homing_offset,
            "range_min": low,
            "range_max": high,
        }
    return out


def from_lerobot(path: Path, config: ArmConfig) -> JointCalibration:
    """A LeRobot calibration file for the joints of `config`; the middle of a range is what the family says that
    LeRobot's 0 degrees are; the gripper is at SHUT at its closed end. Raises CalibrationError for a file that is
    damaged or for another arm."""
    if config.shadows:
        raise CalibrationError(
            f"{path}: LeRobot calibrates no arm that has two servos on a joint: run `harmowam calibrate joints` "
            "without it."
        )
    try:
        rows = shaped(parse_json(read_bounded(path, MOST_BYTES)), dict[Name, LeRobotJoint])
    except OSError as e:
        raise CalibrationError(f"{path} cannot be read ({e.strerror}): check the path.") from e
    except Malformed as e:
        raise CalibrationError(
            f"{path} is no LeRobot calibration ({e}): give the JSON that lerobot-calibrate wrote."
        ) from e
    if set(rows) != set(config.joints):
        raise CalibrationError(
            f"{path} is for joints {', '.join(rows)}, the robot has {', '.join(config.joints)}: give this arm's file."
        )
    dynamixel = config.protocol == "dynamixel"
    for k, name in enumerate(config.joints):
        if rows[name].id != config.ids[k]:
            raise CalibrationError(
                f"{path}: {name} is servo {rows[name].id}, the robot file says {config.ids[k]}: correct one of them."
            )
        if dynamixel and rows[name].drive_mode:
            raise CalibrationError(
                f"{path}: the servo of {name} counts backwards by itself (drive_mode 1), with which no arm is driven "
                "here: set it "
                "right with `harmowam bus check --fix`, then run `harmowam calibrate joints`."
            )
    known, gears = family(config.family), config.gear or (1.0,) * len(config.joints)
    made = []
    for k, name in enumerate(config.joints):
        r, model, jaw = rows[name], config.model_names[k], k == len(config.joints) - 1
        direction = -1 if r.drive_mode or config.direction[k] < 0 else 1
        unit = MODELS[model].rad_per_step / gears[k]
        if jaw:
            zero = zero_at(r.range_min if direction > 0 else r.range_max, direction, known.SHUT, unit)
        else:
            zero = zero_at((r.range_min + r.range_max) // 2, direction, float(known.middle[k]), unit)
        mode = (JAW_MODE if jaw else BODY_MODE) if dynamixel else None
        made.append(
            joint(
                str(path),
                name=name,
                id=r.id,
                zero_step=int(zero),
                direction=direction,
                range_min=r.range_min,
                range_max=r.range_max,
                homing_offset=r.homing_offset,
                model=model,
                gear=gears[k],
                mode=mode,
            )
        )
    return JointCalibration(tuple(made))
