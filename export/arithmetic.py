"""Whether a training uses bfloat16, and how many threads it uses: both change the last bits of its result, so a run
keeps them.

bfloat16 is chosen once per run folder by a time measurement, and the answer is stored there. The number of threads
decides the order of sums.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from export.checkpoint import CheckpointError, write_file

NAMES = {"bf16": True, "fp32": False}


def remembered(run: Path) -> bool | None:
    """What `remember` wrote into the folder; None where it wrote nothing. Raises CheckpointError for any other
    content."""
    path = run / "arithmetic"
    if not path.exists():
        return None
    said = path.read_text().strip()
    if said not in NAMES:
        raise CheckpointError(f"{path} says {said!r}, not bf16 or fp32: write the one that the run began with.")
    return NAMES[said]


def remember(run: Path, bf16: bool) -> None:
    """Store in the run folder whether the training uses bfloat16; raises CheckpointError where it cannot be written."""
    write_file(run / "arithmetic", b"bf16\n" if bf16 else b"fp32\n")


def workforce(processes: int) -> dict[str, int]:
    """Number of processes of the training, of threads of this process, and of processors of the machine, for the saved
    state."""
    return {"processes": processes, "threads": torch.get_num_threads(), "processors": os.cpu_count() or 1}


def take_up(before: Mapping[str, Any] | None, processes: int) -> None:
    """Use as many threads as `before` (from `workforce`; None in a state without it), if machine and number of
    processes are the same."""
    if before is not None and before == workforce(processes) | {"threads": before["threads"]}:
        torch.set_num_threads(before["threads"])


def rounds_bf16(device: torch.device) -> bool:
    """Whether autocast to bfloat16 saves time on `device`. On a CPU that has the instructions it is measured: of two
    CPUs with AVX512-BF16, one took 0.6 of the time and the other 1.6 times the time of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    weight = torch.ones(128, 128, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    x = torch.ones(16, 128, 12, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    best = {False: math.inf, True: math.inf}
    for _ in range(6):  # in turns; the fastest round counts, because other work slows both
        for bf16 in best:
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y = F.conv2d(x, weight, padding=1)
            y.float().sum().backward()
            best[bf16] = min(best[bf16], time.perf_counter() - began)
    return 1.1 * best[True] < best[False]
