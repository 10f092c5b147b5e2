"""A policy that takes the noise out of a plan of joint targets step by step (Diffusion Policy, arXiv 2303.04137). Plans
are followed as those of the kind chunk.

What it needs of a bundle: an engine "encode" that gives `condition`, and an engine "denoise" that takes `sample`
float32[1,T,J] (zeros at the first step, which adds its noise), `condition` and `place` float32[1,N], 1 at the step and
0 elsewhere, and gives `next`, the next sample, and `chunk` float32[1,K,J], joint targets (rad) as of the kind chunk.
The inputs of "encode" are pictures by the cameras' names and `state`; `NAME-2` is NAME of the observation two steps of
`dt_ms` before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.contracts import Observation, Prior
from runtime.manifest import Manifest
from runtime.policies import chunk
from runtime.policies.history import earlier
from runtime.policies.protocol import MS, Kind, NoTrace, Opening, Trace
from runtime.policies.views import Views, stored_views

ENCODE, DENOISE = "encode", "denoise"
MOST_STEPS = 16  # of history
Tensors = dict[str, np.ndarray]


def diffused(
    run: Callable[[str, Tensors], Tensors], feed: Tensors, shape: Sequence[int], count: int, until: int | None = None
) -> Tensors:
    """The last pass' inputs and its `chunk`, from the inputs `feed` of "encode" and the `shape` of a sample, in `count`
    steps (or the first `until` of them)."""
    sample, condition = np.zeros(shape, np.float32), run(ENCODE, feed)["condition"].copy()
    out: Tensors = {}
    for place in np.eye(count, dtype=np.float32)[:until]:
        step = {"sample": sample, "condition": condition, "place": place[None]}
        answer = run(DENOISE, step)
        sample, out = answer["next"].copy(), {**step, "chunk": answer["chunk"].copy()}
    return out


def history_of(m: Manifest) -> int:
    """How many steps before the newest observation the oldest one lies."""
    inputs = m.engines[ENCODE].inputs
    return max(k for k in range(MOST_STEPS) if earlier("state", k) in inputs or k == 0)


class SlowStep:
    """One plan, from noise that is the same each time. It remembers only its instruction."""

    remembers = False

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
        self.trace, self.bundle = trace or NoTrace(), bundle
        self.views = Views(bundle, cameras, gpu)
        self.engines = {name: bundle.engine(name, threads, engine) for name in (ENCODE, DENOISE)}
        step = m.engines[DENOISE].inputs
        self.shape, self.count = step["sample"], step["place"][1]
        self.grid_ns = ((np.arange(m.chunk.steps) + m.chunk.first) * m.chunk.dt_ms * MS).astype(np.int64)
        self.history_ns = tuple(round(k * m.chunk.dt_ms * MS) for k in range(1, history_of(m) + 1))
        self.priors_made = 0
        self.set_task(task)

    def set_task(self, task: str) -> None:
        """Another instruction from now on; raises BundleError for a text the bundle does not know."""
        self.bundle.task(task)
        self.task = task

    def reset(self) -> None:
        pass

    def go_on_from(self, t_capture_ns: int, chunk: np.ndarray) -> None:
        pass

    def _run(self, name: str, feed: Tensors) -> Tensors:
        made = self.engines[name].run(feed)
        self.trace.mark(f"slow.{name}")
        return made

    def step(self, now_ns: int, obs: Observation) -> Prior:
        """One Prior from an observation and its past (without one, the observation stands for it); `t_ready_ns` is left
        at `now_ns` for the driver to complete."""
        feed: Tensors = {}
        for k, seen in enumerate([obs, *(obs.past or [obs] * len(self.history_ns))]):
            made = {**{name: x.copy() for name, x in self.views(seen).items()}, "state": seen.q_rad[None]}
            feed |= {earlier(name, k): x for name, x in made.items()}
        self.trace.mark("slow.preprocess")
        first = {name: feed[name] for name in self.engines[ENCODE].inputs}
        plan = diffused(self._run, first, self.shape, self.count)["chunk"][0]
        if np.isfinite(plan).all():
            self.priors_made += 1  # what will be refused is not counted
        nothing = np.zeros(0, np.float32)
        grid, number = self.grid_ns, self.priors_made
        return Prior(obs.t_capture_ns, now_ns, self.task, nothing, nothing, plan, grid, number, chunk.SPACE)


def _wrong(m: Manifest) -> str:
    """See `runtime.policies.protocol.Kind`."""
    encode, denoise, joints = m.engines[ENCODE], m.engines[DENOISE], len(m.joints)
    known = {earlier(name, k) for name in (*m.cameras, "state") for k in range(MOST_STEPS)}
    if strange := sorted(set(encode.inputs) - known):
        return f"engine '{ENCODE}' with the input '{strange[0]}', which is no camera and no state"
    width, height = m.preprocess.size
    for name, shape in encode.inputs.items():
        if shape != ([1, joints] if name.partition("-")[0] == "state" else [1, 3, height, width]):
            return f"engine '{ENCODE}' with an input '{name}' of {shape}"
    if set(encode.outputs) != {"condition"} or set(denoise.outputs) != {"next", "chunk"}:
        return f"engines '{ENCODE}' with condition, and '{DENOISE}' with next and chunk"
    if set(denoise.inputs) != {"sample", "condition", "place"} or len(denoise.inputs["place"]) != 2:
        return f"engine '{DENOISE}' with sample, condition and place"
    return "" if m.chunk.steps >= 2 else "'chunk' of two steps or more"


def _steps(bundle: Bundle, o: Opening) -> tuple[SlowStep, chunk.FastStep]:
    slow = SlowStep(bundle, o.task, o.cameras, o.threads, o.slow_trace, o.gpu, o.engine)
    return slow, chunk.FastStep(bundle, o.fast_trace)


def _feeds(bundle: Bundle, samples: Tensors) -> dict[str, list[Tensors]]:
    """See `runtime.policies.protocol.Kind`. An observation stands for its own past."""
    m = bundle.manifest
    have = {**stored_views(bundle, samples, m.cameras), "state": samples["state"].astype(np.float32)}
    inputs, count = m.engines[ENCODE].inputs, m.engines[DENOISE].inputs["place"][1]
    encode = [
        {name: have[name.rpartition("-")[0] if name not in have else name][i][None] for name in inputs}
        for i in range(len(have["state"]))
    ]
    engine, shape, denoise = bundle.engine(ENCODE), m.engines[DENOISE].inputs["sample"], []
    for k, feed in enumerate(encode):
        condition = engine.run(feed)["condition"].copy()
        place = np.eye(count, dtype=np.float32)[[k * (count - 1) // max(len(encode) - 1, 1)]]
        denoise.append({"sample": np.zeros(shape, np.float32), "condition": condition, "place": place})
    return {ENCODE: encode, DENOISE: denoise}


KIND = Kind(
    modes=("diffusion",),
    engines=(ENCODE, DENOISE),
    stages=("slow.preprocess", "slow.encode", "slow.denoise", "fast.handover", "fast.command"),
    wrong=_wrong,
    steps=_steps,
    feeds=_feeds,
)
