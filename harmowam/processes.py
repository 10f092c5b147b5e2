"""What a run asks Linux about processes: their memory, children and start, and the slots that dead ones left."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path


def resident_mb(pids: list[int]) -> float:
    """Resident memory of processes together, MB; pages that they share (Python, numpy) are counted for each of them."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except OSError:
            continue
    return round(total / 1e6, 1)


def children(pid: int) -> list[int]:
    """Direct child processes."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def sweep(folder: Path) -> None:
    """Remove what killed runs left in `folder`: slots of processes that are gone."""
    for left in folder.glob("harmowam-*-*"):
        owner = left.name.split("-")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)


def process_began_s() -> float:
    """When this process was started, on the monotonic clock: what a user waits for includes the imports."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
