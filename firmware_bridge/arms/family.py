"""Base class of an arm family: joints, limits, kinematics, collision shapes, and LeRobot's names and units.

Angles are in rad, lengths in m. Base frame: origin on the table under the base, x forward, y left, z up. Tool frame:
origin at the tool centre, x is the approach axis, y the side to which the moving jaw opens.

A tool pose is `[x, y, z, pitch, roll, jaw]`: tool centre in the base frame, pitch of the approach axis below the
horizon (pi/2 = straight down), rotation about the approach axis (0 = the moving jaw is on the left), opening of the jaw
(rad, 0 = shut). It has no yaw: that is the direction in which the arm points.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # (x, x), (y, y), (z, z) of two corners
METRE_RAD = 0.01  # a position error of 0.01 m weighs as much as a rotation error of 1 rad when `reach` has to choose
EXACT_M = 1e-6  # m; a tool pose with smaller errors than these two counts as reached exactly
EXACT_RAD = 1e-6


@dataclass(frozen=True)
class Link:
    """One moving link. It rotates about `axis` (unit vector) through `at` (m), both in the frame of the previous link,
    by the joint's angle minus `zero` (rad).

    `boxes` enclose the link, in its own frame. `boxes[apart:]` are checked against base, shoulder and upper arm (the
    others are hinged to them), `boxes[low:]` against the table.
    """

    name: str
    at: tuple[float, float, float]
    axis: tuple[float, float, float]
    zero: float = 0.0
    boxes: tuple[Box, ...] = ()
    apart: int = 0
    low: int = 0


@dataclass(frozen=True)
class Reached:
    """Closest pose of an arm to a wanted tool pose: joint angles `q` float64[J] (rad) within the limits, and the errors
    of the tool's position (m) and rotation (rad)."""

    q: np.ndarray
    away_m: float
    turned_rad: float

    @property
    def exact(self) -> bool:
        return self.away_m < EXACT_M and self.turned_rad < EXACT_RAD


class Family(ABC):
    """One arm family. J joints, the jaw's last; arrays of joint angles are float64[..., J] in rad."""

    NAME: ClassVar[str]  # in robot files and bundles
    JOINTS: ClassVar[tuple[str, ...]]
    LOWER: ClassVar[np.ndarray]  # the maker's limits, float64[J]; a robot file may have narrower ones
    UPPER: ClassVar[np.ndarray]
    SHUT: ClassVar[float]  # angle of the last joint at which the jaw is shut
    # By joint: what a person behind the arm sees when its angle grows from the zero pose, as a question.
    SEEN_TURNS: ClassVar[tuple[str, ...]]
    ZERO_POSE: ClassVar[str]  # description of the pose with all joints at 0
    PAN: ClassVar[int]  # index of the joint that turns the whole arm about the vertical
    RAISING: ClassVar[tuple[int, ...]]  # indices of the joints that move the gripper up and down
    UPRIGHT: ClassVar[np.ndarray]  # float64[J]: a posture in which every joint not in RAISING may have any angle
    BASE: ClassVar[tuple[Box, ...]] = ()  # boxes that enclose the parts that do not move, in the base frame
    LEROBOT: ClassVar[tuple[str, ...]]  # values of `robot_type` in its LeRobot datasets
    SECONDS: ClassVar[tuple[str, ...]] = ()  # second servos that LeRobot lists beside the joints
    # By joint but the jaw: sign and offset (degrees) that make the degrees of LeRobot's datasets before June 2025 from
    # those after; None where they did not change.
    EARLY_DEGREES: ClassVar[tuple[tuple[float, float], ...] | None] = None
    STOPLESS: ClassVar[tuple[str, ...]] = ()  # joints without mechanical stops, which cannot be moved from stop to stop

    @property
    @abstractmethod
    def chain(self) -> tuple[Link, ...]:
        """The links in the order of the joints; without the jaw where it does not rotate."""

    @property
    @abstractmethod
    def tcp(self) -> tuple[float, float, float]:
        """Tool centre (m) in the frame of the last link before the jaw."""

    @abstractmethod
    def reach(
        self, T: np.ndarray, jaw: float, lower: np.ndarray, upper: np.ndarray, near: np.ndarray | None = None
    ) -> Reached:
        """Joint angles within the limits `lower` and `upper` for the tool pose `T` (`T_base_from_tool` float64[4,4])
        with the jaw `jaw` rad open.

        `near` float64[J]: of several solutions, take the closest to this one (default: to the middle of the limits).
        When the arm cannot reach the whole pose, position comes before rotation; `Reached` holds the errors.
        """

    @abstractmethod
    def inverse(self, pose: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, bool]:
        """Joint angles float64[J] within the limits `lower` and `upper` for one tool pose float64[6], and whether it is
        reached exactly."""

    def with_links(self, lengths: Mapping[str, Any]) -> Family:
        """The family with other link lengths (m), as a bundle stores them; raises TypeError for an unknown name."""
        if lengths:
            raise TypeError(f"{self.NAME} has no link lengths to set")
        return self

    @property
    def lengths(self) -> dict[str, float]:
        """Link lengths to store in a bundle, m, without those that are 0."""
        return {}

    @property
    def middle(self) -> np.ndarray:
        """Joint angles float64[J] that LeRobot calls 0 degrees: the middle of the range."""
        return 0.5 * (self.LOWER + self.UPPER)

    @functools.cached_property
    def reach_m(self) -> float:
        """Horizontal distance in m from the base's origin to the tool with all links after the shoulder stretched
        out."""
        return (
            float(np.hypot(*self.chain[self.PAN].at[:2]) + np.hypot(*self.chain[self.PAN + 1].at[:2]))
            + self._stretched_m
        )

    @functools.cached_property
    def highest_m(self) -> float:
        """Height of the tool above the table in m with all links after the shoulder pointing up."""
        return float(sum(link.at[2] for link in self.chain[: self.PAN + 2])) + self._stretched_m

    @property
    def _stretched_m(self) -> float:
        """Sum of the link lengths from the shoulder to the tool, m."""
        beyond = [link.at for link in self.chain[self.PAN + 2 : len(self.JOINTS) - 1]]
        return float(sum(np.linalg.norm(at) for at in (*beyond, self.tcp)))

    # ---- forward kinematics ------------------------------------------------------------------------------------------
    def frames(self, q: np.ndarray) -> np.ndarray:
        """`T_base_from_link` float64[..., L, 4, 4] of the links of `chain` at joint angles [..., >= L]."""
        q, T, out = np.asarray(q, float), np.eye(4), []
        for k, link in enumerate(self.chain):
            T = T @ turned(link.axis, q[..., k] - link.zero, link.at)
            out.append(T)
        return np.stack(out, axis=-3)

    def tool(self, q: np.ndarray) -> np.ndarray:
        """`T_base_from_tool` float64[..., 4, 4] at joint angles [..., >= J - 1]; the jaw has no effect."""
        q = np.asarray(q, float)
        T = np.eye(4)
        for k, link in enumerate(self.chain[: len(self.JOINTS) - 1]):
            T = T @ turned(link.axis, q[..., k] - link.zero, link.at)
        return T @ placed(self.tcp)

    def forward(self, q: np.ndarray) -> np.ndarray:
        """Tool poses float64[..., 6] of joint angles [..., J]. Pitch and roll are measured in the vertical plane
        through the arm, at yaw `heading_at`."""
        q = np.asarray(q, float)
        T = self.tool(q)
        yaw = self.heading_at(q)
        R = np.swapaxes(rotation(yaw, np.zeros_like(yaw), np.zeros_like(yaw)), -1, -2) @ T[..., :3, :3]
        pitch = np.arctan2(-R[..., 2, 0], R[..., 0, 0])
        R = np.swapaxes(rotation(np.zeros_like(pitch), pitch, np.zeros_like(pitch)), -1, -2) @ R
        roll = np.arctan2(R[..., 2, 1], R[..., 2, 2])
        return np.concatenate([T[..., :3, 3], np.stack([pitch, roll, q[..., -1] - self.SHUT], -1)], -1)

    def heading_at(self, q: np.ndarray) -> np.ndarray:
        """Yaw (rad, left positive) in which the pan joint points the arm at joint angles [..., J]."""
        return np.asarray(q, float)[..., self.PAN] * self.chain[self.PAN].axis[2]

    # ---- shapes ------------------------------------------------------------------------------------------------------
    @functools.cached_property
    def _shapes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per link: `points` of the boxes to check against the table, and of those to check against the arm."""
        return [(points(link.boxes[link.low :]), points(link.boxes[link.apart :])) for link in self.chain]

    def lowest(self, q: np.ndarray) -> np.ndarray:
        """Height above the table, float64[...] m, of the lowest point of the moving links, at joint angles [..., J]."""
        frames = self.frames(q)
        heights = [
            (frames[..., k, 2:3, :3] @ corners.T)[..., 0, :].min(-1) + frames[..., k, 2, 3]
            for k, (corners, _) in enumerate(self._shapes)
            if k != self.PAN and len(corners)
        ]
        return np.min(heights, axis=0)

    def room(self, q: np.ndarray) -> np.ndarray:
        """Distance of forearm, wrist and gripper from base, shoulder and upper arm, float64[...] m, at joint angles
        [..., J]; negative where they touch.

        An estimate, exact to a few millimetres: it tests the corners and the middles of the edges of the boxes, along
        the axes of the other link.
        """
        frames = self.frames(q)
        upper = 1 + self.PAN
        far = np.concatenate(
            [
                p @ np.swapaxes(frames[..., k, :3, :3], -1, -2) + frames[..., k, None, :3, 3]
                for k, (_, p) in enumerate(self._shapes)
                if k > upper and len(p)
            ],
            axis=-2,
        )
        rooms = [outside(far, self.BASE)] if self.BASE else []
        for k in range(upper + 1):
            if self.chain[k].boxes:
                seen = (far - frames[..., k, None, :3, 3]) @ frames[..., k, :3, :3]
                rooms.append(outside(seen, self.chain[k].boxes))
        return np.min(rooms, axis=0)

    # ---- LeRobot -----------------------------------------------------------------------------------------------------
    def lerobot_columns(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Columns of a LeRobot vector with these entry `names` that hold this family's joints, in their order; None
        where the names belong to another arm.

        Older datasets add a prefix (`main_shoulder_pan`) or number the motors (`motor_1`).
        """
        if isinstance(names, str) or not all(isinstance(n, str) for n in names):
            return None
        plain = [n.removesuffix(".pos").removeprefix("main_") for n in names]
        if set(plain) - set(self.SECONDS) == set(self.JOINTS) and len(set(plain)) == len(plain):
            return tuple(plain.index(j) for j in self.JOINTS)
        n = len(self.JOINTS)
        numbered = [[f"motor_{k + first}" for k in range(n)] for first in (0, 1)]
        return tuple(range(n)) if plain in numbered else None

    def from_lerobot(self, values: np.ndarray) -> np.ndarray:
        """Joint angles float64[..., J] (rad) of LeRobot's values [..., J]: degrees from the middle of each range; for
        the jaw 0 (shut) to 100 (open), over the maker's limits."""
        values = np.asarray(values)
        out = np.radians(values) + self.middle
        out[..., -1] = self.LOWER[-1] + values[..., -1] / 100 * (self.UPPER[-1] - self.LOWER[-1])
        return out

    def to_lerobot(self, q: np.ndarray) -> np.ndarray:
        """Inverse of `from_lerobot`."""
        q = np.asarray(q, float)
        out = np.degrees(q - self.middle)
        out[..., -1] = 100 * (q[..., -1] - self.LOWER[-1]) / (self.UPPER[-1] - self.LOWER[-1])
        return out


def placed(at: Sequence[float]) -> np.ndarray:
    """Translation by `at` (m) as a transform float64[4,4]."""
    T = np.eye(4)
    T[:3, 3] = at
    return T


def turned(axis: Sequence[float], angle: np.ndarray | float, at: Sequence[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Transforms float64[..., 4, 4]: translation by `at` (m), then rotation about the unit vector `axis` by angles
    [...] (rad; Rodrigues' formula)."""
    x, y, z = axis
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.asarray(angle, float)[..., None, None]
    T = np.broadcast_to(placed(at), (*angle.shape[:-2], 4, 4)).copy()
    T[..., :3, :3] = np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * (K @ K)
    return T


def rotation(yaw: float | np.ndarray, pitch: float | np.ndarray, roll: float | np.ndarray) -> np.ndarray:
    """`R_base_from_tool` float64[..., 3, 3]: tool x = approach, y = the side the moving jaw opens to."""
    yaw, pitch, roll = np.broadcast_arrays(np.asarray(yaw, float), pitch, roll)
    c, s = np.cos, np.sin
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    rz = np.stack([c(yaw), -s(yaw), zero, s(yaw), c(yaw), zero, zero, zero, one], -1).reshape(*yaw.shape, 3, 3)
    ry = np.stack([c(pitch), zero, s(pitch), zero, one, zero, -s(pitch), zero, c(pitch)], -1).reshape(*yaw.shape, 3, 3)
    rx = np.stack([one, zero, zero, zero, c(roll), -s(roll), zero, s(roll), c(roll)], -1).reshape(*yaw.shape, 3, 3)
    return rz @ ry @ rx


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Distance (m) and rotation angle (rad) between two transforms float64[4,4]."""
    R = a[:3, :3].T @ b[:3, :3]
    sine = 0.5 * np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.arctan2(sine, 0.5 * (np.trace(R) - 1)))


def wrapped(angle: float, lower: float, upper: float) -> float:
    """`angle` plus whole turns, so that it lies between the limits or closest to them (rad)."""
    turns = [angle + 2 * np.pi * k for k in (-2, -1, 0, 1, 2)]
    return min(turns, key=lambda a: (max(lower - a, a - upper, 0.0), abs(a - 0.5 * (lower + upper))))


def points(boxes: tuple[Box, ...]) -> np.ndarray:
    """Corners of n boxes, then the middles of their edges, float64[20 n, 3]."""
    if not boxes:
        return np.zeros((0, 3))
    lattice = [p for p in itertools.product((-1, 0, 1), repeat=3) if p.count(0) <= 1]
    signs = np.array(sorted(lattice, key=lambda p: p.count(0)), float)
    box = np.array(boxes)
    middle, half = box.mean(-1), np.ptp(box, axis=-1) / 2
    return np.concatenate([(middle[:, None] + s * half[:, None]).reshape(-1, 3) for s in (signs[:8], signs[8:])])


def outside(at: np.ndarray, boxes: tuple[Box, ...]) -> np.ndarray:
    """Distance from the boxes to the closest of the points `at` [..., N, 3], float64[...] m; negative inside a box.

    The distance is the largest component along the boxes' axes.
    """
    box = np.array(boxes)
    away = np.abs(at[..., None, :] - box.mean(-1)) - np.ptp(box, axis=-1) / 2
    return away.max(-1).min((-1, -2))
