"""Camera frames to network inputs, the same for every kind of policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.policies.protocol import PolicyError
from runtime.preprocess import Warp
from runtime.preprocess.cuda import GpuPass


def stored_views(bundle: Bundle, samples: dict[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Stored pictures uint8[n,3,h,w] as network inputs float32[n,3,h,w], by name; raises KeyError for one that is not
    stored."""
    p = bundle.manifest.preprocess
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (p.mean, p.std))
    return {k: ((samples[k].astype(np.float32) / 255 - mean) / std).astype(np.float32) for k in names}


class Views:
    """Camera frames to network inputs: one warp per camera from its calibration to the bundle's training geometry, or
    the frame pixel for pixel where the bundle says so.

    On the GPU with `gpu`, the same numbers bit for bit; raises KernelError where that cannot be, and PolicyError for a
    camera of another size than a bundle takes pixel for pixel."""

    def __init__(self, bundle: Bundle, cameras: Mapping[str, Camera], gpu: bool = False):
        m = bundle.manifest
        p = m.preprocess
        how: dict[str, Any] = {"mean": tuple(p.mean), "std": tuple(p.std), "straight": p.straight}
        for name, dst in m.cameras.items() if p.straight else ():
            here, taken = ((c.width, c.height) for c in (cameras[name], Camera.from_json(dst)))
            if here != taken:
                raise PolicyError(
                    f"camera '{name}' gives pictures of {here[0]}x{here[1]}, and {bundle.path} takes them pixel for "
                    f"pixel at {taken[0]}x{taken[1]}: set the camera to that resolution in the robot file."
                )
        self.warps = {name: Warp(cameras[name], Camera.from_json(dst), **how) for name, dst in m.cameras.items()}
        size = m.preprocess.size
        self.out = {name: np.empty((1, 3, size[1], size[0]), np.float32) for name in self.warps}
        self.gpu = GpuPass(list(self.warps.values())) if gpu else None

    def __call__(self, obs: Observation) -> dict[str, np.ndarray]:
        """name -> float32[1,3,h,w]; the arrays are overwritten by the next call."""
        if self.gpu is not None:
            made = self.gpu([obs.frames[name] for name in self.warps])
            return {name: view[None] for name, view in zip(self.warps, made, strict=True)}
        for name, warp in self.warps.items():
            warp(obs.frames[name], out=self.out[name][0])
        return self.out
