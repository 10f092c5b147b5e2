"""How the simulated arm comes down: from random poses over the table to rest, through motor loop, servo packets and
physics.

`python -m benchmarks.lowering --count 200 --json FILE` (two minutes on two idle cores). Kinds of start, in turn:

* low: the closed gripper 5 to 40 mm over the table, near and far, left and right, turned; three of eight are told to go
  10 mm under it;
* held: the task's item between the closed jaws, on the table or lifted by up to 60 mm;
* on top: the closed gripper pressed onto the task's item from above;
* sunk: limp for 1 to 4 s, so that it lies on the table, then armed and held for up to 1.5 s;
* anywhere: joint angles drawn from the whole range, wherever no part of the arm is in the table or in the arm.

Each is lowered on request. The table says how many came to rest (every joint but the jaw within 0.06 rad as the torque
begins to go down), how many ended in a FAULT, how many still held then what they had held, how much deeper than both
start and rest any part of the arm came on the way, and how long it all took, the torque's ramp included.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.lowering import REST_TOLERANCE
from firmware_bridge.motion.messages import Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.motion.safety import lowering_s
from firmware_bridge.virtual.line import MemoryPort
from runtime.robot import load_robot
from sim.plant import servos
from sim.tasks import CLOSED, OPEN, PAN_X, TASKS, TOOL_PITCH, Layout, sample_layout
from sim.workers import spawned
from sim.world import World

KINDS = ("low", "sunk", "held", "anywhere", "low", "low", "held", "on top", "low", "held")
S, TICK_NS = 1_000_000_000, 10_000_000
REST_M = float(so101.lowest(np.array(load_robot("sim_so101").arm.rest)))
ITEMS = ("plate", "stack", "peg", "slot")  # tasks whose item is taken across the middle


@dataclass(frozen=True)
class Start:
    """Where the arm goes before it is lowered: way-points (rad), the jaw included, each for so many seconds (None: held
    there)."""

    layout: Layout
    way: tuple[tuple[np.ndarray | None, float], ...]
    item: str = ""  # held
    limp_s: float = 0.0  # before it is armed


@dataclass(frozen=True)
class Result:
    """One lowering. Metres, radians, seconds; `lowest_m`: of any part of the arm, as it stood, from the request to the
    torque's ramp."""

    seed: int
    kind: str
    start_rad: tuple[float, ...]
    start_m: float
    lowest_m: float
    off_rad: float
    fault: str
    kept: bool | None
    seconds: float

    @property
    def dip_m(self) -> float:
        return max(min(self.start_m, REST_M) - self.lowest_m, 0.0)

    @property
    def at_rest(self) -> bool:
        return not self.fault and self.off_rad < REST_TOLERANCE


class Bench:
    """The simulated arm under a motor loop in virtual time."""

    def __init__(self, world: World, limp_s: float = 0.0):
        self.world, self.config = world, load_robot("sim_so101").arm
        self.servos = servos(world, self.config)
        self.port = MemoryPort(self.servos)
        self.loop = MotorLoop(Arm(Bus(self.port), self.config))
        self.now = S
        if limp_s:
            for on in (True, False):
                world.set_goals(world.q, np.full(len(world.q), on))
        for _ in range(round(limp_s * 100)):
            self.tick(request=RequestKind.NONE)
        self.state = self.tick()

    def tick(self, q: np.ndarray | None = None, request: RequestKind = RequestKind.ARM) -> JointState:
        """One period, with a command to go to `q` (rad), and the physics behind it."""
        self.now += TICK_NS
        self.port.time_ns = self.now
        still = np.zeros(len(self.world.q), np.float32)
        command = None if q is None else Command(self.now, self.now + S // 10, q.astype(np.float32), still)
        self.state = self.loop.tick(self.now, command, request)
        self.world.advance(TICK_NS / S)
        return self.state

    def follow(self, way: tuple[tuple[np.ndarray | None, float], ...]) -> None:
        """Go to each way-point and stay there until its time is over."""
        for q, seconds in way:
            for _ in range(round(seconds * 100)):
                self.tick(q)


def posed(x: float, y: float, z: float, pitch: float, roll: float, jaw: float) -> np.ndarray:
    return so101.inverse(np.array([x, y, z, pitch, roll, jaw]), so101.LOWER, so101.UPPER)[0]


def low(rng: np.random.Generator, press: bool) -> Start:
    while True:
        pan, reach = rng.uniform(-1.6, 1.6), rng.uniform(0.13, 0.36)
        x, y = PAN_X + reach * np.cos(pan), reach * np.sin(pan)
        z, pitch, roll = rng.uniform(0.005, 0.040), rng.uniform(0.5, 1.57), rng.uniform(-1.1, 2.5)
        z = 0.010 if press else z
        pose = np.array([x, y, z, pitch, roll, CLOSED])
        above = np.add(pose, [0, 0, 0.05, 0, 0, 0])
        (q, exact), (over, reached) = (so101.inverse(at, so101.LOWER, so101.UPPER) for at in (pose, above))
        if exact and reached and x < 0.45 and float(so101.lowest(q)) > (-0.004 if press else 0.002):
            break
    layout = sample_layout(rng, task="press")
    aside = {name: (0.55, 0.30 + 0.05 * k, 0.0) for k, name in enumerate(layout.places)}
    way = [(over, 1.2), (q, 0.7)]
    if press:
        way.append((posed(x, y, z - 0.010 - float(so101.lowest(q)), pitch, roll, CLOSED), 0.5))
    return Start(Layout("press", layout.instruction, aside, layout.start, CLOSED), tuple(way))


def over_item(rng: np.random.Generator, grasp: bool) -> Start:
    """Hover over the task's item; take it, or press it down."""
    task = TASKS[str(rng.choice(ITEMS))]
    layout = sample_layout(rng, task=task.name)
    item = layout.roles[0]
    x, y, yaw = layout.places[item]
    roll = -((yaw - np.arctan2(y, x - PAN_X) + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    roll = -yaw + np.arctan2(y, x - PAN_X) if item == "bar" else roll
    if not grasp:
        top = {"peg": 0.050, "bar": 0.016}.get(item, 0.025)
        way = [
            (posed(x, y, top + h, TOOL_PITCH, roll, CLOSED), s) for h, s in ((0.05, 0.8), (0.008, 0.6), (-0.003, 0.5))
        ]
        return Start(layout, tuple(way))
    a = np.arctan2(y, x - PAN_X) - roll + np.pi / 2
    x, y = x + task.grasp_offset * np.cos(a), y + task.grasp_offset * np.sin(a)
    lift = float(rng.uniform(0.0, 0.06)) if rng.random() < 0.7 else 0.0
    turn = float(rng.uniform(-0.8, 0.8)) if lift > 0.03 else 0.0
    steps = ((0.06, OPEN, 0.0, 0.8), (0.0, OPEN, 0.0, 0.6), (0.0, CLOSED, 0.0, 0.6), (lift, CLOSED, turn, 0.5))
    way = [(posed(x, y, task.grasp_z + h, TOOL_PITCH, roll + t, jaw), s) for h, jaw, t, s in steps]
    return Start(layout, tuple(way), item)


def anywhere(rng: np.random.Generator) -> Start:
    layout = sample_layout(rng, task="press")
    home = so101.inverse(np.append(layout.start, CLOSED), so101.LOWER, so101.UPPER)[0]
    while True:
        q = rng.uniform(so101.LOWER, so101.UPPER)
        way = np.linspace(home, q, 60)
        if float(so101.lowest(way).min()) > 0.01:
            break
    aside = {name: (0.55, 0.30 + 0.05 * k, 0.0) for k, name in enumerate(layout.places)}
    return Start(Layout("press", layout.instruction, aside, layout.start, CLOSED), ((q, 1.5),))


def sunk(rng: np.random.Generator) -> Start:
    return Start(sample_layout(rng), ((None, float(rng.uniform(0.1, 1.5))),), limp_s=float(rng.uniform(1.0, 4.0)))


def lowered(job: tuple[int, str]) -> Result:
    """One start of a kind, lowered."""
    seed, kind = job
    rng = np.random.default_rng([seed, 25])
    ready = False
    while not ready:  # a start with a fault on the way to it, or an item that slipped: another one
        start = {
            "low": lambda: low(rng, seed % 4 == 0),
            "held": lambda: over_item(rng, True),
            "sunk": lambda: sunk(rng),
            "on top": lambda: over_item(rng, False),
            "anywhere": lambda: anywhere(rng),
        }[kind]()
        world = World(layout=start.layout)
        bench = Bench(world, start.limp_s)
        bench.follow(start.way)
        ready = bench.state.safety != SafetyState.FAULT and (not start.item or world.touched(start.item))
    began, begin = bench.now, bench.state
    lowest, ramp, last = np.inf, False, bench.state
    off, kept = np.inf, None
    rest = np.array(bench.config.rest)
    while not bench.loop.finished and bench.now - began < (lowering_s(bench.config) + 2) * S:
        last = bench.tick(request=RequestKind.LOWER)
        if not ramp:
            lowest = min(lowest, float(so101.lowest(world.q)))
            off = float(np.abs(last.q_rad - rest)[:-1].max())
            kept = world.touched(start.item) if start.item else None
            ramp = bench.servos.get(1, "torque_limit") < 1000
    world.close()
    return Result(
        seed,
        kind,
        tuple(float(v) for v in begin.q_rad),
        float(so101.lowest(begin.q_rad)),
        lowest,
        off,
        last.reason if last.safety == SafetyState.FAULT else "" if bench.loop.finished else "did not end",
        kept,
        (bench.now - began) / S,
    )


def table(results: list[Result]) -> str:
    """Markdown, a row a kind and one for all."""
    rows = [
        (
            "| start | lowered | at rest | FAULT | held / kept | deeper than start and rest, mm | seconds, median "
            "(longest) |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (*dict.fromkeys(KINDS), "all"):
        own = [r for r in results if kind in (r.kind, "all")]
        if not own:
            continue
        held = [r for r in own if r.kept is not None]
        seconds = [r.seconds for r in own]
        rows.append(
            f"| {kind} | {len(own)} | {sum(r.at_rest for r in own)} | {sum(bool(r.fault) for r in own)} "
            f"| {f'{len(held)} / {sum(bool(r.kept) for r in held)}' if held else '-'} | "
            f"{1000 * max(r.dip_m for r in own):.0f} "
            f"| {np.median(seconds):.1f} ({max(seconds):.1f}) |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="lowerings (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default 0)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--json", type=Path, help="every lowering")
    args = parser.parse_args()
    jobs = [(k, KINDS[k % len(KINDS)]) for k in range(args.seed, args.seed + args.count)]
    results = sorted(tqdm(spawned(lowered, jobs, args.workers), total=len(jobs)), key=lambda r: r.seed)
    print(table(results))
    for r in results:
        if not r.at_rest:
            print(f"seed {r.seed}, {r.kind}: {r.fault or 'not at rest'}, {r.off_rad:.2f} rad off")
    if args.json:
        args.json.write_text(
            json.dumps([{**asdict(r), "at_rest": r.at_rest, "dip_m": r.dip_m} for r in results], indent=1)
        )


if __name__ == "__main__":
    main()
