"""Collects demonstrations of `sim.trace` as a dataset, for arms that the table-top tasks are not laid out for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.config import Config
from export.data import PER_PART, Part, gather, record_script, simulated_warps
from export.lerobot import Episode, write_part
from runtime.robot import Robot, load_robot
from sim.trace import INSTRUCTIONS, TASK, Tracer, sample_trace
from sim.world import World

SECONDS = 10.0  # duration of an episode
STEPS_A_ROW = 5  # joint goals per row


def _worker(args: tuple[Part, int, str, float, str, str]) -> tuple[int, int]:
    """Record and write one part; returns how many episodes were kept and tried."""
    part, seed, folder, rate_hz, path, instruction = args
    robot = load_robot(path)
    arm, limits = robot.family, (np.array(robot.arm.lower), np.array(robot.arm.upper))
    world = World(layout=sample_trace(np.random.default_rng(0), arm), family=arm)
    warps, kept = simulated_warps(world), list[Episode]()

    def joints(pose: np.ndarray) -> np.ndarray:
        return arm.inverse(pose, *limits)[0]

    for k in range(part.episodes):
        rng = np.random.default_rng([seed, part.number, k, 1])
        layout = sample_trace(rng, arm, instruction)
        world.reset(layout)
        script = Tracer(arm, layout, rng, SECONDS)
        episode, _ = record_script(
            world, warps, script, joints, rate_hz, layout.instruction, control_hz=STEPS_A_ROW * rate_hz
        )
        kept.append(episode)
    world.close()
    write_part(Path(folder), part.number, kept, rate_hz, arm.JOINTS)
    return len(kept), len(kept)


def collect_traces(
    folder: Path,
    robot: Robot,
    episodes: int,
    seed: int = 0,
    workers: int | None = None,
    rate_hz: float = Config.rate_hz,
) -> dict[str, int]:
    """Record `episodes` demonstrations of each instruction of `sim.trace` by the simulated arm of `robot`. The same
    call continues an interrupted collection. Returns and raises what `export.data.collect` does."""
    parts: list[tuple[Part, str]] = []
    for instruction in INSTRUCTIONS:
        for first in range(0, episodes, PER_PART):
            count = min(PER_PART, episodes - first)
            parts.append((Part(len(parts), TASK, count, False), instruction))
    asked: dict[str, int | float | str] = {
        "episodes": episodes,
        "seed": seed,
        "rate_hz": rate_hz,
        "arm": robot.family.NAME,
    }
    jobs = [(p, seed, str(folder), rate_hz, str(robot.path), text) for p, text in parts]
    return gather(Path(folder), asked, _worker, jobs, workers, robot.family)
