"""The true future, in place of the world model's prediction: the scripted expert continues from the present state.

It separates errors of the prediction from errors in using it: failures that remain with the true future are caused by
the reactive expert. It reads the true state; for evaluation only.
"""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np

from runtime.contracts import Observation, Prior
from runtime.policies.decode import proprio
from runtime.policies.harmowam import SlowStep
from sim.expert import Follower, Segment, joints_for, plan
from sim.tasks import CLOSED, OPEN
from sim.world import World

DT = 0.02  # s, control period of the expert
HORIZON_S = (0.4, 0.8)  # s; the world model predicts these times and the next event
MOST_S = 6.0  # s; a later event is replaced by this time


def copy_state(replica: World, world: World) -> None:
    """Copy the state of `world` into `replica`: bodies, servos, buttons."""
    replica.reset(world.layout)
    replica.model.body_pos[:] = world.model.body_pos  # a fixed goal may have been displaced
    replica.data.qpos[:], replica.data.qvel[:], replica.data.ctrl[:] = world.data.qpos, world.data.qvel, world.data.ctrl
    replica._goal, replica._profile = world._goal.copy(), world._profile.copy()
    replica._delay = [d.copy() for d in world._delay]
    replica.pressed = list(world.pressed)
    for name in replica.pressed:
        replica._light(name)
    mujoco.mj_forward(replica.model, replica.data)


def remaining(replica: World) -> list[Segment]:
    """The expert's way-points from the replica's state; without the grasp if the item is held."""
    segments = plan(replica, np.random.default_rng(0))
    if replica.layout.task != "press" and replica.holds(replica.layout.roles[0]):
        first_close = next(i for i, s in enumerate(segments) if s.event and s.goal[5] < 0.5 * (OPEN + CLOSED))
        return segments[first_close + 2 :]
    return segments


def next_event_s(segments: list[Segment]) -> float:
    """Seconds until the next opening, closing or press."""
    t = 0.0
    for s in segments:
        if s.event:
            return t
        t += s.seconds
        if s.precise and s.goal[5] < 0.5 * (OPEN + CLOSED) and not any(o.event for o in segments):
            return t
    return t


class TrueFutureStep:
    """Replaces `SlowStep`: the same Priors, but with the tokeniser's latents of the true future."""

    remembers = True
    history_ns: tuple[int, ...] = ()

    def __init__(self, slow: SlowStep, world: World, replica: World):
        self.slow, self.world, self.replica = slow, world, replica
        self.priors_made, self.task = slow.priors_made, slow.task

    def set_task(self, task: str) -> None:
        self.slow.set_task(task)
        self.task = task

    def reset(self) -> None:
        self.slow.reset()

    def go_on_from(self, t_capture_ns: int, chunk: np.ndarray) -> None:
        self.slow.go_on_from(t_capture_ns, chunk)

    def _latent(self, obs: Observation) -> np.ndarray:
        """The front picture as the tokeniser's latent, float32[C,h,w]."""
        s = self.slow
        feeds = s.world_feeds(s.views(obs)["front"], proprio(s.family.forward(obs.q_rad))[None])
        return s.world.run(feeds)["latent"][0].copy()

    def step(self, now_ns: int, obs: Observation) -> Prior:
        prior = self.slow.step(now_ns, obs)
        self.priors_made = prior.number
        copy_state(self.replica, self.world)
        segments = remaining(self.replica)
        event = min(max(next_event_s(segments), DT), MOST_S)
        follower = Follower(self.replica, segments, np.random.default_rng(0), noise_m=0.0)
        follower.start[5] = self.world.family.forward(self.world._goal)[5]
        wanted = {"a": HORIZON_S[0], "b": HORIZON_S[1], "event": event}
        found: dict[str, np.ndarray] = {}
        t = 0.0
        while len(found) < len(wanted):
            target, _ = follower.step(DT)
            self.replica.set_goals(joints_for(target))
            self.replica.advance(DT)
            t += DT
            due = [k for k, at in wanted.items() if k not in found and t >= at - 1e-9]
            if due:
                frames = {name: self.replica.render(name) for name in ("front", "wrist")}
                latent = self._latent(dataclasses.replace(obs, frames=frames))
                found.update(dict.fromkeys(due, latent))
        return dataclasses.replace(prior, future=np.stack([found[k] for k in wanted]).astype(np.float32))
