"""More servos on one bus: the real master on a pseudo-terminal, the virtual servos in a process of their own."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.growth.apart import apart, peak_mb, spread, timed
from benchmarks.growth.table import Row, Table
from common.clock import prefer, real_time
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import SO101
from firmware_bridge.virtual.line import MemoryPort, PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

COUNTS = (6, 12, 18)
BAUD = 1_000_000
WARM = 50  # cycles that are not counted
SERVER = "import sys; from benchmarks.growth.servos import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"


def arm_of(servos: int) -> ArmConfig:
    """An SO-101 with its joints repeated until it has so many servos, STS3215 all of them."""
    times = servos // len(SO101.ids)
    repeated: dict[str, Any] = {
        f.name: value * times
        for f in dataclasses.fields(SO101)
        if isinstance(value := getattr(SO101, f.name), tuple) and len(value) == len(SO101.ids)
    }
    named: dict[str, Any] = {
        "ids": tuple(range(1, servos + 1)),
        "joints": tuple(f"joint_{i}" for i in range(1, servos + 1)),
    }
    return dataclasses.replace(SO101, **{**repeated, **named, "eeprom": ()})


def bus_of(servos: int) -> VirtualBus:
    """Servos that answer without their return delay: the wire alone sets the pace."""
    config = arm_of(servos)
    bus = VirtualBus(config.ids, KinematicPlant(np.full(servos, 2048.0)), [MODELS[m] for m in config.model_names])
    for i in config.ids:
        bus.put(i, "return_delay", 0)
    return bus


def serve(servos: int, baud: int) -> None:
    """Virtual servos until stdin closes; prints the port."""
    bus = bus_of(servos)
    real_time(10)
    print(PtyBus(bus, baud, latency_s=0.0).path, flush=True)
    sys.stdin.read()


def wire_ms(servos: int) -> float:
    """How long the bytes of one cycle need on the wire: counted, not measured."""
    port = MemoryPort(bus_of(servos), BAUD)
    arm = Arm(Bus(port), arm_of(servos))
    goal = arm.read().q
    before = port.line.wire_ns
    arm.exchange(goal)
    port.read(port.now_ns() + 1)
    return (port.line.wire_ns - before) / 1e6


def point(servos: int, baud: int, cycles: int) -> dict[str, float]:
    """`cycles` of read all + write all, as the motor process does them."""
    command = [sys.executable, "-c", SERVER, str(servos), str(baud)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = Port.open(process.stdout.readline().strip())
    arm = Arm(Bus(port, margin_s=0.1), arm_of(servos))
    arm.torque_on()
    goal = arm.read().q
    real_time(20)
    took, used = list[float](), list[float]()
    for _ in range(WARM + cycles):
        _, seconds, processor = timed(arm.exchange, goal)
        took.append(1e3 * seconds)
        used.append(1e6 * processor)
    prefer(0)
    p50, p99 = spread(took[WARM:])
    found = {"cycle p50, ms": p50, "p99, ms": p99, "processor of the master, us": spread(used[WARM:])[0]}
    found |= {"lost answers": float(sum(arm.bus.errors.values())), "peak memory, MB": peak_mb()}
    port.close()
    process.communicate("")
    return found


def tables(small: bool) -> list[Table]:
    """Paced by the wire, and at once."""
    cycles, paced, free = 200 if small else 4000, [], []
    for n in COUNTS:
        wire, found = wire_ms(n), apart("servos", servos=n, baud=BAUD, cycles=cycles)
        over = found["cycle p50, ms"] - wire
        rate = 1e3 / found["p99, ms"]
        paced.append(Row(f"{n} servos", n, {"wire, ms": wire, "over the wire, ms": over, **found, "cycles/s": rate}))
        free.append(Row(f"{n} servos", n, apart("servos", servos=n, baud=0, cycles=cycles)))
    watched = ("cycle p50, ms", "processor of the master, us", "peak memory, MB")
    return [
        Table(
            "Servos on one bus, at the pace of the wire",
            "servos",
            tuple(paced),
            ("wire, ms", "over the wire, ms", *watched),
            "STS3215 servos at 1 Mbaud without return delay, behind a pseudo-terminal; a cycle reads position and "
            "speed of all and writes a goal to all. `wire`: what the bytes need, counted; `cycles/s`: what fits at "
            "p99, where the motor process asks for 100.",
            {"cycles/s": 100.0},
        ),
        Table(
            "Servos on one bus, without a wire",
            "servos",
            tuple(free),
            watched,
            "The same cycle answered at once: what master, terminal and virtual servos (Python, in another process) "
            "take by themselves.",
        ),
    ]
