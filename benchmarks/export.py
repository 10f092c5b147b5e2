"""One slow and one fast tick side by side: torch eager, FP32 ONNX Runtime, and the bundle's engines. One thread, batch
1.

python -m benchmarks.export --bundle out/so101.bundle [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.checkpoint import load_checkpoint
from export.gates import weight_bytes
from export.onnx import engines, export_engine
from export.origin import CHECKPOINT
from runtime.bundle import Bundle
from runtime.engines.onnx import OrtEngine

TICK = ("world_model", "predictive", "fast")


def compare(bundle: Bundle, checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Per engine and in total: median, p99 and fastest milliseconds of each way, taken in turns."""
    torch.set_num_threads(1)
    model = load_checkpoint(checkpoint)[0].eval()
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }
    out["engines"] = {}
    sizes = [0, 0]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, (module, inputs, outputs) in engines(model).items():
            if name not in TICK:
                continue
            source = Path(folder) / f"{name}.onnx"
            export_engine(module, inputs, outputs, source)
            sizes[0] += weight_bytes(bundle.path / bundle.manifest.engines[name].file)
            sizes[1] += weight_bytes(source)
            feeds = {k: rng.standard_normal(s).astype(np.float32) for k, s in inputs.items()}
            tensors = [torch.from_numpy(v) for v in feeds.values()]
            float32, shipped = OrtEngine(source), bundle.engine(name)
            ways: dict[str, Callable[[], Any]] = {
                "torch": lambda m=module, t=tensors: m(*t),  # type: ignore[misc]
                "fp32": lambda e=float32, f=feeds: e.run(f),  # type: ignore[misc]
                "bundle": lambda e=shipped, f=feeds: e.run(f),  # type: ignore[misc]
            }
            taken: dict[str, list[float]] = {w: [] for w in ways}
            for i in range(rounds + 5):
                for way, run in ways.items():
                    began = time.perf_counter()
                    run()
                    if i >= 5:
                        taken[way].append(1e3 * (time.perf_counter() - began))
            out["engines"][name] = {
                w: {"median": float(np.median(t)), "p99": float(np.percentile(t, 99)), "min": min(t)}
                for w, t in taken.items()
            }
    for key in ("median", "min"):
        total = {w: sum(e[w][key] for e in out["engines"].values()) for w in ("torch", "fp32", "bundle")}
        out[f"tick_{key}_ms"] = total
        out[f"{key}_over_bundle"] = {w: total[w] / total["bundle"] for w in ("torch", "fp32")}
    out["weight_ratio"] = sizes[0] / sizes[1]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("out/so101.bundle"))
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = compare(Bundle.load(given.bundle), given.checkpoint, given.rounds)
    print(f"{'median / p99, ms':18}{'torch eager':>18}{'ORT FP32':>18}{'bundle':>18}")
    for name, ways in result["engines"].items():
        print(f"{name:18}" + "".join(f"{w['median']:10.2f} /{w['p99']:6.2f}" for w in ways.values()))
    for key in ("median", "min"):
        total, ratio = result[f"tick_{key}_ms"], result[f"{key}_over_bundle"]
        print(f"tick, {key:12}" + "".join(f"{v:18.2f}" for v in total.values()))
        print(
            f"  bundle is {ratio['fp32']:.2f}x faster than ORT FP32 and {ratio['torch']:.2f}x faster than torch eager"
        )
    print(f"weights: {result['weight_ratio']:.3f} of FP32 bytes")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
