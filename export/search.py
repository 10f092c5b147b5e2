"""Finds by measurement which layers to quantise: each group of layers is switched to INT8 alone, and its error and time
are measured."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from common.files import write_whole
from export.bundle import float_engines, noise_of
from export.gates import COSINE, ExportError, parity, race
from export.observations import engine_feeds
from export.origin import load_recipe
from export.plan import Plan
from export.precision import half_plan, least_gain
from export.quantise import CALIBRATORS, layer_weights, quantise
from runtime.engines.onnx import OrtEngine
from runtime.engines.plan import EnginePlan

# Least speed-up of the whole engine that makes a group worth its error. A prediction repeats exactly.
LEAST_GAIN = {"onnxruntime": 1.01, "tensorrt": 1.001}


def groups(model: onnx.ModelProto) -> list[str]:
    """Layer groups of an engine: the weight's name up to its block and part, for example `world.down1.a` or
    `predictive.blocks.0.ff`."""
    names = set()
    for weight in layer_weights(model).values():
        parts = weight.removeprefix("m.").split(".")
        depth = 4 if len(parts) > 2 and parts[1] == "blocks" else 2
        if parts[0] == "world" and parts[1][:2] in ("do", "mi", "up") and len(parts) > 3:
            depth = 3
        names.add(".".join(parts[:depth]))
    return sorted(names)


class Bench:
    """The engines of a plan as FP32 files in `work`, and their inputs for a few observations.

    ONNX Runtime's speed is measured. TensorRT's is predicted from the plans that its compiler makes of the FP16 form,
    with and without INT8 layers, and the module that gains least counts: its times on a CPU say nothing about it.
    """

    def __init__(self, plan: Plan, work: Path, observations: int):
        opened = plan.opened()
        self.base, self.target = load_recipe(plan.target), plan.target
        self.plans: dict[str, EnginePlan] = {}
        self.work, self.files = work, float_engines(opened.specs, work)
        seen = opened.observations[:: max(1, len(opened.observations) // observations)]
        self.observations = len(seen)
        self.feeds = engine_feeds(OrtEngine(self.files["world_model"]), seen, noise_of(opened.specs))

    def attempt(self, name: str, patterns: list[str], calibration: str | None = None) -> dict[str, Any] | None:
        """Engine `name` with the layers of `patterns` in INT8, compared with FP32; None where the layers have too few
        channels."""
        recipe = {**self.base, "calibration": calibration or self.base["calibration"], "quantise": {name: patterns}}
        tried = self.work / "try.onnx"
        try:
            counts = quantise(self.files[name], tried, name, recipe, self.feeds[name][::2])
        except ValueError:
            return None
        reference, candidate = OrtEngine(self.files[name]), OrtEngine(tried)
        rows = parity(reference, candidate, self.feeds[name])
        return {
            "layers": counts["int8_layers"],
            "cosine": {k: r["cosine"] for k, r in rows.items()},
            "speedup": self.speedup(name, reference, candidate, tried),
            "bytes": round(tried.stat().st_size / self.files[name].stat().st_size, 3),
        }

    def speedup(self, name: str, reference: OrtEngine, candidate: OrtEngine, tried: Path) -> float:
        """Time of engine `name` without INT8 over its time with it."""
        if self.target == "onnxruntime":
            return race(reference, candidate, self.feeds[name][0], 20)["speedup"]
        if name not in self.plans:
            self.plans[name] = half_plan(self.files[name])
        return round(least_gain(self.plans[name], half_plan(tried)), 4)


def good(row: dict[str, Any]) -> bool:
    """Whether an engine passes its gates."""
    return all(v >= COSINE.get(k, 0.99) for k, v in row["cosine"].items())


def patterns_of(names: list[str]) -> list[str]:
    return [re.escape(name) + r"\b" for name in names]


def worth_it(bench: Bench, name: str, table: dict[str, Any]) -> list[str]:
    """The groups of `table` with which, all in INT8 together, engine `name` passes its gates."""
    least = LEAST_GAIN[bench.target]
    worth = [g for g, row in table.items() if good(row) and row["speedup"] >= least]
    worth.sort(key=lambda g: min(table[g]["cosine"].values()), reverse=True)
    while worth:  # the group with the largest error is left out first
        whole = bench.attempt(name, patterns_of(worth))
        if whole is not None and good(whole):
            break
        worth.pop()
    return worth


def search(
    plan: Plan, out: Path, say: Callable[[str], None] = lambda line: None, observations: int = 48
) -> dict[str, Any]:
    """Write `recipe.json` and `search.json` into `out`; returns the latter.

    The report has per engine: cosine, speed-up and bytes with only one group in INT8, and the calibrators compared on
    the chosen groups. Raises ExportError where `out` cannot be written, before anything is measured, and whatever
    `Plan.opened` raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ExportError(f"{out} cannot be made ({e.strerror}): name another --out.") from e
    chosen: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan, Path(folder), observations)
        report: dict[str, Any] = {"target": plan.target, "observations": bench.observations, "engines": {}}
        for name, file in bench.files.items():
            table = {}
            for group in groups(onnx.load(file)):
                row = bench.attempt(name, patterns_of([group]))
                if row is not None:
                    table[group] = row
                    say(f"{name:12} {group:28} cosine {min(row['cosine'].values()):.5f}  {row['speedup']:.2f}x")
            worth = worth_it(bench, name, table)
            chosen[name] = patterns_of(worth)
            calibrators = {c: bench.attempt(name, chosen[name], c) for c in CALIBRATORS} if worth else {}
            report["engines"][name] = {"groups": table, "chosen": worth, "calibrators": calibrators}
    recipe = {k: v for k, v in bench.base.items() if k not in ("target", "quantise", "kernels")} | {
        "targets": {plan.target: chosen}
    }
    for wanted, data in (("recipe.json", recipe), ("search.json", report)):
        write_whole(out / wanted, json.dumps(data, indent=1) + "\n")
    return report
