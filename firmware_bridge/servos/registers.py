"""Types of a servo's register table: `Register` (name, address, encoding) and `Model` (the table and its units)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Register:
    """One register; `address` and `size` in bytes.

    Encoding: sign and magnitude with the sign in bit `sign`; two's complement if `signed`; else unsigned.
    """

    name: str
    address: int
    size: int
    default: int = 0
    writable: bool = True
    eeprom: bool = False
    sign: int | None = None
    signed: bool = False


class RegisterError(ValueError):
    """The value does not fit into its register."""


def encode_sign(value: int, bit: int) -> int:
    """Encode as sign and magnitude with the sign in `bit`; raises RegisterError when the magnitude does not fit."""
    if abs(value) >= 1 << bit:
        raise RegisterError(f"{value} does not fit into {bit} bits and a sign")
    return value if value >= 0 else -value | (1 << bit)


def decode_sign(raw: int, bit: int) -> int:
    """Inverse of `encode_sign`; minus zero gives 0."""
    magnitude = raw & ((1 << bit) - 1)
    return -magnitude if raw >> bit & 1 else magnitude


@dataclass(frozen=True)
class Model:
    """One servo model: its register table, and the units of its registers.

    Registers of the same meaning have the same name in all models: torque_enable, goal_position, present_position,
    present_speed, present_current, present_voltage, present_temperature, torque_limit (the register that limits the
    output), homing_offset, min_position, max_position.
    """

    name: str
    number: int
    protocol: Literal["feetech", "dynamixel"]
    registers: dict[str, Register]
    steps: int = 4096  # steps per turn
    speed_steps_s: float = 1.0  # step/s per unit of present_speed
    current_a: float = 0.0065  # A per unit of present_current; 0: the servo does not measure its current
    full_torque: int = 1000  # value of torque_limit for full output
    torque_cap: str = "max_torque"  # EEPROM register with the highest allowed torque_limit
    offset_sign: int = -1  # present position = actual position + offset_sign * homing_offset; see `added`
    byteorder: Literal["little", "big"] = "little"
    sync_read: bool = True
    watchdog_stops: bool = True  # whether its bus watchdog, if it has one, stops the motor

    @property
    def rad_per_step(self) -> float:
        return 2 * math.pi / self.steps

    def added(self, homing_offset: int, mode: int | None) -> int:
        """Present minus actual position, in steps.

        In position mode (3) a Dynamixel ignores an offset of more than a quarter turn; in its multi-turn modes it uses
        any offset (ROBOTIS e-manual, Homing Offset).
        """
        ignored = self.protocol == "dynamixel" and mode == 3 and abs(homing_offset) > self.steps // 4
        return 0 if ignored else self.offset_sign * homing_offset

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
