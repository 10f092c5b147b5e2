"""LeRobot folders with weights that follow from their names, written without lerobot, and observations for them.

`make_lerobot_golden.py` gives lerobot's own policies the same weights and stores what they answer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

GOLDEN = Path(__file__).parent / "golden" / "lerobot.json"


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """A weight that keeps the size of what passes through it; variances are positive."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return 1 + 0.5 * np.abs(x)
    if len(shape) > 1:
        return x / np.float32(np.sqrt(np.prod(shape[1:])))
    return (1 if name.endswith("weight") else 0) + np.float32(0.1) * x


def observation(features: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Pictures float32[3,h,w] from 0 to 1, in steps of a camera, and a state float32[J]."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, feature in sorted(features.items()):
        if feature["type"] == "VISUAL":
            made[name] = (rng.integers(0, 256, feature["shape"]) / 255).astype(np.float32)
        else:
            made[name] = rng.uniform(-1, 1, feature["shape"]).astype(np.float32)
    return made


def golden(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())[case]
    return found


def write_folder(folder: Path, case: Mapping[str, Any], weights: Mapping[str, np.ndarray] | None = None) -> Path:
    """The folder that lerobot saved, with the weights that follow from their names (or `weights`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in case["files"].items():
        (folder / name).write_text(json.dumps(content))
    for name, state in case["states"].items():
        tensors = {k: np.array(v, np.float32) for k, v in state.items()}
        safetensors.numpy.save_file(tensors, folder / name)
    made = weights or {k: weight(k, shape) for k, shape in case["shapes"].items()}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in made.items()}, folder / "model.safetensors")
    return folder


def small(case: Mapping[str, Any]) -> dict[str, Any]:
    """The case with a ResNet of a fraction of the channels: written, read and exported in a fraction of the time."""
    narrow = {64: 16, 128: 16, 256: 32, 512: 32}
    inside = ("backbone", "img_feat_input_proj.weight", "pool.nets.weight")
    shapes = {
        k: [narrow.get(n, n) for n in shape] if any(part in k for part in inside) else shape
        for k, shape in case["shapes"].items()
    }
    return {**case, "shapes": shapes}
