"""Does the arm still do the task with INT8 engines? Paired episodes in the simulator, same seeds, INT8 against FP32."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from export.bundle import export_bundle
from export.gates import ExportError
from runtime.bundle import Bundle
from sim.evaluate import jobs_for, run_jobs
from sim.tasks import TASKS

Z_ONE_SIDED_95 = 1.6449
LEAST = -0.03  # of the lower bound: at most 3 points of success may be lost


def paired_lower_bound(better: int, worse: int, pairs: int, z: float = Z_ONE_SIDED_95) -> float:
    """Lower confidence bound of a difference of paired proportions by Tango's score interval (Statistics in Medicine 17, 1998).

    `better`: pairs that only the candidate won; `worse`: that only the reference won. Unlike a normal interval it does not
    collapse to a point when no pair differs.
    """

    def score(d: float) -> float:
        a, c = 2.0 * pairs, -worse * d * (1 - d)
        b = -better - worse + (2 * pairs - better + worse) * d
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = pairs * (2 * q + d * (1 - d))
        gap = better - worse - pairs * d
        return gap / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, gap)

    low, high = -1.0 + 1e-9, (better - worse) / pairs
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > z else (low, middle)
    return low


def certify(
    checkpoint: Path,
    bundle: Path,
    episodes: int,
    seed: int = 0,
    workers: int | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Play `episodes` starts with the engines of `bundle` and with FP32 ones; write `reports/certificate.json` into the bundle.

    `how`: what `export_bundle` was told besides (steps, sentence encoder). Killed and called again, it goes on where it was
    (`reports/certify.jsonl`). Raises ExportError when the bound is missed.
    """
    opened = Bundle.load(bundle)
    tasks = [t for t, task in TASKS.items() if any(text in opened.manifest.tasks for text in task.instructions)]
    if not tasks:
        raise ExportError(
            f"{bundle} knows none of the simulator's tasks, so nothing can be played: train on `harmowam collect` data."
        )
    seeds = range(seed, seed + math.ceil(episodes / len(tasks)))
    reports = bundle / "reports"
    reports.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32.bundle"
        export_bundle(checkpoint, fp32, bundle / "samples.npz", int8=False, **how)
        sides = [jobs_for(b, ["gated"], ["seen"], tasks, seeds, split="test")[:episodes] for b in (bundle, fp32)]
        # Side by side, so that a run that is stopped half way has pairs.
        rows = run_jobs([job for pair in zip(*sides, strict=True) for job in pair], reports / "certify.jsonl", workers)
    won = [bool(r["success"]) for r in rows]
    pairs = list(zip(won[::2], won[1::2], strict=True))
    better, worse = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    result: dict[str, Any] = {
        "pairs": episodes, "int8_successes": sum(a for a, _ in pairs), "fp32_successes": sum(b for _, b in pairs),
        "only_int8": better, "only_fp32": worse, "difference": round((better - worse) / episodes, 4),
        "lower_bound": round(paired_lower_bound(better, worse, episodes), 4), "least": LEAST, "bundle": opened.manifest.name,
    }  # fmt: skip
    result["passed"] = result["lower_bound"] >= LEAST
    partial = reports / "certificate.json.partial"
    partial.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    partial.replace(reports / "certificate.json")
    if not result["passed"]:
        raise ExportError(
            f"INT8 is not certified: {result['int8_successes']} against {result['fp32_successes']} successes of {episodes}, "
            f"the lower bound of the difference is {100 * result['lower_bound']:.1f} points, {100 * LEAST:.0f} is needed: "
            "play more --episodes, or find another recipe with --search."
        )
    return result
