"""What a bundle was exported from, as its manifest says it: enough to tell whether an export would make the same again.
Loads no torch, so that a program that drives an arm may ask."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, BundleError, sha256

CHECKPOINT = Path(__file__).parent / "checkpoints" / "harmowam-so101.safetensors"
RECIPE = Path(__file__).parent / "recipe.json"
CALIBRATIONS = ("minmax", "percentile", "entropy")


def samples_path(checkpoint: Path) -> Path:
    """The file of calibration observations beside a checkpoint."""
    return checkpoint.with_suffix(".samples.npz")


def load_recipe(target: str = "onnxruntime", path: Path = RECIPE) -> dict[str, Any]:
    """The committed recipe for one inference engine: {"target", "calibration", "min_channels", "quantise": {engine:
    patterns}}, and for TensorRT "kernels": most kernels of each engine by precision, with "steps", the numbers of Euler
    steps that they hold for.

    Raises ValueError for an unknown target or calibration.
    """
    raw = json.loads(path.read_text())
    if raw["calibration"] not in CALIBRATIONS:
        raise ValueError(
            f"{path.name} asks for the calibration '{raw['calibration']}': there is {', '.join(CALIBRATIONS)}"
        )
    if target not in raw["targets"]:
        raise ValueError(f"{path.name} has no recipe for '{target}': it knows {', '.join(raw['targets'])}")
    left_out = ("targets",) if target == "tensorrt" else ("targets", "kernels")
    kept = {k: v for k, v in raw.items() if k not in left_out}
    return {**kept, "target": target, "quantise": raw["targets"][target]}


def origin(
    checkpoint: Path, samples: Path, recipe: dict[str, Any], precision: str, **steps: int | None
) -> dict[str, Any]:
    """What an export depends on: hashes of its files and its recipe, precision, and numbers of Euler steps where they
    are not the checkpoint's own. Raises OSError for a file that is absent."""
    text = json.dumps(recipe, sort_keys=True)
    return {
        "checkpoint": sha256(checkpoint),
        "samples": sha256(samples),
        "recipe": hashlib.sha256(text.encode()).hexdigest(),
        "precision": precision,
        **{k: v for k, v in steps.items() if v is not None},
    }


def shipped() -> dict[str, Any]:
    """The origin of what `harmowam export` makes without options."""
    return origin(CHECKPOINT, samples_path(CHECKPOINT), load_recipe(), "int8")


def made_from(bundle: Path, wanted: dict[str, Any]) -> bool:
    """Whether `bundle` is whole, passed the gates of its export, and was exported from `wanted` (`origin`)."""
    try:
        said = Bundle.load(bundle).manifest.quantization
    except BundleError:
        return False
    return said.get("origin") == wanted and not said.get("failed")
