"""Arms with five axes and a jaw: pan about the vertical, three parallel lifting joints, roll about the approach axis.

Five axes cannot reach every pose: the tool's position fixes the yaw, so only pitch and roll can be chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from firmware_bridge.arms.family import METRE_RAD, Box, Family, Link, Reached, difference, rotation, wrapped


@dataclass(frozen=True)
class Links:
    """Link lengths in m. `*_up` and `*_forward`: components of a link with all joints at 0; `side`: offset of the roll
    axis to the left of the pan axis."""

    pan_forward: float = 0.0
    shoulder_forward: float = 0.0
    shoulder_up: float = 0.0
    upper_forward: float = 0.0
    upper_up: float = 0.0
    lower_forward: float = 0.0
    lower_up: float = 0.0
    wrist_to_tcp: float = 0.0
    side: float = 0.0


@dataclass(frozen=True)
class FiveAxis(Family):
    """A family of such arms, with its link lengths. With all joints at 0 the upper arm points up, forearm and gripper
    point forward and level."""

    links: Links

    YAW: ClassVar[int] = -1  # 1: the arm turns to its left as the pan angle grows
    ROLL: ClassVar[int] = -1  # 1: the gripper turns clockwise, seen from behind
    ROLL_AT_ZERO: ClassVar[float] = 0.0  # roll of the tool with all joints at 0, rad
    PAN = 0
    RAISING = (1, 2, 3)
    ROLL_AT: ClassVar[float] = 0.0  # origin of the gripper's frame on the hand's x axis, m
    HINGE: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)  # of the jaw, in the gripper's frame, m
    # The first boxes of the upper arm, around its pivot, are always low: this many are not checked against the table.
    PIVOT: ClassVar[int] = 0
    SHAPES: ClassVar[Mapping[str, tuple[Box, ...]]] = {}  # boxes of the links in `chain`, by name
    ZERO_POSE = "straight ahead, upper arm up, forearm and gripper level"

    def with_links(self, lengths: Mapping[str, Any]) -> FiveAxis:
        return dataclasses.replace(self, links=dataclasses.replace(self.links, **lengths))

    @property
    def lengths(self) -> dict[str, float]:
        return {k: float(v) for k, v in vars(self.links).items() if v}

    @property
    def chain(self) -> tuple[Link, ...]:
        at, s = self.links, self.SHAPES
        return (
            Link("shoulder", (at.pan_forward, 0, 0), (0, 0, self.YAW), boxes=s.get("shoulder", ())),
            Link(
                "upper", (at.shoulder_forward, 0, at.shoulder_up), (0, 1, 0), boxes=s.get("upper", ()), low=self.PIVOT
            ),
            Link("lower", (at.upper_forward, 0, at.upper_up), (0, 1, 0), boxes=s.get("lower", ()), apart=1),
            Link("hand", (at.lower_forward, at.side, at.lower_up), (0, 1, 0), boxes=s.get("hand", ())),
            Link(
                "gripper",
                (self.ROLL_AT, 0, 0),
                (self.ROLL, 0, 0),
                -self.ROLL * self.ROLL_AT_ZERO,
                s.get("gripper", ()),
            ),
            Link("jaw", self.HINGE, (0, 0, 1), self.SHUT, s.get("jaw", ())),
        )

    @property
    def tcp(self) -> tuple[float, float, float]:
        return (self.links.wrist_to_tcp - self.ROLL_AT, 0.0, 0.0)

    def _polar(self) -> tuple[float, float, float, float]:
        """Length (m) and angle below the horizon with all joints at 0 (rad), of the upper arm, then of the forearm."""
        links = self.links
        upper = float(np.hypot(links.upper_forward, links.upper_up))
        lower = float(np.hypot(links.lower_forward, links.lower_up))
        return (
            upper,
            -float(np.arctan2(links.upper_up, links.upper_forward)),
            lower,
            -float(np.arctan2(links.lower_up, links.lower_forward)),
        )

    def forward(self, q: np.ndarray) -> np.ndarray:
        q, links = np.asarray(q, float), self.links
        upper, upper0, lower, lower0 = self._polar()
        a = upper0 + q[..., 1]
        b = lower0 + q[..., 1] + q[..., 2]
        pitch = q[..., 1] + q[..., 2] + q[..., 3]
        r = links.shoulder_forward + upper * np.cos(a) + lower * np.cos(b) + links.wrist_to_tcp * np.cos(pitch)
        c, s = np.cos(q[..., 0]), self.YAW * np.sin(q[..., 0])
        x, y = links.pan_forward + r * c - links.side * s, r * s + links.side * c
        z = links.shoulder_up - upper * np.sin(a) - lower * np.sin(b) - links.wrist_to_tcp * np.sin(pitch)
        return np.stack([x, y, z, pitch, self.ROLL_AT_ZERO + self.ROLL * q[..., 4], q[..., 5] - self.SHUT], axis=-1)

    def tool(self, q: np.ndarray) -> np.ndarray:
        """As `Family.tool`, in a quarter of the time: a log computes it for every state of the arm."""
        q = np.asarray(q, float)[..., :5]
        pose = self.forward(np.concatenate([q, np.full((*q.shape[:-1], 1), self.SHUT)], -1))
        T = np.zeros((*q.shape[:-1], 4, 4))
        T[..., :3, :3] = rotation(self.heading_at(q), pose[..., 3], pose[..., 4])
        T[..., :3, 3], T[..., 3, 3] = pose[..., :3], 1.0
        return T

    def inverse(self, pose: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, bool]:
        """Joint angles float64[6] for one tool pose float64[6], and whether it is reached exactly.

        Elbow-up solution. For a pose outside the workspace the wrist moves to the closest distance that the arm can
        reach, and the pitch changes where wrist_flex is at its limit: position comes before pitch.
        """
        links = self.links
        x, y, z, pitch, roll, jaw = (float(v) for v in pose)
        upper_m, upper0, lower_m, lower0 = self._polar()
        pan = self.YAW * float(self.heading(np.array([x, y])))
        reach = float(np.hypot(x - links.pan_forward, y))
        if links.side:
            reach = float(np.sqrt(max(reach**2 - links.side**2, 0.0)))
        exact = True
        q = np.zeros(6)
        for _ in range(6):
            r = reach - links.wrist_to_tcp * np.cos(pitch) - links.shoulder_forward
            up = z + links.wrist_to_tcp * np.sin(pitch) - links.shoulder_up
            d = float(np.hypot(r, up))
            d_ok = min(max(d, abs(upper_m - lower_m) + 1e-4), upper_m + lower_m - 1e-5)
            if d_ok != d:
                exact = False
            bend = np.arccos(np.clip((d_ok * d_ok - upper_m**2 - lower_m**2) / (2 * upper_m * lower_m), -1, 1))
            a = -float(np.arctan2(up, r)) - float(np.arctan2(lower_m * np.sin(bend), upper_m + lower_m * np.cos(bend)))
            b = a + bend
            lift, elbow = a - upper0, b - lower0 - (a - upper0)
            flex = pitch - lift - elbow
            q[:] = pan, lift, elbow, flex, self.ROLL * (roll - self.ROLL_AT_ZERO), jaw + self.SHUT
            excess = flex - min(max(flex, lower[3]), upper[3])
            if abs(excess) < 1e-6:
                break
            exact = False
            pitch -= 1.2 * excess
        clipped = np.clip(q, lower, upper)
        return clipped, exact and bool(np.allclose(clipped, q, atol=1e-9))

    def heading_at(self, q: np.ndarray) -> np.ndarray:
        return self.YAW * np.asarray(q, float)[..., self.PAN]

    def heading(self, pose: np.ndarray) -> np.ndarray:
        """Yaw (rad, left positive) of the tool at poses [..., >= 2]: the direction in which the pan joint points the
        arm."""
        pose, links = np.asarray(pose, float), self.links
        yaw = np.arctan2(pose[..., 1], pose[..., 0] - links.pan_forward)
        if not links.side:
            return yaw
        away = np.hypot(pose[..., 0] - links.pan_forward, pose[..., 1])
        return yaw - np.arcsin(np.clip(links.side / np.maximum(away, 1e-9), -1, 1))

    def reach(
        self, T: np.ndarray, jaw: float, lower: np.ndarray, upper: np.ndarray, near: np.ndarray | None = None
    ) -> Reached:
        """As `Family.reach`. There is one solution per pose, elbow up, so `near` has no effect. The part of the
        rotation that leaves the vertical plane through the arm is ignored."""
        yaw = float(self.heading(T[:3, 3]))
        R = rotation(yaw, 0.0, 0.0).T @ T[:3, :3]
        pitch = float(np.arctan2(-R[2, 0], R[0, 0]))
        R = rotation(0.0, pitch, 0.0).T @ R
        turn = self.ROLL * (float(np.arctan2(R[2, 1] - R[1, 2], R[1, 1] + R[2, 2])) - self.ROLL_AT_ZERO)
        roll = self.ROLL_AT_ZERO + self.ROLL * wrapped(turn, float(lower[4]), float(upper[4]))
        solutions = []
        # A gripper folded under the arm has a pitch of more than half a turn.
        for whole in (0.0, 2 * np.pi, -2 * np.pi):
            q, _ = self.inverse(np.array([*T[:3, 3], pitch + whole, roll, jaw]), lower, upper)
            solutions.append(Reached(q, *difference(self.tool(q), T)))
        return min(solutions, key=lambda s: s.away_m / METRE_RAD + s.turned_rad)
