"""The ViperX 300 S: six axes and a jaw; shoulder and elbow have two servos each.

Joint angles follow the maker's model (Interbotix `vx300s`). As the angle grows, `waist` turns the arm to its left,
`shoulder`, `elbow` and `wrist_angle` tilt down, `forearm_roll` and `wrist_rotate` turn clockwise seen from behind. With
all joints at 0 the upper arm points up, forearm and gripper point forward and level. `gripper` is the angle of its
servo: -0.6213 shut, 1.4910 open (values of LeRobot and ALOHA); a crank converts it into the sliding of the fingers
(`finger`).

Sources: link lengths and limits from the maker's MJCF in the package gym-aloha; the tool centre from Interbotix'
description of the arm (home pose of `ee_gripper_link`: 0.536494 m forward, 0.42705 m up). The crank's lengths, 22 and
36 mm, reproduce both ends of the table in gym-aloha. Not measured on an arm: the direction in which the second servos'
steps grow.
"""

from __future__ import annotations

import itertools

import numpy as np

from firmware_bridge.arms.family import METRE_RAD, Family, Link, Reached, difference, rotation, turned, wrapped

# Lengths in m.
SHOULDER_UP = 0.12705  # table to shoulder
UPPER_FORWARD = 0.05955  # shoulder to elbow with all joints at 0: forward and
UPPER_UP = 0.3  # up
FOREARM = 0.2  # elbow to forearm_roll
ROLL_TO_WRIST = 0.1  # forearm_roll to wrist_angle
WRIST_TO_ROLL = 0.069744  # wrist_angle to wrist_rotate
ROLL_TO_TCP = 0.1072  # wrist_rotate to the tool centre
CRANK_HORN = 0.022  # the crank's link on the servo
CRANK_ROD = 0.036  # the crank's link to the finger


class ViperX(Family):
    """ViperX 300 S, 6 axes: waist, shoulder, elbow, then a wrist whose three axes meet in one point."""

    NAME = "viperx"
    JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
    LOWER = np.array([-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, -0.6213])
    UPPER = np.array([3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.4910])
    SHUT = -0.6213
    SEEN_TURNS = (
        "did the arm turn to its left",
        "did the whole arm lean forward and down",
        "did the forearm tilt down",
        "did the forearm turn clockwise, seen from behind",
        "did the gripper tilt down",
        "did the gripper turn clockwise, seen from behind",
        "did the fingers open",
    )
    ZERO_POSE = (
        "straight ahead, upper arm up, forearm and gripper level, wrist bending up and down, fingers side by side"
    )
    PAN = 0
    RAISING = (1, 2, 4)
    UPRIGHT = np.array([0.0, -0.6, 0.4, 0.0, 0.4, 0.0, SHUT])
    LEROBOT = ("viperx", "vx300s")
    SECONDS = ("shoulder_shadow", "elbow_shadow")
    STOPLESS = ("waist", "forearm_roll", "wrist_rotate")  # the maker's limits are half a turn to either side
    BASE = (((-0.198, 0.103), (-0.103, 0.103), (-0.001, 0.080)),)

    @property
    def chain(self) -> tuple[Link, ...]:
        """The boxes enclose the maker's meshes, and ALOHA's fingers in every position."""
        return (
            Link("shoulder", (0, 0, 0), (0, 0, 1), boxes=(((-0.062, 0.063), (-0.062, 0.062), (0.075, 0.141)),)),
            Link(
                "upper",
                (0, 0, SHOULDER_UP),
                (0, 1, 0),
                boxes=(
                    ((-0.017, 0.033), (-0.053, 0.053), (-0.005, 0.260)),
                    ((-0.017, 0.074), (-0.053, 0.053), (0.260, 0.322)),
                ),
            ),
            Link(
                "lower",
                (UPPER_FORWARD, 0, UPPER_UP),
                (0, 1, 0),
                boxes=(
                    ((-0.005, 0.110), (-0.052, 0.052), (-0.020, 0.020)),
                    ((0.110, 0.201), (-0.052, 0.052), (-0.020, 0.020)),
                ),
                apart=1,
            ),
            Link("forearm", (FOREARM, 0, 0), (1, 0, 0), boxes=(((-0.006, 0.115), (-0.046, 0.046), (-0.024, 0.024)),)),
            Link(
                "wrist", (ROLL_TO_WRIST, 0, 0), (0, 1, 0), boxes=(((-0.006, 0.071), (-0.029, 0.029), (-0.021, 0.036)),)
            ),
            Link(
                "gripper",
                (WRIST_TO_ROLL, 0, 0),
                (1, 0, 0),
                boxes=(
                    ((-0.001, 0.078), (-0.076, 0.076), (-0.036, 0.036)),
                    ((0.063, 0.155), (-0.061, 0.061), (-0.032, 0.032)),
                ),
            ),
        )

    @property
    def tcp(self) -> tuple[float, float, float]:
        return (ROLL_TO_TCP, 0.0, 0.0)

    @staticmethod
    def finger(gripper: np.ndarray) -> np.ndarray:
        """Distance float64[...] (m) of each finger from the middle plane at gripper angles float64[...] (rad)."""
        return CRANK_HORN * np.sin(gripper) + np.sqrt(CRANK_ROD**2 - (CRANK_HORN * np.cos(gripper)) ** 2)

    def reach(
        self, T: np.ndarray, jaw: float, lower: np.ndarray, upper: np.ndarray, near: np.ndarray | None = None
    ) -> Reached:
        """As `Family.reach`, in closed form, from eight solutions: waist forwards or backwards, elbow up or down, wrist
        flipped or not. A wrist out of reach moves to the closest distance that the arm can reach."""
        lower, upper = np.asarray(lower, float), np.asarray(upper, float)
        near = 0.5 * (lower + upper) if near is None else np.asarray(near, float)
        best: tuple[float, Reached] | None = None
        for q in self._solutions(T, near):
            q = np.array([*(wrapped(v, a, b) for v, a, b in zip(q, lower, upper, strict=False)), jaw + self.SHUT])
            q = np.clip(q, lower, upper)
            found = Reached(q, *difference(self.tool(q), T))
            cost = found.away_m / METRE_RAD + found.turned_rad
            cost = 1e-3 * float(np.abs(q - near)[:-1].max()) if found.exact else 1.0 + cost
            if best is None or cost < best[0]:
                best = (cost, found)
        assert best is not None
        return best[1]

    def _solutions(self, T: np.ndarray, near: np.ndarray) -> list[np.ndarray]:
        """The eight solutions for a tool pose, float64[6] rad each, without regard to the limits."""
        wrist = T[:3, 3] - (WRIST_TO_ROLL + ROLL_TO_TCP) * T[:3, 0]
        long, upper0 = float(np.hypot(UPPER_FORWARD, UPPER_UP)), -float(np.arctan2(UPPER_UP, UPPER_FORWARD))
        short = FOREARM + ROLL_TO_WRIST
        out = []
        for behind, elbow, flip in itertools.product((False, True), (1, -1), (1, -1)):
            away = float(np.hypot(wrist[0], wrist[1]))
            waist = float(np.arctan2(wrist[1], wrist[0])) if away > 1e-9 else float(near[0])
            r, up = away, float(wrist[2]) - SHOULDER_UP
            if behind:
                waist, r = waist + np.pi, -r
            d = min(max(float(np.hypot(r, up)), long - short + 1e-9), long + short - 1e-9)
            bend = elbow * float(np.arccos(np.clip((d * d - long**2 - short**2) / (2 * long * short), -1, 1)))
            a = -float(np.arctan2(up, r)) - float(np.arctan2(short * np.sin(bend), long + short * np.cos(bend)))
            b = a + bend
            hand = turned((0, 1, 0), b)[:3, :3].T @ rotation(waist, 0.0, 0.0).T @ T[:3, :3]
            out.append(np.array([waist, a - upper0, b - (a - upper0), *_wrist(hand, flip, float(near[3]))]))
        return out

    def inverse(self, pose: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, bool]:
        """As `Family.inverse`: the tool stays in the vertical plane through the base's z axis."""
        x, y, z, pitch, roll, jaw = (float(v) for v in pose)
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = rotation(np.arctan2(y, x), pitch, roll), (x, y, z)
        found = self.reach(T, jaw, lower, upper, near=np.clip(self.UPRIGHT, lower, upper))
        return found.q, found.exact and bool(lower[-1] - 1e-9 <= jaw + self.SHUT <= upper[-1] + 1e-9)


def _wrist(R: np.ndarray, flip: int, near: float) -> tuple[float, float, float]:
    """forearm_roll, wrist_angle, wrist_rotate (rad) of the rotation R float64[3,3] = Rx Ry Rx. Where the first and the
    last axis coincide, forearm_roll is `near`."""
    sine = flip * float(np.hypot(R[0, 1], R[0, 2]))
    angle = float(np.arctan2(sine, R[0, 0]))
    first = near if abs(sine) < 1e-9 else float(np.arctan2(R[1, 0] * flip, -R[2, 0] * flip))
    rest = turned((0, 1, 0), angle)[:3, :3].T @ turned((1, 0, 0), first)[:3, :3].T @ R
    return first, angle, float(np.arctan2(rest[2, 1], rest[1, 1]))


FAMILY = ViperX()
