"""Six table-top tasks and five environments: positions of the objects, instructions, and the test for success.

Regions of the table: demonstrations of tasks use `SEEN`; the environment "position" puts the item (and the goal, if
there is room) into `UNSEEN`; play uses both. No policy uses this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from firmware_bridge.arms.so101 import FAMILY

Region = tuple[tuple[float, float], tuple[float, float]]  # (x, y) of two corners, m
Places = dict[str, tuple[float, float, float]]  # body -> x, y (m), heading (rad)

ARM = FAMILY  # the tasks fit the reach of this arm; its demonstrations trained the shipped checkpoint
ENVIRONMENTS = ("seen", "background", "position", "object")
DISTURBED = "disturbed"  # as "seen", but the item or the goal moves once (sim/disturbance.py)
DISPLACED = "displaced"  # the same as a fault of a simulated robot
SEEN = ((0.162, -0.125), (0.260, 0.030))  # (x, y) of two corners, m
UNSEEN = ((0.162, 0.045), (0.260, 0.125))
REACH = 0.225  # m from the pan axis, tool pointing down
PAN_X = ARM.links.pan_forward
REST_S = 0.2  # success must last this long, s
OPEN, CLOSED = 0.6, 0.05  # jaw openings, rad
TOOL_PITCH = 1.40  # rad; 10 degrees from the vertical, so that the wrist is inside its limits over the whole table
HOME = np.array([0.17, 0.0, 0.09, TOOL_PITCH, 0.0])
N_DISTRACTORS = 8
TABLES = {
    "seen": ("",),
    # A third of play uses the plain table; else a policy could learn that objects on a plain table are in SEEN only.
    "play": (*[""] * 7, "train0", "train1", "train2", "train3", "train4", *["drawn"] * 9),
    "background": ("test0", "test1", "test2", "test3"),
}


@dataclass(frozen=True)
class Prop:
    """A body of the scene. `room`: radius of the space that it needs (m); `yaw`: largest heading to either side
    (rad)."""

    name: str
    room: float
    yaw: float = 0.6


@dataclass(frozen=True)
class Task:
    """One task. `instructions` maps each text to its roles: (item, goal), or the buttons in the order to press them.
    `grasp_z`, `place_z`: heights of the tool, m."""

    name: str
    props: tuple[Prop, ...]
    instructions: dict[str, tuple[str, ...]]
    grasp_z: float = 0.014
    place_z: float = 0.022
    # Lateral offset from the item's centre to the tool, m. The moving jaw pushes the item against the fixed jaw, 18 mm
    # from the tool.
    grasp_offset: float = -0.002
    place_offset: float = 0.0055


RED, BLUE = Prop("red_cube", 0.032), Prop("blue_cube", 0.032)
COLOURS = ("red", "green", "blue")
TASKS = {
    task.name: task
    for task in (
        Task(
            "plate",
            (RED, BLUE, Prop("plate", 0.043, 0.0)),
            {f"put the {c} cube on the plate": (f"{c}_cube", "plate") for c in ("red", "blue")},
        ),
        Task(
            "stack",
            (RED, BLUE),
            {
                f"stack the {a} cube on the {b} cube": (f"{a}_cube", f"{b}_cube")
                for a, b in (("red", "blue"), ("blue", "red"))
            },
            place_z=0.040,
        ),
        Task(
            "peg",
            (Prop("peg", 0.030), Prop("block", 0.042)),
            {"put the peg into the hole": ("peg", "block")},
            grasp_z=0.028,
            place_z=0.040,
            grasp_offset=0.003,
            place_offset=0.010,
        ),
        Task(
            "slot",
            (Prop("bar", 0.038), Prop("tray", 0.045)),
            {"lay the bar into the tray": ("bar", "tray")},
            grasp_z=0.013,
            place_z=0.024,
            grasp_offset=0.003,
            place_offset=0.010,
        ),
        Task(
            "ring",
            (Prop("ring", 0.036), Prop("post", 0.036)),
            {"hang the ring on the post": ("ring", "post")},
            grasp_z=0.0135,
            place_z=0.018,
            grasp_offset=0.0315,
            place_offset=0.0345,
        ),
        Task(
            "press",
            tuple(Prop(f"{c}_button", 0.022, 0.0) for c in COLOURS),
            {
                f"press the {a} button and then the {b} button": (f"{a}_button", f"{b}_button")
                for a, b in (("red", "green"), ("green", "blue"), ("blue", "red"))
            },
            grasp_z=0.014,
            grasp_offset=0.0,
        ),
    )
}
INSTRUCTIONS: dict[str, str] = {text: t.name for t in TASKS.values() for text in t.instructions}


@dataclass(frozen=True)
class Look:
    """Appearance of a scene: table top (a material; "" is the plain one) and its colour, brightness and direction of
    the lights, distractors as (index, x, y (m), yaw (rad))."""

    table: str = ""
    colour: tuple[float, float, float] = (0.62, 0.58, 0.54)
    key: float = 0.45
    ambient: float = 0.35
    light: tuple[float, float, float] = (-0.1, -0.4, -1.0)
    clutter: tuple[tuple[int, float, float, float], ...] = ()
    tint: int = 0  # seed for colours and shapes of objects and for the table top "drawn"; 0 leaves them unchanged


@dataclass(frozen=True)
class Layout:
    """One start. `places` maps body -> (x, y (m), yaw (rad)); `start` is the tool pose [5], `jaw` its opening (rad);
    `pressed` are the buttons that are already lit."""

    task: str
    instruction: str
    places: Places
    start: np.ndarray
    jaw: float = OPEN
    environment: str = "seen"
    look: Look = field(default_factory=Look)
    pressed: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        return TASKS[self.task].instructions.get(self.instruction, ()) if self.task in TASKS else ()


def _spot(rng: np.random.Generator, region: Region) -> np.ndarray:
    while True:
        p = rng.uniform(*region)
        if math.hypot(p[0] - PAN_X, p[1]) < REACH:
            return p


def _scatter(rng: np.random.Generator, props: tuple[Prop, ...], regions: dict[str, Region]) -> Places | None:
    """Places for all props, apart from one another; None when there is no room for them."""
    placed: Places = {}
    for prop in props:
        for _ in range(60):
            p = _spot(rng, regions[prop.name])
            if all(
                math.hypot(p[0] - placed[o.name][0], p[1] - placed[o.name][1]) > prop.room + o.room
                for o in props
                if o.name in placed
            ):
                placed[prop.name] = (float(p[0]), float(p[1]), float(rng.uniform(-prop.yaw, prop.yaw)))
                break
        else:
            return None
    return placed


def _row(rng: np.random.Generator, region: Region) -> Places:
    """Three buttons in a row, their colours in any order."""
    while True:
        centre, turn = _spot(rng, region), rng.uniform(-0.5, 0.5)
        along = np.array([math.cos(turn), math.sin(turn)]) * 0.046
        spots = [centre - along, centre, centre + along]
        if all(math.hypot(p[0] - PAN_X, p[1]) < REACH + 0.005 and p[0] > 0.125 and abs(p[1]) < 0.13 for p in spots):
            names = [f"{c}_button" for c in COLOURS]
            return {names[i]: (float(p[0]), float(p[1]), 0.0) for i, p in zip(rng.permutation(3), spots, strict=True)}


def sample_look(rng: np.random.Generator, environment: str, places: Places) -> Look:
    """A random appearance: plain for "seen", "position" and "object"; other table top, lights and distractors for
    "background" and "play"."""
    if environment not in ("background", "play"):
        return Look()
    table = str(rng.choice(TABLES[environment]))
    clutter: list[tuple[int, float, float, float]] = []
    count = int(rng.integers(5, 9)) if environment == "background" else int(rng.integers(0, 8))
    for k in rng.permutation(N_DISTRACTORS)[:count]:
        for _ in range(60):
            x, y = rng.uniform([0.10, -0.19], [0.36, 0.19])
            clear = all(math.hypot(x - p[0], y - p[1]) > 0.062 for p in places.values())
            apart = all(math.hypot(x - c[1], y - c[2]) > 0.045 for c in clutter)
            if clear and apart and math.hypot(x, y) > 0.115:
                clutter.append((int(k), float(x), float(y), float(rng.uniform(-math.pi, math.pi))))
                break
    shade = rng.uniform(0.75, 1.2)
    spread = 0.15 if environment == "play" else 0.06
    base = np.clip(np.array(Look().colour) * shade + rng.uniform(-spread, spread, 3), 0, 1)
    light = (float(rng.uniform(-0.6, 0.4)), float(rng.uniform(-0.6, 0.6)), -1.0)
    return Look(
        table,
        (float(base[0]), float(base[1]), float(base[2])),
        float(rng.uniform(0.30, 0.60)),
        float(rng.uniform(0.25, 0.45)),
        light,
        tuple(clutter),
        int(rng.integers(1, 2**31)) if environment == "play" else 0,
    )


def sample_layout(
    rng: np.random.Generator, instruction: str | None = None, task: str | None = None, environment: str = "seen"
) -> Layout:
    """A random start of `instruction`, of `task`, or of any task. `environment`: one of ENVIRONMENTS, DISTURBED, or
    "play"."""
    if instruction is None:
        texts = list(TASKS[task].instructions) if task is not None else list(INSTRUCTIONS)
        instruction = texts[int(rng.integers(len(texts)))]
    t = TASKS[INSTRUCTIONS[instruction]]
    roles = t.instructions[instruction]
    everywhere = (SEEN[0], UNSEEN[1])
    near = dict.fromkeys(("seen", "background", "object", DISTURBED), SEEN)
    home = {**near, "position": UNSEEN, "play": everywhere}[environment]
    if t.name == "press":
        places = _row(rng, home)
    else:
        tries = 0
        found = None
        while found is None:
            regions = dict.fromkeys((p.name for p in t.props), home)
            if environment == "position":
                for p in t.props:
                    if p.name not in roles or (p.name == roles[1] and tries > 20):
                        regions[p.name] = everywhere
            found = _scatter(rng, t.props, regions)
            tries += 1
        places = found
    start = HOME + rng.uniform([-0.01, -0.05, -0.015, 0, -0.3], [0.03, 0.05, 0.01, 0, 0.3])
    jaw = CLOSED if t.name == "press" else OPEN
    return Layout(t.name, instruction, places, start, jaw, environment, sample_look(rng, environment, places))


class Judged(Protocol):
    """The state that success is read from; `sim.world.World` is one. Positions in m, in the base frame."""

    layout: Layout
    pressed: list[str]

    def position(self, body: str) -> np.ndarray: ...

    def upright(self, body: str) -> float: ...

    def at_rest(self, body: str) -> bool: ...

    def touched(self, body: str) -> bool: ...


def success(world: Judged) -> bool:
    """Whether the instruction is fulfilled, from the state of the world only."""
    layout = world.layout
    roles = layout.roles
    if layout.task == "press":
        return world.pressed == list(roles)
    p, goal = world.position(roles[0]), world.position(roles[1])
    off, up = float(np.hypot(*(p[:2] - goal[:2]))), world.upright(roles[0])
    placed = {
        "plate": lambda: off < 0.035 and 0.012 < p[2] < 0.022,
        "stack": lambda: off < 0.0065 and 0.034 < p[2] < 0.041 and goal[2] < 0.016,
        "peg": lambda: off < 0.010 and p[2] < 0.029 and up > 0.9,
        "slot": lambda: off < 0.014 and p[2] < 0.013 and up > 0.9,
        "ring": lambda: off < 0.012 and p[2] < 0.011,
    }[layout.task]
    return bool(placed() and world.at_rest(roles[0]) and not world.touched(roles[0]))
