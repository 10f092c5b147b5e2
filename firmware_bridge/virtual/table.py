"""What the registers of a servo take: value ranges, and the error number of a Dynamixel that refuses a write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from firmware_bridge.servos import sts3215, xseries
from firmware_bridge.servos.registers import Model, Register

INSTRUCTION_ERROR, RANGE_ERROR, LENGTH_ERROR, LIMIT_ERROR, ACCESS_ERROR = 2, 4, 5, 6, 7  # Dynamixel's error numbers
# Values that a register takes: id and baud rate of both protocols, the rest Dynamixel's (e-manual, X series).
RANGES = {
    "feetech": {"id": (0, 253), "baud": (0, 7)},
    "dynamixel": {
        "id": (0, 252),
        "baud": (0, 6),
        "homing_offset": (-1_044_479, 1_044_479),
        "pwm_limit": (0, 885),
        "current_limit": (0, 2047),
        "velocity_limit": (0, 2047),
        "max_position": (0, 4095),
        "min_position": (0, 4095),
        "torque_enable": (0, 1),
        "response_level": (0, 2),
        "watchdog": (0, 127),
        "goal_position": (-1_048_575, 1_048_575),
    },
}
# Dynamixel: which register limits a goal. (The torque limit of `Model` is Goal PWM.)
LIMITED = {"torque_limit": "pwm_limit", "goal_current": "current_limit", "goal_speed": "velocity_limit"}

# Bits per second by value of the baud rate register, of those values in `RANGES`.
RATES = {"feetech": sts3215.BAUDS, "dynamixel": xseries.BAUDS}


def holds(r: Register) -> tuple[int, int]:
    """Least and greatest value that the bytes of a register can say."""
    if r.sign is not None:
        return 1 - (1 << r.sign), (1 << r.sign) - 1
    bits = 8 * r.size
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if r.signed else (0, (1 << bits) - 1)


def end_of_table(model: Model) -> int:
    """Address behind a Dynamixel's last register: of the indirect data, 20 bytes in a 330-size servo, else 28."""
    return 228 if "330" in model.name else 252


def refusal(model: Model, touched: Sequence[Register], get: Callable[[str], int], address: int, data: bytes) -> int:
    """Error number of a Dynamixel that takes nothing of a write of `data`, which touches these registers; else 0.
    `get`: its registers as they are.

    The e-manual (protocol 2.0, Error) has: access (7) to what is read-only, not there, or EEPROM under torque; length
    (5) for a part of a register; range (4) outside what the register can be; limit (6) for a goal beyond the register
    that limits it, which X servos give a goal position outside Min and Max Position Limit (hardware tests of the
    Mayday robot's driver; LeRobot users of the OMX arm).
    """
    end = address + len(data)
    if end > end_of_table(model):
        return ACCESS_ERROR
    for r in touched:
        if not r.writable or (r.eeprom and get("torque_enable")):
            return ACCESS_ERROR
        if address > r.address or end < r.address + r.size:
            return LENGTH_ERROR
        if (r.name.startswith("goal") or r.name == "torque_limit") and get("watchdog") == -1:
            return RANGE_ERROR
        value = model.decode(r.name, data, r.address - address)
        low, high = RANGES["dynamixel"].get(r.name, (-math.inf, math.inf))
        if not low <= value <= high:
            return RANGE_ERROR
        lowest, highest = _goal_limits(r.name, get)
        if not lowest <= value <= highest:
            return LIMIT_ERROR
    return 0


def _goal_limits(name: str, get: Callable[[str], int]) -> tuple[float, float]:
    """Between which a Dynamixel takes the goal register `name`."""
    if name == "goal_position" and get("mode") == 3:
        return get("min_position"), get("max_position")
    limit = get(LIMITED[name]) if name in LIMITED else math.inf
    return -limit, limit
