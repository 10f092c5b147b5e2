"""Each point is measured in a process of its own: its memory has no other point's in it.

python -m benchmarks.growth.apart MODULE FUNCTION JSON
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = 5  # of a point's turns
MARK = "figures: "  # before the line that holds the result


def peak_mb(pid: int | str = "self") -> float:
    """Largest resident memory of a process since its program began, MB. Pages of mapped files count."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6, 1)


def own_mb() -> float:
    """Resident memory of this process that is no page of a file, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6, 1)


def processor_s(pid: int) -> float:
    """Processor time of a process and the threads that it has, so far, s."""
    return sum(int(t.read_text().split()[0]) for t in Path(f"/proc/{pid}/task").glob("*/schedstat")) * 1e-9


def spread(ms: list[float]) -> tuple[float, float]:
    """The p50 of the quietest of `BLOCKS` blocks, which other programs disturb least, and the p99 of all."""
    blocks = [np.median(block) for block in np.array_split(ms, BLOCKS)]
    return float(min(blocks)), float(np.percentile(ms, 99))


def timed(work: Any, *args: Any, **more: Any) -> tuple[Any, float, float]:
    """What `work` returns, and how long it took: by the clock and of processor, s."""
    began, used = time.perf_counter(), time.process_time()
    made = work(*args, **more)
    return made, time.perf_counter() - began, time.process_time() - used


def apart(module: str, function: str = "point", **args: Any) -> dict[str, Any]:
    """The figures that `function` of `benchmarks.growth.<module>` gives, called with `args` in a new process."""
    command = [sys.executable, "-m", "benchmarks.growth.apart", module, function, json.dumps(args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not told:
        raise SystemExit(f"{module} {args} ended with {done.returncode}: see its message above, then repeat it alone.")
    return dict(json.loads(told[-1].removeprefix(MARK)))


if __name__ == "__main__":
    found = getattr(importlib.import_module(f"benchmarks.growth.{sys.argv[1]}"), sys.argv[2])(**json.loads(sys.argv[3]))
    print(MARK + json.dumps(found), flush=True)
