"""Certifies a bundle in INT8 or FP16: paired episodes in the simulator, same seeds, against FP32 engines."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx

from common.files import write_whole
from export.bundle import export_bundle
from export.gates import ExportError
from export.origin import load_recipe
from export.plan import Plan
from export.quantise import LAYERS
from export.tensorrt.gate import Judged, budgets, judged
from runtime.bundle import Bundle, flow_steps
from runtime.manifest import Manifest
from runtime.policies import mode_of
from sim.evaluate import jobs_for, run_jobs
from sim.statistics import paired_lower_bound
from sim.tasks import TASKS

ANY: Any = object()  # matches any training note
LEAST = -0.03  # lower bound of the difference: at most 3 points of success may be lost


def play_pairs(
    first: Path,
    second: Path,
    tasks: Sequence[str],
    environment: str,
    episodes: int,
    rows: Path,
    seed: int = 0,
    workers: int | None = None,
    split: str = "test",
) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], dict[str, Any]]:
    """Play `episodes` starts of `split` with two bundles, each in its default mode, in virtual time. Rows are kept
    in `rows`: a second call continues from them.

    Returns the pairs of rows and their summary: starts solved by each bundle, starts solved by one bundle only, and the
    difference with its lower 95 % bound.
    """
    seeds = range(seed, seed + math.ceil(episodes / len(tasks)))
    modes = [mode_of(Bundle.load(b), None) for b in (first, second)]
    sides = [
        jobs_for(b, [mode], [environment], tasks, seeds, split=split)[:episodes]
        for b, mode in zip((first, second), modes, strict=True)
    ]
    # Both bundles play a start before the next one begins: an interrupted run has pairs.
    played = run_jobs([job for pair in zip(*sides, strict=True) for job in pair], rows, workers)
    pairs = list(zip(played[::2], played[1::2], strict=True))
    won = [(bool(a["success"]), bool(b["success"])) for a, b in pairs]
    better, worse = sum(a and not b for a, b in won), sum(b and not a for a, b in won)
    return pairs, {
        "pairs": episodes,
        "first": sum(a for a, _ in won),
        "second": sum(b for _, b in won),
        "only_first": better,
        "only_second": worse,
        "difference": round((better - worse) / episodes, 4),
        "lower_bound": round(paired_lower_bound(better, worse, episodes), 4),
    }


def refuse_strangers(int8: Bundle, fp32: Bundle, note: Any) -> None:
    """Raises ExportError unless both bundles hold the same model with the same number of steps.

    Everything that quantisation does not change must be equal, and the training note in the report of `int8` must be
    `note` (or `note` is ANY).
    """

    def left(bundle: Bundle) -> tuple[Manifest, dict[str, int]]:
        layers = {
            name: sum(n.op_type in LAYERS for n in onnx.load(bundle.path / e.file).graph.node)
            for name, e in bundle.manifest.engines.items()
        }
        return msgspec.structs.replace(bundle.manifest, quantization={}, files={}), layers

    report = int8.path / "reports" / "parity.json"
    other = note is not ANY and report.is_file() and json.loads(report.read_text()).get("checkpoint", note) != note
    if other or left(int8) != left(fp32):
        raise ExportError(
            f"{int8.path} was not made from this checkpoint: name the one that it was exported from with --against, or "
            "export it again where another version of this program did it."
        )


def steps_of(bundle: Path) -> dict[str, Any]:
    """The numbers of Euler steps of a bundle, from its export report."""
    steps = flow_steps(bundle)
    return {"world_steps": steps.get("world"), "action_steps": steps.get("action")}


def planned(bundle: Bundle) -> Judged | None:
    """What NVIDIA's builder makes of the engines of a bundle for TensorRT, None for another one. Raises ExportError
    where an engine does not build, and where a plan is not what its recipe allows."""
    said = bundle.manifest.quantization
    if said.get("target") != "tensorrt" and said.get("format") != "fp16":
        return None
    precision = said.get("origin", {}).get("precision", "int8")
    files = {name: bundle.path / e.file for name, e in bundle.manifest.engines.items()}
    recipe = said.get("recipe") or load_recipe("tensorrt")
    found = judged(files, budgets(recipe, precision, flow_steps(bundle.path)))
    if found.wrong:
        raise ExportError(f"{found.wrong[0]} ({len(found.wrong)} in all): export it again with another recipe.")
    return found


def certify(
    against: Plan | Path, bundle: Path, episodes: int, seed: int = 0, workers: int | None = None
) -> dict[str, Any]:
    """Play `episodes` starts with the engines of `bundle` and with FP32 ones; write `reports/certificate.json` into the
    bundle.

    `against`: the plan of the checkpoint that `bundle` was exported from (precision and steps follow from the bundle),
    or the policy's FP32 bundle, for a policy of any kind. A call after an interruption continues where the last one
    stopped (`reports/certify.jsonl`). Raises ExportError when the bound is missed, or when NVIDIA's builder refuses an
    engine for TensorRT (before anything is played).
    """
    opened = Bundle.load(bundle)
    if opened.manifest.quantization.get("format") == "fp32":
        raise ExportError(f"{bundle} is FP32 itself, there is nothing to certify: export it with --precision int8.")
    tasks = [t for t, task in TASKS.items() if any(text in opened.manifest.tasks for text in task.instructions)]
    if not tasks:
        raise ExportError(
            f"{bundle} knows none of the simulator's tasks, so nothing can be played: train on `harmowam collect` data."
        )
    built = planned(opened)
    reports = bundle / "reports"
    reports.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(against, Path):
            fp32, note = against, ANY
        else:
            fp32 = Path(folder) / "fp32.bundle"
            plan = dataclasses.replace(
                against, precision="fp32", target="onnxruntime", samples=bundle / "samples.npz", **steps_of(bundle)
            )
            note = json.loads(json.dumps(export_bundle(plan, fp32)["checkpoint"]))
        reference = Bundle.load(fp32)
        if reference.manifest.quantization.get("format") != "fp32":
            raise ExportError(f"{fp32} is not FP32: name the checkpoint, or the FP32 bundle that {bundle} was made of.")
        refuse_strangers(opened, reference, note)
        _, found = play_pairs(bundle, fp32, tasks, "seen", episodes, reports / "certify.jsonl", seed, workers)
    result: dict[str, Any] = {
        "int8_successes": found.pop("first"),
        "fp32_successes": found.pop("second"),
        "only_int8": found.pop("only_first"),
        "only_fp32": found.pop("only_second"),
        **found,
        "least": LEAST,
        "bundle": opened.manifest.name,
    }
    if built is not None:
        result["tensorrt"] = built.summary()
    result["passed"] = result["lower_bound"] >= LEAST
    write_whole(reports / "certificate.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
    if not result["passed"]:
        raise ExportError(
            f"{bundle} is not certified: {result['int8_successes']} against {result['fp32_successes']} successes of "
            f"{episodes}, the lower bound of the difference is {100 * result['lower_bound']:.1f} points, "
            f"{100 * LEAST:.0f} is needed: play more --episodes, or find another recipe with `harmowam search-recipe`."
        )
    return result
