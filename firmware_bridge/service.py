"""Maintenance of servos while nothing drives the arm: find them, show their registers, change an id, correct settings.

`scan` and `look` only read. This module alone writes EEPROM, and only when the operator asks for it: a new id
(`set_id`, one servo at a time) and settings that would change the arm's motion (`mend`, the registers of
`servos.settings.SETTINGS`, with the torque off).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from firmware_bridge.bus import echo, twins
from firmware_bridge.bus.answers import DAMAGED
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port, RateError
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.before_torque import WrongSetting, label, model_of, read_settings, wrong_settings
from firmware_bridge.motion.config import ArmError
from firmware_bridge.servos import sts3215, xseries
from firmware_bridge.servos.models import BY_NUMBER
from firmware_bridge.servos.registers import Model

# Every rate that a servo's register "baud" can be set to, as delivered first.
BAUDS = {
    "feetech": sts3215.BAUDS,
    "dynamixel": tuple(sorted(xseries.BAUDS, key=lambda baud: (baud != 57_600, baud < 1_000_000, baud))),
}
PROBE_S = 0.004  # wait for an answer from an id that may not exist
SLOW_S = 0.024  # the same on an adapter that hands bytes over later
ALL_S = 60.0  # within which retries may begin


@dataclass(frozen=True)
class Found:
    """One servo that answered.

    `number`: model number, None when it could not be read. `values`: registers in `SHOWN` by name, those that were
    read; empty when the model is not known. `double`: two servos answer to this id. `conditions`: what the servo
    reports to be wrong, in words.
    """

    servo: int
    number: int | None
    protocol: str
    baud: int
    values: dict[str, int]
    double: bool = False
    conditions: tuple[str, ...] = ()

    @property
    def model(self) -> Model | None:
        return BY_NUMBER.get(self.number) if self.number is not None else None

    @property
    def name(self) -> str:
        return self.model.name if self.model is not None else f"model {'?' if self.number is None else self.number}"


SHOWN = (
    "firmware_major",
    "firmware",
    "torque_enable",
    "present_position",
    "present_voltage",
    "present_temperature",
    "homing_offset",
    "min_position",
    "max_position",
    "return_delay",
    "hardware_error",
)


def look(bus: Bus, servo: int, attempts: int = 2) -> Found | None:
    """Read model and registers of the id `servo`, asked up to `attempts` times; None when no servo answers."""
    protocol, known = ("dynamixel", xseries.XSERIES[0]) if bus.dynamixel else ("feetech", sts3215.STS3215)
    register = known.registers["model"]
    bus.until_ns = bus.port.now_ns() + int(ALL_S * 1e9)  # a short wait: most ids have no servo
    damaged = bus.errors[DAMAGED]
    reply = bus.read(servo, register.address, register.size, attempts - 1)
    bus.until_ns = None
    if reply is None:
        double = bus.errors[DAMAGED] > damaged and twins.unreadable(bus, servo, register.address, register.size)
        return Found(servo, None, protocol, bus.baud, {}, True) if double else None
    number, other = (int.from_bytes(reply.data, order) for order in ("little", "big"))
    if number not in BY_NUMBER and other in BY_NUMBER:  # SCS servos are big-endian
        number = other
    model = BY_NUMBER.get(number)
    if model is not None and model.protocol != protocol:
        model = None
    double = twins.overlap(bus, servo, model or known) or (model is not None and twins.jumps(bus, servo, model))
    values, bits = {}, reply.bits
    if model is not None:
        for r in (model.registers[n] for n in SHOWN if n in model.registers):
            got = bus.read(servo, r.address, r.size)
            if got is not None:
                values[r.name], bits = model.decode(r.name, got.data), bits | got.bits
    return Found(servo, number, protocol, bus.baud, values, double, _in_words(protocol, bits, values))


def _in_words(protocol: str, bits: int, values: dict[str, int]) -> tuple[str, ...]:
    """What a servo's error byte says is wrong with it."""
    if protocol == "feetech":
        return tuple(sts3215.conditions(bits))
    errors = sts3215.conditions(xseries.conditions(values.get("hardware_error", 0)))
    return tuple(errors) or (("alert",) if bits & 0x80 else ())


def look_at_all(bus: Bus, ids: Iterable[int], enough: int = 253, attempts: int = 2) -> list[Found]:
    """Those of `ids` that answer, up to `enough`; once more and with more patience when bytes came too late."""
    for margin_s in (PROBE_S, SLOW_S):
        bus.margin_ns, bus.drained = int(margin_s * 1e9), 0
        everybody = (look(bus, i, attempts) for i in ids)
        out = list(itertools.islice((found for found in everybody if found is not None), enough))
        heard = bus.drained or any(kind == "late reply" for _, kind in bus.errors)
        if not heard and (out or not bus.port.read(bus.port.now_ns() + int(SLOW_S * 1e9))):
            break
    return out


def scan(
    path: str,
    ids: Iterable[int],
    protocols: Iterable[str] = ("feetech", "dynamixel"),
    bauds: Iterable[int] = (),
    say: Callable[[str], None] = lambda line: None,
    enough: int = 253,
    attempts: int = 2,
) -> list[Found]:
    """Every servo that answers on `path`; reads only.

    `bauds`: default all of `BAUDS` for the protocol; one that the adapter does not know is said and passed over. `say`
    gets a progress line per baud rate. Stops once `enough` servos are found. Raises PortError.
    """
    ids, bauds, echoing = list(ids), tuple(bauds), False
    out: list[Found] = []
    for protocol in protocols:
        for baud in bauds or BAUDS[protocol]:
            say(f"{protocol} at {baud} baud")
            try:
                port = Port.open(path, baud)
            except RateError as e:
                say(str(e))
                continue
            bus = Bus(port, baud, PROBE_S, protocol)
            try:
                out += look_at_all(bus, ids, enough - len(out), attempts)
            finally:
                port.close()
            if bus.echoing and not echoing:
                echoing = True
                say(echo.TOLD.format(path))
            if len(out) >= enough:
                return out
    return out


def set_id(bus: Bus, found: Found, new: int) -> None:
    """Write the id `new` to the only servo on the bus and read it back.

    Raises ArmError when the model is unknown, `new` is out of range or taken (nothing is written then), or when the
    servo does not answer with the new id afterwards.
    """
    if found.double:
        raise ArmError(
            f"two servos answer as {found.servo} (or one whose answers are all damaged): connect one servo at a time."
        )
    model = found.model
    if model is None:
        raise ArmError(
            f"servo {found.servo} is of model {found.number}, which is not known here: use the vendor's tool."
        )
    if not 0 <= new <= 252:
        raise ArmError(f"id {new} is none of 0..252: choose another.")
    if new == found.servo:  # servos are delivered with id 1
        return
    if bus.ping(new):
        raise ArmError(f"id {new} is taken by a servo on this bus: connect one servo at a time.")
    registers = model.registers
    bus.write(found.servo, registers["torque_enable"].address, b"\x00")
    lock = registers.get("lock")
    if lock is not None:
        bus.write(found.servo, lock.address, b"\x00")
    bus.write(found.servo, registers["id"].address, bytes([new]))  # the answer may carry either id: read back below
    if lock is not None:
        bus.write(new, lock.address, b"\x01")
    back = bus.read(new, registers["id"].address, 1, retries=2)
    if back is None or back.data[0] != new:
        raise ArmError(f"servo {found.servo} did not take the id {new}: power it off and on and scan again.")


def mend(arm: Arm) -> list[WrongSetting]:
    """Write the right value of every wrong setting to EEPROM and read it back; returns what was wrong.

    Raises ArmError before anything is written when a servo's torque is on or cannot be read, and afterwards when a
    servo does not keep a written value.
    """
    on = arm.read_span("torque_enable", "torque_enable")
    stiff = [i for i in arm.ids if i not in on or on[i]["torque_enable"] != 0]
    if stiff:
        raise ArmError(
            f"{label(arm, stiff[0])} has its torque on, or does not say that it is off: support the arm, switch its "
            "power off and on, then repeat; nothing was written."
        )
    wrong = wrong_settings(arm, read_settings(arm))
    for w in wrong:
        model = model_of(arm, w.servo)
        register, lock = model.registers[w.setting.register], model.registers.get("lock")
        value = w.setting.mended(w.value)
        if register.name == model.torque_cap and arm.joint_of(w.servo) == len(arm.config.joints) - 1:
            value //= 2  # a gripper that holds something presses all the time: full torque would overheat its motor
        data = model.encode(register.name, value)
        if lock is not None:
            arm.bus.write(w.servo, lock.address, b"\x00")
        arm.bus.write(w.servo, register.address, data, retries=2)
        if lock is not None:
            arm.bus.write(w.servo, lock.address, b"\x01")
    for w in wrong_settings(arm, read_settings(arm)):
        raise ArmError(
            f"{label(arm, w.servo)} still holds {w.setting.register} {w.value}: set it to {w.setting.must} with its "
            "maker's tool."
        )
    return wrong
