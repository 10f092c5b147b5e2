"""Registers whose values can change the motion of an arm: for each model, the right values and the reason.

`SETTINGS` are in EEPROM. They are compared before the torque is switched on; a wrong one refuses arming with its name,
and only `harmowam bus check --fix` writes it. `LEFT_OVERS` are in RAM: values of another program stay until the power
is switched off, so they are written and read back whenever the arm is armed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.registers import Model


@dataclass(frozen=True)
class Setting:
    """An EEPROM register. `right(value)`: whether the value is right; `must`: the right values as text; `why`: the
    reason, as text; `mended(value)`: the right value to write in place of `value`."""

    register: str
    must: str
    why: str
    right: Callable[[int], bool]
    mended: Callable[[int], int]


@dataclass(frozen=True)
class LeftOver:
    """A RAM register that is written while arming.

    It gets `value`, or the content of the register `like`. `modes`: operating modes in which it is written, () for all.
    """

    register: str
    value: int
    why: str
    like: str = ""
    modes: tuple[int, ...] = ()


def _one_of(register: str, values: tuple[int, ...], why: str) -> Setting:
    *most, last = map(str, values)
    must = f"{', '.join(most)} or {last}" if most else last
    return Setting(register, must, why, lambda v: v in values, lambda v: values[0])


def _between(register: str, low: int, high: int, mended: int, why: str) -> Setting:
    return Setting(register, f"{low} to {high}", why, lambda v: low <= v <= high, lambda v: mended)


def _bit_clear(register: str, bit: int, why: str) -> Setting:
    return Setting(register, f"bit {bit} clear", why, lambda v: not v >> bit & 1, lambda v: v & ~(1 << bit))


def _settings(model: Model) -> tuple[Setting, ...]:
    """Settings of one model; registers that it does not have in EEPROM are left out."""
    registers, dynamixel = model.registers, model.protocol == "dynamixel"
    positions = (3, 4, 5) if "current_limit" in registers else (3, 4)
    full, last = model.full_torque, model.steps - 1
    current = registers["current_limit"].default if "current_limit" in registers else 0
    turning = "in any other mode a goal is not a position, and the joint turns without end or by steps"
    driven = "its bits reverse the joint, couple it to another servo, or turn a profile's speed into a time"
    counting = (
        "with it the servo counts turns: it reads steps that it cannot be sent to, and other steps after a power cut"
    )
    rows = (
        _one_of("mode", positions if dynamixel else (0,), turning),
        _one_of("drive_mode", (0,), driven),
        _bit_clear("phase", 4, counting),
        _between("secondary_id", 253, 255, 255, "with one the servo also follows the commands to another servo"),
        _between(model.torque_cap, full // 10, full, full, "with less the joint cannot carry its own weight"),
        _between("current_limit", 1, current, current, "without current the joint does not move"),
        _between("max_position", 1, last, last, "limits of 0 and 0 let the joint turn without end"),
        _one_of("response_level", (1,), "the servo would not confirm that it let go"),
        _between("return_delay", 0, 250, 0, "the bus does not wait longer for an answer"),
        _between("p_gain", 1, 254, 32, "without it the joint does not go to its goal"),
    )
    return tuple(r for r in rows if r.register in registers and registers[r.register].eeprom)


SETTINGS = {name: _settings(model) for name, model in MODELS.items()}

SLOW = "the joint would be slower than it is told"
GAIN = "the joint would be softer or stiffer than it was tuned"
_FEETECH = (LeftOver("acceleration", 0, SLOW), LeftOver("goal_time", 0, SLOW), LeftOver("goal_speed", 0, SLOW))


def _left_overs(model: Model) -> tuple[LeftOver, ...]:
    if model.protocol == "feetech":
        rows: tuple[LeftOver, ...] = _FEETECH
    else:
        rows = (
            LeftOver("response_level", 2, "the servo would not confirm that it let go"),
            # Not in mode 5: the servo sets other gains there, and the e-manual does not give their values.
            *(LeftOver(g, model.registers[g].default, GAIN, modes=(3, 4)) for g in ("d_gain", "i_gain", "p_gain")),
            LeftOver("feedforward_2nd", 0, GAIN),
            LeftOver("feedforward_1st", 0, GAIN),
            LeftOver(
                "goal_current", 0, "the joint would be weaker than its owner allows", like="current_limit", modes=(5,)
            ),
            LeftOver("profile_acceleration", 0, SLOW),
            LeftOver("profile_velocity", 0, SLOW),
        )
    return tuple(r for r in rows if r.register in model.registers)


LEFT_OVERS = {name: _left_overs(model) for name, model in MODELS.items()}
