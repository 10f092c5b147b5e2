"""Where to quantise, by measurement: each group of layers is switched to INT8 alone; error and time say which are worth it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from common.files import write_whole
from export.bundle import engine_feeds, observation_feeds, samples_path, task_embeddings
from export.checkpoint import load_checkpoint
from export.gates import COSINE, ExportError, parity, race
from export.onnx import engines, export_engine
from export.quantise import CALIBRATORS, layer_weights, load_recipe, quantise
from export.text import encoder_of
from runtime.engines.onnx import OrtEngine
from runtime.policies.harmowam import fixed_noise

LEAST_GAIN = 1.01  # speed-up of the whole engine that a group must bring to be worth its error


def groups(model: onnx.ModelProto) -> list[str]:
    """Layer groups of an engine: the weight's name up to its block and part, for example `world.down1.a` or `predictive.blocks.0.ff`."""
    names = set()
    for weight in layer_weights(model).values():
        parts = weight.removeprefix("m.").split(".")
        depth = 4 if len(parts) > 2 and parts[1] == "blocks" else 2
        if parts[0] == "world" and parts[1][:2] in ("do", "mi", "up") and len(parts) > 3:
            depth = 3
        names.add(".".join(parts[:depth]))
    return sorted(names)


def search(
    checkpoint: Path,
    out: Path,
    target: str = "onnxruntime",
    observations: int = 48,
    say: Callable[[str], None] = lambda line: None,
    samples: Path | None = None,
    text_encoder: Path | None = None,
) -> dict[str, Any]:
    """Write `recipe.json` and `search.json` into `out`; returns the latter.

    Per engine: cosine, speed-up and bytes with only that group in INT8; the calibrators compared on the groups that were chosen.
    Raises ExportError where `out` cannot be written, before minutes of measuring, and what reading checkpoint and samples raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ExportError(f"{out} cannot be made ({e.strerror}): name another --out.") from e
    model, _, instructions, _ = load_checkpoint(checkpoint)
    tasks = task_embeddings(model, instructions, encoder_of(model.cfg, text_encoder))
    seen = observation_feeds(samples or samples_path(checkpoint), tasks)
    seen = seen[:: max(1, len(seen) // observations)]
    base = load_recipe(target)
    report: dict[str, Any] = {"target": target, "observations": len(seen), "engines": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        specs = engines(model)
        for name, (module, inputs, outputs) in specs.items():
            export_engine(module, inputs, outputs, work / f"{name}.onnx")
        noise = fixed_noise(specs["world_model"][1]["noise"], specs["predictive"][1]["noise"])
        feeds = engine_feeds(OrtEngine(work / "world_model.onnx"), seen, noise)

        def attempt(name: str, patterns: list[str], calibration: str = base["calibration"]) -> dict[str, Any] | None:
            recipe = {**base, "calibration": calibration, "quantise": {name: patterns}}
            try:
                counts = quantise(work / f"{name}.onnx", work / "try.onnx", name, recipe, feeds[name][::2])
            except ValueError:
                return None  # too few channels
            reference, candidate = OrtEngine(work / f"{name}.onnx"), OrtEngine(work / "try.onnx")
            rows = parity(reference, candidate, feeds[name])
            return {
                "layers": counts["int8_layers"], "cosine": {k: r["cosine"] for k, r in rows.items()},
                "speedup": race(reference, candidate, feeds[name][0], 20)["speedup"],
                "bytes": round((work / "try.onnx").stat().st_size / (work / f"{name}.onnx").stat().st_size, 3),
            }  # fmt: skip

        def good(row: dict[str, Any]) -> bool:
            return all(v >= COSINE.get(k, 0.99) for k, v in row["cosine"].items())

        chosen: dict[str, list[str]] = {}
        for name in specs:
            table = {}
            for group in groups(onnx.load(work / f"{name}.onnx")):
                row = attempt(name, [re.escape(group) + r"\b"])
                if row is not None:
                    table[group] = row
                    say(f"{name:12} {group:28} cosine {min(row['cosine'].values()):.5f}  {row['speedup']:.2f}x")
            # Least harm per gain first; a group stays when the engine as a whole still passes its gates.
            # How fast TensorRT would be cannot be told here.
            worth = [g for g, r in table.items() if good(r) and (target != "onnxruntime" or r["speedup"] >= LEAST_GAIN)]
            worth.sort(key=lambda g: min(table[g]["cosine"].values()), reverse=True)
            while worth:
                patterns = [re.escape(g) + r"\b" for g in worth]
                whole = attempt(name, patterns)
                if whole is not None and good(whole):
                    break
                worth.pop()
            chosen[name] = [re.escape(g) + r"\b" for g in worth]
            calibrators = {c: attempt(name, chosen[name], c) for c in CALIBRATORS} if worth else {}
            report["engines"][name] = {"groups": table, "chosen": worth, "calibrators": calibrators}
    recipe = {k: v for k, v in base.items() if k not in ("target", "quantise")} | {"targets": {target: chosen}}
    for file, data in (("recipe.json", recipe), ("search.json", report)):
        write_whole(out / file, json.dumps(data, indent=1) + "\n")
    return report
