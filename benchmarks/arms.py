"""An arm of any family driven by a policy that was trained on its own demonstrations: `python -m benchmarks.arms --arm
koch`.

Records circles traced in the air (`harmowam collect`), trains a small ACT on them (`harmowam train --baseline
act-small`) and lets its bundle drive the simulated arm over its virtual servo bus in real time (`harmowam run`), with a
log. What is there of dataset and bundle is kept. Reads from the log how far the tool was from the plan: forward
kinematics of the measured joints against the chunk that the fast step followed, read at the time that its action
applied; and against the joints that the fast step commanded, hand-over included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge.arms import FAMILIES, Family, family
from firmware_bridge.motion.messages import Command, JointState
from runtime.observe.episode import LOG, REPORT
from runtime.observe.log_reader import read_log
from runtime.observe.records import TickRecord

GOAL_M = 0.010


def tool_from_plan(log: Path, arm: Family) -> dict[str, Any]:
    """How far the measured tool was from the plan and from the command at each time that an action applied, mm."""
    states = [(r.t_ns, r.q_rad) for r in read_log(log) if isinstance(r, JointState)]
    ticks = [r for r in read_log(log) if isinstance(r, TickRecord) and r.command and r.sent]
    t, q = np.array([s[0] for s in states], np.int64), np.array([s[1] for s in states], float)
    applies = np.array([r.t_ns for r in ticks], np.int64)
    inside = (applies >= t[0]) & (applies <= t[-1])
    measured = np.stack([np.interp(applies, t, q[:, j]) for j in range(q.shape[1])], -1)
    tool = arm.tool(measured)[:, :3, 3]
    planned = np.array([r.targets[1][:3] for r in ticks], float)
    commanded = arm.tool(np.array([Command.unpack(r.command).q_rad for r in ticks], float))[:, :3, 3]
    out: dict[str, Any] = {
        "actions": int(inside.sum()),
        "path_m": float(np.linalg.norm(np.diff(tool, axis=0), axis=1).sum()),
    }
    for name, there in (("plan", planned), ("command", commanded)):
        away = 1000 * np.linalg.norm(tool - there, axis=1)[inside]
        out[name] = {
            "p50_mm": float(np.median(away)),
            "p99_mm": float(np.quantile(away, 0.99)),
            "max_mm": float(away.max()),
        }
        out[name]["over_goal"] = int((away > 1000 * GOAL_M).sum())
    return out


def harmowam(*words: str | Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "harmowam.cli", *map(str, words)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def make_bundle(arm: str, out: Path, episodes: int, plan: str) -> Path:
    """A bundle of kind chunk for that arm, from nothing."""
    data, bundle = out / arm, out / f"{arm}.bundle"
    if not bundle.exists():
        harmowam("collect", "--robot", f"sim_{arm}", "--out", data, "--episodes", str(episodes))
        words = ("--dataset", data, "--run", out / f"{arm}-run", "--out", bundle, "--plan", f"act={plan}", "--fp32")
        harmowam("train", "--baseline", "act-small", *words)
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--out", type=Path, default=Path("out/arms"), help="folder of dataset, bundle and run")
    parser.add_argument("--episodes", type=int, default=15, help="demonstrations of each way round (default 15)")
    parser.add_argument(
        "--plan", default="700,16,1e-3", help="steps, batch and rate of the training (default 700,16,1e-3)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of the run (default 60; 0: make the bundle only)")
    parser.add_argument("--fps", type=float, default=100.0, help="of cameras and fast loop (default 100)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bundle = make_bundle(args.arm, args.out, args.episodes, args.plan)
    if not args.seconds:
        return
    run = args.out / f"{args.arm}-driven"
    rates = ("--fps", str(args.fps), "--seconds", str(args.seconds))
    harmowam("run", "--robot", f"sim_{args.arm}", "--bundle", bundle, *rates, "--record", run)
    report = json.loads((run / REPORT).read_text())
    found = tool_from_plan(run / LOG, family(args.arm))
    found |= {
        k: report.get(k)
        for k in ("deadline_misses", "ticks", "exit_code", "success", "health", "held_s", "refused_outputs")
    }
    for name in ("plan", "command"):
        row = found[name]
        print(
            f"tool from {name}: p50 {row['p50_mm']:.2f}, p99 {row['p99_mm']:.2f}, max {row['max_mm']:.2f} mm, "
            f"{row['over_goal']} over 10"
        )
    print(
        f"{found['actions']} actions, {found['path_m']:.2f} m; {found['deadline_misses']} of {found['ticks']} "
        "deadlines missed"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
