"""The arm in radians: servo steps, homing, directions and ranges from one `ArmConfig`. EEPROM is never written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_bridge.bus import Bus
from firmware_bridge.sts3215 import CURRENT_A, MODEL, RAD_PER_STEP, VOLTAGE_V, decode, encode

NO_REPLY = 0x80  # added to the status bits of a servo that did not answer


class ArmError(Exception):
    """An arm that must not be moved; one sentence and the next step."""


@dataclass(frozen=True)
class ArmConfig:
    """One arm, gripper last. Radians, rad/s, rad/s^2, seconds; made from the robot file and its joint calibration."""

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

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ArmConfig:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Measurement:
    """float64[J] position (rad) and velocity (rad/s), uint8[J] condition bits (NO_REPLY where stale)."""

    q: np.ndarray
    qd: np.ndarray
    bits: np.ndarray


class Arm:
    """Reads and writes the whole arm through one bus. Not thread-safe: the motor process owns it."""

    def __init__(self, bus: Bus, config: ArmConfig):
        self.bus, self.config = bus, config
        n = len(config.ids)
        self._sign = np.array(config.direction, float)
        self._zero = np.array(config.zero_step, float)
        self._last = Measurement(np.zeros(n), np.zeros(n), np.full(n, NO_REPLY, np.uint8))
        self.current, self.temperature, self.voltage = (
            np.zeros(n, np.float32),
            np.zeros(n, np.float32),
            np.zeros(n, np.float32),
        )
        self._telemetry = 0

    def to_rad(self, steps: np.ndarray) -> np.ndarray:
        return (np.asarray(steps, float) - self._zero) * self._sign * RAD_PER_STEP

    def to_steps(self, rad: np.ndarray) -> np.ndarray:
        return np.rint(np.asarray(rad, float) * self._sign / RAD_PER_STEP + self._zero).astype(int)

    def check(self) -> None:
        """Raises ArmError when a servo is silent or of another model."""
        found = self.bus.sync_read(self.config.ids, 3, 2, retries=3)
        silent = [i for i in self.config.ids if i not in found]
        where = getattr(self.bus.port, "path", "the bus")
        if len(silent) == len(self.config.ids):
            raise ArmError(
                f"no servo answers on {where}: check the arm's power supply and the baud rate ({self.config.baud})."
            )
        if silent:
            names = ", ".join(f"{i} ({self.config.joints[self.config.ids.index(i)]})" for i in silent)
            raise ArmError(f"servo {names} does not answer on {where}: check its cable and its id.")
        for i, r in found.items():
            model = int.from_bytes(r.data, "little")
            if model != MODEL:
                raise ArmError(
                    f"servo {i} reports model {model}, the robot file expects {MODEL} (STS3215): check the arm family in the robot file."
                )

    def read(self) -> Measurement:
        """Positions and velocities in one sync read; a silent servo keeps its last values and gets NO_REPLY."""
        got = self.bus.sync_read(self.config.ids, 56, 4)
        q, qd, bits = self._last.q.copy(), self._last.qd.copy(), self._last.bits | NO_REPLY
        for k, i in enumerate(self.config.ids):
            if i in got:
                r = got[i]
                q[k] = (decode("present_position", r.data) - self._zero[k]) * self._sign[k] * RAD_PER_STEP
                qd[k] = decode("present_speed", r.data[2:]) * self._sign[k] * RAD_PER_STEP
                bits[k] = r.bits
        self._last = Measurement(q, qd, bits)
        return self._last

    def read_telemetry(self) -> None:
        """Voltage, temperature and current of one servo a call, round-robin."""
        k = self._telemetry % len(self.config.ids)
        self._telemetry += 1
        r = self.bus.read(self.config.ids[k], 62, 9, retries=0)
        if r is not None:
            self.voltage[k], self.temperature[k] = r.data[0] * VOLTAGE_V, r.data[1]
            self.current[k] = decode("present_current", r.data[7:9]) * CURRENT_A

    def write_goals(self, rad: np.ndarray) -> None:
        """Goal positions of all joints in one sync write."""
        steps = self.to_steps(rad)
        self.bus.sync_write(
            42, {i: encode("goal_position", int(s)) for i, s in zip(self.config.ids, steps, strict=True)}
        )

    def energised(self) -> bool:
        """Whether any servo has its torque on already (an arm that somebody left standing)."""
        got = self.bus.sync_read(self.config.ids, 40, 1, retries=2)
        return any(r.data[0] == 1 for r in got.values())

    def torque_on(self) -> None:
        """Goal := present position, then full torque: the arm stiffens where it is. An energised arm keeps its torque throughout."""
        self.write_goals(self.read().q)
        self.bus.sync_write(48, {i: encode("torque_limit", 1000) for i in self.config.ids})
        self.bus.sync_write(40, dict.fromkeys(self.config.ids, b"\x01"))
        got = self.bus.sync_read(self.config.ids, 40, 1, retries=2)
        limp = [i for i in self.config.ids if i not in got or got[i].data[0] != 1]
        if limp:
            raise ArmError(
                f"servo {', '.join(map(str, limp))} did not switch its torque on: power the arm off and on, then try again."
            )

    def set_torque(self, share: float) -> None:
        """Torque limit of all servos, 0..1 of their maximum; unacknowledged, so that one servo that refuses stops nobody."""
        self.bus.sync_write(
            48, {i: encode("torque_limit", int(1000 * min(max(share, 0.0), 1.0))) for i in self.config.ids}
        )

    def torque_share(self) -> float:
        """The highest torque limit on the arm now, 0..1; 1 when no servo answers."""
        got = self.bus.sync_read(self.config.ids, 48, 2, retries=2)
        return max((decode("torque_limit", r.data) / 1000 for r in got.values()), default=1.0)

    def torque_off(self) -> list[int]:
        """Release every servo, those first that refuse to listen together; returns the ids that still hold."""
        for _ in range(3):
            self.bus.sync_write(40, dict.fromkeys(self.config.ids, b"\x00"))
            got = self.bus.sync_read(self.config.ids, 40, 1)
            holding = [i for i in self.config.ids if i not in got or got[i].data[0] != 0]
            if not holding:
                break
            for i in holding:
                self.bus.write(i, 40, b"\x00")
        return holding
