"""Two bundles on the same starts, a student and its teacher for example: who solves what, and a bound on the difference.

`python -m benchmarks.pairs STUDENT.bundle TEACHER.bundle [--episodes 400] [--environment seen]`: test starts, gated, virtual time, side by
side. Episodes are rows of --rows: a run that was stopped goes on, and a bundle that has been played is not played again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from export.certify import paired_lower_bound
from sim.evaluate import jobs_for, run_jobs
from sim.tasks import ENVIRONMENTS, TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--environment", choices=ENVIRONMENTS, default="seen")
    parser.add_argument("--rows", type=Path, default=Path("out/pairs.jsonl"))
    args = parser.parse_args()
    seeds = range(math.ceil(args.episodes / len(TASKS)))
    sides = [
        jobs_for(b, ("gated",), (args.environment,), tuple(TASKS), seeds, split="test")[: args.episodes]
        for b in args.bundles
    ]
    rows = run_jobs([job for pair in zip(*sides, strict=True) for job in pair], args.rows)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    won = [(bool(a["success"]), bool(b["success"])) for a, b in pairs]

    def row(name: str, cells: list[str]) -> str:
        return f"{name:8}" + "".join(f"{cell:>28}" for cell in cells)

    print(row("task", [b.name for b in args.bundles]))
    for task in (*TASKS, "all"):
        mine = [w for w, (a, _) in zip(won, pairs, strict=True) if task in (a["task"], "all")]
        print(row(task, [f"{sum(w[k] for w in mine)} / {len(mine)}" for k in (0, 1)]))
    better, worse = sum(a and not b for a, b in won), sum(b and not a for a, b in won)
    print(
        f"only the first solves {better}, only the second {worse}: difference {100 * (better - worse) / len(won):+.1f} points, "
        f"one-sided 95 % bound {100 * paired_lower_bound(better, worse, len(won)):+.1f}"
    )


if __name__ == "__main__":
    main()
