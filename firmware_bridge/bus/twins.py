"""Two servos with one id: what tells them from one, although they answer at the same time.

On a half-duplex line a 0 wins: answers that overlap are ANDed. Equal ones (a ping's, the model number's) pass for one
servo's; where the servos differ (position, offset, voltage, temperature) the checksum fails, time after time, while one
servo's answers are seldom damaged twice. Servos whose answers do not overlap are heard one after the other. Two that
hold and measure the very same cannot be told from one.
"""

from __future__ import annotations

from firmware_bridge.bus.answers import DAMAGED
from firmware_bridge.bus.master import Bus
from firmware_bridge.servos.registers import Model

TRIES = 4  # damaged so often in a row, an answer is not one servo's on a line that works
LOOKS = 5  # at the position
HAND_STEPS_S = 8192  # no joint turns faster: two turns a second


def overlap(bus: Bus, servo: int, model: Model, blocks: int = 5) -> bool:
    """Whether what comes from `servo` is the answer of two, or of one whose answers are damaged every time, which looks
    the same. Reads only, some 6 ms a block: the first holds all that can differ, further ones find those whose ANDed
    answers have the right checksum by chance."""
    first, last = "id", "present_temperature"
    offset = "homing_offset" if "homing_offset" in model.registers else "max_position"
    spans = (
        (first, last),
        ("present_position", last),
        (first, offset),
        ("present_position",) * 2,
        ("torque_enable", last),
    )
    return any(_collide(bus, servo, *model.span(*s)) for s in spans[:blocks])


def unreadable(bus: Bus, servo: int, address: int, size: int) -> bool:
    """Whether nothing but damaged bytes comes from `servo` for a block of registers."""
    for _ in range(TRIES):
        before = bus.errors[DAMAGED]
        if bus.count(servo, address, size) or bus.errors[DAMAGED] == before:
            return False
    return True


def _collide(bus: Bus, servo: int, address: int, size: int) -> bool:
    """Whether two answers come for a block of registers, or damaged bytes, every time."""
    for _ in range(TRIES):
        before = bus.errors[DAMAGED]
        if bus.count(servo, address, size) < 2 and bus.errors[DAMAGED] == before:
            return False
    return True


def jumps(bus: Bus, servo: int, model: Model) -> bool:
    """Whether its position changes faster than a joint can turn: two servos that are read in turns, or ANDed."""
    r = model.registers["present_position"]
    last: tuple[int, int] | None = None
    for _ in range(LOOKS):
        reply, now = bus.read(servo, r.address, r.size), bus.port.now_ns()
        if reply is None:
            continue
        step = model.decode(r.name, reply.data)
        if last is not None:
            way = abs(step - last[0]) % model.steps
            if min(way, model.steps - way) > 16 + HAND_STEPS_S * (now - last[1]) * 1e-9:
                return True
        last = step, now
    return False
