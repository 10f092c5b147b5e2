"""Regenerates docs/results.md and its pictures from the shipped checkpoint: `python -m benchmarks.results`.

Everything runs through the FP32 ONNX bundle in virtual time, on the test seeds. Episodes are rows in
`--work`/rows.jsonl: an interrupted run continues from them, a longer one (`--episodes`) adds to them, and `--report`
only writes the page from them. A row is bound to its bundle but not to the simulator: delete the file after changing
sim/ or runtime/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results_page import page
from benchmarks.results_pictures import film_strip
from benchmarks.results_plan import MAIN, PARTS, plan
from export.checkpoint import load_checkpoint
from export.origin import CHECKPOINT
from sim.evaluate import read_rows, run_jobs
from sim.results import summary
from sim.tasks import TASKS


def trained(note: Any, baselines: Mapping[str, Path]) -> str:
    """How long each policy was trained, from the checkpoint's note and the baselines' reports. Our minutes are the sum
    over the chain of `train --from`."""
    minutes: list[float] = []
    while note:
        minutes.append(note["train_minutes"])
        note = note.get("from")
    out = f"Ours was trained for {minutes[0]:.0f} minutes"
    if minutes[1:]:
        out += f", after {len(minutes) - 1} runs of {sum(minutes[1:]):.0f} minutes together that it went on from"
    for name, path in baselines.items():
        report = json.loads((path / "reports" / "training.json").read_text())
        out += (
            f"; `{name}` from nothing for {report['train_minutes']:.0f} minutes ({report['steps']:,} steps, "
            f"{report['rows']:,} rows)"
        )
    return out + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--episodes", type=int, default=50, help="of a cell: task, environment, policy (default 50)")
    parser.add_argument(
        "--claim", type=int, default=0, help="the same for gated and predictive, if they shall have more"
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--policies", default=",".join(MAIN), help="of the table")
    parser.add_argument("--quick", action="store_true", help="2 episodes a cell")
    parser.add_argument("--bc", type=Path, help="bundle of ACT trained on task data")
    parser.add_argument("--bc-play", type=Path, help="bundle of ACT trained on task and play data")
    parser.add_argument("--only", choices=PARTS, action="append", help="run these parts only")
    parser.add_argument(
        "--report", action="store_true", help="run nothing, write the page from the rows that are there"
    )
    parser.add_argument("--work", type=Path, default=Path("out/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    episodes = 2 if args.quick else args.episodes
    baselines = {k: v for k, v in (("bc", args.bc), ("bc_play", args.bc_play)) if v is not None}
    parts = [] if args.report else args.only or PARTS
    work = plan(
        args.checkpoint,
        args.work,
        episodes,
        tuple(args.tasks.split(",")),
        baselines,
        (*args.policies.split(","), *baselines),
        parts,
        args.claim,
    )
    rows, images = args.work / "rows.jsonl", args.docs.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    if parts:
        run_jobs(work.of(parts), rows, args.workers)
    if not args.report or not (images / "results_film.png").exists():
        film_strip(work.table, images / "results_film.png")
    have = {r["key"]: r for r in read_rows(rows)}
    command = " ".join(["python -m benchmarks.results", *(a for a in sys.argv[1:] if a != "--report")])
    note: Any = load_checkpoint(args.checkpoint)[3]
    training = trained(note, baselines)
    args.docs.write_text(page(work, have, args.checkpoint, training, note["plan"]["tables"], command, images) + "\n")
    (args.work / "summary.json").write_text(
        json.dumps(summary([have[j.key] for j in work.table if j.key in have]), indent=1)
    )
    print(f"{args.docs}: {sum(j.key in have for j in work.of(PARTS))} of {len(work.of(PARTS))} episodes")


if __name__ == "__main__":
    main()
