"""Every check, in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from runtime.doctor.devices import cameras, joints_and_stop, serial_port
from runtime.doctor.finding import Finding, Machine
from runtime.doctor.software import engines, opencv, storage
from runtime.doctor.timing import clocks, realtime
from runtime.doctor.trust import trust
from runtime.robot import Robot


def examine(robot: Robot, machine: Machine | None = None) -> list[Finding]:
    """Every check, in the order in which one would mend them."""
    m = machine or Machine()
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: engines(m),
        lambda: serial_port(m, robot.port),
        lambda: joints_and_stop(m, robot),
        opencv,
        lambda: cameras(m, robot),
        lambda: realtime(m),
        lambda: clocks(m),
        lambda: storage(m),
        lambda: trust(robot),
    ]
    return [finding for check in checks for finding in check()]
