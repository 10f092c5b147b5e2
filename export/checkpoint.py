"""Checkpoints: one safetensors file that holds everything an export needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from calibration.camera import Camera
from common.errors import Mendable
from common.files import must_open, write_whole
from export.config import Config
from export.models import HarmoWam
from runtime.bundle import sha256


class CheckpointError(Mendable):
    """A checkpoint that cannot be used; the text says why and what to do next."""


def write_file(path: Path, content: bytes) -> None:
    """Write the whole file or nothing. Raises CheckpointError; the file that was there is then untouched."""
    try:
        write_whole(path, content)
    except OSError as e:
        kept = "the file saved before is untouched" if path.exists() else "nothing was saved before"
        raise CheckpointError(
            f"{path} cannot be written ({e.strerror}), {kept}: make room there and run the same command again."
        ) from e


def save_checkpoint(
    path: Path, model: HarmoWam, cameras: dict[str, Camera], instructions: list[str], note: dict[str, object]
) -> None:
    """Write weights, configuration, training cameras and instructions as one safetensors file.

    Raises CheckpointError when it cannot be written.
    """
    # float16 halves the file. The export reads these rounded numbers, so the loss is the same everywhere.
    tensors = {k: v.detach().to(torch.float16).contiguous().cpu() for k, v in model.state_dict().items()}
    metadata = {
        "config": json.dumps(dataclasses.asdict(model.cfg), sort_keys=True),
        "cameras": json.dumps({k: c.to_json() for k, c in cameras.items()}, sort_keys=True),
        "instructions": json.dumps(sorted(instructions)),
        "note": json.dumps(note, sort_keys=True),
    }
    write_file(path, safetensors.torch.save(tensors, metadata))


def load_checkpoint(path: Path, grow: bool = False) -> tuple[HarmoWam, dict[str, Camera], list[str], dict[str, object]]:
    """Model in evaluation mode, training cameras, instructions, note; raises CheckpointError.

    With `grow`, layers that the checkpoint lacks keep their initial weights, to be trained.
    """
    try:
        must_open(path)
        with safetensors.safe_open(str(path), "pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118  (not a dict)
        raw = json.loads(metadata["config"])
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        cfg = Config(**settings)
        cameras = {k: Camera.from_json(v, str(path)) for k, v in json.loads(metadata["cameras"]).items()}
        instructions, note = json.loads(metadata["instructions"]), json.loads(metadata["note"])
    except FileNotFoundError as e:
        raise CheckpointError(
            f"checkpoint {path} does not exist: train one with `harmowam train` or name another."
        ) from e
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError) as e:
        raise CheckpointError(
            f"checkpoint {path} is damaged or from another version ({e}): restore it or train again."
        ) from e
    model = HarmoWam(cfg)
    try:
        model.load_state_dict({**model.state_dict(), **tensors} if grow else tensors)
    except RuntimeError as e:
        raise CheckpointError(
            f"checkpoint {path} does not fit its own configuration: restore it or train again."
        ) from e
    return model.eval(), cameras, instructions, note


def average(
    before: Path, after: Path, share: float = 0.5
) -> tuple[HarmoWam, dict[str, Camera], list[str], dict[str, object]]:
    """Like `load_checkpoint` of `after`, with weights (1 - share) x `before` + share x `after`; `after` was fine-tuned
    from `before`.

    The mean of two such models keeps what either does well (WiSE-FT: Wortsman et al. 2022, arXiv 2109.01903). Raises
    CheckpointError where configuration or normalisation differ, because one was then not made from the other.
    """
    old, _, _, _ = load_checkpoint(before)
    new, cameras, instructions, note = load_checkpoint(after)
    scales = dict(new.named_buffers())
    if old.cfg != new.cfg or not all(torch.equal(b, scales[name]) for name, b in old.named_buffers()):
        raise CheckpointError(
            f"{after} was not fine-tuned from {before}: only such weights can be averaged, name a checkpoint and one "
            "that `train --from` made of it."
        )
    weights = new.state_dict()
    new.load_state_dict({k: torch.lerp(v, weights[k], share) for k, v in old.state_dict().items()})
    return new, cameras, instructions, {**note, "averaged": {"with": sha256(before), "share": share}}
