"""A made-up arm of five axes, 30 cm high: what somebody writes who adds a family (tests/test_toy_family.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from firmware_bridge.arms.five_axis import FiveAxis, Links

LINKS = Links(shoulder_up=0.08, upper_up=0.13, lower_forward=0.12, wrist_to_tcp=0.11)


@dataclass(frozen=True)
class Toy(FiveAxis):
    """Turns to its left, rolls clockwise; its jaw is shut at 0.1 rad."""

    links: Links = LINKS

    NAME = "toy"
    JOINTS = ("turn", "lift", "bend", "tip", "twist", "grip")
    LOWER = np.array([-2.0, -1.5, -1.8, -1.8, -2.5, 0.1])
    UPPER = np.array([2.0, 1.5, 1.8, 1.8, 2.5, 1.2])
    SHUT = 0.1
    SEEN_TURNS = (
        "did the arm turn to its left",
        "did the whole arm lean forward and down",
        "did the forearm tilt down",
        "did the gripper tilt down",
        "did the gripper turn clockwise, seen from behind",
        "did the jaw open",
    )
    YAW, ROLL = 1, 1
    UPRIGHT = np.array([0.0, -0.3, -0.2, 0.3, 0.0, 0.1])
    LEROBOT = ("toy_follower",)
    ROLL_AT, HINGE = 0.05, (0.01, 0.01, 0.0)
    BASE = (((-0.03, 0.03), (-0.03, 0.03), (0.0, 0.05)),)
    SHAPES = {  # noqa: RUF012
        "upper": (((-0.01, 0.01), (-0.01, 0.01), (0.0, 0.13)),),
        "lower": (((0.0, 0.12), (-0.01, 0.01), (-0.01, 0.01)),),
        "hand": (((-0.01, 0.05), (-0.01, 0.01), (-0.01, 0.01)),),
        "gripper": (((0.0, 0.06), (-0.02, 0.02), (-0.01, 0.01)),),
        "jaw": (((0.0, 0.05), (-0.02, 0.01), (-0.01, 0.01)),),
    }


FAMILY = Toy()
