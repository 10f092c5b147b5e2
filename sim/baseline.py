"""Behaviour cloning under the same loop: observation -> Prior from one network that gives absolute targets (an ACT bundle)."""

from __future__ import annotations

import numpy as np

from calibration.camera import Camera
from firmware_bridge.arms import so101
from runtime.bundle import Bundle
from runtime.contracts import Observation, Prior
from runtime.policies.harmowam import MS, Views


class ChunkStep:
    """Stands in for `SlowStep` of `runtime.policies.harmowam`. Its Priors hold a plan alone: use them with a pinned predictive policy."""

    def __init__(self, bundle: Bundle, cameras: dict[str, Camera], threads: int = 1):
        m = bundle.manifest
        self.bundle = bundle
        self.views = Views(bundle, cameras)
        self.engine = bundle.engine("act", threads=threads)
        self.links = so101.Links(**m.links)
        self.grid_ns = (np.arange(1, m.chunk.steps + 1) * m.chunk.dt_ms * MS).astype(np.int64)
        self.seq = 0
        self.set_task(next(iter(m.tasks)))

    def set_task(self, task: str) -> None:
        """Another instruction from now on; raises BundleError for a text the bundle does not know."""
        self.text = self.bundle.task(task)[None]
        self.task = task

    def step(self, now_ns: int, obs: Observation) -> Prior:
        """One Prior from one observation. The network gets the tool's absolute pose, as ACT gets the joint positions."""
        views = self.views(obs)
        pose = so101.forward(obs.q_rad, self.links).astype(np.float32)
        chunk = self.engine.run(
            {"front": views["front"], "wrist": views["wrist"], "text": self.text, "pose": pose[None]}
        )["chunk"][0]
        self.seq += 1
        nothing = np.zeros(0, np.float32)
        return Prior(obs.t_capture_ns, now_ns, self.task, nothing, nothing, chunk, self.grid_ns, self.seq)
