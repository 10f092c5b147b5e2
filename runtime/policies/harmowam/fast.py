"""HarmoWAM's fast step: newest observation and newest Prior -> Command (reactive expert, gate, hand-over, inverse
kinematics). No sleeping, no clock but the trace's, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from calibration.camera import Camera
from common.timing import COMMAND_LIFE_S
from firmware_bridge.motion.messages import Command, Expert
from runtime.bundle import Bundle
from runtime.contracts import A, FastTick, Observation, Prior
from runtime.policies.decode import five_axis, heatmap_point, proprio
from runtime.policies.handover import on_grid, remainder
from runtime.policies.protocol import Ends, NoTrace, Trace
from runtime.policies.views import Views


@dataclass(frozen=True)
class FastSettings:
    """How commands are made from targets; SI units. Demonstrations travel at up to 0.35 m/s."""

    speed: float = 0.26  # m/s, transit
    turn: float = 2.5  # rad/s, roll and pitch in transit
    gain: float = 6.0  # 1/s, approach
    acceleration: float = 2.0  # m/s^2
    hover: float = 0.070  # m, tool height in transit
    funnel: float = 1.6  # rise of the approach funnel per metre of horizontal distance
    funnel_radius: float = 0.006  # m
    smoothing_s: float = 0.12  # of the reactive target
    blend_s: float = 0.18  # hand-over between chunks and experts
    chunk_age_s: float = 0.55  # a Prior older than this gives no predictive targets
    prior_age_s: float = 1.5  # a Prior older than this gives no targets at all: hold
    pause_s: float = 0.25  # a chunk's first pause is skipped where the tool has stood still for the pause and this long
    pause_m: float = 0.005  # the tool stands still while it moves less than this
    skip_s: float = 0.6  # how long pauses are then skipped
    stale_s: float = COMMAND_LIFE_S  # lifetime of a Command beyond the tick it applies to
    jaw_open: float = 0.6
    jaw_closed: float = 0.05


class FastStep:
    """Reactive expert and gate on the newest frame, choice of expert, continuous hand-over, joint targets.

    For comparisons, `policy` can be "reactive" or "predictive" (always that expert) or "average" (both at once) instead
    of "gated"; `other_gate` replaces P(interaction), and without `uses_pictures` the fast engine is not run (the
    predictive expert alone needs none). `ends`: of this robot's joints (default: those of the bundle).
    """

    def __init__(
        self,
        bundle: Bundle,
        cameras: Mapping[str, Camera],
        threads: int = 1,
        trace: Trace | None = None,
        policy: str = "gated",
        settings: FastSettings | None = None,
        gpu: bool = False,
        engine: str = "cpu",
        ends: Ends | None = None,
    ):
        m = bundle.manifest
        self.trace, self.policy = trace or NoTrace(), policy
        self.views = Views(bundle, cameras, gpu)
        self.engine = bundle.engine("fast", threads, engine)
        self.family = five_axis(bundle)
        lower, upper = ends or ([x.lower for x in m.joints], [x.upper for x in m.joints])
        self.limits = np.array(lower, float), np.array(upper, float)
        self.front = Camera.from_json(m.cameras["front"])
        self.side = m.reactive.heatmap or 0
        self.on, self.off = m.gate.on, m.gate.off
        self.set = settings or FastSettings()
        self.other_gate: Callable[[], float] | None = None
        self.uses_pictures = True
        self.no_future = np.zeros(self.engine.inputs["future"].shape, np.float32)
        self.commands_made = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything about the episode before."""
        self.last_ns: int | None = None
        self.pose: np.ndarray = np.zeros(A)
        self.velocity: np.ndarray = np.zeros(A)
        self.transit_velocity: np.ndarray = np.zeros(A)  # the reactive expert's own, where both are averaged
        self.target: np.ndarray | None = None  # smoothed reactive target
        self.expert = Expert.NONE
        self.plan_number = -1  # of the Prior whose chunk is followed
        self.priors: tuple[Prior | None, Prior | None] = (None, None)  # the last but one, the newest
        self.offset = np.zeros((2, A))  # position and velocity of the blend at its start
        self.offset_ns = 0
        self.jaw: float | None = None
        self.anchor: np.ndarray = np.zeros(A)  # pose at which the tool stands still
        self.still_ns = 0  # since when it stands there
        self.skip_ns = 0  # until when pauses are skipped
        self.ahead_ns = 0  # by how much the newest chunk is read ahead, to skip its pause

    def _reactive(self, now_ns: int, obs: Observation, prior: Prior) -> tuple[np.ndarray, float, float]:
        """Run the fast engine: smoothed reactive target [6], gate probability, heat-map mass round the peak."""
        views = self.views(obs)
        self.trace.mark("fast.preprocess")
        state = proprio(self.family.forward(obs.q_rad))[None]
        out = self.engine.run(
            {"front": views["front"], "wrist": views["wrist"], "future": prior.future, "proprio": state}
        )
        self.trace.mark("fast.engine")
        z, pitch, roll = (float(v) for v in out["reach"][0])
        point, mass = heatmap_point(self.front, out["heat"][0], self.side, z)
        gate, jaw_open = (float(v) for v in out["gate"][0])
        if self.jaw is None:
            self.jaw = self.set.jaw_open if jaw_open > 0.5 else self.set.jaw_closed
        elif jaw_open > 0.9:
            self.jaw = self.set.jaw_open
        elif jaw_open < 0.1:
            self.jaw = self.set.jaw_closed
        raw = np.array([*point, pitch, roll, self.jaw])
        if self.target is None:
            self.target = raw
        else:
            dt = (now_ns - (self.last_ns or now_ns)) * 1e-9
            a = dt / (self.set.smoothing_s + dt)
            # A jump means another object: go there at once and do not drift across the table.
            jumped = np.linalg.norm(raw[:3] - self.target[:3]) > 0.05
            self.target = raw if jumped else self.target + a * (raw - self.target)
        self.target[5] = self.jaw
        return self.target, gate, mass

    def _choose(self, gate: float, age_s: float) -> Expert:
        if self.policy != "gated":
            want = Expert.PREDICTIVE if self.policy == "predictive" else Expert.REACTIVE
        elif self.expert == Expert.PREDICTIVE:
            want = Expert.REACTIVE if gate < self.off else Expert.PREDICTIVE
        else:
            want = Expert.PREDICTIVE if gate > self.on else Expert.REACTIVE
        if want == Expert.PREDICTIVE and age_s > self.set.chunk_age_s and self.policy != "predictive":
            return Expert.REACTIVE
        return want

    def _plan(self, prior: Prior, t_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Pose and velocity of the predictive chunk at the time an action applies; the jaw is binarised."""
        times = prior.grid_ns
        t_ns += self.ahead_ns
        at = float(np.clip(t_ns - prior.t_capture_ns, times[0], times[-1]))
        pose, velocity = on_grid(prior.chunk, times, at)
        if t_ns - prior.t_capture_ns >= times[-1]:
            velocity = np.zeros(A)
        middle = 0.5 * (self.set.jaw_open + self.set.jaw_closed)
        pose[5] = self.set.jaw_open if pose[5] > middle else self.set.jaw_closed
        velocity[5] = 0.0
        return pose, velocity

    def _skip_pause(self, now_ns: int, prior: Prior) -> int:
        """By how much to read a new chunk ahead, ns: over the pause that it begins with, where the tool has stood still
        for long enough.

        Demonstrations pause for a fixed time (a jaw closes, a button is down) and chunks repeat the pause. Each of
        eight chunks a second begins with it, so that none comes to its end: the tool would stand there for ever.
        """
        c = self.set
        away = np.linalg.norm(prior.chunk[:, :3] - prior.chunk[0, :3], axis=1) > c.pause_m
        if not away.any():
            return 0
        pause_ns = int(prior.grid_ns[int(away.argmax())] - prior.grid_ns[0])
        if now_ns - self.still_ns > pause_ns + c.pause_s * 1e9:
            self.skip_ns = now_ns + int(c.skip_s * 1e9)
        return pause_ns if now_ns < self.skip_ns else 0

    def _jaw(self, now_ns: int, wanted: float) -> float:
        """The jaw to command: it opens only where two plans in a row want it open, because one wrong plan of eight a
        second would drop the object."""
        before = self.priors[0]
        if wanted != self.set.jaw_open or self.pose[5] == self.set.jaw_open or before is None:
            return wanted
        return float(self._plan(before, now_ns)[0][5])

    def _follow_plan(self, now_ns: int, prior: Prior, fresh: bool) -> None:
        """Commanded pose := plan plus a remainder that goes to zero; position and velocity stay continuous."""
        moved = np.linalg.norm(self.pose[:3] - self.anchor[:3]) > self.set.pause_m
        if fresh or moved or self.pose[5] != self.anchor[5]:
            self.anchor, self.still_ns = self.pose.copy(), now_ns
        if fresh:
            self.skip_ns = self.ahead_ns = 0
        if prior.number != self.plan_number:
            self.ahead_ns = self._skip_pause(now_ns, prior)
        plan, plan_velocity = self._plan(prior, now_ns)
        plan[5] = self._jaw(now_ns, plan[5])
        if fresh or prior.number != self.plan_number:
            # From the last command, which is a tick old: the velocity that is carried over overshoots by one tick. To
            # move that command on by the tick cost one success in nine (docs/notebook.md, "A tick of standing still").
            self.offset[0], self.offset[1] = self.pose - plan, self.velocity - plan_velocity
            self.offset_ns, self.plan_number = now_ns, prior.number
        position, rate = remainder(self.offset, (now_ns - self.offset_ns) * 1e-9, self.set.blend_s)
        self.pose, self.velocity = plan + position, plan_velocity + rate
        self.pose[5], self.velocity[5] = plan[5], 0.0

    def _transit(self, dt: float, target: np.ndarray) -> None:
        """Move the commanded pose towards the reactive target: over a funnel, at bounded speed and acceleration."""
        c = self.set
        goal = target.copy()
        away = max(float(np.linalg.norm(target[:2] - self.pose[:2])) - c.funnel_radius, 0.0)
        goal[2] = max(target[2], min(target[2] + c.funnel * away, c.hover))
        want = c.gain * (goal - self.pose)
        speed = float(np.linalg.norm(want[:3]))
        if speed > c.speed:
            want[:3] *= c.speed / speed
        want[3:5] = np.clip(want[3:5], -c.turn, c.turn)
        limit = np.array([c.acceleration] * 3 + [20.0, 20.0, 0.0]) * dt
        self.velocity += np.clip(want - self.velocity, -limit, limit)
        self.pose = self.pose + self.velocity * dt
        self.pose[5], self.velocity[5] = target[5], 0.0

    def _average(self, now_ns: int, dt: float, target: np.ndarray, prior: Prior) -> None:
        """The mean of the two poses that the experts, from the commanded pose, would reach after `dt` (a comparison of
        the paper)."""
        here, self.velocity = self.pose, self.transit_velocity
        self._transit(dt, target)
        self.transit_velocity = self.velocity
        plan, plan_velocity = self._plan(prior, now_ns)
        self.velocity = 0.5 * (self.velocity + plan_velocity + (plan - here) / self.set.blend_s)
        self.pose = here + self.velocity * dt
        self.pose[5], self.velocity[5] = 0.5 * (target[5] + plan[5]), 0.0

    def step(self, now_ns: int, obs: Observation, prior: Prior | None) -> tuple[Command | None, FastTick]:
        """The command for this instant, or None while there is nothing to act on (the motor process then holds)."""
        nothing = np.zeros(A, np.float32)
        age_ns = -1 if prior is None else now_ns - prior.t_capture_ns
        if self.last_ns is None:  # first command starts where the arm is
            self.pose = self.family.forward(obs.q_rad)
        if prior is None or age_ns > self.set.prior_age_s * 1e9:
            self.last_ns, self.expert = None, Expert.NONE
            self.velocity = np.zeros(A)
            return None, FastTick(now_ns, age_ns, 0.0, int(Expert.NONE), nothing, nothing, nothing)
        dt = 0.0 if self.last_ns is None else min((now_ns - self.last_ns) * 1e-9, 0.1)
        if self.priors[1] is None or prior.number != self.priors[1].number:
            self.priors = (self.priors[1], prior)
        reactive, gate, mass = self._reactive(now_ns, obs, prior) if self.uses_pictures else (self.pose, 1.0, 0.0)
        gate = gate if self.other_gate is None else self.other_gate()
        expert = self._choose(gate, age_ns * 1e-9)
        self.trace.mark("fast.gate")
        if expert == Expert.PREDICTIVE:
            self._follow_plan(now_ns, prior, fresh=self.expert != Expert.PREDICTIVE)
        elif self.policy == "average":
            self._average(now_ns, dt, reactive, prior)
        else:
            self._transit(dt, reactive)
        self.expert, self.last_ns = expert, now_ns
        self.trace.mark("fast.handover")
        q, _ = self.family.inverse(self.pose, *self.limits)
        h = 0.02
        ahead, _ = self.family.inverse(self.pose + h * self.velocity, *self.limits)
        joints, rates = q.astype(np.float32), ((ahead - q) / h).astype(np.float32)
        self.commands_made += 1
        command = Command(
            now_ns,
            now_ns + int(self.set.stale_s * 1e9),
            joints,
            rates,
            expert,
            gate,
            obs.t_capture_ns,
            self.commands_made,
        )
        predictive = self._plan(prior, now_ns)[0].astype(np.float32)
        targets = (reactive.astype(np.float32), predictive, self.pose.astype(np.float32))
        tick = FastTick(now_ns, age_ns, gate, int(expert), *targets, mass)
        self.trace.mark("fast.command")
        return command, tick
