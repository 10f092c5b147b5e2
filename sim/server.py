"""The simulated robot as two processes: one for physics and servo bus, one for the cameras. The runtime uses only its
serial port and its camera slots, as it does with a real robot.

    python -m sim.server --help
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.clock import Ticker, prefer, real_time
from common.errors import Mendable
from common.python import module_command
from common.slots import SlotReader, SlotWriter
from common.timing import SIM_CAMERA_PRIORITY, SIM_SERVO_PRIORITY, TRANSFER_PRIORITY
from firmware_bridge.virtual.faults import parse as parse_fault
from firmware_bridge.virtual.line import PtyBus, SocketBus
from runtime.cameras.frames import FrameWriter, frames_path
from runtime.robot import load_robot
from sim.tasks import ARM, DISPLACED

if TYPE_CHECKING:
    from firmware_bridge.virtual.bus import VirtualBus
    from sim.disturbance import Disturber
    from sim.world import World

# MuJoCo is imported inside `serve` and `serve_cameras`: a process that only starts the simulator does not need it.

# Priorities (common/timing.py): real hardware uses no processor time, so simulated hardware must not delay the fast
# loop. Servos and rendering run above the slow loop and below the fast one; below the slow loop every picture would
# wait for a forward pass of the world model. A transfer has the highest priority and takes 0.1 ms.
#
# A real camera delivers pictures at even intervals, TRANSFER_NS after the exposure (read-out and transfer). So a
# picture that is rendered early waits for that instant; one that is rendered late is delivered late.
TRANSFER_NS = 8_000_000
TRUTH_SLOT = "truth.slot"
ROBOT = f"sim_{ARM.NAME}"  # default robot
# Time, first success (0: none yet), simulated seconds and how many of them were computed late, success now, failures so
# far.
_TRUTH = struct.Struct("<qqddB63s")
SCORE_EVERY = 10  # servo periods between two judgements: 25 per second, like an evaluation's camera


class SimulatorError(Mendable):
    """A simulator that does not start; one sentence and the next step."""


def _command(slots: Path, robot: str, seed: int, task: str | None, fps: float) -> list[str]:
    """The command that runs this module as a process."""
    words = ["--slots", str(slots), "--robot", robot, "--seed", str(seed), "--fps", str(fps)]
    words += ["--starter", str(os.getpid())]
    return module_command("sim.server", *words, *(["--task", task] if task else []))


def _begin(bus: VirtualBus, faults: Iterable[tuple[str, float]], now_ns: int) -> int | None:
    """Inject faults into the bus, each its seconds after `now_ns`; returns from when on a thing may move (ns), None:
    never."""
    movable_ns = None
    for name, seconds in faults:
        at_ns = now_ns + int(seconds * 1e9)
        if name == DISPLACED:
            movable_ns = at_ns
        else:
            bus.faults.inject(name, at_ns)
    return movable_ns


def _disturber(world: World, judge: _Judge, seed: int, wanted: bool) -> Disturber | None:
    """Moves a thing once, where that is wanted and there is one (`sim.disturbance`)."""
    from sim.disturbance import Disturber

    if not wanted or judge.score is None:
        return None
    return Disturber(world, judge.score, np.random.default_rng([seed, 7, 1]))


class _Judge:
    """Whether the task is done, when it was done first (monotonic ns, 0: never), and the kind of failure so far."""

    def __init__(self, world: World):
        from sim.score import Score
        from sim.tasks import TASKS
        from sim.trace import FAILURE

        self.world, self.periods, self.first_success = world, 0, 0
        self.score = Score(world) if world.layout.task in TASKS else None
        self.failure = FAILURE.encode()

    def look(self, now_ns: int) -> bool:
        """Call once per servo period; returns whether the task is done. A traced circle stays done."""
        done = self.world.success() or (self.score is None and self.first_success > 0)
        self.first_success = self.first_success or (now_ns if done else 0)
        if self.score is not None and self.periods % SCORE_EVERY == 0:
            self.failure = self.score.told(self.score.watch(now_ns)).encode()
            self.score.pose.clear()  # not used here; it would grow while the simulator runs
        self.periods += 1
        return done


def serve(
    slots: Path,
    robot: str,
    seed: int,
    task: str | None,
    fps: float,
    faults: tuple[str, ...],
    terminal: bool,
    starter: int,
    states: Path | None = None,
) -> int:
    """Run physics in real time and the servo bus on a pseudo-terminal, until SIGTERM or until `starter`, the process
    that started this one, ends.

    `robot`: file or name of a simulated robot, whose servos are on the bus. `faults`: NAME@SECONDS each, injected into
    the bus that long after the torque is first switched on; with DISPLACED something may move from then on. `terminal`
    False: the bus is on a Unix socket. `states`: a file for the state of every picture (`sim.overview`).
    """
    from sim.plant import servos
    from sim.trace import seeded_start
    from sim.world import SERVO_DT, World

    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    described = load_robot(robot)
    world = World(layout=seeded_start(seed, described.family, task), family=described.family)
    truth = SlotWriter(slots / TRUTH_SLOT, _TRUTH.size + world.visible.nbytes)
    for name in ("front", "wrist"):
        (slots / f"{name}.json").write_text(json.dumps(world.camera(name).to_json()))
    kept = [] if states is None else ["--states", str(states)]
    cameras = subprocess.Popen([*_command(slots, robot, seed, task, fps), "--cameras", *kept])
    prefer(SIM_SERVO_PRIORITY)
    made, baud, where = servos(world, described.arm), described.arm.baud, slots / "servo-bus"
    bus = PtyBus(made, baud, link=where) if terminal else SocketBus(made, where, baud)
    first = described.arm.ids[0]
    real_time()
    ticker = Ticker(1 / SERVO_DT)
    began = time.monotonic_ns()
    judge, announced = _Judge(world), False
    pending = [parse_fault(f, (DISPLACED,)) for f in faults]
    disturb = _disturber(world, judge, seed, DISPLACED in dict(pending))
    movable_ns = None
    while not stop and os.getppid() == starter and cameras.poll() is None:
        now = ticker.wait()
        world.advance((now - began) * 1e-9 - world.time_s)
        if pending and bus.bus.get(first, "torque_enable"):
            movable_ns, pending = _begin(bus.bus, pending, now), []
        if disturb is not None and movable_ns is not None and now >= movable_ns:
            disturb(now)
        success = judge.look(now)
        clock = world.time_s, ticker.missed * SERVO_DT
        truth.write(_TRUTH.pack(now, judge.first_success, *clock, success, judge.failure), world.visible)
        if not announced and all(frames_path(slots, c).exists() for c in ("front", "wrist")):
            print(json.dumps({"port": bus.path, "instruction": world.instruction}), flush=True)
            announced = True
    cameras.terminate()
    cameras.wait()
    bus.close()
    return 0


def serve_cameras(
    slots: Path, robot: str, seed: int, task: str | None, fps: float, starter: int, states: Path | None = None
) -> int:
    """Render the newest state of the world at `fps` into camera slots, until `starter` ends.

    Each picture has the time stamp of its state and is delivered `TRANSFER_NS` after the tick, or after 0.8 of the
    period where that is shorter (above 100 fps). `states`: a file for the state of every picture.
    """
    from sim.overview import write_state
    from sim.trace import seeded_start
    from sim.world import CAMERA_SIZE, World

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arm = load_robot(robot).family
    world = World(layout=seeded_start(seed, arm, task), family=arm)
    truth = SlotReader(slots / TRUTH_SLOT)
    width, height = CAMERA_SIZE
    writers: dict[str, FrameWriter] = {}
    recorded = None if states is None else states.open("wb", buffering=0)
    prefer(SIM_CAMERA_PRIORITY)
    ticker = Ticker(fps)
    transfer_ns = min(TRANSFER_NS, ticker.period_ns * 4 // 5)
    while os.getppid() == starter:
        due = ticker.wait()
        got = truth.read()
        if got is not None:
            t_ns = _TRUTH.unpack_from(got[0])[0]
            state = np.frombuffer(got[0], np.float64, len(world.visible), _TRUTH.size)
            frames = world.render_visible(state)
            prefer(TRANSFER_PRIORITY)
            while (early := due + transfer_ns - time.monotonic_ns()) > 0:
                time.sleep(early * 1e-9)
            for name, frame in frames.items():
                if name not in writers:  # the slot appears with its first frame
                    writers[name] = FrameWriter(frames_path(slots, name), width, height)
                writers[name].write(t_ns, frame)
            if recorded is not None:
                write_state(recorded, t_ns, state)
            prefer(SIM_CAMERA_PRIORITY)
    return 0


def judged(slots: Path, since_ns: int) -> dict[str, Any]:
    """The simulator's verdict, for reports only; the loops do not read it.

    `success`: at any time after `since_ns` (monotonic); `success_after_s`: 0 without success; `success_at_end`: now;
    `failure`: kind of failure so far (`sim.score.TOLD`), "" during success.
    """
    got = SlotReader(slots / TRUTH_SLOT).read()
    _, first, _, _, now, failure = _TRUTH.unpack_from(got[0]) if got is not None else (0, 0, 0.0, 0.0, 0, b"")
    return {
        "success": first > since_ns,
        "success_after_s": round(max(first - since_ns, 0) * 1e-9, 2),
        "success_at_end": bool(now),
        "failure": "" if now else failure.rstrip(b"\0").decode(),
    }


@dataclass(frozen=True)
class Clocks:
    """The simulator's clock beside the wall's, s: monotonic time, simulated time, and how much of the latter was
    computed late, because servo periods (4 ms) had been slept through."""

    wall_s: float
    simulated_s: float
    late_s: float


def clocks(slots: Path) -> Clocks:
    """What the clocks show now, for reports only; simulated time is 0 before the simulator has begun."""
    got = SlotReader(slots / TRUTH_SLOT).read()
    _, _, simulated, late, *_ = _TRUTH.unpack_from(got[0]) if got is not None else (0, 0, 0.0, 0.0)
    return Clocks(time.monotonic(), simulated, late)


def passed(before: Clocks, after: Clocks) -> dict[str, float]:
    """By how much each clock went on, s: `{"wall_s", "simulated_s", "late_s"}`."""
    return {f.name: round(getattr(after, f.name) - getattr(before, f.name), 4) for f in dataclasses.fields(Clocks)}


def start(
    slots: Path,
    seed: int,
    task: str | None,
    fps: float,
    timeout_s: float = 30.0,
    faults: tuple[str, ...] = (),
    terminal: bool = True,
    robot: str = ROBOT,
    states: Path | None = None,
) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start the simulated robot `robot` (file or name); returns the process and {"port", "instruction"} when cameras
    and bus are ready. `states`: as in `serve`. Raises SimulatorError when they are not within `timeout_s`."""
    slots.mkdir(parents=True, exist_ok=True)
    for name in ("front", "wrist"):
        frames_path(slots, name).unlink(missing_ok=True)
    command = [*_command(slots, robot, seed, task, fps), *(x for f in faults for x in ("--fault", f))]
    command += [] if terminal else ["--socket"]
    command += [] if states is None else ["--states", str(states)]
    # In a process session of its own, so that Ctrl-C reaches the parent only, which ends the simulator: a child that is
    # still importing would print a traceback.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        line = process.stdout.readline() if ready else ""
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if not line:
        process.terminate()
        process.communicate()
        by_hand = "`python -m sim.server --slots out/sim`"
        raise SimulatorError(f"the simulated robot did not start: see its message above, or run {by_hand} to see why.")
    return process, dict(json.loads(line))


def main() -> int:
    from sim import tasks, trace

    parser = argparse.ArgumentParser(
        description="Simulated arm: MuJoCo, servo bus on a pseudo-terminal, cameras in slots."
    )
    parser.add_argument("--slots", type=Path, required=True, help="folder for slots and calibration files")
    parser.add_argument("--robot", default=ROBOT, help="a shipped simulated robot, or the file of one")
    parser.add_argument("--seed", type=int, default=0, help="start layout")
    parser.add_argument(
        "--task", choices=[*tasks.INSTRUCTIONS, *trace.INSTRUCTIONS], help="instruction; default: drawn from the seed"
    )
    parser.add_argument("--fps", type=float, default=50.0)
    parser.add_argument("--fault", action="append", default=[], help="NAME@SECONDS after the torque went on")
    parser.add_argument(
        "--socket", action="store_true", help="the servo bus on a Unix socket instead of a pseudo-terminal"
    )
    parser.add_argument("--states", type=Path, help="file for the state of every picture (sim.overview)")
    parser.add_argument("--cameras", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--starter", type=int, default=os.getppid(), help="parent process; without it, this one ends")
    args = parser.parse_args()
    args.slots.mkdir(parents=True, exist_ok=True)
    if args.cameras:
        return serve_cameras(args.slots, args.robot, args.seed, args.task, args.fps, args.starter, args.states)
    how = tuple(args.fault), not args.socket, args.starter, args.states
    return serve(args.slots, args.robot, args.seed, args.task, args.fps, *how)


if __name__ == "__main__":
    sys.exit(main())
