"""Runs jobs in several processes, each with its own simulator."""

from __future__ import annotations

import ctypes
import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from common.errors import Mendable

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerError(Mendable):
    """A worker process was killed; the text is one sentence and the next step."""


def _end_with(parent: int) -> None:
    """End this process when `parent` ends: without it, a worker would wait for ever with 400 MB of memory."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent died before this call
        os._exit(1)


def spawned(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None) -> Iterator[Result]:
    """Results of `work` in the order in which they are ready, from `workers` processes (default: one per core).

    Raises WorkerError when a process was killed (`multiprocessing.Pool` would wait for ever), and what `work` raises.
    """
    pool = ProcessPoolExecutor(
        workers or os.cpu_count(), mp_context=mp.get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
    )
    try:
        for done in as_completed([pool.submit(work, job) for job in jobs]):
            yield done.result()
    except BrokenProcessPool as e:
        raise WorkerError(
            "a worker process was killed, most likely because memory ran out: run the same command again with fewer "
            "--workers, it continues where it stopped."
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)
