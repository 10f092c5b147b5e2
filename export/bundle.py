"""Checkpoint to bundle: ONNX, explicit INT8 calibrated on real observations, parity against FP32, manifest."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.camera import Camera
from export.data import Demonstrations
from export.models import HarmoWam
from export.onnx import engines, export_engine
from export.quantise import Feeds, load_recipe, quantise
from export.text import ngrams
from export.train import load_checkpoint
from runtime.bundle import EngineFiles, Manifest, save_bundle
from runtime.decode import proprio
from runtime.engine import Engine, OrtEngine
from runtime.kinematics import SO101_LOWER, SO101_UPPER, So101Links

CHECKPOINT = Path(__file__).parent / "checkpoints" / "harmowam-so101.safetensors"
OBSERVATIONS = 256
JOINT_NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


class ExportError(Exception):
    """An export that must not leave the workstation; the text says why and what to do next."""


def samples_path(checkpoint: Path) -> Path:
    """Calibration observations lie beside their checkpoint."""
    return checkpoint.with_suffix(".samples.npz")


def pick_samples(data: Demonstrations, path: Path, count: int = OBSERVATIONS, seed: int = 0) -> None:
    """Store `count` real observations, spread over all episodes, as the calibration set (<= 5 MB)."""
    rows = np.sort(np.random.default_rng(seed).choice(len(data.pose), count, replace=False))
    np.savez_compressed(
        path,
        front=data.front[rows],
        wrist=data.wrist[rows],
        pose=data.pose[rows],
        instruction=np.array([data.instructions[e] for e in data.episode[rows]]),
    )


def observation_feeds(samples: Path, tasks: dict[str, np.ndarray]) -> list[Feeds]:
    """Network inputs of the stored observations; raises ExportError without real ones."""
    if not samples.exists():
        raise ExportError(
            f"no calibration observations at {samples}: collect some with `harmowam collect` and pass --dataset; random data is never used."
        )
    try:
        with np.load(samples) as arrays:
            raw = {k: arrays[k] for k in ("front", "wrist", "pose", "instruction")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise ExportError(
            f"{samples} holds no calibration observations ({e}): take those that lie beside the checkpoint."
        ) from e
    out = []
    for i in range(len(raw["pose"])):
        views = {k: (raw[k][i][None].astype(np.float32) / 127.5 - 1.0).astype(np.float32) for k in ("front", "wrist")}
        text = tasks.get(str(raw["instruction"][i]))
        if text is None:
            raise ExportError(
                f"{samples} was recorded for '{raw['instruction'][i]}', which the checkpoint does not know: use its own samples."
            )
        out.append({**views, "proprio": proprio(raw["pose"][i])[None], "text": text[None]})
    return out


def engine_feeds(world: Engine, observations: list[Feeds], noise: dict[str, np.ndarray]) -> dict[str, list[Feeds]]:
    """Inputs of every engine for the same observations; what is made by the world model comes from `world`."""
    out: dict[str, list[Feeds]] = {"world_model": [], "predictive": [], "fast": [], "decoder": []}
    for o in observations:
        feed = {"front": o["front"], "text": o["text"], "proprio": o["proprio"], "noise": noise["world_model"]}
        made = {k: v.copy() for k, v in world.run(feed).items()}
        out["world_model"].append(feed)
        out["predictive"].append(
            {
                "wrist": o["wrist"],
                "latent": made["latent"],
                "tokens": made["tokens"],
                "proprio": o["proprio"],
                "noise": noise["predictive"],
            }
        )
        out["fast"].append(
            {"front": o["front"], "wrist": o["wrist"], "future": made["future"], "proprio": o["proprio"]}
        )
        out["decoder"].append({"future": made["future"]})
    return out


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two stacks [N, ...] after subtracting the first one's mean over N: a shared offset proves nothing."""
    centre = a.mean(0, keepdims=True)
    x, y = (a - centre).ravel().astype(float), (b - centre).ravel().astype(float)
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))


def parity(reference: Engine, candidate: Engine, feeds: list[Feeds]) -> dict[str, dict[str, float]]:
    """Per output tensor: cosine, largest absolute error, root mean square error."""
    pairs: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {k: ([], []) for k in reference.outputs}
    for feed in feeds:
        a = {k: v.copy() for k, v in reference.run(feed).items()}
        b = candidate.run(feed)
        for k, (x, y) in pairs.items():
            x.append(a[k].copy())
            y.append(b[k].copy())
    out = {}
    for k, (x, y) in pairs.items():
        p, q = np.stack(x), np.stack(y)
        out[k] = {
            "cosine": round(cosine(p, q), 6),
            "max_abs": round(float(np.abs(p - q).max()), 6),
            "rms": round(float(np.sqrt(((p - q) ** 2).mean())), 6),
        }
    return out


def fixed_noise(world_shape: tuple[int, ...], action_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The noise that the robot uses (runtime.steps draws the same)."""
    rng = np.random.default_rng(0)
    return {
        "world_model": rng.standard_normal(world_shape).astype(np.float32),
        "predictive": rng.standard_normal(action_shape).astype(np.float32),
    }


def task_embeddings(model: HarmoWam, instructions: list[str]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {
            s: model.world.embed(torch.from_numpy(ngrams(s, model.cfg.text_ngrams))[None])[0].numpy()
            for s in instructions
        }


def manifest_for(
    model: HarmoWam, cameras: dict[str, Camera], tasks: dict[str, np.ndarray], quantisation: dict[str, Any]
) -> Manifest:
    """Everything the robot must know, from the checkpoint alone: no dates, no paths."""
    c = model.cfg
    return Manifest(
        name="harmowam-so101",
        licence="Apache-2.0",
        arm_family="so101",
        engines={
            name: EngineFiles(f"onnx/{name}.onnx", {k: list(s) for k, s in inputs.items()}, outputs)
            for name, (_, inputs, outputs) in engines(model).items()
        },
        preprocess={"size": [c.image, c.image], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        cameras={k: v.to_json() for k, v in sorted(cameras.items())},
        joints=[
            {"name": n, "lower": float(a), "upper": float(b)}
            for n, a, b in zip(JOINT_NAMES, SO101_LOWER, SO101_UPPER, strict=True)
        ],
        links={k: float(v) for k, v in vars(So101Links()).items()},
        tasks={k: [float(x) for x in v] for k, v in tasks.items()},
        rates={"fast_hz": 50.0, "slow_hz": 8.0, "motor_hz": 100.0},
        chunk={"steps": c.chunk, "dt_ms": round(c.chunk_dt_s * 1000)},
        proprio=list(c.proprio),
        gate={"on": 0.5, "off": 0.2},
        reactive={"heatmap": c.heatmap},
        quantization=quantisation,
    )


def export_bundle(
    checkpoint: Path,
    out: Path,
    samples: Path | None = None,
    int8: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the bundle `out`; returns the parity report. With `int8` False the engines stay FP32 (the reference)."""
    model, cameras, instructions, note = load_checkpoint(checkpoint)
    tasks = task_embeddings(model, instructions)
    observations = observation_feeds(samples or samples_path(checkpoint), tasks)
    recipe = load_recipe()
    report: dict[str, Any] = {"checkpoint": note, "observations": len(observations), "engines": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        specs = engines(model)
        for name, (module, inputs, outputs) in specs.items():
            say(f"{name}: torch to ONNX")
            export_engine(module, inputs, outputs, work / f"{name}.fp32.onnx")
        noise = fixed_noise(specs["world_model"][1]["noise"], specs["predictive"][1]["noise"])
        reference = {name: OrtEngine(work / f"{name}.fp32.onnx") for name in specs}
        feeds = engine_feeds(reference["world_model"], observations, noise)
        files: dict[str, Path] = {}
        counts = {}
        for name in specs:
            path = work / f"{name}.fp32.onnx"
            if int8:
                say(f"{name}: INT8 from {len(observations)} observations, parity against FP32")
                path = work / f"{name}.int8.onnx"
                counts[name] = quantise(work / f"{name}.fp32.onnx", path, name, recipe, feeds[name][::4])
            files[f"onnx/{name}.onnx"] = path
            report["engines"][name] = {
                **counts.get(name, {}),
                "megabytes": round(path.stat().st_size / 1e6, 2),
                "fp32_megabytes": round((work / f"{name}.fp32.onnx").stat().st_size / 1e6, 2),
                "parity": parity(reference[name], OrtEngine(path), feeds[name][::2]),
            }
        quantisation = {"format": "int8 qdq", "recipe": recipe, "layers": counts} if int8 else {"format": "fp32"}
        stored = work / "samples.npz"
        shutil.copy(samples or samples_path(checkpoint), stored)
        files["samples.npz"] = stored
        report_path = work / "parity.json"
        report_path.write_text(json.dumps(report, indent=1, sort_keys=True))
        save_bundle(out, manifest_for(model, cameras, tasks, quantisation), files, reports={"parity.json": report_path})
    return report
