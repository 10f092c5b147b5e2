"""What is looked at, and set right, before an arm's torque is switched on: at start (`Arm.check`) and at the instant of
arming.

Nothing here writes EEPROM. What keeps the arm from being armed is raised as one sentence with the next step.
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
    """What is asked of the arm here; `firmware_bridge.motion.arm.Arm` is one."""

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


# So far outside its servo's limits a joint may lie that leans on its stop with its own weight; it is armed at the
# limit.
LEAN_RAD = 0.035
ROUND_AND_ROUND = (4, 5)  # Dynamixel's modes that know no position limits

Held = dict[int, dict[str, int]]  # registers by servo


@dataclass(frozen=True)
class Wrong:
    """A setting that would change the arm's motion, and the value that the servo holds."""

    servo: int
    setting: Setting
    value: int


def model_of(arm: Servos, servo: int) -> Model:
    """Model of a servo, as the robot file has it."""
    return arm.models[arm.joint_of(servo)]


def called(arm: Servos, servo: int) -> str:
    return f"servo {servo} ({arm.name(servo)})"


def check_servos(arm: Servos) -> None:
    """Raises ArmError when a servo is silent, double or of another model than in the robot file."""
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
            f"{called(arm, mute[0])} answers a ping and no question, as with response_level 0: "
            "switch the arm's power off and on, or have it answer everything with its maker's tool."
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
    """What every servo holds of the registers in `SETTINGS`, its limits, and those that the robot file names; one
    block, read together.

    Raises ArmError when one does not answer.
    """
    registers = arm.model.registers
    names = {"min_position", "max_position", *(name for _, name, _ in arm.config.eeprom)}
    names |= {s.register for m in arm.models for s in SETTINGS[m.name]}
    ends = [(registers[n].address, registers[n].size) for n in names if n in registers]
    first, end = min(a for a, _ in ends), max(a + size for a, size in ends)
    got = arm.bus.sync_read(arm.ids, first, end - first, retries=3)
    silent = [i for i in arm.ids if i not in got]
    if silent:
        raise ArmError(f"{called(arm, silent[0])} does not tell its settings: check its cable, then try again.")
    return {
        i: {n: m.decode(n, got[i].data, m.registers[n].address - first) for n in names if n in m.registers}
        for i, m in ((i, model_of(arm, i)) for i in arm.ids)
    }


def check_file(arm: Servos, held: Held) -> None:
    """Raises ArmError when a servo holds another value than the robot file or its joint calibration says."""
    for servo, name, value in arm.config.eeprom:
        if held[servo].get(name) != value:
            raise ArmError(
                f"{called(arm, servo)} holds {name} {held[servo].get(name)}, the robot file says {value}: "
                f"calibrate the joints again (`harmowam calibrate joints`), nothing was moved or written."
            )


def wrong_settings(arm: Servos, held: Held) -> list[Wrong]:
    """Settings that would change a motion, in the order of the servos. What the robot file says itself is left to
    it."""
    said = {(servo, name) for servo, name, _ in arm.config.eeprom}
    return [
        Wrong(i, s, held[i][s.register])
        for i in arm.ids
        for s in SETTINGS[model_of(arm, i).name]
        if (i, s.register) not in said and not s.right(held[i][s.register])
    ]


def check_settings(arm: Servos, held: Held) -> None:
    """Raises ArmError that names the first wrong setting and how many more there are."""
    wrong = wrong_settings(arm, held)
    if wrong:
        w, more = wrong[0], len(wrong) - 1
        others = f" ({more} more {'is' if more == 1 else 'are'} wrong)" if more else ""
        raise ArmError(
            f"{called(arm, w.servo)} holds {w.setting.register} {w.value} and must hold {w.setting.must}, for "
            f"{w.setting.why}{others}: see `harmowam bus check --robot FILE`, which sets it right with `--fix`."
        )


def limits(arm: Servos, servo: int, held: Held) -> tuple[int, int]:
    """Steps that the servo can be sent to. Without limits of its own: a turn, or more where the joint's range is more
    (gears)."""
    if held[servo].get("mode") not in ROUND_AND_ROUND:
        return held[servo]["min_position"], held[servo]["max_position"]
    k = arm.ids.index(servo)
    ends = [int(arm.to_steps(np.array(rad))[k]) for rad in (arm.config.lower, arm.config.upper)]
    return min(0, *ends), max(model_of(arm, servo).steps - 1, *ends)


def poses(arm: Servos, held: Held) -> dict[int, int]:
    """Step by servo that each is to hold: where it stands, or the limit that it leans on.

    Raises ArmError for a joint that reads outside what its servo can be sent to: switched on it would run there by
    itself.
    """
    steps = arm.read_steps()
    out = {}
    for i in arm.ids:
        if i not in steps:
            raise ArmError(f"{called(arm, i)} does not tell where it stands: check its cable, then try again.")
        (low, high), model, step = limits(arm, i, held), model_of(arm, i), steps[i]
        lean = round(LEAN_RAD / model.rad_per_step)
        last = model.steps - 1
        if not min(low, max(low - lean, 0)) <= step <= max(high, min(high + lean, last)):
            away = max(low - step, step - high) * model.rad_per_step
            mend = (
                "move it by hand into its range, and calibrate the joints again if these are not its limits"
                if 0 <= step <= last
                else "turn it back by hand and switch the arm's power off and on; if it reads so still, set the middle "
                "of its "
                "servo anew (`lerobot-calibrate`) and calibrate the joints again (`harmowam calibrate joints`)"
            )
            raise ArmError(
                f"{called(arm, i)} reads step {step} and can only be sent to {low} to {high}, so with its torque on it "
                f"would run {away:.2f} rad by itself: {mend}."
            )
        out[i] = min(max(step, low), high)
    return out


def _to_be_written(arm: Servos, held: Held, goals: dict[int, int]) -> dict[int, dict[str, int]]:
    """What every servo gets at arming, by register. The goal comes with the registers beside it: on a Feetech servo a
    new goal or a new acceleration may switch the torque on, so none of them may arrive before the others."""
    out = {}
    for i in arm.ids:
        rows = [r for r in LEFT_OVERS[model_of(arm, i).name] if not r.modes or held[i]["mode"] in r.modes]
        out[i] = {r.register: held[i][r.like] if r.like else r.value for r in rows} | {"goal_position": goals[i]}
    return out


def _write(arm: Servos, wanted: dict[int, dict[str, int]]) -> None:
    """Write registers, those that lie side by side in one packet; the block with the goal goes first."""
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
    """Give every servo its goal, its full torque limit and the values of `LEFT_OVERS`, and read them back.

    An arm that is energised keeps its torque. Raises ArmError when a servo does not keep what was written.
    """
    wanted = _to_be_written(arm, held, goals)
    for attempt in range(3):  # nobody acknowledges these writes
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
            raise ArmError(f"{called(arm, i)} does not answer: check its cable, then try again.")
        for name, value in [*values.items(), ("torque_limit", arm.full(i))]:
            # (some firmware lets a limp servo's goal follow it, which is as good)
            slack = LEAN_RAD / model_of(arm, i).rad_per_step if name == "goal_position" else 0
            if abs(kept[i][name] - value) > slack:
                why = {r.register: r.why for r in LEFT_OVERS[model_of(arm, i).name]}.get(name)
                raise ArmError(
                    f"{called(arm, i)} keeps {name} {kept[i][name]} where {value} was written"
                    f"{f', so {why}' if why else ''}: switch the arm's power off and on, then try again."
                )
