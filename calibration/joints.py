"""Joint calibration: where each servo's zero is, how far each joint goes, and what the servo's EEPROM said then.

LeRobot keeps the same facts in another form, one JSON object a joint: `homing_offset` is written to the servo (register
31), which then reports `position - homing_offset`; `range_min` and `range_max` are such reported steps; 0 degrees is
the middle of the range, and the gripper goes from 0, shut, to 100. This project never writes EEPROM: it reads the
offsets, keeps them, and refuses to drive an arm whose offsets have changed since. Angles are the maker's
(`firmware_bridge.arms`): a jaw is shut at its family's SHUT, which need not be 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from calibration.camera import CalibrationError
from common.schema import Malformed, Name, Shape, parse_json, read_bounded, shaped
from firmware_bridge.arms import family
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.sts3215 import RAD_PER_STEP, STEPS, decode

MARGIN = 0.035  # rad kept free at each end of the measured range
MIN_RANGE = 0.5  # rad; less, and the joint was hardly moved
MOST_LEROBOT_BYTES = 256 * 1024
ANGLES = "maker"  # whose joint angles a record's zeros and directions make


ServoId = Annotated[int, Meta(ge=0, le=252)]
Step = Annotated[int, Meta(ge=0, le=STEPS - 1)]
Offset = Annotated[int, Meta(ge=-2047, le=2047)]


class Joint(Shape, frozen=True):
    """One joint, servo steps as the servo reports them. `zero_step` is 0 rad; `direction` +1 or -1; `homing_offset` is
    the EEPROM's."""

    name: Name
    id: ServoId
    zero_step: Step
    direction: Literal[1, -1]
    range_min: Step
    range_max: Step
    homing_offset: Offset


class JointsFile(Shape, frozen=True):
    """What `JointCalibration.to_json` gives."""

    angles: Literal["maker"]
    joints: Annotated[list[Joint], Meta(min_length=1, max_length=32)]


class LeRobotJoint(msgspec.Struct, frozen=True):
    """A joint of LeRobot's file; what else stands there is passed over."""

    id: ServoId
    drive_mode: Literal[0, 1] | bool
    homing_offset: Offset
    range_min: Step
    range_max: Step


@dataclass(frozen=True)
class JointCalibration:
    joints: tuple[Joint, ...]

    def to_json(self) -> dict[str, Any]:
        return {"angles": ANGLES, "joints": msgspec.to_builtins(list(self.joints))}

    @classmethod
    def from_json(cls, data: Any, source: str = "joint calibration") -> JointCalibration:
        """Raises CalibrationError when `data` is none, holds impossible numbers, or makes angles of another convention:
        with such zeros and directions the arm would move to the wrong side."""
        if isinstance(data, dict) and "joints" in data and data.get("angles") != ANGLES:
            raise CalibrationError(
                f"{source} was made for mirrored joint angles (shoulder_pan and wrist_roll turned the other way, the "
                "jaw was shut at 0): "
                "run `harmowam calibrate joints` again, or import LeRobot's file once more."
            )
        try:
            made = cls(tuple(shaped(data, JointsFile).joints))
        except Malformed as e:
            raise CalibrationError(f"{source} is damaged ({e}): restore it or run `harmowam calibrate joints`.") from e
        for j in made.joints:
            _sane(j, source)
        return made

    def apply(self, config: ArmConfig) -> ArmConfig:
        """The bridge's ArmConfig with these zeros, directions and ranges, and the offsets that the servos must hold;
        limits become the narrower of file and measurement.

        Raises CalibrationError when joints or ids differ, or when the rest pose is out of range.
        """
        by_name = {j.name: j for j in self.joints}
        if set(by_name) != set(config.joints) or any(
            by_name[n].id != i for n, i in zip(config.joints, config.ids, strict=True)
        ):
            raise CalibrationError(
                "the joint calibration is for other joints or servo ids than the robot file: run `harmowam calibrate "
                "joints` for this arm."
            )
        ordered = [by_name[n] for n in config.joints]
        limits = [self.limits(j, jaw=j is ordered[-1]) for j in ordered]
        lower = tuple(max(a, b) for a, (b, _) in zip(config.lower, limits, strict=True))
        upper = tuple(min(a, b) for a, (_, b) in zip(config.upper, limits, strict=True))
        for name, low, high, rest in zip(config.joints, lower, upper, config.rest, strict=True):
            if not low <= rest <= high:
                raise CalibrationError(
                    f"the rest pose puts {name} at {rest:.2f} rad, outside its measured range {low:.2f} to {high:.2f}: "
                    "calibrate again with every joint at its zero pose, or correct 'rest' in the robot file if that "
                    "is wrong."
                )
        return dataclasses.replace(
            config,
            lower=lower,
            upper=upper,
            zero_step=tuple(j.zero_step for j in ordered),
            direction=tuple(j.direction for j in ordered),
            # Steps are what a servo reports with this offset: with another one they mean other angles.
            eeprom=(
                *(e for e in config.eeprom if e[1] != "homing_offset"),
                *((j.id, "homing_offset", j.homing_offset) for j in ordered),
            ),
        )

    @staticmethod
    def limits(joint: Joint, jaw: bool = False) -> tuple[float, float]:
        """Measured range in rad, MARGIN inside the stops; a jaw may go to its closed end, where it holds things."""
        ends = sorted(
            (s - joint.zero_step) * joint.direction * RAD_PER_STEP for s in (joint.range_min, joint.range_max)
        )
        return ends[0] + (0.0 if jaw else MARGIN), ends[1] - MARGIN


def _zero(step: int, direction: int, rad: float) -> int:
    """A joint's step at 0 rad, from the step at which it is at `rad`."""
    return step - direction * round(rad / RAD_PER_STEP)


def _sane(j: Joint, source: str) -> None:
    """Raises CalibrationError for a joint that was measured wrongly: numbers that no servo has, or hardly any way."""
    try:
        shaped(msgspec.to_builtins(j), Joint)
    except Malformed as e:
        raise CalibrationError(f"{source}: joint '{j.name}' is impossible, {e}: calibrate it again.") from e
    if (j.range_max - j.range_min) * RAD_PER_STEP < MIN_RANGE:
        raise CalibrationError(
            f"{source}: joint '{j.name}' was moved over {(j.range_max - j.range_min) * RAD_PER_STEP:.2f} rad only: "
            "move it from stop to stop."
        )


class RangeRecorder:
    """Watches limp joints that a person moves from stop to stop. Feed `add` with reported steps; `missing` says what is
    left to do."""

    def __init__(self, config: ArmConfig):
        self.config = config
        n = len(config.ids)
        self.low: np.ndarray = np.full(n, STEPS)
        self.high: np.ndarray = np.full(n, -1)
        self._last: np.ndarray | None = None

    def add(self, steps: np.ndarray) -> None:
        """int[J]. Raises CalibrationError when a joint runs over the encoder's end (0/4095): its range would be the
        wrong side."""
        if self._last is not None and (np.abs(steps - self._last) > STEPS // 2).any():
            k = int(np.abs(steps - self._last).argmax())
            raise CalibrationError(
                f"{self.config.joints[k]} passes the end of its encoder inside its range: set its servo's middle "
                "with `lerobot-calibrate`, or mount its horn half a turn on, then calibrate again."
            )
        self._last = steps.copy()
        self.low, self.high = np.minimum(self.low, steps), np.maximum(self.high, steps)

    def missing(self) -> list[str]:
        """Names of joints not yet moved far enough."""
        far = (self.high - self.low) * RAD_PER_STEP >= MIN_RANGE
        return [n for n, ok in zip(self.config.joints, far, strict=True) if not ok]

    def finish(self, zero_step: np.ndarray, offsets: dict[int, int]) -> JointCalibration:
        """`zero_step` int[J]: reported steps at the zero pose, in which the jaw is shut; `offsets`: EEPROM homing
        offsets by id. Raises CalibrationError."""
        c = self.config
        zero_step = np.append(zero_step[:-1], _zero(int(zero_step[-1]), c.direction[-1], family(c.family).SHUT))
        made = JointCalibration(
            tuple(
                Joint(
                    c.joints[k],
                    c.ids[k],
                    int(zero_step[k]),
                    1 if c.direction[k] > 0 else -1,
                    int(self.low[k]),
                    int(self.high[k]),
                    int(offsets[c.ids[k]]),
                )
                for k in range(len(c.ids))
            )
        )
        for j in made.joints:
            _sane(j, "this calibration")
        return made


def eeprom_offsets(arm: Arm) -> dict[int, int]:
    """Homing offset of every servo, by id; raises CalibrationError when one does not answer."""
    got = arm.bus.sync_read(arm.config.ids, 31, 2, retries=3)
    silent = [i for i in arm.config.ids if i not in got]
    if silent:
        raise CalibrationError(f"servo {silent[0]} does not answer: check its cable and the arm's power.")
    return {i: decode("homing_offset", r.data) for i, r in got.items()}


def reported_steps(arm: Arm) -> np.ndarray:
    """int64[J] as the servos report them; raises CalibrationError when one does not answer."""
    got = arm.bus.sync_read(arm.config.ids, 56, 2, retries=3)
    silent = [i for i in arm.config.ids if i not in got]
    if silent:
        raise CalibrationError(f"servo {silent[0]} does not answer: check its cable and the arm's power.")
    return np.array([decode("present_position", got[i].data) for i in arm.config.ids])


def compare(calibration: JointCalibration, offsets: dict[int, int]) -> list[str]:
    """What differs between the calibration and the servos' EEPROM now; empty when nothing does."""
    return [
        f"{j.name} (servo {j.id}): homing offset {offsets.get(j.id)} in EEPROM, {j.homing_offset} when calibrated"
        for j in calibration.joints
        if offsets.get(j.id) != j.homing_offset
    ]


def to_lerobot(calibration: JointCalibration) -> dict[str, dict[str, int]]:
    """LeRobot's calibration JSON (MotorCalibration a joint). Zeros that are not the middle of the range are lost:
    LeRobot has no place for them."""
    return {
        j.name: {
            "id": j.id,
            "drive_mode": int(j.direction < 0),
            "homing_offset": j.homing_offset,
            "range_min": j.range_min,
            "range_max": j.range_max,
        }
        for j in calibration.joints
    }


def from_lerobot(path: Path, config: ArmConfig) -> JointCalibration:
    """A LeRobot calibration file for the joints of `config`; the middle of a range is what the family says that
    LeRobot's 0 degrees are; the gripper is at SHUT at its closed end. Raises CalibrationError for a file that is
    damaged or for another arm."""
    known = family(config.family)
    try:
        rows = shaped(parse_json(read_bounded(path, MOST_LEROBOT_BYTES)), dict[Name, LeRobotJoint])
        rows = {name: row for name, row in rows.items() if name not in known.SECONDS}
    except OSError as e:
        raise CalibrationError(f"{path} cannot be read ({e.strerror}): check the path.") from e
    except Malformed as e:
        raise CalibrationError(
            f"{path} is no LeRobot calibration ({e}): give the JSON that lerobot-calibrate wrote."
        ) from e
    if list(rows) != list(config.joints) and set(rows) != set(config.joints):
        raise CalibrationError(
            f"{path} is for joints {', '.join(rows)}, the robot has {', '.join(config.joints)}: give this arm's file."
        )
    joints = []
    for k, name in enumerate(config.joints):
        r = rows[name]
        if r.id != config.ids[k]:
            raise CalibrationError(
                f"{path}: {name} is servo {r.id}, the robot file says {config.ids[k]}: correct one of them."
            )
        direction: Literal[1, -1] = -1 if r.drive_mode or config.direction[k] < 0 else 1
        middle = (r.range_min + r.range_max) // 2
        closed = r.range_min if direction > 0 else r.range_max
        if k < len(config.joints) - 1:
            zero = _zero(middle, direction, float(known.middle[k]))
        else:
            zero = _zero(closed, direction, known.SHUT)
        joints.append(Joint(name, r.id, int(zero), direction, r.range_min, r.range_max, r.homing_offset))
    made = JointCalibration(tuple(joints))
    for j in made.joints:
        _sane(j, str(path))
    return made
