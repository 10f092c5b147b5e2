"""A long run with faults, and whether each led to the right state: `python -m benchmarks.soak --seconds 1800`.

Drives the simulated arm through `harmowam profile` and, in turn, freezes its cameras (the process that renders them is
stopped for 3 s, as an unplugged cable) and overloads the machine (as many busy processes as cores, twice, for 5 s).
Reads the health changes back from the profile: frozen cameras must lead to HOLDING within 0.5 s, and after either fault
the arm must run again (or be degraded) within 5 s. Holds outside a fault are told apart; they are the machine's or a
mistake of ours, and fail the run, too. Memory of the policy process is read every 5 s, after a first minute (or a
quarter of a short run).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def children(pid: int) -> list[int]:
    try:
        found = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    except OSError:
        return []
    return found + [p for child in found for p in children(child)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def freeze_cameras(pid: int) -> None:
    cameras = [p for p in children(pid) if "--cameras" in command_of(p)]
    for p in cameras:
        os.kill(p, signal.SIGSTOP)
    time.sleep(3.0)
    for p in cameras:
        os.kill(p, signal.SIGCONT)


def overload(pid: int) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    time.sleep(5.0)
    for p in busy:
        p.kill()
        p.wait()


FAULTS = {"cameras frozen for 3 s": freeze_cameras, "machine overloaded for 5 s": overload}
HOLD_WITHIN_S, BACK_WITHIN_S = 0.5, 5.0


def judge(injected: list[tuple[str, float, float]], changes: list[dict[str, Any]]) -> tuple[list[str], list[float]]:
    """What went wrong with each fault (name, from, until; s of the run), and when the loop held although no fault asked
    for it."""
    wrong, asked = [], []
    for name, start, end in injected:
        holds = [c["at_s"] for c in changes if c["state"] == "holding" and start <= c["at_s"] <= end + BACK_WITHIN_S]
        asked += holds
        if name.startswith("cameras") and not (holds and holds[0] <= start + HOLD_WITHIN_S):
            wrong.append(f"{name} at {start:.0f} s: no hold within {HOLD_WITHIN_S} s")
        last = [c["state"] for c in changes if c["at_s"] <= end + BACK_WITHIN_S][-1:]
        if last not in (["running"], ["degraded"]):
            wrong.append(f"{name} at {start:.0f} s: {(last or ['starting'])[0]} {BACK_WITHIN_S:.0f} s after its end")
    return wrong, [c["at_s"] for c in changes if c["state"] == "holding" and c["at_s"] not in asked]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between faults")
    parser.add_argument("--fps", type=float, default=50.0)
    parser.add_argument("--bundle", default="out/so101.bundle")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report_file = Path(folder) / "profile.json"
        verb = [sys.executable, "-m", "harmowam.cli", "profile", "--bundle", args.bundle, "--json", str(report_file)]
        verb += ["--seconds", str(args.seconds), "--fps", str(args.fps)]
        run = subprocess.Popen(verb, stdout=subprocess.DEVNULL)
        began, memory = time.monotonic(), []
        injected: list[tuple[str, float, float]] = []
        settled, next_fault, turn = min(60.0, args.seconds / 4), min(args.every, 10.0), 0
        while run.poll() is None:
            t = time.monotonic() - began
            if t > next_fault and t < args.seconds - 12:
                name = list(FAULTS)[turn % len(FAULTS)]
                start = time.monotonic()
                FAULTS[name](run.pid)
                injected.append((name, start, time.monotonic()))
                turn, next_fault = turn + 1, t + args.every
            if t > settled:
                try:
                    memory.append(resident_mb(run.pid))
                except OSError:
                    break
            time.sleep(5.0 if args.seconds > 300 else 1.0)
        code = run.wait()
        report = json.loads(report_file.read_text()) if report_file.exists() else {}
    changes = report.get("health", {}).get("changes", [])
    zero = report.get("began_s", 0.0)
    faults = [(name, round(a - zero, 2), round(b - zero, 2)) for name, a, b in injected]
    wrong, unasked = judge(faults, changes)
    end = report.get("health", {}).get("state", "none")
    lowered = report.get("motor_exit_code") == 0
    # The last samples are of a process that is tidying up.
    growth = max(memory[:-5] or [0.0]) - (memory[0] if memory else 0.0)
    result = {
        "seconds": args.seconds,
        "faults": faults,
        "exit_code": code,
        "wrong": wrong,
        "unasked_holds_s": unasked,
        "end": end,
        "lowered": lowered,
        "memory_growth_mb": round(growth, 2),
        "deadline_misses": report.get("deadline_misses"),
        "ticks": report.get("ticks"),
        "motor_drift_ms": report.get("motor_drift_ms"),
        "processors": report.get("processors"),
        "changes": changes,
    }
    good = code == 0 and not wrong and not unasked and end in ("running", "degraded") and lowered
    print(json.dumps({k: v for k, v in result.items() if k not in ("changes", "faults")}, indent=1))
    arm = "lowered" if lowered else "NOT lowered"
    right = len(faults) - len({w.partition(":")[0] for w in wrong})
    print(
        f"{right} of {len(faults)} faults led to the right state, {len(unasked)} holds without a fault, at the end "
        f"{end}, arm {arm}: "
        f"{'good' if good else 'BAD'}"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
