"""A long run with faults, and whether each led to the right state: `python benchmarks/soak.py --seconds 1800`.

Drives the simulated arm through `harmowam profile` and, in turn, freezes its cameras (the process that renders them is stopped for
3 s, as an unplugged cable) and overloads the machine (as many busy processes as cores, twice, for 5 s). Reads the health changes
back from the profile. Memory of the policy process is read every 5 s, after a first minute (or a quarter of a short run).
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


def freeze_cameras(pid: int) -> str:
    cameras = [p for p in children(pid) if "--cameras" in command_of(p)]
    for p in cameras:
        os.kill(p, signal.SIGSTOP)
    time.sleep(3.0)
    for p in cameras:
        os.kill(p, signal.SIGCONT)
    return "holding"


def overload(pid: int) -> str:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    time.sleep(5.0)
    for p in busy:
        p.kill()
        p.wait()
    return "running"  # it may degrade, it must come back


FAULTS = {"cameras frozen for 3 s": freeze_cameras, "machine overloaded for 5 s": overload}


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
        began, injected, memory = time.monotonic(), [], []
        settled, next_fault, turn = min(60.0, args.seconds / 4), min(args.every, 10.0), 0
        while run.poll() is None:
            t = time.monotonic() - began
            if t > next_fault and t < args.seconds - 12:
                name = list(FAULTS)[turn % len(FAULTS)]
                FAULTS[name](run.pid)
                injected.append(name)
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
    states = ["starting", *(c["state"] for c in changes)]
    holds = sum(b == "holding" and a != "holding" for a, b in zip(states, states[1:]))
    wanted = injected.count("cameras frozen for 3 s")
    end = report.get("health", {}).get("state", "none")
    lowered = report.get("motor_exit_code") == 0
    # The last samples are of a process that is tidying up.
    growth = max(memory[:-5] or [0.0]) - (memory[0] if memory else 0.0)
    result = {
        "seconds": args.seconds, "faults": injected, "exit_code": code, "holding": holds, "holding_wanted": wanted, "end": end,
        "lowered": lowered, "memory_growth_mb": round(growth, 2), "deadline_misses": report.get("deadline_misses"),
        "ticks": report.get("ticks"), "motor_drift_ms": report.get("motor_drift_ms"),
        "processors": report.get("processors"), "changes": changes,
    }  # fmt: skip
    good = code == 0 and holds == wanted and end in ("running", "degraded") and lowered
    print(json.dumps({k: v for k, v in result.items() if k != "changes"}, indent=1))
    arm = "lowered" if lowered else "NOT lowered"
    verdict = "good" if good else "BAD"
    print(f"{len(injected)} faults, {holds} of {wanted} holds, at the end {end}, arm {arm}: {verdict}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
