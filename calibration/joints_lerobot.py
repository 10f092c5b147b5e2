"""Joint calibrations to and from LeRobot's file, which has one JSON object per joint.

`homing_offset` is the servo's register: the servo reports `position - homing_offset` (Feetech) or `position +
homing_offset` (Dynamixel). `range_min` and `range_max` are reported steps, 0 to 4095. 0 degrees is the middle of the
range; the gripper goes from 0 (shut) to 100. LeRobot drives Dynamixel arms in extended position mode and their gripper
in current-based position mode, where every offset is used. The range of a joint without stops is the whole turn, and
the person held the joint at its middle. `drive_mode` 1 makes LeRobot negate the angle of a Feetech servo in software;
for a Dynamixel it is a register.

LeRobot's list format is older than `lerobot-calibrate`: one list for each of homing_offset, drive_mode, start_pos,
end_pos, calib_mode and motor_names. Its offsets are no register of the servo, so it cannot be taken over.

Source: LeRobot's koch_follower.py, so_follower.py, motors/dynamixel and motors/feetech.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from calibration.camera import CalibrationError
from calibration.joints import JointCalibration, Mode, ServoId, joint, most_offset, zero_at
from common.schema import Malformed, Name, parse_json, read_bounded, shaped, shown
from firmware_bridge.arms import family
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.models import MODELS

MOST_BYTES = 256 * 1024
STEPS = 4096  # steps per turn of every servo that LeRobot calibrates
BODY_MODE: Mode = 4  # extended position: Dynamixel servos of the body
JAW_MODE: Mode = 5  # current-based position: a Dynamixel gripper


class LeRobotJoint(msgspec.Struct, frozen=True):
    """One joint of LeRobot's file; other keys are ignored."""

    id: ServoId
    drive_mode: Literal[0, 1] | bool
    homing_offset: Annotated[
        int, Meta(ge=-(2**31), le=2**31 - 1)
    ]  # `most_offset` knows what the servo's register holds
    range_min: Annotated[int, Meta(ge=0, le=STEPS - 1)]
    range_max: Annotated[int, Meta(ge=0, le=STEPS - 1)]


def to_lerobot(calibration: JointCalibration) -> dict[str, dict[str, int]]:
    """LeRobot's calibration JSON, one MotorCalibration per joint.

    Two facts are lost because LeRobot's format cannot hold them: a zero that is not the middle of the range, and the
    direction -1 of a Dynamixel joint. Raises CalibrationError for a joint with two servos or with a range outside 0 to
    4095.
    """
    out = {}
    for j in calibration.joints:
        model = MODELS[j.model]
        dynamixel = model.protocol == "dynamixel"
        # In LeRobot's modes the offset is always used; in the mode of this calibration it may be ignored.
        shift = model.offset_sign * j.homing_offset - model.added(j.homing_offset, j.mode) if dynamixel else 0
        low, high = j.range_min + shift, j.range_max + shift
        if j.second or not 0 <= low <= high < STEPS:
            why = (
                "has two servos" if j.second else f"goes from step {low} to {high}, and LeRobot allows 0 to {STEPS - 1}"
            )
            raise CalibrationError(f"LeRobot's file cannot hold {j.name}, which {why}: keep the calibration as it is.")
        mode = 0 if dynamixel else int(j.direction < 0)
        out[j.name] = {
            "id": j.id,
            "drive_mode": mode,
            "homing_offset": j.homing_offset,
            "range_min": low,
            "range_max": high,
        }
    return out


def _rows(path: Path, config: ArmConfig) -> tuple[dict[str, LeRobotJoint], tuple[str, ...]]:
    """The joints of the file `path`, and its keys that are no joints. Raises CalibrationError for a file that cannot be
    read, is no LeRobot calibration, or is for other joints than those of `config`."""
    try:
        raw = shaped(parse_json(read_bounded(path, MOST_BYTES)), dict[str, Any])
        if isinstance(raw.get("homing_offset"), list):
            raise CalibrationError(
                f"{path} is in LeRobot's list format from before 2025: run `lerobot-calibrate` again and import what "
                "it writes, or run `harmowam calibrate joints` without this file."
            )
        named = {n: row for n, row in raw.items() if n in config.joints or _is_joint(row)}
        if not named:
            raise Malformed("it names no joint")
        if set(named) != set(config.joints):
            raise CalibrationError(
                f"{path} is for joints {', '.join(map(shown, named))}, the robot has {', '.join(config.joints)}: give "
                "this arm's file."
            )
        return shaped(named, dict[Name, LeRobotJoint]), tuple(n for n in raw if n not in named)
    except OSError as e:
        raise CalibrationError(f"{path} cannot be read ({e.strerror}): check the path.") from e
    except Malformed as e:
        raise CalibrationError(
            f"{path} is no LeRobot calibration ({e}): give the JSON that lerobot-calibrate wrote."
        ) from e


def _is_joint(row: Any) -> bool:
    return isinstance(row, dict) and set(LeRobotJoint.__struct_fields__) <= row.keys()


def _check_arm(path: Path, rows: Mapping[str, LeRobotJoint], config: ArmConfig) -> None:
    """Raises CalibrationError unless the file is for the servo ids of `config`, and can be driven."""
    for k, name in enumerate(config.joints):
        if rows[name].id != config.ids[k]:
            raise CalibrationError(
                f"{path}: {name} is servo {rows[name].id}, the robot file says {config.ids[k]}: correct one of them."
            )
        most = most_offset(MODELS[config.model_names[k]])
        if most is not None and abs(rows[name].homing_offset) > most:
            raise CalibrationError(
                f"{path}: the homing_offset {rows[name].homing_offset} of {name} is beyond -{most} to {most}, all that "
                "its servo holds: run `lerobot-calibrate` again with that joint held in the middle of its range, or "
                "`harmowam calibrate joints` without this file."
            )
        if config.protocol == "dynamixel" and rows[name].drive_mode:
            raise CalibrationError(
                f"{path}: the servo of {name} counts backwards by itself (drive_mode 1), which this program does not "
                "drive: set it right with `harmowam bus check --fix`, then run `harmowam calibrate joints`."
            )


def negated(path: Path, config: ArmConfig) -> tuple[bool, ...]:
    """Which joints of `config` LeRobot negates in software: Feetech servos of drive_mode 1. Raises as `from_lerobot`
    does."""
    rows = _rows(path, config)[0]
    return tuple(bool(rows[name].drive_mode) and config.protocol != "dynamixel" for name in config.joints)


def from_lerobot(path: Path, config: ArmConfig) -> tuple[JointCalibration, tuple[str, ...]]:
    """Joint calibration of the arm `config` from a LeRobot calibration file, and the file's keys that were ignored
    because they are no joints.

    The middle of a joint's range gets the angle `Family.middle`, the closed end of the gripper gets SHUT. Raises
    CalibrationError for a file that cannot be read, is damaged, has the list format, or is for another arm.
    """
    if config.shadows:
        raise CalibrationError(
            f"{path}: LeRobot calibrates no arm that has two servos on a joint: run `harmowam calibrate joints` "
            "without this file."
        )
    rows, ignored = _rows(path, config)
    _check_arm(path, rows, config)
    dynamixel = config.protocol == "dynamixel"
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
    return JointCalibration(tuple(made)), ignored
