"""The values that flow through the two-rate loop (SI units; time is `time.monotonic_ns()` at capture)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ACTION_NAMES = ("x", "y", "z", "pitch", "roll", "gripper")  # end-effector target, 5-axis arms
A = len(ACTION_NAMES)


@dataclass(frozen=True)
class Observation:
    """What the robot saw and felt at one instant. `frames`: camera name -> uint8[H,W,3] RGB, native size."""

    t_capture_ns: int
    frames: dict[str, np.ndarray]
    q_rad: np.ndarray  # float32[J]
    qd_rad_s: np.ndarray  # float32[J]
    number: int = 0  # of the fast step that took it
    past: tuple[Observation, ...] = ()  # older ones that the policy asked for (`runtime.policies.history`)


@dataclass(frozen=True)
class Prior:
    """What the slow loop made of one observation.

    `chunk` float32[K,A] holds absolute targets that apply at `t_capture_ns + grid_ns[k]`. `space` says of what: "tool"
    poses in the base frame (`ACTION_NAMES`: m, rad, jaw rad), or "joints" (rad, the maker's angles, gripper last).
    """

    t_capture_ns: int
    t_ready_ns: int
    task: str
    tokens: np.ndarray  # float32[N,D]; empty where the policy has none, as `future`. Only `runtime.observe` reads them
    future: np.ndarray  # float32[H,C,h,w] predicted latents: the predicted visual evolution
    chunk: np.ndarray  # float32[K,A]
    grid_ns: np.ndarray  # int64[K]
    number: int = 0  # counts the Priors of a run from 1
    space: str = "tool"
    done: float = math.nan  # P(the task is done and the tool has left); NaN where the policy does not say


@dataclass(frozen=True)
class FastTick:
    """Everything one fast step decided, for trace, log and report (the Command is what goes to the arm)."""

    t_ns: int
    prior_age_ns: int  # now minus the capture time of the Prior's frames; -1 without a Prior
    gate: float
    expert: int
    reactive_target: np.ndarray  # float32[A]
    predictive_target: np.ndarray  # float32[A]
    sent_target: np.ndarray  # float32[A]
    heat_mass: float = 0.0  # share of the heat map round its peak
