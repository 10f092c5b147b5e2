"""The configuration of one arm for the motor process, made from the robot file and the joint calibration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from common.errors import Mendable
from firmware_bridge.servos.models import MODELS


class ArmError(Mendable):
    """A reason not to move the arm; the text is one sentence and the next step."""


@dataclass(frozen=True)
class ArmConfig:
    """One arm. Tuples are by joint, gripper last; units rad, rad/s, rad/s^2, rad/s^3, s."""

    joints: tuple[str, ...]
    ids: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    direction: tuple[int, ...]
    zero_step: tuple[int, ...]  # servo step at 0 rad
    rest: tuple[float, ...]
    max_velocity: tuple[float, ...]
    max_acceleration: tuple[float, ...]
    baud: int = 1_000_000
    motor_hz: float = 100.0
    max_lead: float = 0.6  # rad; the target is clipped to this distance from the measured position
    stop_after_s: float = 1.0  # time in HOLD without commands until SAFE_STOP
    lower_speed: float = 0.6  # rad/s while the arm is lowered to its rest pose
    release_s: float = 1.5  # duration of the ramp from full torque to none
    max_jerk: tuple[float, ...] = ()  # default: 50 / s * max_acceleration, which reaches that limit in 20 ms
    models: tuple[str, ...] = ()  # default: STS3215 for every joint
    gear: tuple[float, ...] = ()  # servo turns per joint turn; default 1
    shadows: tuple[tuple[int, int, int, int], ...] = ()  # second servos: (id, joint, direction, step at 0 rad)
    eeprom: tuple[tuple[int, str, int], ...] = ()  # (id, register, value) that the servos must hold
    # A joint (not the gripper) that is further than this from its goal for `follow_s` is a fault.
    follow_rad: float = 0.3
    follow_s: float = 0.4
    family: str = ""  # a key of `firmware_bridge.arms.FAMILIES`; any other value: kinematics and shape are unknown
    estop: str = ""  # "gpio:/dev/gpiochip0:17" or "key:/dev/input/by-id/..."

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.models or ("STS3215",) * len(self.ids)

    @property
    def jerk(self) -> tuple[float, ...]:
        return self.max_jerk or tuple(50.0 * a for a in self.max_acceleration)

    @property
    def protocol(self) -> str:
        return MODELS[self.model_names[0]].protocol

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ArmConfig:
        """Inverse of `to_dict`; lists, as JSON gives them, become tuples."""

        def plain(v: Any) -> Any:
            return tuple(plain(x) for x in v) if isinstance(v, (list, tuple)) else v

        return cls(**{k: plain(v) for k, v in data.items()})
