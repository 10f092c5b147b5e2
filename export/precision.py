"""Compares the plans of one engine by their predicted times on three modules, and says why an engine has INT8 layers
or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.half import to_half
from export.roofline import BOARDS, Board, fitted, plan_layers, seconds
from export.tensorrt.builder import CAPABILITIES, compiled
from runtime.engines.plan import EnginePlan

MODULES = tuple(
    b
    for b in BOARDS
    if (b.name, b.mode) in (("Orin Nano 8GB", "25W"), ("Orin NX 16GB", "25W"), ("AGX Orin 64GB", "MAXN"))
)


def milliseconds(plan: EnginePlan, board: Board) -> float:
    return 1e3 * seconds(plan_layers(plan), board, fitted())


def least_gain(old: EnginePlan, new: EnginePlan) -> float:
    """Time of `old` over time of `new` on the module that gains least."""
    return min(milliseconds(old, board) / milliseconds(new, board) for board in MODULES)


def half_plan(source: Path) -> EnginePlan:
    """What TensorRT's compiler makes of the FP16 form of an engine, which is written beside `source`. Raises
    BuilderMissing without it."""
    half = source.with_suffix(".half.onnx")
    to_half(source, half)
    return compiled(half, CAPABILITIES[:1])


def modules() -> str:
    return " / ".join(f"{board.name} {board.mode}" for board in MODULES)


def times(plan: EnginePlan) -> str:
    return " / ".join(f"{milliseconds(plan, board):.3f}" for board in MODULES)


def reasons(plans: Mapping[str, EnginePlan], floats: Mapping[str, Path]) -> dict[str, str]:
    """A sentence for each engine about its INT8 layers. `plans`: the engines with INT8 layers and FP16 elsewhere;
    `floats`: their FP32 files."""
    out = {}
    for name, plan in plans.items():
        if not (int8 := sum(k.int8 for k in plan.launched)):
            out[name] = "FP16: the recipe names no layer that is faster in INT8"
            continue
        alone = half_plan(floats[name])
        verdict = "faster" if least_gain(alone, plan) > 1 else "NOT faster everywhere"
        out[name] = f"INT8 ({int8} kernels) is {verdict}: {times(plan)} ms, FP16 alone {times(alone)}"
    return out
