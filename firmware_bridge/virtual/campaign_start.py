"""The part of the fault campaign that is played before an arm moves: what is refused before torque, and what is set
right at arming.

Groups 22 (another arm than the file's), 26 (a joint that reads what its servo cannot be sent to), 27 (what another
program left) and 28 (settings that change a motion).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.motion.messages import SafetyState
from firmware_bridge.service import mend
from firmware_bridge.virtual.campaign import KOCH, MS, SO101, Rig

# an arm without left-overs is a tick's way behind its goals at most (a servo that creeps stays below the FAULT's 0.3
# rad)
FOLLOW_MS = 10
PLAIN = dataclasses.replace(SO101, eeprom=())  # its file says nothing about what the servos hold
XL330 = dataclasses.replace(KOCH, models=("XL330-M288",) * 6)

START = (
    ("wrong model", "wrong-model", "reports model"),
    ("wrong firmware", "wrong-firmware", "firmware_major"),
    ("limits differ from the file", "limits-differ", "max_position"),
    ("offset differs from the file", "offset-differs", "homing_offset"),
    ("duplicate id", "duplicate-id", "two servos answer"),
    ("servo missing", "silent-servo", "does not answer"),
    ("no power, or wrong baud rate", "silent-all", "no servo answers"),
    ("EEPROM left unlocked", "lock-open", ""),
)


def as_row(group: int, name: str, config: ArmConfig, said: str, safe: bool, **more: Any) -> dict[str, Any]:
    row = {
        "group": group,
        "name": name + (" (Dynamixel)" if config.protocol == "dynamixel" else ""),
        "detected_as": said,
        "time_to_safe_ms": 0.0,
        "reacted_ms": 0.0,
        "limit_ms": 0,
        "lead_ms": 0.0,
        "final_state": "DISARMED",
        "torque": "off",
        "recovery": "operator",
        "safe": bool(safe),
    }
    return row | more


def at_start(name: str, fault: str, sentence: str) -> dict[str, Any]:
    """Group 22: an arm that must not be moved is refused before anything is written."""
    rig = Rig(SO101)
    rig.bus.faults.inject(fault)
    rig.bus.faults.update(rig.now_ns)
    before = _memory(rig)
    said = ""
    try:
        rig.loop.arm.check()
    except ArmError as e:
        said = str(e)
    safe = _memory(rig) == before and not any(rig.torque()) and (sentence in said if sentence else not said)
    absorbed = "absorbed: no EEPROM address is ever written"
    return as_row(22, name, SO101, said or absorbed, safe, recovery="operator" if said else "by itself")


def _memory(rig: Rig) -> list[bytes]:
    """Every register that can be written, of every servo."""
    end = 56 if rig.config.protocol == "feetech" else 120
    return [bytes(s.memory[:end]) for s in rig.bus.servos.values()]


def _put(register: str, value: int, servo: int = 3) -> Callable[[Rig], None]:
    return lambda rig: rig.bus.put(servo, register, value)


def _stands(step: float) -> Callable[[Rig], None]:
    """The elbow stands there, by hand or because its servo counts turns."""

    def act(rig: Rig) -> None:
        rig.plant.position[2] = step

    return act


def _both(first: Callable[[Rig], None], second: Callable[[Rig], None]) -> Callable[[Rig], None]:
    def act(rig: Rig) -> None:
        first(rig)
        second(rig)

    return act


def _counts_turns(rig: Rig) -> None:
    """The elbow has gone round once since its servo was switched on."""
    rig.bus.servos[3].sensor = lambda actual, now_ns: actual + 4096


def _passes_its_turn(rig: Rig) -> None:
    """The elbow's servo does not bring the sum of encoder and offset back into its turn."""
    _stands(3000.0)(rig)
    _counts_turns(rig)


def _energised(rig: Rig) -> None:
    for i in rig.config.ids:
        rig.bus.put(i, "torque_enable", 1)


def _keeps(register: str, value: int) -> Callable[[Rig], None]:
    """The elbow's servo keeps another program's value whatever is written."""

    def act(rig: Rig) -> None:
        servo = rig.bus.servos[3]
        servo.put(register, value)
        write = servo.write

        def stubborn(address: int, data: bytes) -> int:
            error = write(address, data)
            servo.put(register, value)
            return error

        servo.write = stubborn  # type: ignore[method-assign]

    return act


def _nothing(rig: Rig) -> None:
    """What happens between start and arming, mostly."""


@dataclass(frozen=True)
class Refused:
    """An arm that must not be armed after `act`, or after what happens `since` its start. `sentence` tells why;
    `written`: it is what was written at arming, with the torque off, that told."""

    group: int
    name: str
    sentence: str
    act: Callable[[Rig], None]
    config: ArmConfig = PLAIN
    since: Callable[[Rig], None] = _nothing
    written: bool = False


def refused(case: Refused) -> dict[str, Any]:
    """Safe: said in its sentence before torque, no register changed, and no joint moved a second later. An energised
    arm stays so."""
    rig = Rig(case.config)
    case.act(rig)
    found = _found(rig)
    said = _said(rig.loop.arm.check)
    if not said:
        case.since(rig)
        found = _found(rig)
        said = _said(lambda: rig.run(0.1))  # arms
    memory = _memory(rig)
    rig.bus.refresh(rig.port.time_ns + 1000 * MS)
    torque, position, registers, eeprom = found
    kept = rig.torque() == torque and [s.stored for s in rig.bus.servos.values()] == eeprom
    safe = (
        case.sentence in said
        and kept
        and np.abs(rig.plant.position - position).max() < 1
        and (case.written or memory == registers)
    )
    return as_row(
        case.group,
        case.name,
        case.config,
        said or "armed",
        bool(said) and safe,
        torque="on, as it was found" if any(torque) else "off",
        final_state="DISARMED" if said else rig.states[-1][1].name,
    )


def _found(rig: Rig) -> tuple[list[int], np.ndarray, list[bytes], list[bytes]]:
    """Torque, steps, registers and EEPROM as they are."""
    return rig.torque(), rig.plant.position.copy(), _memory(rig), [s.stored for s in rig.bus.servos.values()]


def _said(act: Callable[[], None]) -> str:
    """The sentence of the ArmError that `act` raises, or nothing."""
    try:
        act()
    except ArmError as e:
        return str(e)
    return ""


def _swings(rig: Rig) -> tuple[bool, dict[str, Any]]:
    """Whether the arm follows its goals closely for two seconds; what the row says of it."""
    rig.run(2.0)
    state, lead_ms = rig.states[-1][1], rig.lead_s * 1000
    on = "on, controlled" if all(rig.torque()) else "off"
    row = {"final_state": state.name, "lead_ms": round(lead_ms, 1), "torque": on, "recovery": "by itself"}
    return state == SafetyState.ACTIVE and lead_ms <= FOLLOW_MS and all(rig.torque()), row


def left(name: str, config: ArmConfig, values: dict[str, int], energised: bool = False) -> dict[str, Any]:
    """Group 27: every servo holds another program's `values`. Safe: the arm follows, and an energised one keeps its
    torque meanwhile."""
    rig = Rig(config)
    for i in config.ids:
        for register, value in values.items():
            rig.bus.put(i, register, value)
    if energised:
        _energised(rig)
    said = _said(rig.loop.arm.check)
    dropped = 0
    while not said and rig.now_ns < rig.began_ns + 50 * MS:
        said = _said(lambda: rig.run(0.01))
        dropped += energised and not all(rig.torque())
    if said:
        return as_row(27, name, config, said, False)
    follows, row = _swings(rig)
    return as_row(27, name, config, "overwritten at arming", follows and not dropped, **row)


def setting(config: ArmConfig, register: str, value: int) -> dict[str, Any]:
    """Group 28: refused by name; and when the operator has had it set right, the arm follows."""
    name = f"{register} {value}"
    row = refused(Refused(28, name, f"holds {name} and must hold", _put(register, value), config))
    rig = Rig(config)
    rig.bus.put(3, register, value)
    mend(rig.loop.arm)
    said = _said(rig.loop.arm.check)
    return row | {"safe": row["safe"] and not said and _swings(rig)[0]}


REFUSED = (
    *(Refused(26, f"reads step {step}", f"reads step {step}", _stands(step)) for step in (6400, 4300, -300)),
    Refused(26, "outside its servo's limits", "reads step 3400", _both(_put("max_position", 3000), _stands(3400.0))),
    Refused(26, "a wrapped offset", "reads step 5047", _both(_put("homing_offset", -2047), _passes_its_turn)),
    Refused(26, "moved by hand after the start", "reads step 4300", _nothing, since=_stands(4300.0)),
    Refused(26, "energised, counting turns", "reads step 64", _both(_energised, _counts_turns)),
    Refused(26, "extended position", "reads step 6400", _both(_put("mode", 4), _stands(6400.0)), KOCH),
    Refused(26, "moved by hand after the start", "reads step -300", _nothing, KOCH, _stands(-300.0)),
    Refused(27, "a servo keeps its speed", "keeps goal_speed 60", _keeps("goal_speed", 60), written=True),
    Refused(
        27, "a servo keeps its profile", "keeps profile_velocity 5", _keeps("profile_velocity", 5), KOCH, written=True
    ),
)
LEFT: tuple[tuple[str, ArmConfig, dict[str, int]], ...] = (
    ("goal_speed 60", PLAIN, {"goal_speed": 60}),
    ("goal_time 1000", PLAIN, {"goal_time": 1000}),
    ("acceleration 1", PLAIN, {"acceleration": 1}),
    ("torque_limit 10", PLAIN, {"torque_limit": 10}),
    ("profile_velocity 5", XL330, {"profile_velocity": 5}),
    ("profile_acceleration 1", XL330, {"profile_acceleration": 1}),
    ("goal_current 3", XL330, {"goal_current": 3, "mode": 5}),
    ("torque_limit 8", XL330, {"torque_limit": 8}),
)
SETTINGS = (
    *((PLAIN, "mode", v) for v in (1, 2, 3)),
    (PLAIN, "phase", 0x1C),
    (PLAIN, "max_torque", 0),
    (PLAIN, "max_position", 0),
    (PLAIN, "response_level", 0),
    (PLAIN, "return_delay", 254),
    (PLAIN, "p_gain", 0),
    *((XL330, "mode", v) for v in (0, 1, 16)),
    (XL330, "drive_mode", 1),
    (XL330, "drive_mode", 4),
    (XL330, "secondary_id", 2),
    (XL330, "pwm_limit", 0),
    (XL330, "current_limit", 0),
    (XL330, "max_position", 0),
    (XL330, "return_delay", 254),
)


# Group, name and what plays it.
BEFORE: tuple[tuple[int, str, Callable[[], dict[str, Any]]], ...] = (
    *((22, s[0], partial(at_start, *s)) for s in START),
    *((r.group, r.name, partial(refused, r)) for r in REFUSED),
    *((27, case[0], partial(left, *case)) for case in LEFT),
    *((27, f"energised, {c[0]}", partial(left, f"energised, {c[0]}", c[1], c[2], True)) for c in (LEFT[0], LEFT[4])),
    *((28, f"{s[1]} {s[2]}", partial(setting, *s)) for s in SETTINGS),
)


def campaign_start(only: str = "") -> list[dict[str, Any]]:
    """All rows, in virtual time; `only`: those whose name contains it."""
    return [play() for _, name, play in BEFORE if only in name]
