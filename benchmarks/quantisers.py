"""Ways of making INT8 engines, side by side: our recipe, ONNX Runtime's static quantiser as it comes, NVIDIA's modelopt as it comes.

`python -m benchmarks.quantisers [--json FILE]` (ten minutes; modelopt needs `./build.sh peers`, another interpreter is named by
--peers). Each way sees every second stored observation; errors are those on the others. Errors and file sizes hold anywhere; times are
ONNX Runtime's on this processor, one thread, each way and FP32 in turns, fastest round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.bundle import CHECKPOINT, engine_feeds, observation_feeds, samples_path, task_embeddings
from export.checkpoint import load_checkpoint
from export.gates import COSINE, parity, race, weight_bytes
from export.lint import lint
from export.onnx import engines, export_engine
from export.quantise import Feeds, Observations, load_recipe, quantise, quiet
from export.text import encoder_of
from runtime.engines.onnx import OrtEngine
from runtime.policies.harmowam import fixed_noise

ENGINES = ("world_model", "predictive", "fast")
MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, feeds, out, how = sys.argv[1:]
quantize(onnx_path=source, quantize_mode="int8", calibration_data=dict(np.load(feeds)), calibration_method=how,
         calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=out)
"""


def by_recipe(to: str, engine: str, source: Path, feeds: list[Feeds], target: Path) -> None:
    """What `harmowam export --target` makes."""
    quantise(source, target, engine, load_recipe(to), feeds)


def runtime_static(source: Path, feeds: list[Feeds], target: Path) -> None:
    """ONNX Runtime's static quantiser with its own defaults, but int8 activations: every operator that it knows, one scale a tensor."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(target), Observations(feeds), quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def modelopt(peers: Path, method: str, source: Path, feeds: list[Feeds], target: Path) -> None:
    """modelopt's PTQ with its own choice of layers, in the peers' environment; raises CalledProcessError."""
    stacked = target.with_suffix(".npz")
    np.savez(stacked, **{k: np.concatenate([f[k] for f in feeds]) for k in feeds[0]})
    command = [str(peers), "-c", MODELOPT, str(source), str(stacked), str(target), method]
    subprocess.run(command, check=True, capture_output=True, text=True)


def compare(checkpoint: Path, peers: Path, rounds: int) -> dict[str, Any]:
    model, _, instructions, _ = load_checkpoint(checkpoint)
    tasks = task_embeddings(model, instructions, encoder_of(model.cfg))
    seen = observation_feeds(samples_path(checkpoint), tasks)
    out: dict[str, Any] = {"observations": len(seen), "engines": {}}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        work = Path(folder)
        specs = engines(model)
        for name in ENGINES:
            export_engine(*specs[name], work / f"{name}.onnx")
        noise = fixed_noise(specs["world_model"][1]["noise"], specs["predictive"][1]["noise"])
        feeds = engine_feeds(OrtEngine(work / "world_model.onnx"), seen, noise)
        for name in ENGINES:
            source, shown, held_out = work / f"{name}.onnx", feeds[name][::2], feeds[name][1::2]
            ways: dict[str, Callable[[Path], object]] = {
                "recipe, onnxruntime": partial(by_recipe, "onnxruntime", name, source, shown),
                "recipe, tensorrt": partial(by_recipe, "tensorrt", name, source, shown),
                "ORT static": partial(runtime_static, source, shown),
                "modelopt, max": partial(modelopt, peers, "max", source, shown),
                "modelopt, entropy": partial(modelopt, peers, "entropy", source, shown),
            }
            reference = OrtEngine(source)
            rows: dict[str, dict[str, Any]] = {}
            for way, make in ways.items():
                target = work / f"{name}.{way.replace(', ', '-').replace(' ', '-')}.onnx"
                try:
                    make(target)
                    candidate = OrtEngine(target)
                except (subprocess.CalledProcessError, OSError, RuntimeError, ValueError) as e:
                    said = str(getattr(e, "stderr", "") or e).strip().splitlines()
                    rows[way] = {"failed": said[-1] if said else type(e).__name__}
                    continue
                rows[way] = {
                    "cosine": {k: r["cosine"] for k, r in parity(reference, candidate, held_out).items()},
                    "weights": round(weight_bytes(target) / weight_bytes(source), 3),
                    "time": race(reference, candidate, held_out[0], rounds),
                    "tensorrt_lint": lint(target),
                }  # fmt: skip
            out["engines"][name] = rows
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = compare(given.checkpoint, given.peers, given.rounds)
    print("| engine | way | worst cosine (least allowed) | weights | times FP32 | complaints of the TensorRT linter |")
    print("|---|---|---|---|---|---|")
    for name, engine in result["engines"].items():
        for way, row in engine.items():
            if "failed" in row:
                print(f"| {name} | {way} | failed: {row['failed']} | | | |")
                continue
            tensor, worst = min(row["cosine"].items(), key=lambda kv: kv[1] - COSINE.get(kv[0], 0.99))
            print(
                f"| {name} | {way} | {tensor} {worst:.4f} ({COSINE.get(tensor, 0.99)}) | {row['weights']} | {row['time']['speedup']}x "
                f"| {len(row['tensorrt_lint'])} |"
            )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
