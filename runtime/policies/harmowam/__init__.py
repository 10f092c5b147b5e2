"""Policies of kind harmowam: world model and predictive expert in the slow step, reactive expert and gate in the fast
step; the same on a robot and in virtual time."""

from __future__ import annotations

import numpy as np

from runtime.bundle import Bundle
from runtime.manifest import Manifest
from runtime.policies.decode import proprio
from runtime.policies.harmowam.fast import FastStep
from runtime.policies.harmowam.slow import SlowStep, fixed_noise
from runtime.policies.protocol import Kind, Opening
from runtime.policies.views import stored_views

__all__ = ["KIND", "FastStep", "SlowStep", "fixed_noise"]


def _wrong(m: Manifest) -> str:
    """See `runtime.policies.protocol.Kind`. What its engines need of each other, the manifest has checked itself."""
    lacks = [f"camera '{c}'" for c in ("front", "wrist") if c not in m.cameras]
    return lacks[0] if lacks else ""


def _steps(bundle: Bundle, o: Opening) -> tuple[SlowStep, FastStep]:
    slow = SlowStep(bundle, o.task, o.cameras, o.threads, o.slow_trace, o.gpu, o.engine)
    return slow, FastStep(bundle, o.cameras, o.threads, o.fast_trace, o.mode, gpu=o.gpu, engine=o.engine, ends=o.ends)


def _feeds(bundle: Bundle, samples: dict[str, np.ndarray]) -> dict[str, list[dict[str, np.ndarray]]]:
    """See `runtime.policies.protocol.Kind`. What the world model makes is made by its own ONNX file."""
    m = bundle.manifest
    noise = fixed_noise({name: files.inputs for name, files in m.engines.items()})
    world, views = bundle.engine("world_model"), stored_views(bundle, samples, ("front", "wrist"))
    out: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in m.engines}
    for i, pose in enumerate(samples["pose"]):
        have = {k: v[i][None] for k, v in views.items()}
        have |= {"proprio": proprio(pose)[None], "text": bundle.task(str(samples["instruction"][i]))[None]}
        made = world.run({k: noise["world_model"] if k == "noise" else have[k] for k in world.inputs})
        have |= {k: v.copy() for k, v in made.items()}
        for name, files in m.engines.items():
            out[name].append({k: noise[name] if k == "noise" else have[k] for k in files.inputs})
    return out


KIND = Kind(
    modes=("gated", "reactive", "predictive", "average"),
    engines=("world_model", "predictive", "fast"),
    stages=(
        "slow.preprocess",
        "slow.world_model",
        "slow.predictive",
        "fast.preprocess",
        "fast.engine",
        "fast.gate",
        "fast.handover",
        "fast.command",
    ),
    wrong=_wrong,
    steps=_steps,
    feeds=_feeds,
)
