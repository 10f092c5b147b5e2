"""Compiles networks with published times on an Orin and writes the kernels that `export.roofline` is fitted to:

python -m benchmarks.roofline [--again]

Without --again it only prints the errors. Compiling takes ten minutes and 6 GB. The times: onnxsim, scripts/nvidia/
README.md (trtexec of TensorRT 10.3, mean GPU time without transfers, Orin Nano 8GB at MAXN_SUPER; ViT-B/16 in FP32 is
the mean of two graphs), and innate-os, pull request 447 (ACT; the board is not named and taken for the same one).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.published_networks import Act, Vit, mobilenet_v2, perceptrons, resnet
from common.files import write_whole
from export.half import to_half
from export.onnx import export_engine
from export.quantise import quantise
from export.roofline import (
    CASES,
    calibration_errors,
    fitted,
    layers_of,
    least_time_errors,
    left_out_errors,
    other_errors,
    plan_layers,
)
from export.tensorrt.builder import compiled
from runtime.engines.plan import EnginePlan

ALL = {"target": "tensorrt", "calibration": "minmax", "min_channels": 1, "quantise": {"net": [".*"]}}


@dataclass(frozen=True)
class Published:
    """`times`: precision -> milliseconds."""

    name: str
    make: Callable[[], nn.Module]
    inputs: dict[str, tuple[int, ...]]
    times: dict[str, float]


def pictures(batch: int) -> dict[str, tuple[int, ...]]:
    return {"x": (batch, 3, 224, 224)}


def resnet18() -> nn.Module:
    return resnet((2, 2, 2, 2), False)


def resnet50() -> nn.Module:
    return resnet((3, 4, 6, 3), True)


PUBLISHED = (
    Published("ResNet-18", resnet18, pictures(1), {"FP32": 1.578, "FP16": 0.758, "INT8": 0.485}),
    Published("ResNet-18 x8", resnet18, pictures(8), {"FP32": 8.357, "FP16": 3.537, "INT8": 1.927}),
    Published("ResNet-50", resnet50, pictures(1), {"FP32": 3.596, "FP16": 1.814, "INT8": 1.190}),
    Published("ResNet-50 x8", resnet50, pictures(8), {"FP32": 19.969, "FP16": 8.816, "INT8": 4.930}),
    Published("MobileNetV2", mobilenet_v2, pictures(1), {"FP32": 1.386, "FP16": 0.850, "INT8": 0.781}),
    Published("MobileNetV2 x8", mobilenet_v2, pictures(8), {"FP32": 8.147, "FP16": 3.925, "INT8": 2.446}),
    Published("ViT-B/16", Vit, pictures(1), {"FP32": 13.3, "FP16": 5.63, "INT8": 4.92}),
    Published("MLP 1x197x768", perceptrons, {"x": (1, 197, 768)}, {"FP16": 1.34}),
    Published("MLP 2048x768", perceptrons, {"x": (2048, 768)}, {"FP16": 12.2}),
    Published("ACT", Act, {"pictures": (2, 3, 224, 224), "state": (1, 6)}, {"FP32": 6.6, "FP16": 3.2}),
)


def case(net: Published, work: Path) -> list[dict[str, Any]]:
    """Name, published milliseconds and kernels of every precision; equal kernels are one row with their number."""
    torch.manual_seed(0)
    files = {precision: work / f"{precision}.onnx" for precision in ("FP32", "FP16", "INT8")}
    export_engine(net.make(), net.inputs, ["y"], files["FP32"])
    to_half(files["FP32"], files["FP16"])
    if "INT8" in net.times:
        noise = np.random.default_rng(0)
        feed = {k: noise.normal(size=shape).astype(np.float32) for k, shape in net.inputs.items()}
        quantise(files["FP32"], work / "quantised.onnx", "net", ALL, [feed])
        to_half(work / "quantised.onnx", files["INT8"])
    out = []
    for precision, ms in net.times.items():
        plan = compiled(files[precision], ("SM86",))
        out.append(row(f"{net.name} {precision}", ms, plan, files[precision]))
        print(out[-1]["name"], len(plan.launched), "kernels", flush=True)
    return out


def row(name: str, ms: float, plan: EnginePlan, source: Path) -> dict[str, Any]:
    """What is stored of a case; equal kernels are one entry with their number."""
    kinds = {"kernels": plan_layers(plan, inside=True), "apart": plan_layers(plan), "guessed": layers_of(source)}
    counted = {kind: Counter(astuple(layer)[:4] for layer in layers) for kind, layers in kinds.items()}
    return {"name": name, "ms": ms, **{kind: [[*k, n] for k, n in found.items()] for kind, found in counted.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="Compile the networks and write the cases.")
    if parser.parse_args().again:
        rows = []
        for net in PUBLISHED:
            with tempfile.TemporaryDirectory() as folder:
                rows += case(net, Path(folder))
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        write_whole(CASES, f'{{\n "cases": [\n{lines}\n ]\n}}\n')
    errors, left_out, alone = calibration_errors(), left_out_errors(), left_out_errors(whole=False)
    print(fitted())
    print(f"{'published case':22}{'error':>8}{'left out':>10}{'network out':>13}")
    for name, error in errors.items():
        print(f"{name:22}{error:+8.1%}{alone[name]:+10.1%}{left_out[name]:+13.1%}")
    least, others = least_time_errors()
    sides = {"fitted": errors, "left out": alone, "network left out": left_out, **other_errors()}
    for what, chosen in {**sides, f"{1e6 * least:.1f} us at least": others}.items():
        for kind in ("float", "INT8"):
            values = [e for name, e in chosen.items() if name.endswith("INT8") == (kind == "INT8")]
            within = sum(abs(e) <= 0.2 for e in values)
            rms = float(np.sqrt(np.mean(np.square(values))))
            print(
                f"{what}, {kind}: worst {max(map(abs, values)):.1%}, rms {rms:.1%}, {within} of {len(values)} in 20 %"
            )


if __name__ == "__main__":
    main()
