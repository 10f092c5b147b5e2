"""Joint calibration: zero step and range of each joint, and the EEPROM registers that change its servo's steps.

Calibration never writes EEPROM. It records the homing offsets (and the operating mode of a Dynamixel, which decides
whether an offset is used); an arm whose registers have changed since is not driven. Angles follow the maker's
convention (`firmware_bridge.arms`): a jaw is shut at its family's SHUT, which need not be 0. LeRobot stores the same
facts in another form: `calibration.joints_lerobot`.

After a power cut a servo knows its position within one turn of its encoder only. So the range of a joint must lie
within that turn, unless the joint has no stops, no gear and no second servo: then every turn means the same angle.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from calibration.camera import CalibrationError
from common.schema import Malformed, Name, Shape, Text, shaped
from firmware_bridge.arms import family
from firmware_bridge.motion.before_torque import MULTI_TURN_MODES
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.registers import Model

MARGIN = 0.035  # rad; the limits are this far inside the measured range
MIN_RANGE = 0.5  # rad; a joint with a smaller range was not moved from stop to stop
APART_RAD = 0.05  # largest difference between the two servos of a joint; during a run it is TWIN_RAD
ANGLES = "maker"  # convention of the joint angles in a record

ServoId = Annotated[int, Meta(ge=0, le=252)]
Step = Annotated[int, Meta(ge=-1_048_575, le=1_048_575)]  # of any model; `_check_steps` knows the range of each model
Offset = Annotated[int, Meta(ge=-1_044_479, le=1_044_479)]  # of any model
Gear = Annotated[float, Meta(ge=0.1, le=20)]
Direction = Literal[1, -1]
Mode = Literal[3, 4, 5]  # operating modes of a Dynamixel in which the goal is a position


class StepRegisters(NamedTuple):
    """EEPROM registers that change the steps that a servo reports."""

    offset: int  # homing offset, steps
    mode: int | None  # operating mode of a Dynamixel; None for a Feetech servo


class Second(Shape, frozen=True, omit_defaults=True):
    """The second servo of a joint, with steps as it reports them. Fields as in `Joint`."""

    id: ServoId
    zero_step: Step
    direction: Direction
    range_min: Step
    range_max: Step
    homing_offset: Offset
    mode: Mode | None = None


class Joint(Shape, frozen=True, omit_defaults=True):
    """One joint, with steps as its servo reports them.

    `zero_step`: the step at 0 rad. `direction`: 1 if the steps grow with the angle, else -1. `range_min`, `range_max`:
    lowest and highest step. `homing_offset` and `mode` (Dynamixel only): EEPROM registers. `gear`: servo turns per
    joint turn.
    """

    name: Name
    id: ServoId
    zero_step: Step
    direction: Direction
    range_min: Step
    range_max: Step
    homing_offset: Offset
    model: Text = "STS3215"
    gear: Gear = 1.0
    mode: Mode | None = None
    second: Second | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"servo model '{self.model}' is not known (these are: {', '.join(MODELS)})")
        for servo in self.servos:
            _check_steps(MODELS[self.model], servo)

    @property
    def servos(self) -> tuple[Joint | Second, ...]:
        """The one or two servos of the joint."""
        return (self, self.second) if self.second else (self,)

    @property
    def rad_per_step(self) -> float:
        """Joint radians per step of its servo."""
        return MODELS[self.model].rad_per_step / self.gear


def _check_steps(model: Model, servo: Joint | Second) -> None:
    """Raises ValueError for a mode, offset or step that a servo of this model cannot hold or report."""
    dynamixel = model.protocol == "dynamixel"
    if dynamixel != (servo.mode is not None):
        raise ValueError(f"'mode' must be {'3, 4 or 5' if dynamixel else 'left out'} for a {model.name}")
    most = most_offset(model)
    if most is not None and abs(servo.homing_offset) > most:
        raise ValueError(f"'homing_offset' must be a whole number from -{most} to {most}, not {servo.homing_offset}")
    first, last = encoder_turn(model, StepRegisters(servo.homing_offset, servo.mode))
    # LeRobot writes ranges of 0 to steps - 1 whatever the offset is, so those are accepted too.
    low, high = min(0, first), max(model.steps - 1, last)
    for key in ("zero_step", "range_min", "range_max"):
        if not low <= getattr(servo, key) <= high:
            raise ValueError(f"'{key}' must be a whole number from {low} to {high}, not {getattr(servo, key)}")


def most_offset(model: Model) -> int | None:
    """Largest homing offset (steps, of either sign) of a servo of this model; None where it is every `Offset`."""
    sign = model.registers["homing_offset"].sign
    return None if sign is None else (1 << sign) - 1


def encoder_turn(model: Model, kept: StepRegisters) -> tuple[int, int]:
    """First and last step that a servo can report after power-up and that it accepts as a goal."""
    last = model.steps - 1
    if model.protocol != "dynamixel":
        return 0, last
    added = model.added(*kept)
    return (added, last + added) if kept.mode in MULTI_TURN_MODES else (max(0, added), min(last, last + added))


class JointsFile(Shape, frozen=True):
    """The JSON of `JointCalibration.to_json`."""

    angles: Literal["maker"]
    joints: Annotated[list[Joint], Meta(min_length=1, max_length=32)]


@dataclass(frozen=True)
class JointCalibration:
    """The calibration of all joints of one arm."""

    joints: tuple[Joint, ...]

    def to_json(self) -> dict[str, Any]:
        return {"angles": ANGLES, "joints": msgspec.to_builtins(list(self.joints))}

    @classmethod
    def from_json(cls, data: Any, source: str = "joint calibration") -> JointCalibration:
        """Inverse of `to_json`; `source` names the data in messages.

        Raises CalibrationError when `data` is no joint calibration, has impossible numbers, or uses another angle
        convention, with which the arm would move to the wrong side.
        """
        if isinstance(data, dict) and "joints" in data and data.get("angles") != ANGLES:
            raise CalibrationError(
                f"{source} was made for mirrored joint angles (shoulder_pan and wrist_roll turned the other way, the "
                "jaw was shut at 0): run `harmowam calibrate joints` again, or import LeRobot's file once more."
            )
        try:
            made = cls(tuple(shaped(data, JointsFile).joints))
        except Malformed as e:
            raise CalibrationError(f"{source} is damaged ({e}): restore it or run `harmowam calibrate joints`.") from e
        for j in made.joints:
            check_range(j, source)
        return made

    def apply(self, config: ArmConfig) -> ArmConfig:
        """`config` with the zeros and directions of this calibration, with the offsets and modes that the servos must
        hold, and with limits that are the narrower of robot file and measured range.

        Raises CalibrationError when joints, ids, models or gears differ, or when the rest pose is out of range.
        """
        by_name = {j.name: j for j in self.joints}
        if {n: _build(j) for n, j in by_name.items()} != _builds(config):
            raise CalibrationError(
                "the joint calibration is for other joints or servo ids than the robot file, or for other models or "
                "gears: run `harmowam calibrate joints` for this arm."
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
        seconds = {j.second.id: j.second for j in ordered if j.second}
        servos = [s for j in ordered for s in j.servos]
        return dataclasses.replace(
            config,
            lower=lower,
            upper=upper,
            zero_step=tuple(j.zero_step for j in ordered),
            direction=tuple(j.direction for j in ordered),
            shadows=tuple((i, k, seconds[i].direction, seconds[i].zero_step) for i, k, _, _ in config.shadows),
            # With another offset or mode the same step is another angle.
            eeprom=(
                *(e for e in config.eeprom if e[1] != "homing_offset"),
                *((s.id, "homing_offset", s.homing_offset) for s in servos),
                *((s.id, "mode", s.mode) for s in servos if s.mode is not None),
            ),
        )

    @staticmethod
    def limits(joint: Joint, jaw: bool = False) -> tuple[float, float]:
        """Lower and upper limit in rad: the measured range, MARGIN inside the stops, except at the closed end of a jaw.

        A servo that is sent to its stop presses on it all the time: it grows hot, and its overload protection lowers
        its torque. A jaw must get to its closed end, LeRobot's gripper 0, or it cannot hold what is thin; there it
        presses on the other jaw, as on any object. LeRobot's 100 is the open stop, MARGIN beyond the upper limit."""
        ends = sorted(
            (s - joint.zero_step) * joint.direction * joint.rad_per_step for s in (joint.range_min, joint.range_max)
        )
        return ends[0] + (0.0 if jaw else MARGIN), ends[1] - MARGIN


def _build(j: Joint) -> tuple[str, float, tuple[int, ...]]:
    """Model, gear and servo ids of a joint: when one of them changes, the calibration is void."""
    return j.model, j.gear, tuple(s.id for s in j.servos)


def _builds(config: ArmConfig) -> dict[str, tuple[str, float, tuple[int, ...]]]:
    """`_build` of every joint of an arm, by name."""
    gears = config.gear or (1.0,) * len(config.joints)
    rows = zip(config.joints, config.model_names, gears, config.ids, strict=True)
    return {n: (m, g, (i, *(s[0] for s in config.shadows if s[1] == k))) for k, (n, m, g, i) in enumerate(rows)}


def zero_at(step: int, direction: int, rad: float, unit: float) -> int:
    """Step of a joint at 0 rad, from its `step` at the angle `rad`; `unit`: rad per step."""
    return step - direction * round(rad / unit)


def check_range(j: Joint, source: str) -> None:
    """Raises CalibrationError for a joint whose range is smaller than MIN_RANGE."""
    width = (j.range_max - j.range_min) * j.rad_per_step
    if width < MIN_RANGE:
        raise CalibrationError(
            f"{source}: joint '{j.name}' was moved over {width:.2f} rad only: move it from stop to stop."
        )


def joint(source: str, **row: Any) -> Joint:
    """A `Joint` with the fields `row`. Raises CalibrationError for numbers that its servo cannot have or a range that
    is too small."""
    try:
        made = shaped(row, Joint)
    except Malformed as e:
        raise CalibrationError(f"{source}: joint '{row['name']}' is impossible, {e}: calibrate it again.") from e
    check_range(made, source)
    return made


class RangeRecorder:
    """Measures the ranges while a person moves the joints, whose torque is off, from stop to stop.

    Give every reading to `add` until `missing` is empty, then call `finish`. `kept`: EEPROM registers by servo id.
    `zero` int[S]: reported steps at the zero pose, in which the jaw is shut; S servos, second servos last. It is part
    of the range, so that a jaw which is not shut again can be shut. Raises CalibrationError when a servo is outside
    `encoder_turn` in the zero pose.
    """

    def __init__(self, config: ArmConfig, kept: dict[int, StepRegisters], zero: np.ndarray):
        self.config, self.zero = config, np.asarray(zero)
        n = len(config.ids)
        self.ids = (*config.ids, *(s[0] for s in config.shadows))
        self._joint = np.array([*range(n), *(s[1] for s in config.shadows)])
        self._models = [MODELS[config.model_names[k]] for k in self._joint]
        self._kept = [kept[i] for i in self.ids]
        self._gear = config.gear or (1.0,) * n
        self._rad_per_step = np.array(
            [m.rad_per_step / self._gear[k] for m, k in zip(self._models, self._joint, strict=True)]
        )
        stopless, doubled = family(config.family).STOPLESS if config.family else (), {s[1] for s in config.shadows}
        self.stopless = [
            name in stopless and self._gear[k] == 1 and k not in doubled for k, name in enumerate(config.joints)
        ]
        self.low, self.high = self.zero, self.zero
        self._last: np.ndarray | None = None
        # Largest difference (rad) between each second servo and the first, if it turns in the same direction, and if it
        # turns in the opposite one.
        self._apart_if_same: np.ndarray = np.zeros(len(config.shadows))
        self._apart_if_opposite: np.ndarray = np.zeros(len(config.shadows))
        for k in self._beyond(self.zero):
            raise CalibrationError(
                f"{self._label(k)} has been turned beyond its encoder's turn since its power came on: switch the "
                "arm's power off and on in its zero pose, then calibrate again."
            )

    def _label(self, k: int) -> str:
        return f"{self.config.joints[int(self._joint[k])]}{' (second servo)' if k >= len(self.config.ids) else ''}"

    def _beyond(self, steps: np.ndarray) -> list[int]:
        """Indices of Dynamixel servos outside `encoder_turn`, except those of joints without stops."""
        out = []
        for k, (model, kept, step) in enumerate(zip(self._models, self._kept, steps.tolist(), strict=True)):
            first, last = encoder_turn(model, kept)
            if kept.mode is not None and not first <= step <= last and not self.stopless[int(self._joint[k])]:
                out.append(k)
        return out

    def add(self, steps: np.ndarray) -> None:
        """Take one reading, `steps` int[S].

        Raises CalibrationError when a joint passes the end of its encoder, because its range would be wrong then or
        after a power cut, and when the two servos of a joint do not turn together.
        """
        wrapped = self._beyond(steps)
        if self._last is not None:
            half = np.array([m.steps // 2 for m in self._models])
            jumped = np.flatnonzero(np.abs(steps - self._last) > half).tolist()
            wrapped += [k for k in jumped if not self.stopless[int(self._joint[k])]]
        if wrapped:
            raise CalibrationError(f"{self._label(wrapped[0])} {self._past_the_encoder(wrapped[0])}")
        self._last = steps.copy()
        self.low, self.high = np.minimum(self.low, steps), np.maximum(self.high, steps)
        self._compare(steps)

    def _past_the_encoder(self, k: int) -> str:
        gear, model = self._gear[int(self._joint[k])], self._models[k]
        mend = "mount its horn half a turn on"
        if gear != 1:
            mend = (
                f"mount it so that the joint's whole way lies within one turn of its servo, which turns {gear:g} "
                "times as far"
            )
        elif model.protocol == "feetech":
            mend = f"set its servo's middle with `lerobot-calibrate`, or {mend}"
        return f"passes the end of its encoder inside its range: {mend}, then calibrate again."

    def _compare(self, steps: np.ndarray) -> None:
        """Raises CalibrationError when the two servos of a joint have moved by different angles since the zero pose."""
        n = len(self.config.ids)
        moved = (steps - self.zero) * self._rad_per_step
        first, second = moved[self._joint[n:]], moved[n:]
        self._apart_if_same = np.maximum(self._apart_if_same, np.abs(first - second))
        self._apart_if_opposite = np.maximum(self._apart_if_opposite, np.abs(first + second))
        apart = np.minimum(self._apart_if_same, self._apart_if_opposite)
        if (apart > APART_RAD).any():
            k = int(apart.argmax())
            j = int(self._joint[n + k])
            raise CalibrationError(
                f"the two servos of {self.config.joints[j]} ({self.ids[j]} and {self.ids[n + k]}) do not turn "
                f"together, {apart[k]:.2f} rad apart: see that both are on this joint and that no horn slips, then "
                "calibrate again."
            )

    def missing(self) -> list[str]:
        """Names of the joints that have to be moved further; joints without stops are left out."""
        n = len(self.config.ids)
        far = (self.high - self.low)[:n] * self._rad_per_step[:n] >= MIN_RANGE
        return [c for c, ok, free in zip(self.config.joints, far, self.stopless, strict=True) if not ok and not free]

    def finish(self) -> JointCalibration:
        """The measured calibration, with the measured directions of second servos. Raises CalibrationError."""
        c, n = self.config, len(self.config.ids)
        made = []
        for k, name in enumerate(c.joints):
            direction = 1 if c.direction[k] > 0 else -1
            row = self._servo(k, direction)
            if k == n - 1:
                shut = family(c.family).SHUT if c.family else 0.0
                row["zero_step"] = zero_at(row["zero_step"], direction, shut, float(self._rad_per_step[k]))
            for s, shadow in enumerate(c.shadows):
                if shadow[1] == k:
                    same = self._apart_if_same[s] <= self._apart_if_opposite[s]
                    row["second"] = self._servo(n + s, direction if same else -direction)
            made.append(joint("this calibration", name=name, model=self._models[k].name, gear=self._gear[k], **row))
        return JointCalibration(tuple(made))

    def _servo(self, k: int, direction: int) -> dict[str, Any]:
        low, high = int(self.low[k]), int(self.high[k])
        if k < len(self.stopless) and self.stopless[k]:
            low, high = encoder_turn(self._models[k], self._kept[k])
        kept = self._kept[k]
        row = {
            "id": self.ids[k],
            "zero_step": int(self.zero[k]),
            "direction": direction,
            "range_min": low,
            "range_max": high,
        }
        return {**row, "homing_offset": kept.offset, "mode": kept.mode}


def compare(calibration: JointCalibration, held: dict[int, StepRegisters]) -> list[str]:
    """One sentence per difference between the calibration and the servos' present EEPROM."""
    out = []
    for j in calibration.joints:
        for s in j.servos:
            now = held.get(s.id)
            for what, is_now, was in (
                ("homing offset", now and now.offset, s.homing_offset),
                ("operating mode", now and now.mode, s.mode),
            ):
                if is_now != was:
                    out.append(f"{j.name} (servo {s.id}): {what} {is_now} in EEPROM, {was} when calibrated")
    return out
