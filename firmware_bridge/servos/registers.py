"""What a register table is: named numbers at addresses of a servo, and the model that they belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Register:
    """`sign` is the bit that holds the sign of a sign-magnitude number; `signed` marks two's complement; else
    unsigned."""

    name: str
    address: int
    size: int
    default: int = 0
    writable: bool = True
    eeprom: bool = False
    sign: int | None = None
    signed: bool = False


class RegisterError(ValueError):
    """A value that its register cannot hold."""


def encode_sign(value: int, bit: int) -> int:
    """Sign-magnitude with the sign at `bit`; raises RegisterError when the magnitude does not fit."""
    if abs(value) >= 1 << bit:
        raise RegisterError(f"{value} does not fit into {bit} bits and a sign")
    return value if value >= 0 else -value | (1 << bit)


def decode_sign(raw: int, bit: int) -> int:
    """Inverse of `encode_sign`; minus zero reads as zero."""
    magnitude = raw & ((1 << bit) - 1)
    return -magnitude if raw >> bit & 1 else magnitude


@dataclass(frozen=True)
class Model:
    """One servo model: how its numbers are laid out and what they mean.

    All models name alike what means alike: torque_enable, goal_position, present_position, present_speed,
    present_current, present_voltage, present_temperature, torque_limit (what fades the output), homing_offset,
    min_position, max_position.
    """

    name: str
    number: int
    protocol: Literal["feetech", "dynamixel"]
    registers: dict[str, Register]
    steps: int = 4096  # a turn
    speed_steps_s: float = 1.0  # step/s a unit of present_speed
    current_a: float = 0.0065  # ampere a unit of present_current; 0: the servo measures none
    full_torque: int = 1000  # torque_limit that lets everything through
    torque_cap: str = "max_torque"  # EEPROM register: the highest torque_limit that this servo's owner allows it
    offset_sign: int = -1  # Present = Actual + offset_sign * homing_offset, where the offset counts (`added`)
    byteorder: Literal["little", "big"] = "little"
    sync_read: bool = True
    watchdog_stops: bool = True  # its bus watchdog, where it has one, stops the motor

    @property
    def rad_per_step(self) -> float:
        return 2 * math.pi / self.steps

    def added(self, homing_offset: int, mode: int | None) -> int:
        """Present less Actual position, steps. In position mode (3) a Dynamixel passes over an offset of more than a
        quarter turn, in its multi-turn modes it counts any (e-manual, Homing Offset)."""
        passed_over = self.protocol == "dynamixel" and mode == 3 and abs(homing_offset) > self.steps // 4
        return 0 if passed_over else self.offset_sign * homing_offset

    def encode(self, name: str, value: int) -> bytes:
        """Register bytes of a value; raises RegisterError when it does not fit."""
        r = self.registers[name]
        raw = encode_sign(value, r.sign) if r.sign is not None else value
        try:
            return raw.to_bytes(r.size, self.byteorder, signed=r.signed)
        except OverflowError as e:
            raise RegisterError(f"{value} does not fit into {name} of {self.name}") from e

    def decode(self, name: str, data: bytes | bytearray, offset: int = 0) -> int:
        """Value of a register whose bytes begin at `offset`."""
        r = self.registers[name]
        raw = int.from_bytes(data[offset : offset + r.size], self.byteorder, signed=r.signed)
        return decode_sign(raw, r.sign) if r.sign is not None else raw

    def span(self, first: str, last: str) -> tuple[int, int]:
        """Address and size of the block from register `first` to the end of `last`."""
        a, b = self.registers[first], self.registers[last]
        return a.address, b.address + b.size - a.address
