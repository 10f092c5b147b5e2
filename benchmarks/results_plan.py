"""The episodes that docs/results.md needs, and the bundles that play them."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.bundle import export_bundle
from export.checkpoint import load_checkpoint, save_checkpoint
from export.origin import samples_path
from export.plan import Plan
from runtime.bundle import sha256
from sim.evaluate import Job, jobs_for
from sim.tasks import ENVIRONMENTS
from sim.virtual_time import Schedule

MAIN = ("gated", "reactive", "predictive", "average", "oracle")
NEAR = ("gated", "reactive", "predictive")
CLAIM = ("gated", "predictive")  # the gate must beat the better of its experts
STEPS = (1, 2, 4, 8)
LATENCIES_MS = (0, 100, 200, 300, 400, 500)
CURVE_ENVIRONMENTS = ("seen", "position")
PARTS = ("table", "true_future", "latency", "steps")


@dataclasses.dataclass(frozen=True)
class Work:
    """All episodes of the page, by section."""

    table: list[Job]
    true_future: list[Job]
    latency: dict[int, list[Job]]
    steps: dict[int, list[Job]]

    def of(self, parts: Sequence[str]) -> list[Job]:
        """Every episode of these PARTS, once each."""
        found: dict[str, Job] = {}
        for name in parts:
            part = getattr(self, name)
            found |= {j.key: j for j in (part if isinstance(part, list) else itertools.chain(*part.values()))}
        return list(found.values())


def plan(
    checkpoint: Path,
    work: Path,
    episodes: int,
    tasks: tuple[str, ...],
    baselines: dict[str, Path],
    policies: tuple[str, ...],
    parts: Sequence[str],
    claim: int = 0,
) -> Work:
    """`episodes` per cell of the table (`claim`, if more, for the policies of CLAIM); two fifths of `episodes` from
    near starts; a fifth at every point of a curve.

    Variants of the bundle are exported for the `parts` that will run; for other parts, existing ones are used.
    """
    main = bundle_of(checkpoint, work)
    few, some = max(1, episodes // 5), max(1, 2 * episodes // 5)

    def jobs(
        bundle: Path, policies: Sequence[str], environments: Sequence[str], count: int, first: int = 0, **more: Any
    ) -> list[Job]:
        seeds = range(first, count)
        return jobs_for(bundle, policies, environments, tasks, seeds, split="test", baselines=baselines, **more)

    near, claimed = ([p for p in policies if p in some_of] for some_of in (NEAR, CLAIM))
    return Work(
        jobs(main, policies, ENVIRONMENTS, episodes)
        + jobs(main, claimed, ENVIRONMENTS, claim, first=episodes)
        + jobs(main, near, ENVIRONMENTS, some, starts=("near",)),
        jobs(main, ("true_future", "reactive"), CURVE_ENVIRONMENTS, few),
        {
            ms: jobs(main, ("gated",), CURVE_ENVIRONMENTS, few, schedule=Schedule(world_model_ms=ms))
            for ms in LATENCIES_MS
        },
        {
            n: jobs(bundle_of(checkpoint, work, n), ("gated", "reactive"), CURVE_ENVIRONMENTS, few)
            for n in STEPS
            if "steps" in parts or variant(checkpoint, work, n).exists()
        },
    )


def bundle_of(checkpoint: Path, work: Path, steps: int | None = None) -> Path:
    """The FP32 bundle of `checkpoint`, exported once; with `steps`, another number of world-model steps."""
    model, cameras, instructions, note = load_checkpoint(checkpoint)
    shipped = model.cfg.world_steps
    steps = steps or shipped
    out = variant(checkpoint, work, steps)
    if out.exists():
        return out
    source = checkpoint
    if steps != shipped:
        model.cfg = dataclasses.replace(model.cfg, world_steps=steps)
        source = work / "variant.safetensors"
        save_checkpoint(source, model, cameras, instructions, note)
        shutil.copyfile(samples_path(checkpoint), samples_path(source))
    export_bundle(Plan(source, precision="fp32"), out, say=lambda line: print(f"  {out.name}: {line}", flush=True))
    return out


def variant(checkpoint: Path, work: Path, steps: int) -> Path:
    return work / f"{sha256(checkpoint)[:12]}-{steps}step.bundle"
