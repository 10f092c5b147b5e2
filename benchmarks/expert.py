"""How often the scripted expert does what it is told: every task in every environment.

`python -m benchmarks.expert [STARTS [NOISE_M]]` (default 40 a cell, about two minutes on 2 cores; goal >= 95 % a task). Demonstrations
are made with a disturbance of 0.008 m.
"""

from __future__ import annotations

import argparse

import numpy as np
from tqdm import tqdm

from sim.expert import Follower, joints_for, plan
from sim.tasks import ENVIRONMENTS, TASKS, sample_layout
from sim.workers import spawned
from sim.world import World

_world: list[World] = []


def solved(job: tuple[str, str, int, float]) -> tuple[str, str, bool]:
    """One start, tried once; task, environment, and whether physics calls it done."""
    task, environment, seed, noise_m = job
    if not _world:
        _world.append(World(0))
    world, rng = _world[0], np.random.default_rng([seed, 98])
    world.reset(sample_layout(rng, task=task, environment=environment))
    follower = Follower(world, plan(world, rng), rng, noise_m)
    done = success = False
    while not done:
        target, done = follower.step(0.02)
        world.set_goals(joints_for(target))
        world.advance(0.02)
        success |= world.success()
    return task, environment, success


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("starts", type=int, nargs="?", default=40, help="of a task in an environment (default 40)")
    parser.add_argument("noise_m", type=float, nargs="?", default=0.0, help="disturbance, m (default none)")
    args = parser.parse_args()
    starts = args.starts
    jobs = [(t, e, s, args.noise_m) for t in TASKS for e in ENVIRONMENTS for s in range(starts)]
    wins = {(t, e): 0 for t in TASKS for e in ENVIRONMENTS}
    for task, environment, success in tqdm(spawned(solved, jobs), total=len(jobs)):
        wins[task, environment] += success
    print(f"{'of ' + str(starts):12}" + "".join(f"{t:>8}" for t in TASKS))
    for environment in ENVIRONMENTS:
        print(f"{environment:12}" + "".join(f"{wins[t, environment]:8d}" for t in TASKS))
    whole = starts * len(ENVIRONMENTS)
    print(f"{'%':12}" + "".join(f"{100 * sum(wins[t, e] for e in ENVIRONMENTS) / whole:8.1f}" for t in TASKS))


if __name__ == "__main__":
    main()
