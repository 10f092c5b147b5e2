"""The scripted expert: privileged (it reads where the cube is), used to make demonstrations, never by a policy.

It plans one minimum-jerk segment at a time between way-points of the end-effector; `target(t)` is the clean plan that
becomes the label, and `noise(t)` a smooth disturbance added to what is executed (DART: Laskey et al. 2017), so that
demonstrations show recoveries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.kinematics import so101_inverse
from sim.world import CLOSED, HOME, INSTRUCTIONS, OPEN, TOOL_PITCH, World

HOVER = 0.070  # m, tool height in transit
GRASP_Z = 0.014
RELEASE_Z = 0.022


@dataclass(frozen=True)
class Segment:
    """Move to `goal` [6] (pose and jaw) in `seconds`; `noise` scales the disturbance; `event` marks open/close."""

    goal: np.ndarray
    seconds: float
    noise: float
    event: bool = False


def jaw_roll(world: World, name: str, x: float, y: float) -> float:
    """Wrist roll that turns the jaws parallel to the nearest pair of faces of the cube."""
    at = world.data.body(name).xmat.reshape(3, 3)
    yaw = np.arctan2(at[1, 0], at[0, 0])
    pan = np.arctan2(y, x - 0.0388353)
    # Tool pointing down: its lateral axis is the pan direction turned by -roll, seen from above.
    want = (yaw - pan + np.pi / 4) % (np.pi / 2) - np.pi / 4
    return float(-want)


def plan_pick_place(world: World, rng: np.random.Generator) -> list[Segment]:
    """Way-points for the world's instruction from its present state."""
    name = INSTRUCTIONS[world.instruction]
    x, y, _ = world.cube(name)
    px, py = world.layout.plate
    roll = jaw_roll(world, name, x, y)

    def pose(x: float, y: float, z: float, roll: float, jaw: float) -> np.ndarray:
        return np.array([x, y, z, TOOL_PITCH, roll, jaw])

    def travel(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.5, float(np.linalg.norm(a[:3] - b[:3])) / 0.16)

    now = world.pose
    # The entry to the descent is left a little to the side: the transit expert will not be exact either.
    hx, hy = np.array([x, y]) + rng.normal(0, 0.008, 2)
    lx, ly = np.array([px, py]) + rng.normal(0, 0.008, 2)
    hover, grasp = pose(hx, hy, HOVER, roll, OPEN), pose(x, y, GRASP_Z, roll, OPEN)
    grip = pose(x, y, GRASP_Z, roll, CLOSED)
    lift = pose(x, y, HOVER, roll, CLOSED)
    over = pose(lx, ly, HOVER, 0.5 * roll, CLOSED)
    lower = pose(px, py, RELEASE_Z, 0.5 * roll, CLOSED)
    release = pose(px, py, RELEASE_Z, 0.5 * roll, OPEN)
    leave = pose(px, py, HOVER, 0.5 * roll, OPEN)
    home = np.append(HOME, OPEN)
    return [
        Segment(hover, travel(now, hover), 1.0),
        Segment(grasp, 0.75, 0.5),
        Segment(grip, 0.35, 0.0, event=True),
        Segment(lift, 0.5, 0.2),
        Segment(over, travel(lift, over), 1.0),
        Segment(lower, 0.65, 0.5),
        Segment(release, 0.30, 0.0, event=True),
        Segment(leave, 0.45, 0.3),
        Segment(home, 0.6, 0.6),
    ]


class Follower:
    """Walks the segments: `step(dt) -> (clean target [6], executed target [6], event, done)`."""

    def __init__(self, world: World, segments: list[Segment], rng: np.random.Generator, noise_m: float = 0.008):
        self.segments, self.rng, self.noise_m = segments, rng, noise_m
        self.index, self.t = 0, 0.0
        self.start = world.pose
        self._ou = np.zeros(6)
        self._scale = np.array([noise_m, noise_m, 0.6 * noise_m, 0.0, 12 * noise_m, 0.0])
        self._gain = 0.0

    def clean(self, ahead: float = 0.0) -> np.ndarray:
        """The plan `ahead` seconds from now, [6]."""
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
        target[5] = seg.goal[5] if seg.event else start[5]  # the jaw is told at once; the limiter makes it smooth
        return target

    def step(self, dt: float) -> tuple[np.ndarray, bool, bool]:
        """Executed target [6], whether a jaw event begins now, whether the plan is over."""
        before = self.index
        self.t += dt
        while self.index < len(self.segments) and self.t >= self.segments[self.index].seconds:
            self.t -= self.segments[self.index].seconds
            self.start = self.segments[self.index].goal
            self.index += 1
        done = self.index >= len(self.segments)
        seg = self.segments[min(self.index, len(self.segments) - 1)]
        tau = 0.35
        self._ou += -self._ou * dt / tau + np.sqrt(2 * dt / tau) * self.rng.normal(size=6)
        self._gain += (seg.noise - self._gain) * min(1.0, dt / 0.15)
        noise = self._ou * self._scale * self._gain
        event = self.index != before and not done and seg.event
        return self.clean() + noise, event, done


def joints_for(target: np.ndarray) -> np.ndarray:
    """Joint goals [6] for an end-effector target [6]."""
    q, _ = so101_inverse(target[:5])
    return np.append(q, target[5])
