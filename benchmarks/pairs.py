"""Two bundles on the same starts, a student and its teacher for example: who solves what, and a bound on the
difference.

`python -m benchmarks.pairs STUDENT.bundle TEACHER.bundle [--episodes 400] [--environment seen] [--split test]`: gated,
virtual time, side by side. Episodes are rows of --rows: a run that was stopped goes on, and a bundle that has been
played is not played again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from export.certify import play_pairs
from sim.evaluate import SPLITS
from sim.tasks import ENVIRONMENTS, TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--environment", choices=ENVIRONMENTS, default="seen")
    parser.add_argument("--rows", type=Path, default=Path("out/pairs.jsonl"))
    parser.add_argument("--split", choices=SPLITS, default="test")
    args = parser.parse_args()
    pairs, found = play_pairs(
        args.bundles[0], args.bundles[1], tuple(TASKS), args.environment, args.episodes, args.rows, split=args.split
    )

    def row(name: str, cells: list[str]) -> str:
        return f"{name:8}" + "".join(f"{cell:>28}" for cell in cells)

    print(row("task", [b.name for b in args.bundles]))
    for task in (*TASKS, "all"):
        mine = [pair for pair in pairs if task in (pair[0]["task"], "all")]
        print(row(task, [f"{sum(bool(pair[k]['success']) for pair in mine)} / {len(mine)}" for k in (0, 1)]))
    print(
        f"only the first solves {found['only_first']}, only the second {found['only_second']}: difference "
        f"{100 * found['difference']:+.1f} "
        f"points, one-sided 95 % bound {100 * found['lower_bound']:+.1f}"
    )


if __name__ == "__main__":
    main()
