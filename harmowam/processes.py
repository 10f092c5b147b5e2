"""Facts from Linux about a run's processes (memory, children, start time), and its first inferences."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from firmware_bridge.motion.endings import Exit


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


def warm_up(first_inferences: Callable[[], None], patience_s: float = 1.0) -> None:
    """Run `first_inferences` in a thread, so that a signal ends the program also while an engine does not return.

    Python runs signal handlers in the main thread only, between two instructions: inside an engine it has none. If the
    engine still runs `patience_s` after KeyboardInterrupt, the interpreter ends without waiting for it.
    """
    failed: list[BaseException] = []
    done = threading.Event()  # an interrupted Thread.join takes the thread for one that has ended (Python 3.11)

    def run() -> None:
        try:
            first_inferences()
        except BaseException as e:
            failed.append(e)
        done.set()

    threading.Thread(target=run, name="warm-up", daemon=True).start()
    try:
        while not done.wait(0.1):
            pass
    except KeyboardInterrupt:
        if not done.wait(patience_s):
            atexit.register(os._exit, Exit.INTERRUPTED)
        raise
    if failed:
        raise failed[0]


def process_began_s() -> float:
    """Start of this process on the monotonic clock: a user's waiting time includes the imports."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
