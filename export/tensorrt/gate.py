"""Judges the exported engines by the plans that NVIDIA's compiler makes of them: everything builds, what was meant to
be INT8 is INT8, and no engine has more kernels than its recipe allows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import onnx

from export.quantise import LAYERS
from export.tensorrt.builder import BuilderMissing, compiled
from export.tensorrt.work import node_name
from runtime.engines.plan import EnginePlan

STEPS = {"world_model": "world", "predictive": "action"}  # engine -> whose Euler steps are unrolled in it


class Judged(msgspec.Struct, frozen=True):
    """Plans by engine, empty where `missing` says why there are none, and a sentence for everything that is wrong.
    `budget`: most kernels of an engine, where the recipe says it."""

    plans: dict[str, EnginePlan] = {}
    budget: dict[str, int] = {}
    wrong: tuple[str, ...] = ()
    missing: str = ""

    def summary(self) -> dict[str, Any]:
        """What the export's report says of it."""
        if self.missing:
            return {"missing": self.missing}
        first = next(iter(self.plans.values()))
        return {
            "builder": first.builder,
            "capabilities": list(first.capabilities),
            "engines": {
                name: {
                    "kernels": len(plan.launched),
                    "waits": len(plan.kernels) - len(plan.launched),
                    "int8_kernels": sum(k.int8 for k in plan.launched),
                    "budget": self.budget.get(name),
                    "plan_megabytes": round(plan.plan_bytes / 1e6, 2),
                    "weight_megabytes": round(plan.weight_bytes / 1e6, 2),
                    "activation_megabytes": round(plan.activation_bytes / 1e6, 2),
                }
                for name, plan in self.plans.items()
            },
            "wrong": list(self.wrong),
        }


def between_pairs(source: Path) -> list[str]:
    """Names of the products in an ONNX file whose factors both come from INT8 by DequantizeLinear."""
    graph = onnx.load(source).graph
    from_int8 = {o for n in graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    return [node_name(n) for n in graph.node if n.op_type in LAYERS and from_int8.issuperset(n.input[:2])]


def left_in_float(source: Path, plan: EnginePlan) -> list[str]:
    """Those products of `source` that its plan computes, but no kernel in INT8. A product that no kernel names was
    folded, or is the same as one before it."""
    named = {node for kernel in plan.launched for node in kernel.nodes}
    int8 = {node for kernel in plan.launched if kernel.int8 for node in kernel.nodes}
    return [node for node in between_pairs(source) if node in named - int8]


def budgets(recipe: Mapping[str, Any], precision: str, steps: Mapping[str, int | None]) -> dict[str, int]:
    """Most kernels of each engine that `recipe` names for `precision`. The recipe's numbers hold for its own numbers of
    Euler steps; `steps` ("world", "action") of which there are more may have proportionally more kernels."""
    said = recipe.get("kernels", {})
    written = said.get("steps", {})
    more = {name: max(1.0, (steps.get(s) or 0) / written.get(s, math.inf)) for name, s in STEPS.items()}
    return {name: int(most * more.get(name, 1.0)) for name, most in said.get(precision, {}).items()}


def judged(
    files: Mapping[str, Path], budget: Mapping[str, int], say: Callable[[str], None] = lambda line: None
) -> Judged:
    """Compile every engine (name -> ONNX file) and judge its plan. Raises ExportError where one does not build; where
    there is no builder, the result says so."""
    say(f"TensorRT for RTX compiles {', '.join(files)}")
    try:
        with ThreadPoolExecutor(min(len(files), os.cpu_count() or 1)) as pool:
            plans = dict(zip(files, pool.map(compiled, files.values()), strict=True))
    except BuilderMissing as e:
        return Judged(missing=str(e))
    wrong = []
    for name, plan in plans.items():
        if idle := left_in_float(files[name], plan):
            wrong.append(
                f"{name}: TensorRT computes {idle[0]} in float though its factors are INT8 ({len(idle)} layers in "
                "all): give its scales no dimension, or leave it out of the recipe"
            )
        if len(plan.launched) > budget.get(name, math.inf):
            wrong.append(
                f"{name}: TensorRT's plan has {len(plan.launched)} kernels, {budget[name]} are allowed (see `harmowam "
                "bundle show --plan`)"
            )
    return Judged(plans, dict(budget), tuple(wrong))


def lines(summary: Mapping[str, Any]) -> list[str]:
    """`Judged.summary` for a terminal."""
    if "missing" in summary:
        return [f"TensorRT's compiler did not judge the engines: {summary['missing']}"]
    out = [
        f"TensorRT for RTX {summary['builder']} ({', '.join(summary['capabilities'])}; indicative for an Orin, SM87):",
        f"{'engine':14}{'kernels':>8}{'allowed':>9}{'INT8':>6}{'waits':>7}{'plan MB':>9}{'activation MB':>15}",
    ]
    for name, row in summary["engines"].items():
        out.append(
            f"{name:14}{row['kernels']:8}{row['budget'] or '-':>9}{row['int8_kernels']:6}{row['waits']:7}"
            f"{row['plan_megabytes']:9.2f}{row['activation_megabytes']:15.2f}"
        )
    if why := summary.get("why"):
        out.append("precision of the engines, by their least time on " + summary["predicted_for"] + ":")
        out += [f"{name:14}{reason}" for name, reason in why.items()]
    return out
