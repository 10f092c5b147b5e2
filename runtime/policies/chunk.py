"""A policy of action chunks in joint space (ACT and its like): one slow engine, whose newest plan the fast step
follows.

`SlowStep`: observation -> Prior of joint targets. `FastStep`: the newest Prior read at the time an action applies ->
Command.

What it needs of a bundle: an engine "chunk" that gives `chunk` float32[1,K,J], joint targets (rad, the maker's angles,
gripper last) every `dt_ms`, the first of them `first` times `dt_ms` after the capture of its pictures. Its inputs are
any of: a picture of each camera of the manifest, by the camera's name, float32[1,3,h,w]; `state` float32[1,J], measured
joint angles (rad); `text` float32[1,E], the embedding of the instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibration.camera import Camera
from common.timing import COMMAND_LIFE_S
from firmware_bridge.motion.messages import Command, Expert
from runtime.bundle import Bundle
from runtime.contracts import A, FastTick, Observation, Prior
from runtime.manifest import Manifest
from runtime.policies.handover import on_grid, remainder
from runtime.policies.protocol import MS, Kind, NoTrace, Opening, Trace
from runtime.policies.views import Views, stored_views

SPACE = "joints"
ENGINE = "chunk"


class SlowStep:
    """One pass of the engine. It remembers only its instruction."""

    remembers = False
    history_ns: tuple[int, ...] = ()

    def __init__(
        self,
        bundle: Bundle,
        task: str,
        cameras: Mapping[str, Camera],
        threads: int = 1,
        trace: Trace | None = None,
        gpu: bool = False,
        engine: str = "cpu",
    ):
        m = bundle.manifest
        self.trace = trace or NoTrace()
        self.bundle = bundle
        self.views = Views(bundle, cameras, gpu)
        self.engine = bundle.engine(ENGINE, threads, engine)
        self.grid_ns = ((np.arange(m.chunk.steps) + m.chunk.first) * m.chunk.dt_ms * MS).astype(np.int64)
        self.priors_made = 0
        self.set_task(task)

    def set_task(self, task: str) -> None:
        """Another instruction from now on; raises BundleError for a text the bundle does not know."""
        self.text = self.bundle.task(task)[None]
        self.task = task

    def reset(self) -> None:
        pass

    def go_on_from(self, t_capture_ns: int, chunk: np.ndarray) -> None:
        pass

    def step(self, now_ns: int, obs: Observation) -> Prior:
        """One Prior from one observation; `t_ready_ns` is left at `now_ns` for the driver to complete."""
        have = {**self.views(obs), "text": self.text, "state": obs.q_rad[None]}
        self.trace.mark("slow.preprocess")
        chunk = self.engine.run({name: have[name] for name in self.engine.inputs})["chunk"][0].copy()
        self.trace.mark("slow.chunk")
        if np.isfinite(chunk).all():
            self.priors_made += 1  # what will be refused is not counted
        nothing = np.zeros(0, np.float32)
        return Prior(
            obs.t_capture_ns, now_ns, self.task, nothing, nothing, chunk, self.grid_ns, self.priors_made, SPACE
        )


@dataclass(frozen=True)
class FastSettings:
    """How commands are made from plans; seconds."""

    blend_s: float = 0.18  # hand-over from plan to plan
    start_s: float = 0.2  # in which the first plan's time comes up to speed
    prior_age_s: float = 1.5  # a Prior older than this, whose plan has ended, gives no targets: the motor process holds
    stale_s: float = COMMAND_LIFE_S  # lifetime of a Command beyond the tick it applies to


class FastStep:
    """Follows the newest plan. Where a new plan takes over, or a plan ends, position and velocity of the joints stay
    continuous.

    A bundle may say that a plan is followed for `chunk.use` of its targets before the newest one takes over, or that
    the mean of all plans is followed (`chunk.ensemble`; ACT's temporal ensembling, arXiv 2304.13705).

    Beyond a plan's last target the arm stays at it. The first command starts where the arm is, at rest. A policy that
    sees no velocity plans full speed from the first target on, so the time of the first plan starts at rest, too, and
    accelerates evenly to its normal pace: the tool then has no speed to catch up with.
    """

    uses_pictures = False

    def __init__(self, bundle: Bundle, trace: Trace | None = None, settings: FastSettings | None = None):
        m = bundle.manifest
        self.trace, self.set = trace or NoTrace(), settings or FastSettings()
        self.family = bundle.family
        self.joints = len(m.joints)
        self.use, self.ensemble = m.chunk.use, m.chunk.ensemble
        self.commands_made = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything about the episode before."""
        self.plans: tuple[Prior, ...] = ()  # what is followed, the oldest first: one, or an ensemble
        self.over = False  # whether all of them have ended
        self.first_number = -1  # of the Prior that the motion started with
        self.began_ns = 0  # when the motion began
        self.offset = np.zeros((2, self.joints))  # position and velocity of the hand-over's remainder at its start
        self.offset_ns = 0  # when that was

    def _taken(self, now_ns: int, prior: Prior) -> tuple[Prior, ...]:
        """The plans to follow at `now_ns`, where `prior` is the newest."""
        if self.ensemble is not None:
            known = self.plans if self.plans and self.plans[-1].number == prior.number else (*self.plans, prior)
            lasting = tuple(p for p in known if now_ns - p.t_capture_ns <= p.grid_ns[-1])
            return lasting or (prior,)
        if self.use is not None and self.plans:
            last = self.plans[0]
            if now_ns - last.t_capture_ns < last.grid_ns[min(self.use, len(last.grid_ns)) - 1]:
                return self.plans
        return (prior,)

    def _clock(self, now_ns: int, prior: Prior, alone: bool) -> tuple[float, float]:
        """Time of the plan, in ns after its capture, that is due at `now_ns`, and how fast that time passes (1: as the
        clock does). `alone`: no other plan is followed."""
        at = float(now_ns - prior.t_capture_ns)
        if prior.number != self.first_number or not alone:
            return max(at, 0.0), 1.0
        since, start = (now_ns - self.began_ns) * 1e-9, self.set.start_s
        pace = min(since / start, 1.0)
        late_s = since - since * pace / 2 if pace < 1 else start / 2
        return max(at - late_s * 1e9, 0.0), pace

    def _mean(self, now_ns: int, plans: tuple[Prior, ...], beyond_ns: float) -> tuple[np.ndarray, np.ndarray]:
        """Targets and velocities [J] of `plans` at `now_ns`, weighted by their age. A plan's last piece goes on for
        `beyond_ns` after its end."""
        made, weights = [], []
        for p in plans:
            at, pace = self._clock(now_ns, p, len(plans) == 1)
            q, rate = on_grid(p.chunk, p.grid_ns, min(at, p.grid_ns[-1] + beyond_ns))
            steps = (p.t_capture_ns - plans[0].t_capture_ns) / float(p.grid_ns[1] - p.grid_ns[0])
            made.append(np.stack([q, rate * pace]))
            weights.append(np.exp(-(self.ensemble or 0.0) * steps))
        q, rate = np.average(made, axis=0, weights=weights)
        return q, rate

    def _read(self, plans: tuple[Prior, ...], now_ns: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Targets and velocities [J] of `plans` at `now_ns`, and whether that is the end of all or beyond."""
        newest = plans[-1]
        if self._clock(now_ns, newest, len(plans) == 1)[0] >= newest.grid_ns[-1]:
            return newest.chunk[-1].astype(float), np.zeros(self.joints), True
        return *self._mean(now_ns, plans, 0.0), False

    def _follow(self, now_ns: int, plans: tuple[Prior, ...], over: bool) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity [J] of what is followed at `now_ns`, with the remainder. `over`: it stays at its end;
        else its last piece goes on for as long as a command lasts."""
        left, left_rate = remainder(self.offset, (now_ns - self.offset_ns) * 1e-9, self.set.blend_s)
        if over:
            return plans[-1].chunk[-1] + left, left_rate
        q, rate = self._mean(now_ns, plans, self.set.stale_s * 1e9)
        return q + left, rate + left_rate

    def step(self, now_ns: int, obs: Observation, prior: Prior | None) -> tuple[Command | None, FastTick]:
        """The command for this instant, or None while there is nothing to act on (the motor process then holds).

        Raises ValueError for a Prior of another action space.
        """
        age_ns = -1 if prior is None else now_ns - prior.t_capture_ns
        if prior is None or age_ns > max(self.set.prior_age_s * 1e9, prior.grid_ns[-1] + self.set.blend_s * 1e9):
            self.reset()
            nothing = np.zeros(A, np.float32)
            return None, FastTick(now_ns, age_ns, 0.0, int(Expert.NONE), nothing, nothing, nothing)
        if prior.space != SPACE:
            raise ValueError(f"a Prior of {prior.space} targets, where {SPACE} are followed")
        if not self.plans:
            self.first_number, self.began_ns = prior.number, now_ns
        plans = self._taken(now_ns, prior)
        q, rate, over = self._read(plans, now_ns)
        if over != self.over or [p.number for p in plans] != [p.number for p in self.plans]:
            here = self._follow(now_ns, self.plans, self.over) if self.plans else (obs.q_rad, np.zeros(self.joints))
            self.offset = np.stack(here) - np.stack([q, rate])
            self.offset_ns, self.plans, self.over = now_ns, plans, over
        planned = self.family.forward(q).astype(np.float32)
        q, rate = self._follow(now_ns, plans, over)
        self.trace.mark("fast.handover")
        self.commands_made += 1
        joints, rates = q.astype(np.float32), rate.astype(np.float32)
        stale = now_ns + int(self.set.stale_s * 1e9)
        command = Command(now_ns, stale, joints, rates, Expert.PLAN, 0.0, obs.t_capture_ns, self.commands_made)
        sent = self.family.forward(q).astype(np.float32)
        tick = FastTick(now_ns, age_ns, 0.0, int(Expert.PLAN), sent, planned, sent)
        self.trace.mark("fast.command")
        return command, tick


def _wrong(m: Manifest) -> str:
    """See `runtime.policies.protocol.Kind`."""
    engine, joints = m.engines[ENGINE], len(m.joints)
    strange = sorted(set(engine.inputs) - set(m.cameras) - {"text", "state"})
    if strange:
        return f"engine '{ENGINE}' with the input '{strange[0]}', which is no camera, nor text or state"
    if engine.outputs != ["chunk"]:
        return f"engine '{ENGINE}' with the output 'chunk' alone"
    if engine.inputs.get("state", [1, joints]) != [1, joints]:
        return f"a state of {joints} joints"
    if m.chunk.steps < 2:
        return "'chunk' of two steps or more"
    return ""


def _steps(bundle: Bundle, o: Opening) -> tuple[SlowStep, FastStep]:
    slow = SlowStep(bundle, o.task, o.cameras, o.threads, o.slow_trace, o.gpu, o.engine)
    return slow, FastStep(bundle, o.fast_trace)


def _feeds(bundle: Bundle, samples: dict[str, np.ndarray]) -> dict[str, list[dict[str, np.ndarray]]]:
    """See `runtime.policies.protocol.Kind`."""
    inputs = bundle.manifest.engines[ENGINE].inputs
    have = stored_views(bundle, samples, [k for k in inputs if k in bundle.manifest.cameras])
    if "state" in inputs:
        have["state"] = samples["state"].astype(np.float32)
    if "text" in inputs:
        have["text"] = np.stack([bundle.task(str(text)) for text in samples["instruction"]])
    return {ENGINE: [{k: v[i][None] for k, v in have.items()} for i in range(len(samples["instruction"]))]}


KIND = Kind(
    modes=("chunk",),
    engines=(ENGINE,),
    stages=("slow.preprocess", "slow.chunk", "fast.handover", "fast.command"),
    wrong=_wrong,
    steps=_steps,
    feeds=_feeds,
)
