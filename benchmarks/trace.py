"""What a stamp costs: `python -m benchmarks.trace`. Median and p99 over blocks of 1000 marks."""

from __future__ import annotations

import argparse
import time

import numpy as np

from runtime.observe.trace import StageTrace


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    trace = StageTrace(stages=("a", "b"))
    blocks = []
    for _ in range(200):
        began = time.perf_counter_ns()
        for _ in range(500):
            trace.mark("a")
            trace.mark("b")
        blocks.append((time.perf_counter_ns() - began) / 1e6)
    print(f"a mark costs {np.median(blocks):.2f} us (p99 of the blocks {np.percentile(blocks, 99):.2f} us)")


if __name__ == "__main__":
    main()
