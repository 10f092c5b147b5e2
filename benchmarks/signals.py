"""Signals against a run's processes: `python -m benchmarks.signals [--count 100] [--seed 0] [--bundle BUNDLE]`.

Each trial starts `harmowam run` on a virtual arm (servos on a pseudo-terminal, one camera a film, one a file of
frames), waits a random time, and sends KILL, STOP followed by CONT, TERM or HUP to the policy, the guard, the motor
process or the camera process. Then it asks three things:

* safe: the torque ends in a ramp or at the rest pose; where it stays on, the exit code says so (7 or 8);
* told: the exit code says what the arm does (docs/arm.md, "How a run ends"); a policy that was killed tells nothing,
  and one that is told to end while it is still loading its modules, before anything can move, ends by that signal;
* next: another run starts, arms and ends at rest. While the arm is still lowered, it is refused with exit code 2.

The bundle is a tiny untrained one of the tests; `--bundle` names another. Exit code 1 if a trial is not as it should
be.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from os import kill
from pathlib import Path

import cv2
import numpy as np

from common.clock import prefer
from firmware_bridge.motion.endings import Exit
from harmowam.processes import children
from runtime.bundle import Bundle
from runtime.robot import load_robot
from tests.rig import IDS, Bench
from tests.tiny import tiny_bundle

TARGETS = ("policy", "guard", "motor", "cameras")
SIGNALS = ("KILL", "STOP+CONT", "TERM", "HUP")
RUN_S = 2.0  # seconds that a run drives
WITHIN_S = 8.0  # latest signal after the start: start, drive and lowering take about as long
RELEASED_S = 30.0  # limit for the arm's end after the run's
AT_REST_RAD = 0.12
AT_REST = (Exit.REST, Exit.SAFE_STOP, Exit.HELD, Exit.GUARD_LOST, Exit.INTERRUPTED)


class Watch:
    """What the servos did since `begin()`, sampled every 5 ms: torque on, and how it went off."""

    def __init__(self, bench: Bench, rest: np.ndarray):
        self.bench, self.rest = bench, rest
        self.begin()
        prefer(3)
        threading.Thread(target=self._run, daemon=True).start()
        prefer(0)

    def begin(self) -> None:
        self.armed, self.lowest, self.dropped = False, 1000, ""

    def position_rad(self) -> np.ndarray:
        now = self.bench.server.line.bus.plant.present(time.monotonic_ns())[0]
        return (np.asarray(now, float) - 2048) * 2 * np.pi / 4096

    def rested(self) -> bool:
        return bool(np.abs(self.position_rad() - self.rest)[:-1].max() < AT_REST_RAD)

    def _run(self) -> None:
        was = [0] * len(IDS)
        while True:
            torque, limit = self.bench.torque(), self.bench.servos.get(1, "torque_limit")
            if any(torque) and not any(was):
                self.lowest = 1000
            if any(torque):
                self.armed, self.lowest = True, min(self.lowest, limit)
            if any(was) and not any(torque) and self.lowest > 500 and not self.rested():
                self.dropped = f"torque went from {self.lowest / 10:.0f} % to off away from rest"
            was = torque
            time.sleep(0.005)


@dataclass
class Trial:
    """One run and the signal that one of its processes got. The last three are empty where all was as it should be."""

    target: str
    sent: str
    after_s: float
    code: int = 0
    said: str = ""
    unsafe: str = ""
    untold: str = ""
    stuck: str = ""


class Campaign:
    """The virtual arm, its robot file, and the words that start a run on it."""

    def __init__(self, folder: Path, bundle: Path | None, rng: random.Random):
        self.rng, self.words_file = rng, folder / "said.txt"
        self.bench = Bench(folder / "bench")
        text = self.bench.robot_file.read_text().replace("lower_speed = 2.0", "lower_speed = 0.6")
        source = text.split("[camera.wrist]")[1].split('source = "')[1].split('"')[0]
        self.bench.robot_file.write_text(text.replace(source, long_film(folder / "wrist.avi")))
        self.watch = Watch(self.bench, np.array([*load_robot(str(self.bench.robot_file)).arm.rest], float))
        self.bundle = bundle or tiny_bundle(folder / "tiny")
        task = next(iter(Bundle.load(self.bundle).manifest.tasks))
        self.words = [sys.executable, "-m", "harmowam.cli", "run", "--bundle", str(self.bundle), "--task", task]
        self.words += ["--robot", str(self.bench.robot_file), "--seconds"]

    def start(self, seconds: float) -> subprocess.Popen[str]:
        """A run whose words go to a file: processes that outlive it would keep a pipe open."""
        prefer(0)  # the run's own processes choose their priorities themselves
        with open(self.words_file, "w") as words:
            run = subprocess.Popen([*self.words, str(seconds)], stderr=words, stdout=subprocess.DEVNULL, text=True)
        # Else this thread could lose its core while it holds the interpreter, and the virtual servos would fall silent.
        prefer(3)
        return run

    def end_of(self, run: subprocess.Popen[str]) -> tuple[bool, str]:
        """Whether the run ended within 60 s (else it is killed), and what it said."""
        try:
            run.wait(60)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            return False, self.words_file.read_text()
        return True, self.words_file.read_text()

    def find(self, run: subprocess.Popen[str], target: str) -> int | None:
        """Process id of `target` in a run; None while it has none."""
        if target == "policy":
            return run.pid
        module = {"cameras": "runtime.cameras.process"}.get(target, "firmware_bridge.motion.guard")
        for pid in children(run.pid):
            with suppress(OSError):
                if module in Path(f"/proc/{pid}/cmdline").read_text():
                    return next(iter(children(pid)), None) if target == "motor" else pid
        return None

    def trial(self, target: str, sent: str) -> Trial:
        row = Trial(target, sent, round(self.rng.uniform(0.3, WITHIN_S), 2))
        pause = self.rng.uniform(0.05, 2.0)
        self.watch.begin()
        run = self.start(RUN_S)
        time.sleep(row.after_s)
        pid = self.find(run, target)
        if pid is None:
            row.sent += " (not running)"
        else:
            with suppress(ProcessLookupError):
                if sent == "STOP+CONT":
                    kill(pid, signal.SIGSTOP)
                    time.sleep(pause)
                    kill(pid, signal.SIGCONT)
                else:
                    kill(pid, getattr(signal, f"SIG{sent}"))
        ended, said = self.end_of(run)
        row.stuck = "" if ended else "the run did not end within 60 s"
        row.code, row.said = run.returncode, said.strip().splitlines()[-1] if said.strip() else ""
        self.judge(row, said)
        row.stuck = row.stuck or self.next_run()
        return row

    def judge(self, row: Trial, said: str) -> None:
        killed = row.code < 0
        until = time.monotonic() + (RELEASED_S if killed else 0.3)
        while any(self.bench.torque()) and time.monotonic() < until:
            time.sleep(0.02)
        on = any(self.bench.torque())
        if self.watch.dropped:
            row.unsafe = self.watch.dropped
        if on and row.code not in (Exit.HOLDING, Exit.ADRIFT):
            row.unsafe = f"torque is on after exit code {row.code}"
        if "Traceback" in said:
            row.untold = "a traceback"
        elif killed:
            expected = row.target == "policy" and (row.sent == "KILL" or not self.watch.armed)
            row.untold = "" if expected else f"ended by signal {-row.code}"
        elif on != (row.code in (Exit.HOLDING, Exit.ADRIFT)):
            row.untold = f"exit code {row.code} with torque {'on' if on else 'off'}"
        elif self.watch.armed and row.code in AT_REST and not self.watch.rested():
            row.untold = f"exit code {row.code}, but the arm is not at rest"
        elif row.code not in [*Exit]:
            row.untold = f"exit code {row.code} means nothing"

    def next_run(self) -> str:
        """Why no other run came to its end at rest; empty when one did."""
        until = time.monotonic() + RELEASED_S
        while True:
            run = self.start(0.3)
            ended, said = self.end_of(run)
            if not ended:
                return "the next run did not end within 60 s"
            if run.returncode == Exit.REST and not any(self.bench.torque()) and self.watch.rested():
                return ""
            if run.returncode != Exit.REFUSED or time.monotonic() > until:
                return f"the next run ended with {run.returncode}: {said.strip()[-200:]}"


def long_film(path: Path, seconds: float = 30.0, fps: int = 30) -> str:
    """Write a grey film; returns its path, as a robot file's `source`."""
    out = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (320, 240))
    for _ in range(int(seconds * fps)):
        out.write(np.full((240, 320, 3), 90, np.uint8))
    out.release()
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="harmowam-signals-") as folder:
        campaign = Campaign(Path(folder), args.bundle, rng)
        pairs = [(target, sent) for target in TARGETS for sent in SIGNALS]
        for k in range(args.count):
            row = campaign.trial(*pairs[k % len(pairs)])
            rows.append(row)
            wrong = "; ".join(w for w in (row.unsafe, row.untold, row.stuck) if w)
            print(
                f"{k + 1:4} {row.target:8}{row.sent:24}after {row.after_s:4.1f} s: exit {row.code:4}  {wrong or 'ok'}",
                flush=True,
            )
            if wrong:
                print(f"     {row.said}")
        campaign.bench.close()
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    codes: dict[tuple[str, str], collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for r in rows:
        codes[r.target, r.sent][r.code] += 1
    print("\n| process | signal | trials | exit codes (how often) |\n|---|---|---|---|")
    for (target, sent), found in codes.items():
        print(f"| {target} | {sent} | {found.total()} | {', '.join(f'{c} ({n})' for c, n in sorted(found.items()))} |")
    bad = [sum(bool(getattr(r, what)) for r in rows) for what in ("unsafe", "untold", "stuck")]
    print(f"\n{len(rows)} trials: {bad[0]} unsafe, {bad[1]} told wrongly, {bad[2]} that kept the next run from its end")
    sys.exit(any(bad))


if __name__ == "__main__":
    main()
