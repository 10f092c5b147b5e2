"""The manifest of a bundle: everything the robot must know, from the checkpoint alone, without dates or paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibration.camera import Camera
from firmware_bridge.arms import Family
from runtime.manifest import EngineFiles, JointLimits, Manifest, Preprocess

Tensors = tuple[Mapping[str, Sequence[int]], Sequence[str]]  # of an engine: shapes of its inputs, names of its outputs


def manifest_for(
    name: str,
    arm: Family,
    cameras: Mapping[str, Camera],
    tasks: Mapping[str, np.ndarray],
    engines: Mapping[str, Tensors],
    image: int | Preprocess,
    **policy: Any,
) -> Manifest:
    """A manifest for arms of the family `arm` at its drawing's limits and links.

    `tasks`: instruction -> embedding float32[E]. `image`: the pictures that engines take, or their side, pixels.
    `policy`: the other fields of `Manifest`, which depend on the kind of policy.
    """
    return Manifest(
        name=name,
        licence="Apache-2.0",
        arm_family=arm.NAME,
        engines={
            engine: EngineFiles(f"onnx/{engine}.onnx", {k: list(s) for k, s in inputs.items()}, list(outputs))
            for engine, (inputs, outputs) in engines.items()
        },
        preprocess=Preprocess([image] * 2, [0.5] * 3, [0.5] * 3) if isinstance(image, int) else image,
        cameras={k: v.to_json() for k, v in sorted(cameras.items())},
        joints=[JointLimits(n, float(a), float(b)) for n, a, b in zip(arm.JOINTS, arm.LOWER, arm.UPPER, strict=True)],
        links=arm.lengths,
        tasks={k: [float(x) for x in v] for k, v in tasks.items()},
        **policy,
    )
