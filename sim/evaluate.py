"""Evaluation: seeded episodes in virtual time, several processes, success with a Wilson interval.

The same bundle, steps, motor tick and servo bytes as on a robot; only the clock is virtual. Seeds of different policies are
the same, so that results are paired.
"""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from firmware_bridge.messages import Expert
from runtime.bundle import Bundle
from runtime.steps import FastStep, SlowStep
from sim.virtual_time import Schedule, run_episode
from sim.world import TASKS, World, sample_layout

POLICIES = ("gated", "reactive", "predictive")


@dataclass(frozen=True)
class Job:
    """One episode: everything that a worker must know."""

    bundle: str
    policy: str
    seed: int
    schedule: Schedule
    task: str | None  # None: drawn from the seed


_cache: dict[str, Any] = {}


def _prepare(job: Job) -> tuple[World, SlowStep, FastStep]:
    """World and steps are built once a process and reused."""
    if _cache.get("bundle") != job.bundle:
        bundle = Bundle.load(Path(job.bundle))
        world = World(0)
        cameras = {name: world.camera(name) for name in ("front", "wrist")}
        _cache.update(
            bundle=job.bundle, world=world, slow=SlowStep(bundle, TASKS[0], cameras), fast=FastStep(bundle, cameras)
        )
    return _cache["world"], _cache["slow"], _cache["fast"]


def run_job(job: Job) -> dict[str, Any]:
    """One episode's row."""
    from sim.plant import virtual_motor

    world, slow, fast = _prepare(job)
    rng = np.random.default_rng([job.seed, 7])  # never the seeds of the demonstrations
    world.reset(sample_layout(rng, job.task))
    slow.set_task(world.instruction)
    fast.policy = job.policy
    episode = run_episode(world, slow, fast, virtual_motor(world), job.schedule)
    experts = [t.expert for t in episode.ticks if t.expert != Expert.NONE]
    switches = sum(a != b for a, b in zip(experts, experts[1:], strict=False))
    return {
        "policy": job.policy, "seed": job.seed, "task": world.instruction, "success": episode.success,
        "seconds": episode.seconds, "switches": switches,
    }  # fmt: skip


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def evaluate(
    bundle: Path,
    episodes: int,
    seed: int = 0,
    policies: tuple[str, ...] = ("gated",),
    schedule: Schedule = Schedule(),
    task: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Run `episodes` seeded starts a policy; returns the `evaluate` JSON shape of the design."""
    jobs = [Job(str(bundle), p, seed + i, schedule, task) for p in policies for i in range(episodes)]
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    with mp.get_context("spawn").Pool(workers) as pool, tqdm(total=len(jobs), unit="episode") as bar:
        for row in pool.imap_unordered(run_job, jobs):
            rows.append(row)
            bar.update()
            bar.set_postfix(success=f"{sum(r['success'] for r in rows)}/{len(rows)}", refresh=False)
    wall = time.monotonic() - began
    cells = []
    for policy in policies:
        mine = [r for r in rows if r["policy"] == policy]
        k = sum(r["success"] for r in mine)
        cells.append({
            "task": task or "pick_place", "environment": "seen", "policy": policy, "episodes": len(mine), "successes": k,
            "wilson95": [round(v, 4) for v in wilson(k, len(mine))],
            "switches_per_episode": round(float(np.mean([r["switches"] for r in mine])), 2),
            "median_seconds": round(float(np.median([r["seconds"] for r in mine])), 2),
        })  # fmt: skip
    return {
        "bundle": Path(bundle).name, "seed": seed, "cells": cells, "episodes_per_second": round(len(jobs) / wall, 3), "workers": workers,
        "failed_seeds": {p: sorted(r["seed"] for r in rows if r["policy"] == p and not r["success"]) for p in policies},
    }  # fmt: skip
