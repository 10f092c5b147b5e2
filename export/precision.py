"""Compares plans by their time on a Jetson Orin: the sum over kernels of the longest of launch, memory traffic and
arithmetic.

A kernel of a CUDA graph takes at least 2 to 5 microseconds on an Orin, whatever it computes; memory and arithmetic are
taken at the module's peak. Nothing is fitted, so a time is a lower bound and says which of two plans is faster, not how
fast it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.half import to_half
from export.roofline import BOARDS, PER_CLOCK, Board
from export.tensorrt.builder import CAPABILITIES, EnginePlan, compiled
from export.tensorrt.message import Kernel

LAUNCH_S = 2.5e-6
MODULES = tuple(
    b
    for b in BOARDS
    if (b.name, b.mode) in (("Orin Nano 8GB", "25W"), ("Orin NX 16GB", "25W"), ("AGX Orin 64GB", "MAXN"))
)


def arithmetic(kernel: Kernel) -> str:
    """The type in which a kernel computes: a key of `PER_CLOCK`."""
    if kernel.int8:
        return "int8"
    return "float16" if any(t.dtype == "Half" for t in kernel.inputs) else "float32"


def kernel_seconds(kernel: Kernel, board: Board) -> float:
    peak = PER_CLOCK[arithmetic(kernel)] * board.sms * board.ghz * 1e9
    return max(LAUNCH_S, kernel.bytes / (board.gb_s * 1e9), kernel.operations / peak)


def milliseconds(plan: EnginePlan, board: Board) -> float:
    return 1e3 * sum(kernel_seconds(k, board) for k in plan.launched)


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
        out[name] = f"INT8 in {int8} kernels is {verdict}: {times(plan)} ms, FP16 alone {times(alone)}"
    return out
