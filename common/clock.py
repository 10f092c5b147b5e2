"""Periodic clock with absolute deadlines, and the real-time settings of a process."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable


class Ticker:
    """Deadlines at `start + k / hz`. A period that was slept through is skipped and counted, and no later one becomes
    shorter for it. Only `shift` moves the deadlines.

    `now_ns` and `sleep` (s): the clock, which may be virtual.
    """

    def __init__(
        self, hz: float, now_ns: Callable[[], int] = time.monotonic_ns, sleep: Callable[[float], None] = time.sleep
    ):
        self._now_ns, self._sleep = now_ns, sleep
        self.period_ns = round(1e9 / hz)
        self.next_ns = now_ns() + self.period_ns
        self.missed = 0
        self.shifted_ns = 0  # total of all `shift` calls

    def shift(self, ns: int) -> None:
        """Move the next deadline and all later ones by `ns`: for a phase lock to another clock."""
        self.next_ns += ns
        self.shifted_ns += ns

    def wait(self) -> int:
        """Sleep until the next deadline; returns it (monotonic ns)."""
        now = self._now_ns()
        if now > self.next_ns + self.period_ns:
            skip = (now - self.next_ns) // self.period_ns
            self.missed += skip
            self.next_ns += skip * self.period_ns
        due = self.next_ns
        while (rest := due - self._now_ns()) > 0:
            self._sleep(rest * 1e-9)
        self.next_ns = due + self.period_ns
        return due


def prefer(priority: int) -> bool:
    """Run the calling thread before ordinary threads (SCHED_FIFO), or like them (0); returns whether that was granted.
    Threads and processes that it starts inherit the priority."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO if priority else os.SCHED_OTHER, os.sched_param(priority))
    except OSError:
        return False
    return priority > 0


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, in blocks of up to 32 MB; returns whether that was granted.

    glibc otherwise gives blocks of pictures back to the kernel with each that is freed, and every new picture costs
    hundreds of page faults: 0.5 ms for two of 640x480, and waits without a bound where memory is short. Source:
    mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; constants of glibc's malloc.h.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and mallopt(-3, 32 << 20) == 1 and mallopt(-1, 1 << 30) == 1


def real_time(priority: int = 0, core: int | None = None) -> dict[str, bool]:
    """Ask the system for what a loop with deadlines needs; returns what was granted. Never raises.

    SCHED_FIFO at `priority` (0: not asked for), memory locked and kept, garbage collector frozen and off, pinned to
    `core`, and short GIL turns for the helper threads of the same process.
    """
    granted: dict[str, bool] = {}
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.disable()
    keep_memory()
    if priority:
        granted["sched_fifo"] = prefer(priority)
        # MCL_CURRENT: memory that is allocated later may be paged
        granted["mlockall"] = ctypes.CDLL(None).mlockall(1) == 0
    if core is not None:
        try:
            os.sched_setaffinity(0, {core})
            granted["affinity"] = True
        except OSError:
            granted["affinity"] = False
    return granted
