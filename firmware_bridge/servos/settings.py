"""What a servo remembers that can change a motion: for each model, what every such register must hold, and why.

`SETTINGS` are read before torque and refused by name where they are wrong; only `harmowam bus check --fix` writes them.
`LEFT_OVERS` are volatile: another program's values stay until the power goes, so they are written and read back at
every arming.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.registers import Model


@dataclass(frozen=True)
class Setting:
    """`register` must hold a value that is `right` (`must` says it in words); `mended` gives it from the value that is
    held."""

    register: str
    must: str
    why: str
    right: Callable[[int], bool]
    mended: Callable[[int], int]


@dataclass(frozen=True)
class LeftOver:
    """A volatile register and what it gets at arming: `value`, or what the servo holds in the register `like`; `modes`:
    in these only."""

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
    """The rows of one model: those whose register it has in its EEPROM."""
    registers, dynamixel = model.registers, model.protocol == "dynamixel"
    positions = (3, 4, 5) if "current_limit" in registers else (3, 4)
    full, last = model.full_torque, model.steps - 1
    current = registers["current_limit"].default if "current_limit" in registers else 0
    turning = "in any other mode a goal is no position, and the joint turns without end or by steps"
    driven = "its bits turn the joint the other way round, tie it to another servo, or make a profile's speed a time"
    counting = "with it the servo counts turns: it reads steps that it cannot be sent to, and others after a power cut"
    rows = (
        _one_of("mode", positions if dynamixel else (0,), turning),
        _one_of("drive_mode", (0,), driven),
        _bit_clear("phase", 4, counting),
        _between("secondary_id", 253, 255, 255, "with one the servo also does what another servo is told"),
        _between(model.torque_cap, full // 10, full, full, "with less the joint does not carry itself"),
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
            # A change to mode 5 gives gains of its own, which no manual numbers.
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
