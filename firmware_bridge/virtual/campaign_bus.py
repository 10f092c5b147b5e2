"""The part of the fault campaign about who is on the bus, before any arm moves: echoes where nobody answers (group 29),
two servos with one id (30) and two programs on one port (31, with real processes)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port, PortError
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.service import PROBE_S, look_at_all, set_id
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import KOCH, MIDDLE, SO101, Rig
from firmware_bridge.virtual.campaign_start import as_row
from firmware_bridge.virtual.line import MemoryPort, PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

ECHOES = ("echo", "echo-late", "echo-past-timeout", "echo-split")
PLACES = [0, 1, 2, 2, 3, 4, 5]  # joints of an arm whose elbow has two servos with one id
HOLD = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY); print('held', flush=True); sys.stdin.read()"
NOBODY = 65534


def nobody(fault: str) -> dict[str, Any]:
    """Group 29: an adapter that echoes, and no servo. Safe: whatever is asked, nobody answers."""
    rig = Rig(SO101)
    for name in (fault, "silent-all"):
        rig.bus.faults.inject(name)
    master = rig.loop.arm.bus
    answers = (
        master.read(3, 56, 2, retries=2) is not None,
        master.write(3, 40, b"\0", retries=2),
        master.ping(3),
        bool(look_at_all(master, range(8))),
    )
    said = _said(rig.loop.arm.check)
    safe = not any(answers) and master.echoing and said.startswith("no servo answers")
    return as_row(29, f"{fault}, nobody there", SO101, said, safe)


def _said(act: Callable[[], object]) -> str:
    """The sentence of the error that `act` raises, or nothing."""
    try:
        act()
    except (ArmError, PortError) as e:
        return str(e)
    return ""


Change = Callable[[VirtualBus, int], None]


def _turn(steps: float) -> Change:
    def act(bus: VirtualBus, second: int) -> None:
        bus.plant.present(0)[0][second] += steps

    return act


def _put(register: str, value: int) -> Change:
    return lambda bus, second: bus.all[second].put(register, value)


def _sag(bus: VirtualBus, second: int) -> None:
    bus.all[second].supply_v = bus.all[second].nominal_v - 0.3


DIFFER: tuple[tuple[str, Change], ...] = (
    ("90 degrees apart", _turn(1024)),
    ("a step apart", _turn(1)),
    ("at different voltages", _sag),
    ("with different offsets", _put("homing_offset", 85)),
)


def _twins(config: ArmConfig, places: list[int], change: Change) -> tuple[VirtualBus, MemoryPort]:
    """Servos of the joints `places`, two of which stand at one, with one id; `change` tells the second of them from the
    first."""
    steps = (MIDDLE * 4096 / (2 * np.pi) + 2048)[places]
    models = [MODELS[config.model_names[j]] for j in places]
    servos = VirtualBus([config.ids[j] for j in places], KinematicPlant(steps), models)
    change(servos, next(k for k in range(1, len(places)) if places[k] == places[k - 1]))
    return servos, MemoryPort(servos, config.baud, 300_000)


def renamed(config: ArmConfig, name: str, change: Change) -> dict[str, Any]:
    """Group 30: two servos with one id, alone on the bus. Safe: seen to be two, and neither gets another id."""
    servos, port = _twins(config, [2, 2], change)
    stored = [s.stored for s in servos.all]
    master = Bus(port, config.baud, PROBE_S, config.protocol)
    found = look_at_all(master, range(8))
    said = _said(lambda: set_id(master, found[0], 6))
    safe = [f.double for f in found] == [True] and said.startswith("two servos answer as 3")
    kept = servos.ids == [3, 3] and [s.stored for s in servos.all] == stored
    return as_row(30, f"set-id of two, {name}", config, said, safe and kept)


def armed(config: ArmConfig, name: str, change: Change) -> dict[str, Any]:
    """Group 30: the same in an arm. Safe: it is not started, and nothing is written."""
    servos, port = _twins(config, PLACES, change)
    before = [bytes(s.memory[:56]) for s in servos.all]
    said = _said(Arm(Bus(port, config.baud, protocol=config.protocol), config).check)
    kept = [bytes(s.memory[:56]) for s in servos.all] == before
    return as_row(30, f"an arm with two, {name}", config, said, said.startswith("two servos answer as 3") and kept)


# Group, name and what plays it.
ON_THE_BUS: tuple[tuple[int, str, Callable[[], dict[str, Any]]], ...] = (
    *((29, f"{e}, nobody there", partial(nobody, e)) for e in ECHOES),
    *((30, f"set-id of two, {d[0]}", partial(renamed, c, *d)) for c in (SO101, KOCH) for d in DIFFER),
    *((30, f"an arm with two, {d[0]}", partial(armed, c, *d)) for c in (SO101, KOCH) for d in DIFFER),
)


def campaign_bus(only: str = "") -> list[dict[str, Any]]:
    """All rows in virtual time; `only`: those whose name contains it."""
    return [play() for _, name, play in ON_THE_BUS if only in name]


# ---- two programs on one port ----------------------------------------------------------------------------------------
def held_by_another(served: PtyBus, path: str) -> tuple[str, bool]:
    """Another program, which asks for no lock, has the port open. Safe: it is named, and the servos hear nothing."""
    command = [sys.executable, "-c", HOLD, os.path.realpath(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        said = _said(lambda: Port.open(path))
        other.stdin.close()
    named = f"{path} is in use by process {other.pid} ({sys.executable} -c "
    return "named with its pid and command" if named in said else said, named in said and served.line.wire_ns == 0


def held_by_us(served: PtyBus, path: str) -> tuple[str, bool]:
    """Another program of an ordinary user opens the port that we have. Safe: it is refused, until we close it."""
    os.chmod(path, 0o666)
    command = ["/bin/sh", "-c", 'exec 3<>"$0"', os.path.realpath(path)]
    user = NOBODY if os.geteuid() == 0 else None

    def opened() -> bool:
        done = subprocess.run(command, stderr=subprocess.DEVNULL, cwd="/", user=user, check=False)
        return done.returncode == 0

    port = Port.open(path)
    refused = not opened()
    port.close()
    return "the other program is told that the port is busy", refused and opened()


SHARED: tuple[tuple[str, Callable[[PtyBus, str], tuple[str, bool]], bool], ...] = (
    ("another program has the port", held_by_another, False),
    ("another program has the port, asked for by its link", held_by_another, True),
    ("another program opens our port", held_by_us, False),
)


def campaign_port(folder: Path, only: str = "") -> list[dict[str, Any]]:
    """Group 31, with real processes on a pseudo-terminal; `folder` gets the link to it."""
    rows = []
    for name, act, by_link in SHARED:
        if only in name:
            served = PtyBus(VirtualBus([1], KinematicPlant(np.full(1, 2048.0))), link=folder / "by-id" / "adapter")
            said, safe = act(served, served.path if by_link else os.path.realpath(served.path))
            served.close()
            rows.append(as_row(31, name, SO101, said, safe))
    return rows
