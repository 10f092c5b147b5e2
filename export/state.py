"""The state file of a training run: enough to resume bit for bit, small enough to carry to another machine.

A parameter that is being trained takes 9 bytes instead of the 16 of plain AdamW with a moving average:

    weight              24 of float32's 32 bits    3 bytes    relative error 2^-17, far below one step of AdamW
    moving average      its difference to the weight, float16    2
    first moment        bfloat16    2
    second moment       bfloat16    2

The *running* values are rounded in this way every ROUND_EVERY steps, whether the state is saved or not, and files are
written at these steps only: the run continues with exactly the values in the file, so a resumed run equals an
uninterrupted one. Finished parameters are float16 (a checkpoint ships in float16, and later stages train on what ships)
and take 2 bytes. Unchanged parameters are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from common.files import must_open
from export.checkpoint import CheckpointError, write_file

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names


@torch.no_grad()
def round_running(weight: Tensor, average: Tensor, moments: Mapping[str, Tensor]) -> None:
    """Round the values of one parameter, in place, to what the file can hold: packing them then loses nothing."""
    bits = weight.data.view(torch.int32)
    bits.add_(0x80).bitwise_and_(~0xFF)
    average.copy_(weight + (average - weight).half().float())
    for k in MOMENTS:
        moments[k].copy_(moments[k].bfloat16().float())


@torch.no_grad()
def round_finished(tensors: Mapping[str, Tensor]) -> None:
    """Round finished values, in place, to the half precision in which a checkpoint ships."""
    for v in tensors.values():
        v.copy_(v.half().to(v.dtype))


def pack_running(weight: Tensor, average: Tensor, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of one parameter as the file stores them; they must be rounded."""
    raw = weight.detach().cpu().flatten().view(torch.uint8).reshape(-1, 4)
    stored = {"weight": raw[:, 1:].contiguous(), "average": (average - weight).detach().half().cpu().contiguous()}
    return stored | {k: moments[k].bfloat16().cpu().contiguous() for k in MOMENTS}


def unpack_running(stored: Mapping[str, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weight, average and moments as float32, from the result of `pack_running`."""
    raw = torch.zeros(len(stored["weight"]), 4, dtype=torch.uint8)
    raw[:, 1:] = stored["weight"]
    weight = raw.view(torch.float32).reshape(shape)
    return weight, weight + stored["average"].float(), {k: stored[k].float() for k in MOMENTS}


def pack_finished(value: Tensor) -> Tensor:
    """Half precision where that is exact, otherwise unchanged."""
    half = value.detach().half()
    return (half if torch.equal(half.to(value.dtype), value) else value.detach()).cpu().contiguous()


def save_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    write_file(path, safetensors.torch.save(dict(tensors), {"state": json.dumps(about)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the `about` that was given to `save_state`; raises CheckpointError.

    Works while another process replaces the file: it is opened twice then, and torch rejects a file whose size changed
    in between.
    """
    try:
        must_open(path)
        with safetensors.safe_open(str(path), "pt") as f:
            names = f.keys()
            return {k: f.get_tensor(k) for k in names}, json.loads(f.metadata()["state"])
    except (OSError, RuntimeError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} is damaged ({e}): restore it, or delete it and the run begins anew.") from e


def difference(there: Any, here: Any, name: str = "") -> str | None:
    """The first setting in which two nested dictionaries differ, in words, or None."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = (difference(there.get(k), here.get(k), f"{name}.{k}" if name else k) for k in sorted({*there, *here}))
        return next((d for d in found if d), None)
    return None if there == here else f"{name} {there}, now {here}"
