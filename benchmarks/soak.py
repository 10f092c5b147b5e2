"""A long run with faults, and whether each led to the right state: `python -m benchmarks.soak --seconds 1800`.

Drives the simulated arm through `harmowam profile` and, in turn, freezes its cameras (stops the process that renders
them for 3 s, like an unplugged cable) and overloads the machine (twice as many busy processes as cores, for 5 s). It
then reads the health changes in the profile: frozen cameras must lead to HOLDING within 0.5 s, and after either fault
the arm must run again (or be degraded) within 5 s. A hold outside of a fault comes from the machine or from a mistake
of ours; it is listed and fails the run. The memory of the policy process is read every 5 s, after a first minute (or a
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
from dataclasses import dataclass, field
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


@dataclass
class Soaked:
    """A run with faults. `injected`: name of the fault, from, until (monotonic, s); `memory_mb`: of the policy process;
    `report`: the run's profile."""

    injected: list[tuple[str, float, float]] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    exit_code: int = 0
    report: dict[str, Any] = field(default_factory=dict)


def soak(bundle: str, seconds: float, every: float, fps: float) -> Soaked:
    """`harmowam profile` for `seconds`, with a fault every `every` seconds."""
    out = Soaked()
    with tempfile.TemporaryDirectory() as folder:
        report_file = Path(folder) / "profile.json"
        verb = [sys.executable, "-m", "harmowam.cli", "profile", "--bundle", bundle, "--json", str(report_file)]
        verb += ["--seconds", str(seconds), "--fps", str(fps)]
        run = subprocess.Popen(verb, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        settled, next_fault = min(60.0, seconds / 4), min(every, 10.0)
        while run.poll() is None:
            t = time.monotonic() - began
            if t > next_fault and t < seconds - 12:
                name = list(FAULTS)[len(out.injected) % len(FAULTS)]
                start = time.monotonic()
                FAULTS[name](run.pid)
                out.injected.append((name, start, time.monotonic()))
                next_fault = t + every
            if t > settled:
                try:
                    out.memory_mb.append(resident_mb(run.pid))
                except OSError:
                    break
            time.sleep(5.0 if seconds > 300 else 1.0)
        out.exit_code = run.wait()
        out.report = json.loads(report_file.read_text()) if report_file.exists() else {}
    return out


def found(seconds: float, done: Soaked) -> dict[str, Any]:
    """The result, as it is printed and written."""
    report, memory = done.report, done.memory_mb
    changes = report.get("health", {}).get("changes", [])
    zero = report.get("began_s", 0.0)
    faults = [(name, round(a - zero, 2), round(b - zero, 2)) for name, a, b in done.injected]
    wrong, unasked = judge(faults, changes)
    # The last samples are of a process that is tidying up.
    growth = max(memory[:-5] or [0.0]) - (memory[0] if memory else 0.0)
    return {
        "seconds": seconds,
        "faults": faults,
        "exit_code": done.exit_code,
        "wrong": wrong,
        "unasked_holds_s": unasked,
        "end": report.get("health", {}).get("state", "none"),
        "lowered": report.get("motor_exit_code") == 0,
        "memory_growth_mb": round(growth, 2),
        "deadline_misses": report.get("deadline_misses"),
        "ticks": report.get("ticks"),
        "motor_drift_ms": report.get("motor_drift_ms"),
        "processors": report.get("processors"),
        "changes": changes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between faults")
    parser.add_argument("--fps", type=float, default=50.0)
    parser.add_argument("--bundle", default="out/so101.bundle")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    r = found(args.seconds, soak(args.bundle, args.seconds, args.every, args.fps))
    good = r["exit_code"] == 0 and not r["wrong"] and not r["unasked_holds_s"]
    good = good and r["end"] in ("running", "degraded") and r["lowered"]
    print(json.dumps({k: v for k, v in r.items() if k not in ("changes", "faults")}, indent=1))
    right = len(r["faults"]) - len({w.partition(":")[0] for w in r["wrong"]})
    print(
        f"{right} of {len(r['faults'])} faults led to the right state, {len(r['unasked_holds_s'])} holds without a "
        f"fault, at the end {r['end']}, arm {'lowered' if r['lowered'] else 'NOT lowered'}: {'good' if good else 'BAD'}"
    )
    if args.json:
        args.json.write_text(json.dumps(r, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
