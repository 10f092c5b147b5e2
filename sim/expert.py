"""The scripted expert, which makes the demonstrations. It reads the true state of the world; no policy uses it.

It moves along minimum-jerk segments between way-points of the tool. `Follower.clean` is the plan, which becomes the
label. Smooth noise is added to the executed target, so that demonstrations show recoveries (DART: Laskey et al. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sim.tasks import ARM, CLOSED, HOME, OPEN, PAN_X, REACH, SEEN, TASKS, TOOL_PITCH, UNSEEN
from sim.world import World

HOVER = 0.070  # m, tool height in transit
# Start of a descent: standard deviation of the roll (rad), of the position (m) for usual and for far starts, and the
# share of far starts.
ENTRY_ROLL = 0.15
ENTRY_M, FAR_ENTRY_M, FAR_ENTRIES = 0.008, 0.018, 0.3
RISE = 0.09  # m, height to which the jaws rise after they have opened
MISS = (0.003, 0.003, 0.06)  # standard deviation of x, y (m), heading (rad) when play puts one object onto another


@dataclass(frozen=True)
class Segment:
    """Move to the tool pose `goal` float64[6] in `seconds`.

    `noise` scales the disturbance. `event`: the jaw's goal jumps at the start. `precise`: the tool moves sideways
    first, then down, and the disturbance fades out before the end.
    """

    goal: np.ndarray
    seconds: float
    noise: float
    event: bool = False
    precise: bool = False


def pan(x: float, y: float) -> float:
    """Yaw of the arm (rad) when its tool is over (x, y) (m)."""
    return math.atan2(y, x - PAN_X)


def jaw_roll(yaw: float, x: float, y: float, symmetry: float) -> float:
    """Wrist roll (rad) that aligns the jaws with an object of heading `yaw` that looks the same every `symmetry` rad.

    With the tool pointing down, its lateral axis is the pan direction rotated by -roll, seen from above.
    """
    want = (yaw - pan(x, y) + symmetry / 2) % symmetry - symmetry / 2
    return float(-want)


def _pose(x: float, y: float, z: float, roll: float, jaw: float) -> np.ndarray:
    return np.array([x, y, z, TOOL_PITCH, roll, jaw])


def _travel(a: np.ndarray, b: np.ndarray) -> float:
    return max(0.5, float(np.linalg.norm(a[:3] - b[:3])) / 0.16)


def _beside(x: float, y: float, roll: float, offset: float) -> tuple[float, float]:
    """The point `offset` to the left of (x, y), along the jaws' lateral axis."""
    a = pan(x, y) - roll + math.pi / 2
    return x + offset * math.cos(a), y + offset * math.sin(a)


def entry(rng: np.random.Generator, x: float, y: float) -> np.ndarray:
    """Random position [2] (m) at which the descent to (x, y) begins, beside it and sometimes far: the reactive expert
    will not arrive exactly either."""
    return np.array([x, y]) + rng.normal(0, FAR_ENTRY_M if rng.random() < FAR_ENTRIES else ENTRY_M, 2)


def pick(
    world: World, rng: np.random.Generator, item: str, z: float, offset: float, start: np.ndarray
) -> list[Segment]:
    """Way-points to grasp `item` at height `z` (m): hover, descend, close, lift. The descent begins beside the item
    (`entry`) and with a rotated tool. `offset`: of the grasp to the left of the item's centre, m."""
    x, y, _ = world.position(item)
    round_ring = item == "ring" and world.layout.environment != "object"
    symmetry = math.pi if item == "bar" else math.pi / 4 if round_ring else math.pi / 2
    # A bar is grasped across its length, which is along the tool's forward axis. A round object has no visible heading.
    roll = 0.0 if world.is_round(item) else jaw_roll(world.yaw(item), x, y, symmetry)
    x, y = _beside(x, y, roll, offset)
    hx, hy = entry(rng, x, y)
    hover = _pose(hx, hy, HOVER, roll + rng.normal(0, ENTRY_ROLL), OPEN)
    first: list[Segment] = []
    if start[5] < 0.5 * (OPEN + CLOSED):  # after a miss, first open the jaws
        up = start.copy()
        up[2] = max(up[2], z + 0.035)
        opened = up.copy()
        opened[5] = OPEN
        first = [Segment(up, 0.25, 0.2), Segment(opened, 0.25, 0.2, event=True)]
        start = opened
    return [
        *first,
        Segment(hover, _travel(start, hover), 1.0),
        Segment(_pose(x, y, z, roll, OPEN), 0.75, 0.8, precise=True),
        Segment(_pose(x, y, z, roll, CLOSED), 0.45, 0.0, event=True),
        Segment(_pose(x, y, HOVER, roll, CLOSED), 0.5, 0.2),
    ]


def put(
    world: World, rng: np.random.Generator, item: str, goal: str, lift: np.ndarray, z: float, miss: np.ndarray
) -> list[Segment]:
    """Way-points to place the item that `pick` grasped, whose last pose is `lift`, at `goal`: carry, descend to `z`
    (m), open, rise. `miss`: error [x, y (m), heading (rad)] of the place."""
    task = TASKS[world.layout.task]
    roll, high = float(lift[4]), float(lift[2])
    px, py, _ = world.position(goal)
    if goal == "plate":
        turn = 0.5 * roll
    elif item == "ring":
        turn = roll
    else:  # the held item rotates with the jaws: align its heading with the goal
        x, y, _ = world.position(item)
        held = 0.0 if world.is_round(item) else world.yaw(item) - (pan(x, y) - roll)  # heading relative to the jaws
        symmetry = math.pi if task.name == "slot" else math.pi / 2
        turn = roll if world.is_round(goal) else jaw_roll(world.yaw(goal) - held, px, py, symmetry)
    px, py = np.array(_beside(px, py, turn, task.place_offset)) + miss[:2]
    turn += miss[2]
    lx, ly = entry(rng, px, py)
    over = _pose(lx, ly, high, turn + rng.normal(0, ENTRY_ROLL), CLOSED)
    return [
        Segment(over, _travel(lift, over), 1.0),
        Segment(_pose(px, py, z, turn, CLOSED), 0.75, 0.7, precise=True),
        Segment(_pose(px, py, z, turn, OPEN), 0.30, 0.0, event=True),
        Segment(_pose(px, py, RISE, turn, OPEN), 0.45, 0.2),
    ]


def plan_place(world: World, rng: np.random.Generator) -> list[Segment]:
    """Way-points of a pick-and-place task from the world's present state."""
    task, (item, goal) = TASKS[world.layout.task], world.layout.roles
    up = pick(world, rng, item, task.grasp_z, task.grasp_offset, world.pose)
    down = put(world, rng, item, goal, up[-1].goal, task.place_z, np.zeros(3))
    return [*up, *down, Segment(np.append(HOME, OPEN), 0.6, 0.6)]


def plan_press(world: World, rng: np.random.Generator) -> list[Segment]:
    """Way-points of the button row: hover, press, hover, for each button that is not lit yet; the jaw stays closed."""
    at, out = world.pose, []
    for name in [r for r in world.layout.roles if r not in world.pressed]:
        x, y, _ = world.position(name)
        hx, hy = entry(rng, x, y)
        hover = _pose(hx, hy, HOVER, 0.0, CLOSED)
        out += [
            Segment(hover, _travel(at, hover), 1.0),
            Segment(_pose(x, y, TASKS["press"].grasp_z, 0.0, CLOSED), 0.7, 0.5, precise=True),
            Segment(_pose(x, y, HOVER, 0.0, CLOSED), 0.5, 0.3),
        ]
        at = out[-1].goal
    return [*out, Segment(np.append(HOME, CLOSED), 0.6, 0.6)]


def plan(world: World, rng: np.random.Generator) -> list[Segment]:
    """Way-points for the world's instruction from its present state."""
    return plan_press(world, rng) if world.layout.task == "press" else plan_place(world, rng)


def _next_to(world: World, item: str, other: str, side: str) -> tuple[float, float, str] | None:
    """Position (x, y in m) and side to place `item` beside `other`, as close as both allow; None where another object
    is in the way or the place is out of reach."""
    props = {p.name: p for p in TASKS[world.layout.task].props}
    x, y, _ = world.position(other)
    apart = props[item].room + props[other].room + 0.004
    y += apart if side == "left" else -apart
    if not (SEEN[0][1] <= y <= UNSEEN[1][1] and math.hypot(x - PAN_X, y) < REACH):
        return None
    for name in props:
        if (
            name not in (item, other)
            and np.hypot(*(world.position(name)[:2] - (x, y))) < props[item].room + props[name].room
        ):
            return None
    return x, y, side


def _somewhere(world: World, rng: np.random.Generator, z: tuple[float, float]) -> np.ndarray:
    """A tool pose above the table within reach, at a height (m) drawn from `z`."""
    while True:
        x, y = rng.uniform(SEEN[0], UNSEEN[1])
        if math.hypot(x - PAN_X, y) < REACH:
            return _pose(x, y, float(rng.uniform(*z)), float(rng.uniform(-0.5, 0.5)), world.layout.jaw)


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _take(world: World, rng: np.random.Generator, target: str, start: np.ndarray) -> tuple[list[Segment], str]:
    """Grasp `target` and release it on top of another object, next to one, or anywhere; returns the way-points and a
    text that describes what was done."""
    task = TASKS[world.layout.task]
    up = pick(world, rng, target, task.grasp_z, task.grasp_offset, start)
    lift = up[-1].goal
    others = [n for n in world.layout.places if n != target]
    other = others[int(rng.integers(len(others)))] if others and rng.random() < 0.85 else ""
    if other and rng.random() < 0.8:  # onto it, inaccurately
        fits = (target, other) in task.instructions.values()
        z = task.place_z if fits else TASKS["stack"].place_z
        onto = put(world, rng, target, other, lift, z, rng.normal(0, MISS))
        return [*up, *onto], f"drop the {_spoken(target)} onto the {_spoken(other)}"
    text, spot = f"take the {_spoken(target)} away", None
    drop = _somewhere(world, rng, (0.03, 0.05))
    if other:
        spot = _next_to(world, target, other, "left" if rng.random() < 0.5 else "right")
    if spot is not None:
        drop[:2], drop[2] = spot[:2], task.grasp_z + 0.004
        text = f"put the {_spoken(target)} to the {spot[2]} of the {_spoken(other)}"
    drop[5] = CLOSED
    hover = drop.copy()
    hover[2] = HOVER
    opened, leave = drop.copy(), hover.copy()
    opened[5] = leave[5] = OPEN
    down = [
        Segment(hover, _travel(lift, hover), 1.0),
        Segment(drop, 0.5, 0.4),
        Segment(opened, 0.3, 0.0, event=True),
        Segment(leave, 0.45, 0.3),
    ]
    return [*up, *down], text


def _touch(world: World, rng: np.random.Generator, target: str) -> tuple[list[Segment], str]:
    """Touch `target`, and in a button row often another button after it; returns the way-points and a text that
    describes what was done."""
    touched, out = [target], []
    pressing = world.layout.task == "press"
    if pressing and rng.random() < 0.7:
        touched.append(str(rng.choice([n for n in world.layout.places if n != target])))
    for name in touched:
        x, y, _ = world.position(name)
        hx, hy = entry(rng, x, y)
        hover = _pose(hx, hy, HOVER, float(rng.uniform(-0.3, 0.3)), world.layout.jaw)
        low = hover.copy()
        low[:3] = x, y, TASKS["press"].grasp_z if pressing else 0.05
        out += [Segment(hover, 0.0, 1.0), Segment(low, 0.7, 0.5, precise=True), Segment(hover, 0.5, 0.3)]
    return out, "touch the " + " and then the ".join(map(_spoken, touched))


def plan_play(world: World, rng: np.random.Generator) -> tuple[list[Segment], str]:
    """Task-agnostic play: move about, touch objects, and often grasp one and release it anywhere, next to another
    object, or on top of it. Returns the way-points and a text that describes what was done."""
    names = list(world.layout.places)
    for _ in range(3):  # prefer objects that can be grasped: they teach more than those that can only be touched
        target = names[int(rng.integers(len(names)))]
        if world.free_joint(target) is not None:
            break
    at = world.pose
    wander = [Segment(_somewhere(world, rng, (0.05, 0.11)), 0.0, 1.0) for _ in range(int(rng.integers(0, 2)))]
    if world.free_joint(target) is not None:
        done, text = _take(world, rng, target, wander[-1].goal if wander else at)
    else:
        done, text = _touch(world, rng, target)
    timed, before = [], at
    for s in (*wander, *done):
        timed.append(Segment(s.goal, s.seconds or _travel(before, s.goal), s.noise, s.event, s.precise))
        before = s.goal
    return timed, text


class Follower:
    """Follows the segments. `step(dt)` gives the executed target, `clean()` the plan without the disturbance."""

    def __init__(self, world: World, segments: list[Segment], rng: np.random.Generator, noise_m: float = 0.008):
        self.segments, self.rng, self.noise_m = segments, rng, noise_m
        self.index, self.t = 0, 0.0
        self.start = world.pose
        self.start[5] = world.layout.jaw
        self._ou = np.zeros(6)
        self._scale = np.array([noise_m, noise_m, 0.6 * noise_m, 0.0, 12 * noise_m, 0.0])
        self._gain = 0.0

    def clean(self, ahead: float = 0.0) -> np.ndarray:
        """Tool pose of the plan `ahead` seconds from now, float64[6]."""
        i, t, start = self.index, self.t + ahead, self.start
        while i < len(self.segments) and t >= self.segments[i].seconds:
            t -= self.segments[i].seconds
            start = self.segments[i].goal
            i += 1
        if i >= len(self.segments):
            return self.segments[-1].goal.copy()
        seg = self.segments[i]
        s = t / seg.seconds
        ease = s**3 * (10 - 15 * s + 6 * s * s)
        target = start + ease * (seg.goal - start)
        if seg.precise:  # first above the place and turned to it, then down
            r = min(1.0, s / 0.55)
            first = [0, 1, 4]
            target[first] = start[first] + r**3 * (10 - 15 * r + 6 * r * r) * (seg.goal[first] - start[first])
        target[5] = seg.goal[5] if seg.event else start[5]  # the jaw's goal jumps; the limiter makes its motion smooth
        return target

    def step(self, dt: float) -> tuple[np.ndarray, bool]:
        """Advance by `dt` seconds; returns the executed tool pose float64[6] and whether the plan has ended."""
        self.t += dt
        while self.index < len(self.segments) and self.t >= self.segments[self.index].seconds:
            self.t -= self.segments[self.index].seconds
            self.start = self.segments[self.index].goal
            self.index += 1
        done = self.index >= len(self.segments)
        seg = self.segments[min(self.index, len(self.segments) - 1)]
        tau = 0.35
        self._ou += -self._ou * dt / tau + np.sqrt(2 * dt / tau) * self.rng.normal(size=6)
        # The disturbance fades out before a precise end, so that what follows (closing, opening) happens at the planned
        # place.
        left = 1.0 - self.t / seg.seconds if seg.precise else 1.0
        self._gain += (seg.noise * min(1.0, max(0.0, (left - 0.15) / 0.35)) - self._gain) * min(1.0, dt / 0.1)
        return self.clean() + self._ou * self._scale * self._gain, done


def joints_for(target: np.ndarray) -> np.ndarray:
    """Joint goals [6] (rad) for a tool pose [6]."""
    return ARM.inverse(target, ARM.LOWER, ARM.UPPER)[0]
