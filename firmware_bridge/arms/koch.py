"""The Koch v1.1: joint names, limits, link lengths, shapes.

The maker publishes no model with joint angles, so the directions are those of the SO-101. As the angle grows,
`shoulder_pan` turns to the right, `shoulder_lift`, `elbow_flex` and `wrist_flex` turn down, `wrist_roll` turns
counter-clockwise seen from behind, `gripper` opens. With all joints at 0 the upper arm points up, forearm and gripper
point forward and level, the moving jaw is on the left of the fixed one, and the jaw is shut.

Sources: lengths from the positions of servo shafts and jaws in the maker's drawing
(hardware/follower/STEP/Follower_Arm.STEP of github.com/jess-moss/koch-v1-1). They agree to 0.3 mm with
low_cost_robot_arm of MuJoCo Menagerie, the arm on which the Koch is based. Limits and the zero of the upper arm are
from that model. Not measured on an arm: the limits, and the direction in which the servos' steps grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from firmware_bridge.arms.family import Box
from firmware_bridge.arms.five_axis import FiveAxis, Links

LINKS = Links(
    shoulder_up=0.0563,
    upper_forward=0.0149,
    upper_up=0.1083,
    lower_forward=0.1005,
    lower_up=0.0027,
    wrist_to_tcp=0.1100,
    side=0.00105,
)


@dataclass(frozen=True)
class Koch(FiveAxis):
    """Koch v1.1 follower: XL430 servos in pan and lift, XL330 in the other joints."""

    links: Links = LINKS

    NAME = "koch"
    JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    LOWER = np.array([-2.2, -0.6, -1.57, -2.0, -3.1, 0.0])
    UPPER = np.array([2.2, 1.57, 1.45, 2.0, 3.1, 1.63])
    SHUT = 0.0
    SEEN_TURNS = (
        "did the arm turn to its right",
        "did the whole arm lean forward and down",
        "did the forearm tilt down",
        "did the gripper tilt down",
        "did the gripper turn counter-clockwise, seen from behind",
        "did the jaw open",
    )
    ZERO_POSE = "straight ahead, upper arm up, forearm and gripper level, moving jaw left of the fixed one"
    UPRIGHT = np.array([0.0, -0.3, 0.0, 0.4, 0.0, 0.0])
    LEROBOT = ("koch_follower", "koch")
    STOPLESS = ("shoulder_pan", "wrist_roll")  # as LeRobot calibrates them
    PIVOT = 1
    ROLL_AT, HINGE = 0.0450, (0.01315, 0.0075, 0.0)
    # The boxes enclose the printed parts and servos of the drawing.
    BASE = (((-0.069, 0.013), (-0.092, 0.069), (-0.001, 0.010)), ((-0.038, 0.014), (-0.019, 0.019), (0.003, 0.042)))
    SHAPES: ClassVar[Mapping[str, tuple[Box, ...]]] = {
        "shoulder": (((-0.039, 0.015), (-0.021, 0.022), (0.038, 0.072)),),
        "upper": (
            ((-0.014, 0.014), (-0.023, 0.023), (-0.014, 0.040)),
            ((-0.014, 0.014), (-0.023, 0.023), (0.040, 0.098)),
            ((-0.014, 0.026), (-0.023, 0.023), (0.098, 0.121)),  # the elbow's servo
        ),
        "lower": (
            ((-0.010, 0.075), (-0.019, 0.019), (-0.010, 0.016)),
            ((0.075, 0.112), (-0.019, 0.019), (-0.010, 0.016)),  # the wrist's servo
        ),
        "hand": (((-0.010, 0.046), (-0.027, 0.018), (-0.012, 0.012)),),
        "gripper": (
            ((-0.001, 0.035), (-0.021, 0.019), (-0.016, 0.016)),
            ((0.035, 0.070), (-0.021, -0.007), (-0.016, 0.016)),  # the fixed jaw
        ),
        "jaw": (((-0.008, 0.058), (-0.009, 0.016), (-0.019, 0.019)),),
    }


FAMILY = Koch()
