"""Arm families: one file each, numpy only. Joint angles are those of the arm's maker, tool poses are the same for every family.

To add a family: a file with what `Family` names, and a line in `FAMILIES`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from firmware_bridge.arms import so101


class Family(Protocol):
    """A module: what motion needs to know about the arms of one family. J joints, gripper last; rad, m; the table is z = 0."""

    JOINTS: tuple[str, ...]
    PAN: int  # the joint that turns the whole arm about the vertical
    RAISING: tuple[int, ...]  # joints that move the gripper up and down
    UPRIGHT: np.ndarray  # float64[J]: a posture, clear of the table, in which every other joint may turn as it likes

    def forward(self, q: np.ndarray) -> np.ndarray:
        """Tool poses [..., 6] (x, y, z, pitch, roll, jaw) of joint angles [..., J]."""

    def lowest(self, q: np.ndarray) -> np.ndarray:
        """Height of the lowest point of all that moves, [...] m."""

    def room(self, q: np.ndarray) -> np.ndarray:
        """How far the arm's parts stay clear of one another, [...] m; negative where they touch."""


FAMILIES: dict[str, Family] = {so101.FAMILY: so101}
