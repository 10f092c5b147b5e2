"""The plans that NVIDIA's compiler makes of a checkpoint's engines in each precision, as a table: kernels, sizes and
predicted times on three modules.

python -m benchmarks.plans [--bundle out/orin.bundle ...] [--checkpoint FILE | --one-step]

`--one-step` takes the model of one step each with random weights in the checkpoint's place: kernels, sizes and times
depend on its shapes alone. It has no INT8 form, which would need a recipe and observations. A `--bundle` (exported with
`--target tensorrt`) adds its engines as they are: two versions of a model or of the exporter side by side.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from export.bundle import float_engines, noise_of, shrink
from export.config import Config
from export.half import to_half
from export.models import HarmoWam
from export.observations import engine_feeds
from export.onnx import engines
from export.origin import CHECKPOINT
from export.plan import Plan, Precision
from export.precision import MODULES, milliseconds
from export.tensorrt.builder import CAPABILITIES, compiled
from runtime.bundle import Bundle
from runtime.engines.onnx import OrtEngine
from runtime.engines.plan import EnginePlan

ROBOT = ("world_model", "predictive", "fast")
SLOW = ("world_model", "predictive")
WAYS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-fp16")


def one_step(work: Path) -> dict[str, Path]:
    """FP32 files of the engines of a model of one step each with random weights."""
    torch.manual_seed(0)
    model = HarmoWam(Config(form="one_step", world_steps=1, action_steps=1)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(0, 0.02)  # a branch that begins at zero would be folded away
    return float_engines({k: v for k, v in engines(model).items() if k in ROBOT}, work)


def versions(checkpoint: Path | None, bundles: list[Path], work: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """What stands in the table: a name, and the ONNX file of each engine. Without a checkpoint: `one_step`."""
    for bundle in bundles:
        opened = Bundle.load(bundle)
        yield opened.path.name, {name: opened.path / opened.manifest.engines[name].file for name in ROBOT}
    if checkpoint is None:
        floats = one_step(work)
        yield "one step, fp32", floats
        for name, path in floats.items():
            to_half(path, work / f"{name}.half.onnx")
        yield "one step, fp16", {name: work / f"{name}.half.onnx" for name in floats}
        return
    plans = {way: Plan(checkpoint, "tensorrt", way) for way in WAYS}
    opened_plan = plans["fp32"].opened()
    floats = float_engines({k: v for k, v in opened_plan.specs.items() if k in ROBOT}, work)
    feeds = engine_feeds(OrtEngine(floats["world_model"]), opened_plan.observations, noise_of(opened_plan.specs))
    for way, plan in plans.items():
        yield way, shrink(plan, floats, feeds, work, lambda line: None).files


def row(engine: str, version: str, plan: EnginePlan) -> str:
    cells = [
        engine,
        version,
        f"{len(plan.launched)}",
        f"{sum(k.int8 for k in plan.launched)}",
        f"{plan.plan_bytes / 1e6:.1f}",
        f"{plan.activation_bytes / 1e6:.2f}",
        *(f"{milliseconds(plan, board):.3f}" for board in MODULES),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", default=[])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--one-step", action="store_true")
    given = parser.parse_args()
    head = ["engine", "precision", "kernels", "INT8", "plan MB", "activation MB"]
    head += [f"{board.name}, {board.mode}: ms" for board in MODULES]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    sums: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for version, files in versions(None if given.one_step else given.checkpoint, given.bundle, Path(folder)):
            plans = {name: compiled(files[name], CAPABILITIES[:1]) for name in ROBOT}
            print("\n".join(row(name, version, plan) for name, plan in plans.items()), flush=True)
            sums[version] = [sum(milliseconds(plans[name], board) for name in SLOW) for board in MODULES]
    for version, times in sums.items():
        print(f"slow step ({' + '.join(SLOW)}), {version}: " + ", ".join(f"{t:.3f}" for t in times) + " ms")


if __name__ == "__main__":
    main()
