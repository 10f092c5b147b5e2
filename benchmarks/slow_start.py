"""Whether the demo's task succeeds on a machine that has other work: `python -m benchmarks.slow_start`.

Beside `--busy` processes that do nothing but compute, from before the start to after the end, `harmowam run` drives the
simulated arm for each seed: the loop of `harmowam demo` without its export and without ending at success. One line a
seed: when the first command came, what was missed, how long the arm was held, whether and when the task was done, and
what the run said of itself if it was not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BUSY = [sys.executable, "-c", "while True: pass"]


def one(bundle: str, task: str, seed: int, seconds: float, busy: int) -> dict[str, Any]:
    """What became of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        verb = [sys.executable, "-m", "harmowam.cli", "run", "--bundle", bundle, "--task", task, "--seed", str(seed)]
        verb += ["--seconds", str(seconds), "--json", str(file)]
        others = [subprocess.Popen(BUSY) for _ in range(busy)]
        began = time.monotonic()
        try:
            done = subprocess.run(verb, capture_output=True, text=True, check=False)
        finally:
            for process in others:
                process.kill()
                process.wait()
        took = time.monotonic() - began
        report = json.loads(file.read_text()) if file.exists() else {}
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("task: ", "error: "))]
    return {
        "seed": seed,
        "success": bool(report.get("success")),
        "exit_code": done.returncode,
        "said": " ".join(said),
        "took_s": round(took, 1),
        "first_command_s": report.get("time_to_first_command_s"),
        "success_after_s": report.get("success_after_s"),
        "ticks": report.get("ticks", 0),
        "misses": report.get("deadline_misses", 0),
        "held_s": report.get("held_s"),
        "stolen": report.get("processors", {}).get("stolen"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="out/so101.bundle")
    parser.add_argument("--task", default="put the red cube on the plate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--busy", type=int, default=2, help="busy processes beside the run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load before: {load:.1f} on {os.cpu_count()} cores; {args.busy} busy processes beside each run", flush=True)
    rows = []
    for seed in args.seeds:
        row = one(args.bundle, args.task, seed, args.seconds, args.busy)
        rows.append(row)
        print(
            f"seed {seed}: {'done' if row['success'] else 'NOT done'} after {row['success_after_s']} s; first command "
            "after "
            f"{row['first_command_s']} s, {row['misses']} of {row['ticks']} deadlines missed, held {row['held_s']} s, "
            "exit code "
            f"{row['exit_code']}; {row['said']}",
            flush=True,
        )
    solved = sum(row["success"] for row in rows)
    print(f"{solved} of {len(rows)} done")
    if args.json:
        args.json.write_text(json.dumps({"load_before": load, "busy": args.busy, "rows": rows}, indent=1))
    return 0 if solved == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
