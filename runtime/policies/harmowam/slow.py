"""HarmoWAM's slow step: observation -> Prior (world model, then predictive expert). A pure function of time and input,
but for the plan that it remembers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.contracts import Observation, Prior
from runtime.policies.decode import absolute_chunk, five_axis, proprio, relative_chunk
from runtime.policies.protocol import MS, NoTrace, Trace
from runtime.policies.views import Views

# Warm start: the flow of a new plan starts partly from the last plan.
WARMTH = 0.4  # share of the last plan in the start
WARM_AFTER_NS = 300 * MS  # steps of the new plan after this have it: those before follow the newest picture alone
WARM_NS = 500 * MS  # a plan older than this gives no warm start
WARM_MOST = 3.0  # standard deviations: the start is clipped here, for chunks lie within


def fixed_noise(inputs: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, np.ndarray]:
    """What the flows of "world_model" and "predictive" start from, float32, the same every time: plans from equal
    pictures are equal, and plans that follow each other agree. An engine without an input "noise" has no entry.

    `inputs`: shapes of the inputs by engine. For actions it is the mean of the noise, zero: 20 of 36 starts were
    solved, against 14 with one fixed draw (an earlier checkpoint)."""
    shapes = {name: tuple(inputs[name]["noise"]) for name in ("world_model", "predictive") if "noise" in inputs[name]}
    out = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    if "world_model" in out:
        drawn = np.random.default_rng(0).standard_normal(shapes["world_model"])
        out["world_model"] = drawn.astype(np.float32)
    return out


class SlowStep:
    """World model, then predictive expert. One instance a task; not shared between threads. It remembers its last plan
    (`_start`)."""

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
        self.world = bundle.engine("world_model", threads, engine)
        self.predictive = bundle.engine("predictive", threads, engine)
        self.family = five_axis(bundle)
        self.set_task(task)
        noise = fixed_noise({name: files.inputs for name, files in m.engines.items()})
        self.world_noise, self.action_noise = noise.get("world_model"), noise["predictive"]
        self.grid_ns = (np.arange(1, m.chunk.steps + 1) * m.chunk.dt_ms * MS).astype(np.int64)
        self.mean, self.std = np.array(m.chunk.mean), np.array(m.chunk.std)
        self.priors_made = 0

    history_ns: tuple[int, ...] = ()

    def set_task(self, task: str) -> None:
        """Another instruction from now on; raises BundleError for a text the bundle does not know."""
        self.text = self.bundle.task(task)[None].astype(np.float32)
        self.task = task
        self.reset()

    def reset(self) -> None:
        """Forget the last plan."""
        self.last: tuple[int, np.ndarray] | None = None  # capture time of its pictures, and the plan

    def go_on_from(self, t_capture_ns: int, chunk: np.ndarray) -> None:
        """`chunk` float32[K,6], tool poses, was its last plan; its pictures were taken at `t_capture_ns`."""
        self.last = (t_capture_ns, chunk)

    @property
    def remembers(self) -> bool:
        return self.last is not None

    def world_feeds(self, front: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the world model for the front view float32[1,3,h,w] and proprioception float32[1,4]."""
        feeds = {"front": front, "text": self.text, "proprio": state}
        return feeds if self.world_noise is None else {**feeds, "noise": self.world_noise}

    def _start(self, t_ns: int, pose: np.ndarray) -> np.ndarray:
        """What the predictive flow starts from, float32[1,K,6]: a share of the last plan as seen from `pose` at `t_ns`
        (warm start), or zero without one.

        Where pictures leave two ways open (down to the ring, or up from it as if it hung already) each plan would
        choose again, and eight different choices a second lead nowhere. Where they leave one way, the flow ends there
        from any start.
        """
        if self.last is None or not 0 < t_ns - self.last[0] < WARM_NS:
            return self.action_noise
        at = t_ns - self.last[0] + self.grid_ns
        known = (at <= self.grid_ns[-1]) & (self.grid_ns > WARM_AFTER_NS)
        plan = np.stack([np.interp(at, self.grid_ns, column) for column in self.last[1].T], -1)
        start = (relative_chunk(pose, plan, self.family) - self.mean) / self.std
        start = WARMTH * np.clip(start, -WARM_MOST, WARM_MOST) * known[:, None]
        return start[None].astype(np.float32)

    def step(self, now_ns: int, obs: Observation) -> Prior:
        """One Prior from one observation; `t_ready_ns` is left at `now_ns` for the driver to complete."""
        views = self.views(obs)
        pose = self.family.forward(obs.q_rad)
        state = proprio(pose)[None]
        self.trace.mark("slow.preprocess")
        w = self.world.run(self.world_feeds(views["front"], state))
        self.trace.mark("slow.world_model")
        chunk = self.predictive.run(
            {
                "wrist": views["wrist"],
                "latent": w["latent"],
                "tokens": w["tokens"],
                "proprio": state,
                "noise": self._start(obs.t_capture_ns, pose),
            }
        )["chunk"][0]
        self.trace.mark("slow.predictive")
        targets = absolute_chunk(pose, chunk, self.family).astype(np.float32)
        if np.isfinite(targets).all() and np.isfinite(w["future"]).all():
            self.priors_made += 1  # what will be refused is not counted and starts no other plan
            self.last = (obs.t_capture_ns, targets)
        # Copies: an engine may answer in the same memory next time, while the fast loop still reads `future` and the
        # log's thread still hashes both.
        tokens, future = w["tokens"][0].copy(), w["future"].copy()
        done = float(w["done"].ravel()[0]) if "done" in w else math.nan
        number = self.priors_made
        return Prior(obs.t_capture_ns, now_ns, self.task, tokens, future, targets, self.grid_ns, number, done=done)
