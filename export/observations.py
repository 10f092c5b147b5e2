"""Recorded observations on which INT8 is calibrated and checked. They lie beside their checkpoint."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from export.checkpoint import write_file
from export.data import Demonstrations
from export.gates import ExportError
from export.quantise import Feeds
from runtime.engines.onnx import Engine
from runtime.policies.decode import proprio

OBSERVATIONS = 256
LEAST = 32
SHOWN = slice(0, None, 4)  # calibration of INT8
JUDGED = slice(1, None, 2)  # comparison with FP32; no observation is in both


def pick_samples(data: Demonstrations, path: Path, count: int = OBSERVATIONS, seed: int = 0) -> None:
    """Store `count` recorded observations, spread over all episodes, as the calibration set (<= 5 MB)."""
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
    """Network inputs of the stored observations; raises ExportError where there are none."""
    if not samples.exists():
        raise ExportError(
            f"no calibration observations at {samples}: collect some with `harmowam collect` and pass --dataset; "
            "random data is never used."
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
            f"{samples} holds {len(raw['pose'])} observations, {LEAST} are the least that an INT8 range can be taken "
            "from: collect more."
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
                f"{samples} was recorded for '{raw['instruction'][i]}', which the checkpoint does not know: use its "
                "own samples."
            )
        out.append({**views, "proprio": proprio(raw["pose"][i])[None], "text": text[None]})
    return out


def engine_feeds(world: Engine, observations: list[Feeds], noise: dict[str, np.ndarray]) -> dict[str, list[Feeds]]:
    """Inputs of every engine for the same observations; latents, tokens and futures come from `world`."""
    out: dict[str, list[Feeds]] = {"world_model": [], "predictive": [], "fast": [], "decoder": []}
    for o in observations:
        feed = {"front": o["front"], "text": o["text"], "proprio": o["proprio"]}
        feed |= {"noise": noise["world_model"]} if "world_model" in noise else {}
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
