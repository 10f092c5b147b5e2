"""Whether the machine held back its processors during a test on the wall clock: a witness process with one thread per
core.

A virtual machine on a busy host stands still for tens of milliseconds, mostly without counting it as stolen time. A
loop of 50 Hz then rightly degrades or holds, so such a test says nothing about the code. The witness has a real-time
priority above all others where that is permitted: it is late only when the machine is, not when the code under test
takes too long.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from common.clock import Ticker, prefer

LATE_S = 0.015  # three quarters of a period of the fast loop


class Witness:
    """Runs until `close()`. `absent_s()` is how long the worst core has been held back in total since the start."""

    def __init__(self, path: Path):
        self._path = path
        path.write_text("0")
        self._process = subprocess.Popen([sys.executable, "-m", "tests.witness", str(path), str(os.getpid())])

    def absent_s(self) -> float:
        return float(self._path.read_text())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _watch(core: int, absent: dict[int, float], path: Path) -> None:
    os.sched_setaffinity(0, {core})  # start of this thread
    prefer(99)
    ticker = Ticker(200)
    while True:
        due = ticker.wait()
        late = (time.monotonic_ns() - due) * 1e-9
        if late > LATE_S:
            absent[core] += late
            beside = path.with_suffix(f".{core}")
            beside.write_text(str(max(absent.values())))
            beside.replace(path)


def main() -> None:
    path, parent = Path(sys.argv[1]), int(sys.argv[2])
    cores = os.sched_getaffinity(0)
    absent = dict.fromkeys(cores, 0.0)
    for core in cores:
        threading.Thread(target=_watch, args=(core, absent, path), daemon=True).start()
    while os.getppid() == parent:  # ends with the test process, however that ends
        time.sleep(1)


if __name__ == "__main__":
    main()
