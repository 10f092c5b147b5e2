"""Checkpoint to bundle: ONNX, explicit INT8 calibrated on real observations, parity against FP32, manifest."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.camera import Camera
from export.checkpoint import load_checkpoint, write_file
from export.data import Demonstrations
from export.gates import ExportError, joint_error, missed, parity, race, weight_bytes
from export.half import to_half
from export.lint import lint
from export.models import HarmoWam
from export.onnx import engines, export_engine
from export.quantise import Feeds, left_in_float, load_recipe, quantise
from export.text import Encoder, encoder_of
from runtime.bundle import check_replaceable, save_bundle
from runtime.engines.onnx import Engine, OrtEngine
from runtime.manifest import Chunk, EngineFiles, Gate, JointLimits, Manifest, Preprocess, Rates, Reactive
from runtime.policies.decode import proprio
from runtime.policies.harmowam import fixed_noise
from sim.tasks import ARM

CHECKPOINT = Path(__file__).parent / "checkpoints" / "harmowam-so101.safetensors"
OBSERVATIONS = 256
LEAST = 32
SHOWN, JUDGED = (
    slice(0, None, 4),
    slice(1, None, 2),
)  # observations: what INT8 is calibrated with, and others that it is judged by


def samples_path(checkpoint: Path) -> Path:
    """Calibration observations lie beside their checkpoint."""
    return checkpoint.with_suffix(".samples.npz")


def pick_samples(data: Demonstrations, path: Path, count: int = OBSERVATIONS, seed: int = 0) -> None:
    """Store `count` real observations, spread over all episodes, as the calibration set (<= 5 MB)."""
    candidates = np.flatnonzero(~data.play)
    rows = np.sort(np.random.default_rng(seed).choice(candidates, min(count, len(candidates)), replace=False))
    stored = io.BytesIO()
    np.savez_compressed(
        stored,
        front=data.front[rows],
        wrist=data.wrist[rows],
        pose=data.pose[rows],
        instruction=np.array([data.instructions[e] for e in data.episode[rows]]),
    )
    write_file(path, stored.getvalue())


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
    if len(raw["pose"]) < LEAST:
        raise ExportError(
            f"{samples} holds {len(raw['pose'])} observations, {LEAST} are the least that an INT8 range can be taken from: collect more."
        )
    bad = [k for k in ("front", "wrist", "pose") if not np.isfinite(raw[k]).all()]
    if bad:
        raise ExportError(f"'{bad[0]}' in {samples} holds values that are not finite: record the observations again.")
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


def task_embeddings(model: HarmoWam, instructions: list[str], encode: Encoder) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {s: model.world.embed(torch.from_numpy(encode(s))[None])[0].numpy() for s in instructions}


def manifest_for(
    model: HarmoWam, cameras: dict[str, Camera], tasks: dict[str, np.ndarray], quantisation: dict[str, Any]
) -> Manifest:
    """Everything the robot must know, from the checkpoint alone: no dates, no paths."""
    c = model.cfg
    return Manifest(
        name=f"harmowam-{ARM.NAME}",
        licence="Apache-2.0",
        arm_family=ARM.NAME,
        engines={
            name: EngineFiles(f"onnx/{name}.onnx", {k: list(s) for k, s in inputs.items()}, outputs)
            for name, (_, inputs, outputs) in engines(model).items()
        },
        preprocess=Preprocess([c.image, c.image], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        cameras={k: v.to_json() for k, v in sorted(cameras.items())},
        joints=[JointLimits(n, float(a), float(b)) for n, a, b in zip(ARM.JOINTS, ARM.LOWER, ARM.UPPER, strict=True)],
        links=ARM.lengths,
        tasks={k: [float(x) for x in v] for k, v in tasks.items()},
        rates=Rates(fast_hz=50.0, slow_hz=8.0, motor_hz=100.0),
        chunk=Chunk(
            c.chunk, round(c.chunk_dt_s * 1000), model.action_mean.double().tolist(), model.action_std.double().tolist()
        ),
        proprio=list(c.proprio),
        gate=Gate(on=0.5, off=0.2),
        reactive=Reactive(c.heatmap),
        quantization=quantisation,
    )


def export_bundle(
    checkpoint: Path,
    out: Path,
    samples: Path | None = None,
    int8: bool = True,
    say: Callable[[str], None] = lambda line: None,
    target: str = "onnxruntime",
    force: bool = False,
    recipe: dict[str, Any] | None = None,
    world_steps: int | None = None,
    action_steps: int | None = None,
    text_encoder: Path | None = None,
    timed: bool = True,
    half: bool = False,
) -> dict[str, Any]:
    """Write the bundle `out`; returns the report. With `int8` False the engines stay FP32 (the reference); with `half` what is float
    becomes float16 (`export.half`), for TensorRT.

    `world_steps`, `action_steps`: other numbers of Euler steps than the checkpoint's own (the undistilled control of a student, say).
    `text_encoder`: folder of the sentence encoder, where the checkpoint was trained with another than the default.
    `timed` False judges only what repeats exactly, not speed: tests must not fail because a machine is busy or has no INT8 instructions.
    Raises ExportError, and writes nothing, when a gate of `export.gates` is missed or `export.lint` objects; with `force` the
    bundle is written all the same and its manifest lists what failed.
    """
    began = time.monotonic()
    check_replaceable(out)
    model, cameras, instructions, note = load_checkpoint(checkpoint)
    model.cfg = dataclasses.replace(
        model.cfg, world_steps=world_steps or model.cfg.world_steps, action_steps=action_steps or model.cfg.action_steps
    )
    tasks = task_embeddings(model, instructions, encoder_of(model.cfg, text_encoder))
    source = samples or samples_path(checkpoint)
    observations = observation_feeds(source, tasks)
    recipe = recipe or load_recipe(target)
    report: dict[str, Any] = {
        "checkpoint": note, "observations": len(observations), "target": target, "engines": {},
        "steps": {"world": model.cfg.world_steps, "action": model.cfg.action_steps},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        specs = engines(model)
        float_files = {name: work / f"{name}.fp32.onnx" for name in specs}
        for name, (module, inputs, outputs) in specs.items():
            say(f"{name}: torch to ONNX")
            export_engine(module, inputs, outputs, float_files[name])
        noise = fixed_noise(specs["world_model"][1]["noise"], specs["predictive"][1]["noise"])
        reference = {name: OrtEngine(path) for name, path in float_files.items()}
        feeds = engine_feeds(reference["world_model"], observations, noise)
        shipped, counts = dict(float_files), {}
        for name in specs if int8 else ():
            if name not in recipe["quantise"]:
                raise ExportError(
                    f"the recipe does not know the engine '{name}': take one that `harmowam export --search` wrote."
                )
            if not recipe["quantise"][name]:  # nothing in it was worth it where the recipe was found
                counts[name] = {"int8_layers": 0}
                continue
            say(f"{name}: INT8 from {len(observations[SHOWN])} observations")
            shipped[name] = work / f"{name}.int8.onnx"
            try:
                counts[name] = quantise(float_files[name], shipped[name], name, recipe, feeds[name][SHOWN])
            except ValueError as e:
                raise ExportError(
                    f"the recipe cannot be used: {e}. Take one that `harmowam export --search` wrote."
                ) from e
        for name, path in list(shipped.items()) if half else ():
            say(f"{name}: FP16")
            shipped[name] = work / f"{name}.half.onnx"
            to_half(path, shipped[name])
        complaints = [f"{name}: {c}" for name, path in shipped.items() for c in lint(path, target)]
        if complaints:
            raise ExportError(f"{complaints[0]} ({len(complaints)} complaints in all): mend the model or the recipe.")
        if int8 and target == "onnxruntime" and (idle := [w for path in shipped.values() for w in left_in_float(path)]):
            raise ExportError(
                f"ONNX Runtime would compute {idle[0]} ({len(idle)} layers in all) in float: leave them out of the recipe."
            )
        candidate = {name: OrtEngine(path) for name, path in shipped.items()} if int8 or half else reference
        for name, path in shipped.items():
            say(f"{name}: compared with FP32")
            report["engines"][name] = {
                **counts.get(name, {}),
                "megabytes": round(path.stat().st_size / 1e6, 2),
                "fp32_megabytes": round(float_files[name].stat().st_size / 1e6, 2),
                "weight_bytes": weight_bytes(path),
                "fp32_weight_bytes": weight_bytes(float_files[name]),
                "parity": parity(reference[name], candidate[name], feeds[name][JUDGED]),
                "time": race(reference[name], candidate[name], feeds[name][0]),
            }
        with np.load(source) as stored:
            poses = stored["pose"][JUDGED]
        report["joints_deg"] = joint_error(
            reference, candidate, feeds["world_model"][JUDGED], feeds["predictive"][JUDGED], poses
        )
        report["missed"] = missed(report, speed=timed and int8 and target == "onnxruntime")
        if report["missed"] and not force:
            raise ExportError(
                f"{report['missed'][0]} ({len(report['missed'])} gates missed, nothing was written): find another recipe with "
                "`harmowam export --search`, or write it marked as failed with --force."
            )
        quantisation: dict[str, Any] = {"format": "fp16" if half else "fp32"}
        if int8:
            quantisation = {"format": "int8 qdq", "target": target, "recipe": recipe, "layers": counts}
            quantisation["float"] = "float16" if half else "float32"
        # Times differ from run to run, so only what repeats exactly may enter the hashed manifest.
        if report["missed"]:
            quantisation["failed"] = True
        files = {f"onnx/{name}.onnx": path for name, path in shipped.items()}
        files["samples.npz"] = work / "samples.npz"
        shutil.copy(source, files["samples.npz"])
        report["seconds"] = round(time.monotonic() - began, 1)
        report_path = work / "parity.json"
        report_path.write_text(json.dumps(report, indent=1, sort_keys=True))
        save_bundle(out, manifest_for(model, cameras, tasks, quantisation), files, reports={"parity.json": report_path})
    return report
