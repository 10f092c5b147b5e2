"""Checks and register writes before an arm's torque is switched on: at start (`Arm.check`) and while arming
(`Arm.torque_on`).

Nothing here writes EEPROM. A reason not to arm is raised as ArmError: one sentence and the next step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from firmware_bridge.bus import twins
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.servos.models import BY_NUMBER
from firmware_bridge.servos.registers import Model
from firmware_bridge.servos.settings import LEFT_OVERS, SETTINGS, Setting


class Servos(Protocol):
    """The part of `firmware_bridge.motion.arm.Arm` that this module uses."""

    bus: Bus
    config: ArmConfig
    models: list[Model]
    model: Model

    @property
    def ids(self) -> tuple[int, ...]: ...

    def joint_of(self, servo: int) -> int: ...

    def name(self, servo: int) -> str: ...

    def to_steps(self, rad: np.ndarray) -> np.ndarray: ...

    def read_span(self, first: str, last: str) -> dict[int, dict[str, int]]: ...

    def read_steps(self) -> dict[int, int]: ...

    def full(self, servo: int) -> int: ...

    def set_torque(self, share: float) -> None: ...


# A joint that rests against its mechanical stop may read this far outside its servo's limits. It is armed with the
# limit as its goal.
LEAN_RAD = 0.035
MULTI_TURN_MODES = (4, 5)  # Dynamixel operating modes that ignore the position limits

Held = dict[int, dict[str, int]]  # register values by servo id and register name


@dataclass(frozen=True)
class WrongSetting:
    """A setting whose value in the servo would change the arm's motion."""

    servo: int
    setting: Setting
    value: int


def model_of(arm: Servos, servo: int) -> Model:
    """Model of a servo according to the robot file."""
    return arm.models[arm.joint_of(servo)]


def label(arm: Servos, servo: int) -> str:
    """A servo in a message: "servo 3 (elbow_flex)"."""
    return f"servo {servo} ({arm.name(servo)})"


def check_servos(arm: Servos) -> None:
    """Raises ArmError when a servo does not answer, two share an id, or a model differs from the robot file."""
    bus, number = arm.bus, arm.model.registers["model"]
    found = bus.sync_read(arm.ids, number.address, 2, retries=3)
    silent = [i for i in arm.ids if i not in found]
    where = getattr(bus.port, "path", "the bus")
    mute = [i for i in silent if bus.ping(i)]
    if len(silent) == len(arm.ids) and not mute:
        raise ArmError(
            f"no servo answers on {where}: check the arm's power supply and the baud rate ({arm.config.baud}); "
            f"`harmowam bus scan` tries them all."
        )
    twice = [i for i in arm.ids if twins.overlap(bus, i, model_of(arm, i), blocks=1)]
    if twice:
        raise ArmError(
            f"two servos answer as {twice[0]} on {where} (or one whose answers are all damaged): unplug one of them "
            "and give it another id with `harmowam bus set-id`."
        )
    if mute:
        raise ArmError(
            f"{label(arm, mute[0])} answers a ping but no read, as with response_level 0: "
            "switch the arm's power off and on, or set the response level to answer everything with the maker's tool."
        )
    if silent:
        names = ", ".join(f"{i} ({arm.name(i)})" for i in silent)
        raise ArmError(f"servo {names} does not answer on {where}: check its cable and its id.")
    for i, r in found.items():
        model, want = arm.model.decode("model", r.data), model_of(arm, i)
        if model != want.number:
            known = f" ({BY_NUMBER[model].name})" if model in BY_NUMBER else ""
            raise ArmError(
                f"servo {i} reports model {model}{known}, the robot file expects {want.number} ({want.name}): "
                f"check the arm family in the robot file."
            )


def read_settings(arm: Servos) -> Held:
    """Values of the registers in `SETTINGS`, of the position limits and of those named in the robot file, for every
    servo, from one sync read of the block that spans them.

    Raises ArmError when a servo does not answer.
    """
    registers = arm.model.registers
    names = {"min_position", "max_position", *(name for _, name, _ in arm.config.eeprom)}
    names |= {s.register for m in arm.models for s in SETTINGS[m.name]}
    ends = [(registers[n].address, registers[n].size) for n in names if n in registers]
    first, end = min(a for a, _ in ends), max(a + size for a, size in ends)
    got = arm.bus.sync_read(arm.ids, first, end - first, retries=3)
    silent = [i for i in arm.ids if i not in got]
    if silent:
        raise ArmError(
            f"{label(arm, silent[0])} does not answer when its settings are read: check its cable, then try again."
        )
    return {
        i: {n: m.decode(n, got[i].data, m.registers[n].address - first) for n in names if n in m.registers}
        for i, m in ((i, model_of(arm, i)) for i in arm.ids)
    }


def check_file(arm: Servos, held: Held) -> None:
    """Raises ArmError when a register differs from its value in the robot file or the joint calibration."""
    for servo, name, value in arm.config.eeprom:
        if held[servo].get(name) != value:
            raise ArmError(
                f"{label(arm, servo)} holds {name} {held[servo].get(name)}, the robot file says {value}: "
                f"calibrate the joints again (`harmowam calibrate joints`), nothing was moved or written."
            )


def wrong_settings(arm: Servos, held: Held) -> list[WrongSetting]:
    """Settings that would change the motion, in the order of the servos.

    A register whose value the robot file gives is left out: `check_file` compares it.
    """
    in_file = {(servo, name) for servo, name, _ in arm.config.eeprom}
    return [
        WrongSetting(i, s, held[i][s.register])
        for i in arm.ids
        for s in SETTINGS[model_of(arm, i).name]
        if (i, s.register) not in in_file and not s.right(held[i][s.register])
    ]


def check_settings(arm: Servos, held: Held) -> None:
    """Raises ArmError when a setting is wrong; the message names the first one and counts the others."""
    wrong = wrong_settings(arm, held)
    if wrong:
        w, more = wrong[0], len(wrong) - 1
        others = f" ({more} more {'is' if more == 1 else 'are'} wrong)" if more else ""
        raise ArmError(
            f"{label(arm, w.servo)} holds {w.setting.register} {w.value} and must hold {w.setting.must}, for "
            f"{w.setting.why}{others}: see `harmowam bus check --robot FILE`, which sets it right with `--fix`."
        )


def limits(arm: Servos, servo: int, held: Held) -> tuple[int, int]:
    """Lowest and highest goal position of a servo, in steps.

    In a mode without position limits: one turn, or the joint's range where gears make that longer.
    """
    if held[servo].get("mode") not in MULTI_TURN_MODES:
        return held[servo]["min_position"], held[servo]["max_position"]
    k = arm.ids.index(servo)
    ends = [int(arm.to_steps(np.array(rad))[k]) for rad in (arm.config.lower, arm.config.upper)]
    return min(0, *ends), max(model_of(arm, servo).steps - 1, *ends)


def poses(arm: Servos, held: Held) -> dict[int, int]:
    """Goal position in steps, by servo id, that holds each servo where it is, or at the limit it rests against.

    Raises ArmError for a joint outside the range of its servo's goal positions: with its torque on it would move into
    that range by itself.
    """
    steps = arm.read_steps()
    out = {}
    for i in arm.ids:
        if i not in steps:
            raise ArmError(
                f"{label(arm, i)} does not answer when its position is read: check its cable, then try again."
            )
        (low, high), model, step = limits(arm, i, held), model_of(arm, i), steps[i]
        lean = round(LEAN_RAD / model.rad_per_step)
        last = model.steps - 1
        if not min(low, max(low - lean, 0)) <= step <= max(high, min(high + lean, last)):
            away = max(low - step, step - high) * model.rad_per_step
            mend = (
                "move it by hand into its range, and calibrate the joints again if these are not its limits"
                if 0 <= step <= last
                else "turn it back by hand and switch the arm's power off and on; if the step stays the same, set the "
                "middle position of the servo again (`lerobot-calibrate`), then calibrate the joints again (`harmowam "
                "calibrate joints`)"
            )
            raise ArmError(
                f"{label(arm, i)} reads step {step} and can only be sent to {low} to {high}, so with its torque on it "
                f"would run {away:.2f} rad by itself: {mend}."
            )
        out[i] = min(max(step, low), high)
    return out


def _to_be_written(arm: Servos, held: Held, goals: dict[int, int]) -> dict[int, dict[str, int]]:
    """Register values to write while arming, by servo id and register name.

    The goal position is among them, to be written in one packet with the registers beside it: on a Feetech servo a new
    goal or a new acceleration may switch the torque on, so none of them may arrive before the others.
    """
    out = {}
    for i in arm.ids:
        rows = [r for r in LEFT_OVERS[model_of(arm, i).name] if not r.modes or held[i]["mode"] in r.modes]
        out[i] = {r.register: held[i][r.like] if r.like else r.value for r in rows} | {"goal_position": goals[i]}
    return out


def _write(arm: Servos, wanted: dict[int, dict[str, int]]) -> None:
    """Write registers, adjacent ones in one packet; the packet with the goal position goes first."""
    blocks: dict[tuple[int, tuple[str, ...]], dict[int, bytes]] = {}
    for i, values in wanted.items():
        model = model_of(arm, i)
        rows = sorted((model.registers[n] for n in values), key=lambda r: r.address)
        groups = [[rows[0]]]
        for r in rows[1:]:
            last = groups[-1][-1]
            if r.address == last.address + last.size:
                groups[-1].append(r)
            else:
                groups.append([r])
        for g in groups:
            data = b"".join(model.encode(r.name, values[r.name]) for r in g)
            blocks.setdefault((g[0].address, tuple(r.name for r in g)), {})[i] = data
    for (address, _), rows_of in sorted(blocks.items(), key=lambda b: "goal_position" not in b[0][1]):
        arm.bus.sync_write(address, rows_of)


def clear_left_overs(arm: Servos, held: Held, goals: dict[int, int]) -> None:
    """Write the goal, the full torque limit and the values of `LEFT_OVERS` to every servo, and read them back.

    Torque that is on stays on. Raises ArmError when a servo does not keep a written value.
    """
    wanted = _to_be_written(arm, held, goals)
    for attempt in range(3):  # sync writes are not acknowledged, so a lost one is only seen when read back
        _write(arm, wanted)
        arm.set_torque(1.0)
        kept = arm.read_span("torque_enable", "torque_limit" if not arm.bus.dynamixel else "goal_position")
        try:
            _verify(arm, wanted, kept)
            return
        except ArmError:
            if attempt == 2:
                raise


def _verify(arm: Servos, wanted: dict[int, dict[str, int]], kept: Held) -> None:
    for i, values in wanted.items():
        if i not in kept:
            raise ArmError(f"{label(arm, i)} does not answer: check its cable, then try again.")
        for name, value in [*values.items(), ("torque_limit", arm.full(i))]:
            # Some firmware sets the goal of a servo without torque to its present position, which is as good.
            slack = LEAN_RAD / model_of(arm, i).rad_per_step if name == "goal_position" else 0
            if abs(kept[i][name] - value) > slack:
                why = {r.register: r.why for r in LEFT_OVERS[model_of(arm, i).name]}.get(name)
                raise ArmError(
                    f"{label(arm, i)} keeps {name} {kept[i][name]} where {value} was written"
                    f"{f', so {why}' if why else ''}: switch the arm's power off and on, then try again."
                )
