"""What a policy is: a slow step, a fast step, and what they need of a bundle. One file of this folder a kind (`KIND` in
it)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from calibration.camera import Camera
from common.errors import Mendable
from firmware_bridge.motion.messages import Command
from runtime.bundle import Bundle
from runtime.contracts import FastTick, Observation, Prior
from runtime.manifest import Manifest

MS = 1_000_000
Ends = tuple[Sequence[float], Sequence[float]]  # lower and upper limits of all joints, rad


class PolicyError(Mendable):
    """A bundle whose policy cannot be opened, or not in this way; one sentence and the next step."""


class Trace(Protocol):
    def mark(self, stage: str) -> None:
        """What ran since the previous mark of this thread belongs to `stage`."""


class NoTrace:
    """Marks that nobody reads."""

    def mark(self, stage: str) -> None:
        pass


class SlowStep(Protocol):
    """Observation -> Prior. A pure function of time and observation, but for what `reset` forgets. Used by one
    thread."""

    priors_made: int  # the number of its newest Prior
    task: str

    @property
    def remembers(self) -> bool:
        """Whether the next Prior depends on the one before; False after `reset` until a Prior has been made."""

    @property
    def history_ns(self) -> tuple[int, ...]:
        """How long before the newest observation the older ones lie that it looks at too, the newest first: `past` of
        what it is given."""

    def set_task(self, task: str) -> None:
        """Another instruction from now on; raises BundleError for a text the bundle does not know."""

    def reset(self) -> None:
        """Forget the last plan."""

    def go_on_from(self, t_capture_ns: int, chunk: np.ndarray) -> None:
        """Take `chunk` float32[K,A], of pictures taken at `t_capture_ns`, for its last plan, as a log says it was.

        The next Prior may depend on nothing else that is remembered, or a log cannot be replayed.
        """

    def step(self, now_ns: int, obs: Observation) -> Prior:
        """One Prior from one observation; `t_ready_ns` is left at `now_ns` for the driver to complete."""


class FastStep(Protocol):
    """Newest observation and newest Prior -> Command. No clock, no sleeping, no I/O."""

    commands_made: int  # the number of its newest Command

    @property
    def uses_pictures(self) -> bool:
        """Whether it looks at the pictures of its observations."""

    def reset(self) -> None:
        """Forget everything about the episode before."""

    def step(self, now_ns: int, obs: Observation, prior: Prior | None) -> tuple[Command | None, FastTick]:
        """The command that applies at `now_ns`, or None while there is nothing to act on (the motor process then
        holds)."""


@dataclass(frozen=True)
class Opening:
    """How a bundle is opened. `cameras`: calibrations by name. `engine`: "cpu", "cuda" or "tensorrt"; `gpu`:
    pre-process there. `ends`: of this robot's joints, which may be nearer than the bundle's (None: those)."""

    task: str
    cameras: Mapping[str, Camera]
    mode: str
    engine: str = "cpu"
    gpu: bool = False
    threads: int = 1
    slow_trace: Trace = field(default_factory=NoTrace)
    fast_trace: Trace = field(default_factory=NoTrace)
    ends: Ends | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of policy. `modes`: the ways in which it drives, the usual one first. `engines`: which of the bundle's
    it runs.

    `wrong(manifest)` names the first field of a manifest that its steps cannot work with, "" where there is none.
    `stages`: names of what its steps mark in their traces, each beginning with "slow." or "fast.". `feeds` makes inputs
    of every engine of a bundle, one a row, from rows of its `samples.npz`: what engines that are built on a robot are
    compared on.
    """

    modes: tuple[str, ...]
    engines: tuple[str, ...]
    stages: tuple[str, ...]
    wrong: Callable[[Manifest], str]
    steps: Callable[[Bundle, Opening], tuple[SlowStep, FastStep]]
    feeds: Callable[[Bundle, dict[str, np.ndarray]], dict[str, list[dict[str, np.ndarray]]]]


@dataclass(frozen=True)
class Policy:
    """An opened policy: its kind by name, the mode it drives in, and its steps."""

    kind: str
    mode: str
    slow: SlowStep
    fast: FastStep
