"""The arm's servos: whether they answer, and hold what a run needs of them. Only reads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from firmware_bridge.bus import echo
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port, PortError
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.motion.measurement import NO_REPLY
from firmware_bridge.servos.sts3215 import conditions
from runtime.doctor.finding import Finding
from runtime.robot import Robot


def servos(robot: Robot) -> Iterator[Finding]:
    """What the servos on the robot's port say (`asked`). Nothing where there is no port that could be opened: the port
    has its own finding."""
    if robot.simulated or not os.access(robot.port, os.R_OK | os.W_OK):
        return
    try:
        port = Port.open(robot.port, robot.arm.baud)
    except PortError as e:
        yield _bad(e)
        return
    with contextlib.closing(port):
        yield from asked(Arm(Bus(port, robot.arm.baud, protocol=robot.arm.protocol), robot.arm))


def asked(arm: Arm) -> list[Finding]:
    """What keeps the arm from being armed, as one finding; what servos report to be wrong; an adapter that echoes."""
    try:
        arm.check()
        bits = arm.read().bits.tolist()
    except (ArmError, PortError) as e:
        return [_bad(e)]
    ids = ", ".join(map(str, arm.ids))
    out = [Finding("servos", "ok", f"{ids} answer, and hold what they must")]
    for servo, joint, reported in zip(arm.config.ids, arm.config.joints, bits, strict=True):
        if words := [] if reported & NO_REPLY else conditions(reported):
            mend = "`harmowam bus monitor` shows its voltage and temperature: check its supply, and let it cool"
            out.append(Finding("servos", "warn", f"servo {servo} ({joint}) reports: {', '.join(words)}", mend))
    if arm.bus.echoing:
        out.append(Finding("echo", "ok", echo.TOLD.format("the port")))
    return out


def _bad(e: Exception) -> Finding:
    """A sentence and its next step, taken apart."""
    found, _, mend = str(e).partition(": ")
    return Finding("servos", "bad", found, mend)
