"""A task for any arm family: the tool follows a circle in the air in front of the arm, while the jaw opens and closes.

The six table-top tasks (`sim.tasks`) fit the reach of one arm; this task scales with the reach of each arm. The circle
is in a vertical plane in front of the arm; the instruction gives the direction, clockwise or counter-clockwise as seen
from behind the arm. Every joint has to move.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from firmware_bridge.arms.family import Family
from sim.tasks import ARM, Layout, sample_layout

TASK = "trace"  # sim/assets/trace.xml: an empty table
# instruction -> direction: 1 is clockwise
INSTRUCTIONS = {"trace a circle clockwise": 1, "trace a circle counter-clockwise": -1}
FAILURE = "did not go round its circle"  # the end of a sentence that begins with "the arm"
SPEED_M_S = 0.04  # speed of the tool; one round takes a larger arm longer
# centre (ahead, height) and radius of the circle, in shares of the arm's reach
AHEAD, HEIGHT, RADIUS = 0.54, 0.34, 0.08
PITCH, ROLL = 0.6, 0.3  # rad: pitch of the approach axis below the horizon; largest turn of the wrist to either side
JAW, JAW_SWING = 0.4, 0.2  # opening of the jaw in shares of its range: mean and amplitude
# Where demonstrations start: this share of them on the circle, as runs do; the others at most this far beside it
# (share of the reach, and rad)
STARTS_ON, ASIDE, TURNED = 0.5, 0.06, 0.2
JOIN_S = 1.5  # time after which the tool has joined the circle
NOISE, NOISE_S = 0.02, 0.35  # disturbance: standard deviation in m per m of reach, and correlation time in s
# success: largest distance from the circle (share of the reach), and largest relative error of the speed
ON_TRACK, PACE = 0.04, 0.5


def track(arm: Family, angle: float) -> np.ndarray:
    """Tool pose and jaw float64[6] at `angle` (rad) of the circle: 0 on the arm's left, a quarter of a turn at the
    top."""
    reach, open_at = arm.reach_m, float(arm.UPPER[-1]) - arm.SHUT
    y, z = RADIUS * math.cos(angle), HEIGHT + RADIUS * math.sin(angle)
    jaw = (JAW + JAW_SWING * math.sin(angle)) * open_at
    return np.array([AHEAD * reach, y * reach, z * reach, PITCH, ROLL * math.cos(angle), jaw])


def round_s(arm: Family) -> float:
    """Time for one round, s."""
    return 2 * math.pi * RADIUS * arm.reach_m / SPEED_M_S


def angle_at(arm: Family, tool: np.ndarray) -> float:
    """The angle (rad) of the circle's point nearest to `tool` [>= 3] (m)."""
    return math.atan2(float(tool[2]) - HEIGHT * arm.reach_m, float(tool[1]))


def sample_trace(
    rng: np.random.Generator, arm: Family, instruction: str | None = None, aside: float | None = None
) -> Layout:
    """A random start, at most `aside` (share of the reach) away from the circle per axis. Without `aside` the start of
    a demonstration: on the circle, or up to ASIDE beside it. Draws the instruction where none is given."""
    texts = list(INSTRUCTIONS)
    instruction = texts[int(rng.integers(len(texts)))] if instruction is None else instruction
    if aside is None:
        aside = 0.0 if rng.random() < STARTS_ON else ASIDE
    start = track(arm, float(rng.uniform(-math.pi, math.pi)))
    start[:3] += rng.uniform(-1, 1, 3) * aside * arm.reach_m
    start[3:5] += rng.uniform(-1, 1, 2) * TURNED * aside / ASIDE
    return Layout(TASK, instruction, {}, start[:5], float(start[5]))


def sample_start(rng: np.random.Generator, arm: Family, instruction: str | None = None) -> Layout:
    """The random start of a run: of `instruction`, or of any task for that arm. A circle is started without offset."""
    if instruction in INSTRUCTIONS or (instruction is None and arm.NAME != ARM.NAME):
        return sample_trace(rng, arm, instruction, aside=0.0)
    return sample_layout(rng, instruction)


def seeded_start(seed: int, arm: Family, instruction: str | None) -> Layout:
    """The start that a simulated robot draws from a run's seed; `instruction` None draws that, too."""
    return sample_start(np.random.default_rng([seed, 7]), arm, instruction)


class Tracer:
    """Moves from the start to the circle and round it for `seconds`, with a disturbance. As in `sim.expert.Follower`,
    `step(dt)` gives the executed tool pose float64[6], `clean()` the plan.

    The disturbance moves the tool across the circle, never along it: a tool that was pushed ahead looks like one that
    is on time, so a policy would learn the mean of plans that contradict each other.
    """

    def __init__(self, arm: Family, layout: Layout, rng: np.random.Generator, seconds: float):
        self.arm, self.rng, self.seconds, self.t = arm, rng, seconds, 0.0
        self.direction = INSTRUCTIONS[layout.instruction]
        start = np.append(layout.start, layout.jaw)
        self.angle = angle_at(arm, start)
        self.aside = start - track(arm, self.angle)
        self._off = np.zeros(6)
        self._scale = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]) * NOISE * arm.reach_m
        self._scale[3:5] = 0.05

    def at(self) -> float:
        """The angle (rad) of the circle that the plan has reached."""
        return self.angle + self.direction * 2 * math.pi * self.t / round_s(self.arm)

    def clean(self) -> np.ndarray:
        s = min(self.t / JOIN_S, 1.0)
        left = 1.0 - s**3 * (10 - 15 * s + 6 * s * s)
        return track(self.arm, self.at()) + left * self.aside

    def step(self, dt: float) -> tuple[np.ndarray, bool]:
        self.t += dt
        self._off += -self._off * dt / NOISE_S + math.sqrt(2 * dt / NOISE_S) * self.rng.normal(size=6)
        push, angle = self._off * self._scale, self.at()
        along = np.array([0.0, -math.sin(angle), math.cos(angle)])
        push[:3] -= (push[:3] @ along) * along
        return self.clean() + push, self.t >= self.seconds


class Moving(Protocol):
    """The part of `sim.world.World` that `success` uses: true joint angles `q` (rad) and velocities `qd` (rad/s),
    float64[J]."""

    family: Family
    layout: Layout

    @property
    def q(self) -> np.ndarray: ...

    @property
    def qd(self) -> np.ndarray: ...


def success(world: Moving) -> bool:
    """Whether the tool is on its circle and moves along it in the instructed direction, with the right speed."""
    arm, dt = world.family, 0.01
    here, then = (arm.tool(world.q + k * dt * world.qd)[:3, 3] for k in (0, 1))
    angle = angle_at(arm, here)
    turned = (angle_at(arm, then) - angle + math.pi) % (2 * math.pi) - math.pi
    pace = turned / dt * round_s(arm) / (2 * math.pi) * INSTRUCTIONS[world.layout.instruction]
    off = float(np.linalg.norm(here - track(arm, angle)[:3]))
    return off < ON_TRACK * arm.reach_m and abs(pace - 1) < PACE
