"""Judges an episode from the simulator's true state: transit, interaction, kind of failure, and the oracle's choice of
expert.

An episode is a sequence of subgoals: the item and then the goal, or one button after the other. A subgoal is due when
the previous one is done (the item is held, the button is down). A subgoal is *reached* when the tool has stayed within
25 mm (horizontally) of its target for 0.2 s, longer than passing over it in transit takes. Most demonstrations start
their descent with a standard deviation of 8 mm: 25 mm are three standard deviations, the range in which the predictive
expert was trained to take over. For the goal, the held item must be there, not the tool. *Transit* succeeded when every
subgoal that became due was reached, or the held item fell on the way; a later failure counts as interaction. So success
= transit x (interaction given transit).
"""

from __future__ import annotations

import math

import numpy as np

from sim.tasks import TASKS
from sim.world import World

REACHED_M = 0.025
DWELL_NS = 200_000_000
LEAVE = 1.6  # hysteresis: the oracle changes back at this many times REACHED_M
SURE_NS = 100_000_000  # a grasp or a loss counts after this time
STUCK_NS = 2_500_000_000  # nothing has moved for this time: equal pictures give equal commands, so nothing will
STILL_RAD, STILL_M = 0.004, 0.0005
OFF_TABLE_M = -0.01
TOLD = {  # `Score.failure` -> the end of a sentence that begins with "the arm"
    "took the wrong button": "pressed the wrong button",
    "took the wrong item": "took the wrong item",
    "pushed out of reach": "pushed an object out of its reach",
    "dropped on the way": "dropped the item on the way",
    "never got to the item": "never got to the item",
    "never got to the goal": "took the item but never got to its goal",
    "never got to the button": "never got to the button",
    "did not press it home": "got to the button but did not press it far enough",
    "grasped nothing": "got to the item but grasped nothing",
    "never let go": "took the item to its goal but never let go",
    "placed it badly": "placed the item badly",
}
FAR_M = 0.32  # m from the base: no arm pose grasps there


class Score:
    """Judges one episode of `world`; call `watch` at every frame."""

    def __init__(self, world: World):
        self.world, self.layout = world, world.layout
        self.task, self.roles = TASKS[world.layout.task], world.layout.roles
        self.press = world.layout.task == "press"
        self.count = len(self.roles)
        self.furthest = 0  # highest index of a subgoal that became due
        self.reached = [False] * self.count
        self.held = False
        self.dropped = False  # before the goal was reached
        self.wrong = False  # an object that was not asked for was grasped or pressed
        self.near = False  # the oracle chooses the predictive expert
        self._since: int | None = None  # since when the tool has been at the subgoal that is due, ns
        self._grip_since: int | None = None
        self._still: tuple[int, np.ndarray] | None = None
        self._wrong_since: int | None = None
        self._others = [
            p.name for p in self.task.props if p.name != self.roles[0] and world.free_joint(p.name) is not None
        ]
        self.pose: list[np.ndarray] = []  # measured, one per frame

    def due(self) -> int:
        """Index of the subgoal that is due."""
        if self.press:
            done = 0
            while (
                done < self.count - 1
                and done < len(self.world.pressed)
                and self.world.pressed[done] == self.roles[done]
            ):
                done += 1
            return done
        return int(self.held)

    def distance(self) -> float:
        """Horizontal distance (m) of the tool, or of the held item, from the target of the subgoal that is due."""
        w = self.world
        tool = w.pose[:2]
        if self.press:
            return float(np.linalg.norm(tool - w.position(self.roles[self.due()])[:2]))
        item = w.position(self.roles[0])[:2]
        if self.held:
            return float(np.linalg.norm(item - w.position(self.roles[1])[:2]))
        return abs(float(np.linalg.norm(tool - item)) - abs(self.task.grasp_offset))

    def oracle(self) -> float:
        """P(interaction) from the true state: 1 near the subgoal that is due, else 0."""
        return float(self.near)

    def watch(self, now_ns: int) -> str:
        """Judge this frame; returns a reason to end an episode that cannot succeed, else ""."""
        w = self.world
        self.pose.append(w.pose)
        before = self.due()
        if not self.press:
            self._grip(now_ns)
            if not any(w.holds(o) for o in self._others):
                self._wrong_since = None
            elif self._wrong_since is None:
                self._wrong_since = now_ns
            else:
                self.wrong = self.wrong or now_ns - self._wrong_since >= SURE_NS
        due = self.due()
        self.furthest = max(self.furthest, due)
        away = self.distance()
        self.near = away < REACHED_M * (LEAVE if self.near else 1.0)
        if away > REACHED_M or due != before:
            self._since = None
        else:
            self._since = now_ns if self._since is None else self._since
            self.reached[due] = self.reached[due] or now_ns - self._since >= DWELL_NS
        return self._hopeless(now_ns)

    def _grip(self, now_ns: int) -> None:
        holds = self.world.holds(self.roles[0])
        if holds == self.held:
            self._grip_since = None
            return
        self._grip_since = now_ns if self._grip_since is None else self._grip_since
        if now_ns - self._grip_since >= SURE_NS:
            self.dropped = self.dropped or (self.held and not self.reached[1])
            self.held, self._grip_since = holds, None

    def _hopeless(self, now_ns: int) -> str:
        w = self.world
        if self.press:
            if w.pressed != list(self.roles[: len(w.pressed)]):
                self.wrong = True
                return "wrong button"
        else:
            for name in self.roles:
                x, y, z = w.position(name)
                if z < OFF_TABLE_M or (not self.held and math.hypot(x, y) > FAR_M):
                    return "out of reach"
        state = np.append(w.q, [v for r in self.roles for v in w.position(r)])
        limit = np.append(np.full(len(w.q), STILL_RAD), np.full(len(state) - len(w.q), STILL_M))
        if self._still is None or (np.abs(state - self._still[1]) > limit).any():
            self._still = (now_ns, state)
        return "stuck" if now_ns - self._still[0] > STUCK_NS and not w.success() else ""

    def transit(self, success: bool) -> bool:
        """Whether transit succeeded; `success`: whether the episode did."""
        return success or self.dropped or all(self.reached[: self.furthest + 1])

    def failure(self, ended: str) -> str:
        """The kind of failure, a key of TOLD; `ended`: why the episode ended."""
        target = "button" if self.press else ("item", "goal")[self.furthest]
        if self.wrong:
            return f"took the wrong {'button' if self.press else 'item'}"
        if ended == "out of reach":
            return "pushed out of reach"
        if self.dropped:
            return "dropped on the way"
        if not self.reached[self.furthest]:
            return f"never got to the {target}"
        if self.press:
            return "did not press it home"
        if self.furthest == 0:
            return "grasped nothing"
        return "never let go" if self.held else "placed it badly"

    def told(self, ended: str) -> str:
        """`failure` as the end of a sentence that begins with "the arm"."""
        return TOLD[self.failure(ended)]
