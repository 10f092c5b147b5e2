"""What Euler steps cost: the world model and the predictive expert at 1, 2, 4 and 8 of them, taken in turns.

`python -m benchmarks.steps [--checkpoint FILE] [--rounds N]`: FP32 ONNX Runtime, one thread, batch 1. A student of one step costs what one
step costs, whatever its weights; so the ratio of 8 to 1 is how much faster than its teacher it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from export.bundle import CHECKPOINT
from export.checkpoint import load_checkpoint
from export.onnx import engines, export_engine
from runtime.engines.onnx import OrtEngine

STEPS = (1, 2, 4, 8)
ENGINES = ("world_model", "predictive")


def times(checkpoint: Path, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds of every round, by engine and number of steps."""
    model = load_checkpoint(checkpoint)[0].eval()
    rng = np.random.default_rng(0)
    taken: dict[str, dict[int, list[float]]] = {name: {n: [] for n in STEPS} for name in ENGINES}
    ways = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for steps in STEPS:
            model.cfg = dataclasses.replace(model.cfg, world_steps=steps, action_steps=steps)
            for name in ENGINES:
                module, inputs, outputs = engines(model)[name]
                path = Path(folder) / f"{name}{steps}.onnx"
                export_engine(module, inputs, outputs, path)
                feeds = {k: rng.standard_normal(s).astype(np.float32) for k, s in inputs.items()}
                ways.append((name, steps, OrtEngine(path), feeds))
        for i in range(rounds + 5):
            for name, steps, engine, feeds in ways:
                began = time.perf_counter()
                engine.run(feeds)
                if i >= 5:
                    taken[name][steps].append(1e3 * (time.perf_counter() - began))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    taken = times(args.checkpoint, args.rounds)
    taken["slow tick"] = {n: [sum(t) for t in zip(*(taken[e][n] for e in ENGINES), strict=True)] for n in STEPS}
    print(
        f"{'median / p99, ms':18}" + "".join(f"{f'{n} step' + 's' * (n > 1):>18}" for n in STEPS) + f"{'8 over 1':>12}"
    )
    for name, by in taken.items():
        cells = "".join(f"{np.median(by[n]):9.2f} /{np.percentile(by[n], 99):7.2f}" for n in STEPS)
        print(f"{name:18}{cells}{np.median(by[8]) / np.median(by[1]):11.1f}x")


if __name__ == "__main__":
    main()
