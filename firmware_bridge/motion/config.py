"""What the motor process knows of one arm, from its robot file and joint calibration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from common.errors import Mendable
from firmware_bridge.servos.models import MODELS


class ArmError(Mendable):
    """An arm that must not be moved; one sentence and the next step."""


@dataclass(frozen=True)
class ArmConfig:
    """One arm, gripper last. Radians, rad/s, rad/s^2, rad/s^3, seconds; made from the robot file and its joint
    calibration."""

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
    max_lead: float = 0.6  # goal over measured position
    stop_after_s: float = 1.0  # without commands: from hold to safe stop
    lower_speed: float = 0.6  # rad/s on the way to rest
    release_s: float = 1.5  # torque ramp
    max_jerk: tuple[float, ...] = ()  # default: what takes the acceleration from 0 to its limit in 20 ms
    models: tuple[str, ...] = ()  # default: STS3215 everywhere
    gear: tuple[float, ...] = ()  # servo turns a joint turn; default 1
    shadows: tuple[tuple[int, int, int, int], ...] = ()  # second servos: (id, joint, direction, step at 0 rad)
    eeprom: tuple[tuple[int, str, int], ...] = ()  # (id, register, value) that the servos must hold
    # A joint that lags behind its goal by more for `follow_s` does not follow (the gripper may).
    follow_rad: float = 0.3
    follow_s: float = 0.4
    family: str = ""  # whose kinematics and shapes are known (firmware_bridge.arms); "" or any other: none
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
        """Inverse of `to_dict`, also after a way through JSON."""

        def plain(v: Any) -> Any:
            return tuple(plain(x) for x in v) if isinstance(v, (list, tuple)) else v

        return cls(**{k: plain(v) for k, v in data.items()})
