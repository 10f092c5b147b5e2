"""What is found in a recording, and what its owner says about it: frozen records without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from firmware_bridge.arms.family import Family

VIEWS = ("front", "wrist")  # views of the policies: a camera that stands, and one that rides on the gripper


@dataclass(frozen=True)
class Problem:
    """One thing about a recording that its owner should know. `fatal`: nothing is read from the episode, or, where
    `episode` is None, from the dataset."""

    kind: str
    episode: int | None
    detail: str
    fix: str
    fatal: bool = False

    def __str__(self) -> str:
        where = "" if self.episode is None else f"episode {self.episode}: "
        return f"{where}{self.detail}: {self.fix}."


@dataclass(frozen=True)
class How:
    """What the owner says about a recording.

    `units`: of the joints, "degrees", "rad" or "normalised" (-100 to 100 of each joint's calibrated range). `joints`:
    the arm's lerobot_calibration.json, for normalised joints. `cameras`: view of the policy -> name in the recording.
    `calibration`: view, or name in the recording -> its `Camera` at the stored size. `arm`: the arm's family (None: by
    the recording). `recorded_fps`: rate of the rows where the recording contradicts itself. `leave_out`: episodes.
    """

    units: str | None = None
    joints: Path | None = None
    cameras: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    calibration: Mapping[str, Camera] = field(default_factory=dict)
    arm: Family | None = None
    recorded_fps: float | None = None
    leave_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class Film:
    """A camera as it is stored: `codec` is the video's, "png" or "jpeg"; sizes in pixels; `fps` of the video's own
    clock (None: pictures without one)."""

    name: str
    width: int
    height: int
    codec: str
    fps: float | None


@dataclass(frozen=True)
class Units:
    """Units of the joints (None: they cannot be told), why, and what turns them into rad.

    `span_deg` float64[J-1]: range of each joint in degrees, for normalised joints; `span_sd_deg`: its uncertainty.
    `early`: degrees of an SO-100 in lerobot's convention from before June 2025, with the upper arm horizontal at 0.
    """

    joints: str | None
    evidence: str
    span_deg: np.ndarray | None = None
    span_sd_deg: float = 0.0
    early: bool = False


@dataclass(frozen=True)
class Pictures:
    """The pictures of the T rows of an episode: `numbers` int64[T], counted from the file's first picture (or row, for
    pictures in a table). `pts` int64[n]: times of all pictures of a video (`films.Probe`)."""

    path: Path
    numbers: np.ndarray
    pts: np.ndarray | None = None


@dataclass(frozen=True)
class Take:
    """One usable episode of T rows. `state`, `action` float64[T,J] in the recording's units, in the family's order;
    `t` float64[T] s, strictly increasing; `parts`: first row, row after the last and instruction of each task in it;
    `pictures`: name of the camera -> where they lie. `rows` int64[T]: which of the episode's stored rows they are."""

    number: int
    state: np.ndarray
    action: np.ndarray
    t: np.ndarray
    rows: np.ndarray
    parts: tuple[tuple[int, int, str], ...]
    pictures: Mapping[str, Pictures]


@dataclass(frozen=True)
class Examined:
    """Everything that was found. `views`: view of the policy -> camera of the recording. `listed`: how many episodes
    the recording has, usable or not."""

    folder: Path
    version: str
    robot: str | None
    arm: Family | None
    fps: float
    listed: int
    units: Units
    cameras: Mapping[str, Film]
    views: Mapping[str, str]
    takes: tuple[Take, ...]
    problems: tuple[Problem, ...]
    how: How

    @property
    def rows(self) -> int:
        return sum(len(t.t) for t in self.takes)

    @property
    def accepted(self) -> bool:
        return bool(self.takes) and not any(p.fatal and p.episode is None for p in self.problems)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "fps": self.fps,
            "robot": self.robot,
            "arm": self.arm.NAME if self.arm else None,
            "episodes": self.listed,
            "usable": len(self.takes),
            "rows": self.rows,
            "units": {"joints": self.units.joints, "evidence": self.units.evidence},
            "cameras": {
                k: {"width": c.width, "height": c.height, "codec": c.codec} for k, c in sorted(self.cameras.items())
            },
            "views": dict(self.views),
            "accepted": self.accepted,
            "problems": [
                {"kind": p.kind, "episode": p.episode, "detail": p.detail, "fix": p.fix} for p in self.problems
            ],
        }
