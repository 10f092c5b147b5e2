"""The SO-101: joint names, limits, link lengths, shapes.

Joint angles (rad, gripper last) follow the maker's model `so101_new_calib`, which LeRobot uses too:

* as its angle grows, `shoulder_pan` turns the arm to its right, seen from behind;
* `shoulder_lift`, `elbow_flex` and `wrist_flex` turn the gripper down;
* `wrist_roll` turns the gripper counter-clockwise, seen from behind;
* `gripper` opens: at `SHUT` (-10 degrees) it is shut, at 0 the tips are 16 mm apart;
* with all joints at 0 the upper arm points up, forearm and gripper point forward and level, and the moving jaw is above
  the fixed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from firmware_bridge.arms.family import Box
from firmware_bridge.arms.five_axis import FiveAxis, Links

LINKS = Links(
    pan_forward=0.0388353,
    shoulder_forward=0.0303992,
    shoulder_up=0.1166,
    upper_forward=0.028,
    upper_up=0.11257,
    lower_forward=0.1349,
    lower_up=0.0052,
    wrist_to_tcp=0.1592,
)
ROLL_AT_ZERO = (
    np.pi / 2 + 0.0486795
)  # in the maker's model the jaw is rolled by 90 + 2.79 degrees when all joints are 0
SHUT = -0.174533  # rad; the tips touch


@dataclass(frozen=True)
class So101(FiveAxis):
    """SO-101 (and SO-100, whose joints and names are the same)."""

    links: Links = LINKS

    NAME = "so101"
    JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    LOWER = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.174533])
    UPPER = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.84121, 1.74533])
    SHUT = SHUT
    SEEN_TURNS = (
        "did the arm turn to its right",
        "did the whole arm lean forward and down",
        "did the forearm tilt down",
        "did the gripper tilt down",
        "did the gripper turn counter-clockwise, seen from behind",
        "did the jaw open",
    )
    ZERO_POSE = "straight ahead, upper arm up, forearm and gripper level, moving jaw above the fixed one"
    ROLL_AT_ZERO = ROLL_AT_ZERO
    UPRIGHT = np.array([0.0, -0.6, 0.2, 0.4, ROLL_AT_ZERO, SHUT])
    LEROBOT = ("so101_follower", "so100_follower", "so_follower", "so101", "so100")
    EARLY_DEGREES = ((1.0, 0.0), (-1.0, 90.0), (1.0, 90.0), (1.0, 0.0), (1.0, 0.0))
    # The boxes enclose the maker's parts, the simulated arm's jaws and a small camera on the gripper, with the jaws
    # side by side and shut.
    ROLL_AT, HINGE = 0.0611, (0.0234, 0.0202, 0.0)
    BASE = (((-0.031, 0.065), (-0.056, 0.056), (-0.003, 0.027)), ((-0.031, 0.054), (-0.026, 0.026), (0.024, 0.070)))
    SHAPES: ClassVar[Mapping[str, tuple[Box, ...]]] = {
        "shoulder": (((-0.013, 0.051), (-0.027, 0.029), (0.016, 0.127)),),
        "upper": (
            ((-0.013, 0.013), (-0.032, 0.036), (-0.012, 0.096)),
            ((-0.012, 0.039), (-0.026, 0.026), (0.094, 0.131)),  # the elbow's servo
        ),
        "lower": (
            ((-0.012, 0.088), (-0.031, 0.035), (-0.012, 0.012)),
            ((0.086, 0.146), (-0.027, 0.030), (-0.015, 0.022)),  # the wrist's servo
        ),
        "hand": (((-0.012, 0.066), (-0.028, 0.035), (-0.016, 0.020)),),
        "gripper": (
            ((-0.001, 0.040), (-0.036, 0.031), (-0.024, 0.028)),
            ((0.036, 0.068), (-0.036, -0.011), (-0.0145, 0.0145)),  # the fixed jaw
            ((0.064, 0.105), (-0.030, -0.008), (-0.009, 0.009)),
            ((-0.005, 0.030), (-0.020, 0.020), (0.028, 0.065)),  # the camera
        ),
        "jaw": (
            ((-0.011, 0.037), (-0.017, 0.010), (-0.024, 0.024)),
            ((0.034, 0.080), (-0.037, 0.001), (-0.0095, 0.0095)),
        ),
    }

    @property
    def middle(self) -> np.ndarray:
        """LeRobot's zero angles are those of the maker."""
        return np.zeros(len(self.JOINTS))

    def from_mirrored(self, q: np.ndarray) -> np.ndarray:
        """Joint angles float64[..., 6] (rad) from those of a dataset of schema 1, which has pan and roll with opposite
        sign, roll 0 with the moving jaw on the left, and gripper 0 with the jaw shut."""
        return np.asarray(q) * [-1, 1, 1, 1, -1, 1] + [0, 0, 0, 0, ROLL_AT_ZERO, SHUT]


FAMILY = So101()
