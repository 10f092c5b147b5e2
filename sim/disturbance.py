"""The environment "disturbed": the item or the goal moves once, by 3 to 8 cm, while the arm is on its way to it.

What moves, when, and where to are drawn from the episode's seed. *In transit*: the tool has done a drawn share of the
way. *At contact*: it is less than 20 mm above the height at which it grasps, lets go or presses, beside the thing by
25 mm at most. Nothing is moved that something touches, but for the table that it stands on.

Reaction time is measured against a twin: the same episode without the displacement. In virtual time both are equal bit
for bit until the thing moves, so the first command that differs by more than REACTS_RAD is the reaction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from firmware_bridge.motion.messages import Command
from sim.score import REACHED_M, Score
from sim.tasks import PAN_X, REACH, SEEN, TASKS
from sim.world import World

NEAREST_M, FURTHEST_M = 0.03, 0.08
SHARE = (0.3, 0.8)  # of the way that is done when a thing moves in transit
ABOVE_M = 0.02  # over the height of grasp, place or press: "at contact"
REACTS_RAD = 0.01  # about 2.5 mm at the tool of an SO-101
TRIES = 200


@dataclass(frozen=True)
class Plan:
    """What is drawn before an episode. `subgoal`: index of the role that moves (0 the item or the first button, 1 the
    goal or the second one); `late`: at contact, else after `share` of the way."""

    subgoal: int
    late: bool
    share: float


@dataclass(frozen=True)
class Displacement:
    """What happened. `at_ns`: virtual time; `moved_m`: distance; `late`: at contact, else in transit."""

    at_ns: int
    body: str
    subgoal: int
    late: bool
    moved_m: float


def draw(rng: np.random.Generator) -> Plan:
    """A plan for one episode: either subgoal and either moment are equally likely."""
    subgoal, late = (int(v) for v in rng.integers(2, size=2))
    return Plan(subgoal, bool(late), float(rng.uniform(*SHARE)))


class Disturber:
    """Moves a thing of `world` once. Call it at every motor tick: before the displacement it only reads the world."""

    def __init__(self, world: World, score: Score, rng: np.random.Generator):
        self.world, self.score, self.rng = world, score, rng
        self.plan = draw(rng)
        self.body = world.layout.roles[self.plan.subgoal]
        self.happened: Displacement | None = None
        self._way = 0.0  # m, from where the tool was when the subgoal became due

    def __call__(self, now_ns: int) -> None:
        if self.happened is None and self._is_time() and not touched(self.world.model, self.world.data, self.body):
            before = self.world.position(self.body)[:2]
            to = self._free_place(before)
            if to is not None:
                displace(self.world, self.world.data, self.body, to)
                moved = float(np.linalg.norm(to - before))
                self.happened = Displacement(now_ns, self.body, self.plan.subgoal, self.plan.late, moved)

    def _is_time(self) -> bool:
        if self.score.due() != self.plan.subgoal:
            return False
        away = self.score.distance()
        self._way = self._way or away
        if not self.plan.late:
            return away <= (1.0 - self.plan.share) * self._way
        task = TASKS[self.world.layout.task]
        contact = task.place_z if self.plan.subgoal == 1 and task.name != "press" else task.grasp_z
        return away < REACHED_M and float(self.world.pose[2]) < contact + ABOVE_M

    def _free_place(self, before: np.ndarray) -> np.ndarray | None:
        """A place (x, y) 3 to 8 cm away, in the region of the demonstrations, apart from all other things and touched
        by nothing; None when none of TRIES is."""
        w = self.world
        props = {p.name: p.room for p in TASKS[w.layout.task].props}
        ignored = {self.body, w.layout.roles[0]} if self.score.held else {self.body}  # what is held stands nowhere
        others = [
            (w.position(name)[:2], room + props[self.body]) for name, room in props.items() if name not in ignored
        ]
        for _ in range(TRIES):
            angle, far = self.rng.uniform(-math.pi, math.pi), self.rng.uniform(NEAREST_M, FURTHEST_M)
            to = before + far * np.array([math.cos(angle), math.sin(angle)])
            inside = all(low <= v <= high for v, low, high in zip(to, *SEEN, strict=True))
            reachable = inside and math.hypot(to[0] - PAN_X, to[1]) < REACH
            if reachable and all(np.linalg.norm(to - o) > room for o, room in others) and fits(w, self.body, to):
                return to
        return None


def touched(model: mujoco.MjModel, data: mujoco.MjData, body: str) -> bool:
    """Whether something else than the table touches the body."""
    own = model.body(body).rootid[0]
    roots = model.body_rootid[model.geom_bodyid[data.contact.geom[: data.ncon]]].reshape(-1, 2)
    return bool(((roots == own).any(axis=1) & ((roots != own) & (roots != 0)).any(axis=1)).any())


def displace(world: World, data: mujoco.MjData, body: str, to: np.ndarray) -> None:
    """Put a body, at rest, to `to` float64[2] (x, y; m) on the table; height and heading stay. `data`: the state of
    `world` or a copy of it; the place of a fixed body is part of the model."""
    at = world.free_joint(body)
    if at is None:
        world.model.body(body).pos[:2] = to
    else:
        data.qpos[at : at + 2] = to
        data.qvel[world.model.jnt_dofadr[world.model.body(body).jntadr[0]] :][:6] = 0.0


def fits(world: World, body: str, to: np.ndarray) -> bool:
    """Whether the body would touch only the table at `to` float64[2] (m). Changes nothing."""
    before, copy = world.position(body)[:2], mujoco.MjData(world.model)
    copy.qpos[:] = world.data.qpos
    displace(world, copy, body, to)
    mujoco.mj_kinematics(world.model, copy)
    mujoco.mj_comPos(world.model, copy)
    mujoco.mj_collision(world.model, copy)
    if world.free_joint(body) is None:
        displace(world, copy, body, before)
    return not touched(world.model, copy, body)


def reaction_ms(
    since_ns: int, sent: Sequence[tuple[int, Command]], twin: Sequence[tuple[int, Command]]
) -> float | None:
    """Time from the displacement to the first command whose joint goals differ from the twin's by more than REACTS_RAD
    in some joint; None where there is none.

    `sent`, `twin`: (when the motor process had it (ns), command). A command that only one of them has counts as changed
    where the other run went on.
    """
    other = {at: c.q_rad for at, c in twin}
    last = max(other, default=since_ns)
    for at, command in sent:
        if since_ns < at <= last:
            wanted = other.get(at)
            if wanted is None or float(np.abs(command.q_rad - wanted).max()) > REACTS_RAD:
                return (at - since_ns) / 1e6
    return None
