"""Maintenance of servos while nothing drives the arm: find them, show their registers, change an id, correct settings.

`scan` and `look` only read. This module alone writes EEPROM, and only when the operator asks for it: a new id
(`set_id`, one servo at a time) and settings that would change the arm's motion (`mend`, the registers of
`servos.settings.SETTINGS`, with the torque off).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.before_torque import WrongSetting, label, model_of, read_settings, wrong_settings
from firmware_bridge.motion.config import ArmError
from firmware_bridge.servos.models import BY_NUMBER
from firmware_bridge.servos.registers import Model
from firmware_bridge.servos.sts3215 import STS3215
from firmware_bridge.servos.xseries import XSERIES

BAUDS = {
    "feetech": (1_000_000, 500_000, 115_200, 57_600, 38_400),
    "dynamixel": (57_600, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 115_200),
}
PROBE_S = 0.004  # wait for an answer from an id that may not exist


@dataclass(frozen=True)
class Found:
    """One servo that answered.

    `number`: model number. `values`: registers in `SHOWN` by name; empty when the model is not known. `double`: two
    servos answer to this id.
    """

    servo: int
    number: int
    protocol: str
    baud: int
    values: dict[str, int]
    double: bool = False

    @property
    def model(self) -> Model | None:
        return BY_NUMBER.get(self.number)


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
)


def look(bus: Bus, servo: int) -> Found | None:
    """Read model and registers of the id `servo`; None when no servo answers."""
    table = (XSERIES[0] if bus.dynamixel else STS3215).registers["model"]
    bus.until_ns = bus.port.now_ns() + int(2 * PROBE_S * 1e9)  # a short wait: most ids have no servo
    reply = bus.read(servo, table.address, 2, retries=1)
    bus.until_ns = None
    if reply is None:
        return None
    double = bus.count(servo, table.address, 2) > 1
    number, other = (int.from_bytes(reply.data, order) for order in ("little", "big"))
    if number not in BY_NUMBER and other in BY_NUMBER:  # SCS servos are big-endian
        number = other
    model = BY_NUMBER.get(number)
    values = {}
    if model is not None and model.protocol == ("dynamixel" if bus.dynamixel else "feetech"):
        for r in (model.registers[n] for n in SHOWN if n in model.registers):
            got = bus.read(servo, r.address, r.size)
            if got is not None:
                values[r.name] = model.decode(r.name, got.data)
    return Found(servo, number, "dynamixel" if bus.dynamixel else "feetech", bus.baud, values, double)


def scan(
    path: str,
    ids: Iterable[int],
    protocols: Iterable[str] = ("feetech", "dynamixel"),
    bauds: Iterable[int] = (),
    say: Callable[[str], None] = lambda line: None,
    enough: int = 253,
) -> list[Found]:
    """Every servo that answers on `path`; reads only.

    `bauds`: default all of `BAUDS` for the protocol. `say` gets a progress line per baud rate. Stops once `enough`
    servos are found. Raises PortError.
    """
    out: list[Found] = []
    for protocol in protocols:
        for baud in tuple(bauds) or BAUDS[protocol]:
            say(f"{protocol} at {baud} baud")
            port = Port.open(path, baud)
            try:
                bus = Bus(port, baud, PROBE_S, protocol)
                for i in ids:
                    found = look(bus, i)
                    out += [found] if found is not None else []
                    if len(out) >= enough:
                        return out
            finally:
                port.close()
    return out


def set_id(bus: Bus, found: Found, new: int) -> None:
    """Write the id `new` to the only servo on the bus and read it back.

    Raises ArmError when the model is unknown, `new` is out of range or taken (nothing is written then), or when the
    servo does not answer with the new id afterwards.
    """
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
