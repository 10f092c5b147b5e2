"""Facts from Linux about a run's processes (memory, children, start time), and its first inferences."""

from __future__ import annotations

import os
import time
from pathlib import Path


def resident_mb(pids: list[int]) -> float:
    """Resident memory of processes together, MB; pages that they share (Python, numpy) count once for each."""
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


def process_began_s() -> float:
    """Start of this process on the monotonic clock: a user's waiting time includes the imports."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
