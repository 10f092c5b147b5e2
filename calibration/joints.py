"""Joint calibration: where each servo's zero is, how far each joint goes, and what the servo's EEPROM said then.

This project never writes EEPROM: it reads the offsets (and a Dynamixel's operating mode, in which an offset counts or
does not), keeps them, and refuses to drive an arm where they have changed since. Angles are the maker's
(`firmware_bridge.arms`): a jaw is shut at its family's SHUT, which need not be 0. LeRobot keeps the same facts in
another form: `calibration.joints_lerobot`.

Only one turn of a servo's encoder survives a power cut: a joint's whole way lies within it, or its joint has no stops,
no gear and no second servo, so that any turn is as good as the other.
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

MARGIN = 0.035  # rad kept free at each end of the measured range
MIN_RANGE = 0.5  # rad; less, and the joint was hardly moved
APART_RAD = 0.05  # the two servos of a joint agree better than this while it is moved (a run ends at TWIN_RAD)
ANGLES = "maker"  # whose joint angles a record's zeros and directions make

ServoId = Annotated[int, Meta(ge=0, le=252)]
Step = Annotated[int, Meta(ge=-1_048_575, le=1_048_575)]  # which of them a servo can report is its model's
Offset = Annotated[int, Meta(ge=-1_044_479, le=1_044_479)]  # of any model
Gear = Annotated[float, Meta(ge=0.1, le=20)]
Direction = Literal[1, -1]
Mode = Literal[3, 4, 5]  # a Dynamixel's in which goals are positions


class Kept(NamedTuple):
    """What a servo's EEPROM does to the steps that it reports: homing offset, and a Dynamixel's operating mode."""

    offset: int
    mode: int | None


class Second(Shape, frozen=True, omit_defaults=True):
    """The second servo of a joint. Steps as it reports them."""

    id: ServoId
    zero_step: Step
    direction: Direction
    range_min: Step
    range_max: Step
    homing_offset: Offset
    mode: Mode | None = None


class Joint(Shape, frozen=True, omit_defaults=True):
    """One joint, servo steps as the servo reports them. `zero_step` is 0 rad; `direction` +1 or -1; `homing_offset` and
    `mode` (of a Dynamixel) are the EEPROM's; `gear`: servo turns a joint turn."""

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
            _possible(MODELS[self.model], servo)

    @property
    def servos(self) -> tuple[Joint | Second, ...]:
        """Its one or two servos."""
        return (self, self.second) if self.second else (self,)

    @property
    def rad_per_step(self) -> float:
        """Joint radians a step of its servo."""
        return MODELS[self.model].rad_per_step / self.gear


def _possible(model: Model, servo: Joint | Second) -> None:
    """Raises ValueError for numbers that no servo of this model holds or reports."""
    dynamixel = model.protocol == "dynamixel"
    if dynamixel != (servo.mode is not None):
        raise ValueError(f"'mode' must be {'3, 4 or 5' if dynamixel else 'left out'} for a {model.name}")
    sign = model.registers["homing_offset"].sign
    if sign is not None and abs(servo.homing_offset) >= 1 << sign:
        most = (1 << sign) - 1
        raise ValueError(f"'homing_offset' must be a whole number from -{most} to {most}, not {servo.homing_offset}")
    first, last = turn(model, Kept(servo.homing_offset, servo.mode))
    low, high = (
        min(0, first),
        max(model.steps - 1, last),
    )  # LeRobot's ranges lie about the middle of a turn, whatever the offset
    for key in ("zero_step", "range_min", "range_max"):
        if not low <= getattr(servo, key) <= high:
            raise ValueError(f"'{key}' must be a whole number from {low} to {high}, not {getattr(servo, key)}")


def turn(model: Model, kept: Kept) -> tuple[int, int]:
    """First and last step that a servo reports in the turn in which it powers up, and can be sent to."""
    last = model.steps - 1
    if model.protocol != "dynamixel":
        return 0, last
    added = model.added(*kept)
    return (added, last + added) if kept.mode in MULTI_TURN_MODES else (max(0, added), min(last, last + added))


class JointsFile(Shape, frozen=True):
    """What `JointCalibration.to_json` gives."""

    angles: Literal["maker"]
    joints: Annotated[list[Joint], Meta(min_length=1, max_length=32)]


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
            moved_far(j, source)
        return made

    def apply(self, config: ArmConfig) -> ArmConfig:
        """The bridge's ArmConfig with these zeros, directions and ranges, and the offsets and modes that the servos
        must hold; limits become the narrower of file and measurement.

        Raises CalibrationError when joints, ids, models or gears differ, or when the rest pose is out of range.
        """
        by_name = {j.name: j for j in self.joints}
        if {n: _build(j) for n, j in by_name.items()} != _builds(config):
            raise CalibrationError(
                "the joint calibration is for other joints or servo ids than the robot file, or for other models or "
                "gears: run "
                "`harmowam calibrate joints` for this arm."
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
            # Steps are what a servo reports with this offset, and in this mode: with others they mean other angles.
            eeprom=(
                *(e for e in config.eeprom if e[1] != "homing_offset"),
                *((s.id, "homing_offset", s.homing_offset) for s in servos),
                *((s.id, "mode", s.mode) for s in servos if s.mode is not None),
            ),
        )

    @staticmethod
    def limits(joint: Joint, jaw: bool = False) -> tuple[float, float]:
        """Measured range in rad, MARGIN inside the stops; a jaw may go to its closed end, where it holds things."""
        ends = sorted(
            (s - joint.zero_step) * joint.direction * joint.rad_per_step for s in (joint.range_min, joint.range_max)
        )
        return ends[0] + (0.0 if jaw else MARGIN), ends[1] - MARGIN


def _build(j: Joint) -> tuple[str, float, tuple[int, ...]]:
    """Model, gear and servo ids of a joint: another build needs another calibration."""
    return j.model, j.gear, tuple(s.id for s in j.servos)


def _builds(config: ArmConfig) -> dict[str, tuple[str, float, tuple[int, ...]]]:
    """The same of every joint of an arm, by name."""
    gears = config.gear or (1.0,) * len(config.joints)
    rows = zip(config.joints, config.model_names, gears, config.ids, strict=True)
    return {n: (m, g, (i, *(s[0] for s in config.shadows if s[1] == k))) for k, (n, m, g, i) in enumerate(rows)}


def zero_at(step: int, direction: int, rad: float, unit: float) -> int:
    """A joint's step at 0 rad, from the step at which it is at `rad`; `unit` rad a step."""
    return step - direction * round(rad / unit)


def moved_far(j: Joint, source: str) -> None:
    """Raises CalibrationError for a joint that was hardly moved."""
    way = (j.range_max - j.range_min) * j.rad_per_step
    if way < MIN_RANGE:
        raise CalibrationError(
            f"{source}: joint '{j.name}' was moved over {way:.2f} rad only: move it from stop to stop."
        )


def joint(source: str, **row: Any) -> Joint:
    """A joint of these fields. Raises CalibrationError where it was measured wrongly: numbers that no servo has, or
    hardly any way."""
    try:
        made = shaped(row, Joint)
    except Malformed as e:
        raise CalibrationError(f"{source}: joint '{row['name']}' is impossible, {e}: calibrate it again.") from e
    moved_far(made, source)
    return made


class RangeRecorder:
    """Watches limp joints that a person moves from stop to stop. Feed `add` with reported steps; `missing` says what is
    left to do.

    `kept`: what the servos' EEPROM holds, by id; `zero` int[S]: reported steps at the zero pose, in which the jaw is
    shut. Of every servo, second ones last. Raises CalibrationError for a servo that reads beyond its encoder's turn
    there.
    """

    def __init__(self, config: ArmConfig, kept: dict[int, Kept], zero: np.ndarray):
        self.config, self.zero = config, np.asarray(zero)
        n = len(config.ids)
        self.ids = (*config.ids, *(s[0] for s in config.shadows))
        self._joint = np.array([*range(n), *(s[1] for s in config.shadows)])
        self._models = [MODELS[config.model_names[k]] for k in self._joint]
        self._kept = [kept[i] for i in self.ids]
        self._gear = config.gear or (1.0,) * n
        self._rad = np.array([m.rad_per_step / self._gear[k] for m, k in zip(self._models, self._joint, strict=True)])
        stopless, doubled = family(config.family).STOPLESS if config.family else (), {s[1] for s in config.shadows}
        self.stopless = [
            name in stopless and self._gear[k] == 1 and k not in doubled for k, name in enumerate(config.joints)
        ]
        self.low: np.ndarray = np.array([1 << 30] * len(self.ids))
        self.high: np.ndarray = -self.low
        self._last: np.ndarray | None = None
        # Of every second servo: the most that it strayed from the first, were it to turn with it, and were it to turn
        # against it.
        self._with: np.ndarray = np.zeros(len(config.shadows))
        self._against: np.ndarray = np.zeros(len(config.shadows))
        for k in self._beyond(self.zero):
            raise CalibrationError(
                f"{self._called(k)} has been turned beyond its encoder's turn since its power came on: switch the "
                "arm's power off and on "
                "in its zero pose, then calibrate again."
            )

    def _called(self, k: int) -> str:
        return f"{self.config.joints[int(self._joint[k])]}{' (second servo)' if k >= len(self.config.ids) else ''}"

    def _beyond(self, steps: np.ndarray) -> list[int]:
        """Dynamixel servos that read outside the turn in which they power up, where that matters."""
        out = []
        for k, (model, kept, step) in enumerate(zip(self._models, self._kept, steps.tolist(), strict=True)):
            first, last = turn(model, kept)
            if kept.mode is not None and not first <= step <= last and not self.stopless[int(self._joint[k])]:
                out.append(k)
        return out

    def add(self, steps: np.ndarray) -> None:
        """int[S]. Raises CalibrationError when a joint runs over its encoder's end, where its range would be the wrong
        side or another after a power cut, and when two servos of a joint do not turn together."""
        wrapped = self._beyond(steps)
        if self._last is not None:
            half = np.array([m.steps // 2 for m in self._models])
            jumped = np.flatnonzero(np.abs(steps - self._last) > half).tolist()
            wrapped += [k for k in jumped if not self.stopless[int(self._joint[k])]]
        if wrapped:
            raise CalibrationError(f"{self._called(wrapped[0])} {self._at_the_end(wrapped[0])}")
        self._last = steps.copy()
        self.low, self.high = np.minimum(self.low, steps), np.maximum(self.high, steps)
        self._compare(steps)

    def _at_the_end(self, k: int) -> str:
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
        """Look whether the two servos of a joint have turned alike since the zero pose."""
        n = len(self.config.ids)
        moved = (steps - self.zero) * self._rad
        first, second = moved[self._joint[n:]], moved[n:]
        self._with = np.maximum(self._with, np.abs(first - second))
        self._against = np.maximum(self._against, np.abs(first + second))
        apart = np.minimum(self._with, self._against)
        if (apart > APART_RAD).any():
            k = int(apart.argmax())
            name, one, other = (
                self.config.joints[int(self._joint[n + k])],
                self.ids[int(self._joint[n + k])],
                self.ids[n + k],
            )
            raise CalibrationError(
                f"the two servos of {name} ({one} and {other}) do not turn together, {apart[k]:.2f} rad apart: see "
                "that both are on this "
                "joint and that no horn slips, then calibrate again."
            )

    def missing(self) -> list[str]:
        """Names of joints not yet moved far enough; one without stops need not be."""
        n = len(self.config.ids)
        far = (self.high - self.low)[:n] * self._rad[:n] >= MIN_RANGE
        return [c for c, ok, free in zip(self.config.joints, far, self.stopless, strict=True) if not ok and not free]

    def finish(self) -> JointCalibration:
        """What was measured. Which way a second servo turns is measured, too. Raises CalibrationError."""
        c, n = self.config, len(self.config.ids)
        made = []
        for k, name in enumerate(c.joints):
            direction = 1 if c.direction[k] > 0 else -1
            row = self._servo(k, direction)
            if k == n - 1:
                shut = family(c.family).SHUT if c.family else 0.0
                row["zero_step"] = zero_at(row["zero_step"], direction, shut, float(self._rad[k]))
            for s, shadow in enumerate(c.shadows):
                if shadow[1] == k:
                    row["second"] = self._servo(n + s, direction if self._with[s] <= self._against[s] else -direction)
            made.append(joint("this calibration", name=name, model=self._models[k].name, gear=self._gear[k], **row))
        return JointCalibration(tuple(made))

    def _servo(self, k: int, direction: int) -> dict[str, Any]:
        low, high = int(self.low[k]), int(self.high[k])
        if k < len(self.stopless) and self.stopless[k]:
            low, high = turn(self._models[k], self._kept[k])
        kept = self._kept[k]
        row = {
            "id": self.ids[k],
            "zero_step": int(self.zero[k]),
            "direction": direction,
            "range_min": low,
            "range_max": high,
        }
        return {**row, "homing_offset": kept.offset, "mode": kept.mode}


def compare(calibration: JointCalibration, held: dict[int, Kept]) -> list[str]:
    """What differs between the calibration and the servos' EEPROM now; empty when nothing does."""
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
