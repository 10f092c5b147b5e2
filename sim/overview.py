"""Pictures of a recorded simulated run from a camera that the policy has not: the whole arm and its table.

The camera process writes the state of every picture into a file (`write_state`); afterwards the same model, which the
seed gives again, is put into these states and rendered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.schema import Malformed, parse_toml
from firmware_bridge.arms import FAMILIES

SCENE = "scene.f64"  # in a recording's folder
SIZE = (640, 480)  # px
LOOK_AT = np.array([0.43, 0.0, 0.15])  # of the arm's reach, in the base frame
DISTANCE, AZIMUTH, ELEVATION = 1.35, 130.0, -36.0  # of the arm's reach; degrees


def _record(values: int) -> np.dtype[Any]:
    return np.dtype([("t_ns", "<i8"), ("visible", "<f8", (values,))])


def write_state(file: IO[bytes], t_ns: int, visible: np.ndarray) -> None:
    """Append a state (`sim.world.World.visible`) with its time (monotonic ns) to a file without buffer, so that a
    process that is killed loses none. A full disk ends what can be read, and raises nothing."""
    row = np.zeros((), _record(len(visible)))
    row["t_ns"], row["visible"] = t_ns, visible
    with contextlib.suppress(OSError):
        file.write(row.tobytes())


def read_states(path: Path, values: int) -> dict[int, np.ndarray]:
    """States float64[values] by their times (ns), up to where the file ends. Raises OSError."""
    raw, kind = path.read_bytes(), _record(values)
    rows = np.frombuffer(raw[: len(raw) - len(raw) % kind.itemsize], kind)
    return {int(row["t_ns"]): row["visible"] for row in rows}


@contextlib.contextmanager
def overview(folder: Path, config: Mapping[str, Any]) -> Iterator[Callable[[int], np.ndarray | None] | None]:
    """Context that gives the picture uint8[480,640,3] RGB of a capture time (ns), or None where no state was recorded
    for it; None as a whole for a run that was not simulated or whose states were not recorded. `config`: what the run
    was."""
    path = folder / SCENE
    try:
        robot = parse_toml(config["robot_file"].encode())
        family, task = FAMILIES[robot["family"]], None if config["task_drawn"] else config["task"]
    except (Malformed, KeyError, AttributeError):
        robot = {}
    if not robot.get("simulated") or not path.is_file():
        yield None
        return
    os.environ.setdefault("MUJOCO_GL", "egl")  # must be set before anything imports mujoco
    import mujoco

    from sim.trace import seeded_start
    from sim.world import World

    world = World(layout=seeded_start(config["seed"], family, task), family=family)
    states = read_states(path, len(world.visible))
    world.model.vis.global_.offwidth, world.model.vis.global_.offheight = SIZE
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance = LOOK_AT * family.reach_m, DISTANCE * family.reach_m
    camera.azimuth, camera.elevation = AZIMUTH, ELEVATION
    with mujoco.Renderer(world.model, SIZE[1], SIZE[0]) as renderer:

        def at(t_ns: int) -> np.ndarray | None:
            if t_ns not in states:
                return None
            world.show(states[t_ns])
            renderer.update_scene(world.data, camera)
            return np.array(renderer.render())

        yield at
