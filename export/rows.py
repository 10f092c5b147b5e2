"""The rows of a dataset as tensors, and a disk cache of what frozen parts of a model compute from them.

Encoding and imagining every row takes minutes. It is done in blocks, each a file in the run's folder: an interrupted
run reuses the existing files, and processes share the work. Deleting the files costs only the time to compute them
again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from common.files import must_open
from export.checkpoint import CheckpointError, write_file
from export.data import Demonstrations

BLOCK, PIECE = 4096, 128  # rows per file, and per pass through a network


def digest_of(data: Demonstrations) -> str:
    """Identifies a dataset by its arm motion and by some of its pictures: hashing all pictures would take long."""
    texts = "\n".join(data.instructions).encode()
    some = slice(None, None, max(1, len(data.front) // 64))
    pictures = data.front[some].tobytes() + data.wrist[some].tobytes()
    return hashlib.sha256(data.pose.tobytes() + data.target.tobytes() + texts + pictures).hexdigest()[:16]


def images(raw: np.ndarray, device: torch.device = torch.device("cpu")) -> Tensor:
    """Pictures uint8[B,3,96,96] as float32 in [-1, 1] on `device`, as the robot's pre-processing gives them."""
    return torch.from_numpy(np.require(raw, requirements="W")).to(device).float().div_(127.5).sub_(1.0)


def _blocks(folder: Path, n: int) -> list[tuple[Path, np.ndarray]]:
    return [(folder / f"{i // BLOCK:05d}.safetensors", np.arange(i, min(i + BLOCK, n))) for i in range(0, n, BLOCK)]


@torch.no_grad()
def make_blocks(
    folder: Path, name: str, make: Callable[[np.ndarray], tuple[Tensor, ...]], n: int, rank: int = 0, processes: int = 1
) -> None:
    """Write the missing blocks of `make(rows)` that are this process's share; float16, rows on the first axis.

    The result of `make` must depend on nothing but its rows. Raises CheckpointError when the disk is full.
    """
    owed = [b for b in _blocks(folder, n)[rank::processes] if not b[0].exists()]
    for path, rows in tqdm(owed, desc=name, mininterval=5, leave=False, disable=rank > 0 or len(owed) < 2):
        pieces = [make(r) for r in np.split(rows, range(PIECE, len(rows), PIECE))]
        parts = {str(k): torch.cat(x).half().cpu().contiguous() for k, x in enumerate(zip(*pieces, strict=True))}
        write_file(path, safetensors.torch.save(parts))


def read_blocks(folder: Path, n: int, device: torch.device) -> tuple[Tensor, ...]:
    """All blocks, concatenated; raises CheckpointError for a damaged one."""
    out: dict[str, Tensor] = {}
    for path, rows in _blocks(folder, n):
        try:
            must_open(path)
            parts = safetensors.torch.load_file(str(path))
        except (OSError, safetensors.SafetensorError) as e:
            raise CheckpointError(f"{path} is damaged ({e}): delete it, it will be made again.") from e
        for k, v in parts.items():
            if k not in out:
                out[k] = torch.empty(n, *v.shape[1:], dtype=v.dtype, device=device)
            out[k][rows[0] : rows[-1] + 1] = v.to(device)
    return tuple(out[k] for k in sorted(out))
