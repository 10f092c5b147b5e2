"""What links of another length cost: `python -m benchmarks.links [--link upper_up] [--mm 0 5 10] [--episodes 5]`.

Plays copies of a bundle whose manifest makes one link longer than the simulated arm's, on the same development starts
of all tasks, gated, in virtual time, and prints how many each solves. `check_arm` of `runtime/bundle.py` has its limit
from here; the episodes do not pass through it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from runtime.bundle import Bundle, sealed
from sim.evaluate import digest, jobs_for, run_jobs
from sim.tasks import TASKS


def lengthened(bundle: Path, to: Path, link: str, mm: float) -> Path:
    """A copy of `bundle` at `to`, as its exporter would have written it for an arm whose `link` is `mm` longer."""
    shutil.copytree(bundle, to)
    file = to / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["links"][link] += 1e-3 * mm
    file.write_text(sealed(manifest))
    Bundle.load(to)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/so101.bundle"))
    parser.add_argument("--link", default="wrist_to_tcp")
    parser.add_argument("--mm", type=float, nargs="+", default=[0, 5, 10])
    parser.add_argument("--episodes", type=int, default=5, help="of each task")
    args = parser.parse_args()
    if args.link not in (known := Bundle.load(args.bundle).manifest.links):
        parser.error(f"--link must be one of {', '.join(known)}")
    jobs = jobs_for(args.bundle, ("gated",), ("seen",), tuple(TASKS), range(args.episodes))
    with tempfile.TemporaryDirectory() as folder:
        for mm in args.mm:
            copy = lengthened(args.bundle, Path(folder) / f"{mm:g}.bundle", args.link, mm)
            rows = run_jobs([dataclasses.replace(j, bundle=str(copy), digest=digest(copy)) for j in jobs])
            print(f"{args.link} {mm:+g} mm: {sum(r['success'] for r in rows)} of {len(rows)}", flush=True)


if __name__ == "__main__":
    main()
