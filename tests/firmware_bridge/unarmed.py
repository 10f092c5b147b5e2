"""Arms that must not move, for the tests of what is looked at before torque."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.motion.config import ArmError
from firmware_bridge.virtual.campaign import KOCH, SO101
from firmware_bridge.virtual.line import MemoryPort

PLAIN = dataclasses.replace(SO101, eeprom=())  # nothing said about what its servos hold


MS = 1_000_000
XL330 = dataclasses.replace(KOCH, models=("XL330-M288",) * 6)


def wait(arm, servos, seconds):
    """Let time pass on an arm that somebody listens to (a Dynamixel's watchdog counts)."""
    for _ in range(round(seconds * 100)):
        arm.bus.port.time_ns += 10 * MS
        arm.read()


def refused(arm, match):
    """Neither start nor arming go on, in the same words."""
    with pytest.raises(ArmError, match=match):
        arm.check()
    with pytest.raises(ArmError, match=match):
        arm.torque_on()


def untouched(arm, servos):
    """What must be as it was after a refusal: every register that is written, and where the arm stands a second
    later."""
    before, stood = [bytes(s.memory[:56]) for s in servos.servos.values()], servos.plant.position.copy()
    yield
    wait(arm, servos, 1.0)
    assert [bytes(s.memory[:56]) for s in servos.servos.values()] == before
    assert np.array_equal(servos.plant.position, stood)
    yield


class Slow(MemoryPort):
    """Between any two packets 50 ms pass, in which the arm moves where its servos drive it. `torque`, `steps`: after
    each packet."""

    def __init__(self, servos):
        super().__init__(servos)
        self.plant = servos.plant
        self.torque, self.steps = [], []

    def write(self, data):
        super().write(data)
        self.time_ns += 50 * MS
        self.line.bus.refresh(self.time_ns)
        self.torque.append([self.line.bus.get(i, "torque_enable") for i in self.line.bus.ids])
        self.steps.append(self.plant.position.copy())
