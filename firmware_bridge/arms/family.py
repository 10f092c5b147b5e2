"""What an arm family is: joints, limits, kinematics, shapes, and how others name and scale its joints. One object for
each family.

Angles are radians, lengths metres. The base frame stands on the table under the base: x forward, y left, z up. The tool
frame: x is the approach axis, y the side to which the moving jaw opens. A tool pose of five numbers and a jaw is `[x,
y, z, pitch, roll, jaw]`: tool centre, pitch of the approach axis below the horizon (pi/2 = straight down), turn about
the approach axis (0 = the moving jaw is on the left), and how far the jaw is open (rad, 0 = shut); its yaw is where the
arm points.
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
METRE_RAD = 0.01  # m that weigh as much as a radian, where an arm cannot do all that is asked
EXACT_M = 1e-6  # m, and
EXACT_RAD = 1e-6  # rad: a tool that is nearer than this to what was asked for is there


@dataclass(frozen=True)
class Link:
    """What one joint moves. It turns about `axis` (unit vector) through `at` (m), both in the frame of the link before,
    by the joint's angle less `zero` (rad). `boxes` hold all of it, in its own frame; of these, those from number
    `apart` on may come near the base, the shoulder and the upper arm (the others are hinged to them), and those from
    number `low` on may come near the table."""

    name: str
    at: tuple[float, float, float]
    axis: tuple[float, float, float]
    zero: float = 0.0
    boxes: tuple[Box, ...] = ()
    apart: int = 0
    low: int = 0


@dataclass(frozen=True)
class Reached:
    """The nearest that an arm can do to a tool pose: joint angles float64[J] (rad) within the limits, and how far its
    tool is then from what was asked for."""

    q: np.ndarray
    away_m: float
    turned_rad: float

    @property
    def exact(self) -> bool:
        return self.away_m < EXACT_M and self.turned_rad < EXACT_RAD


class Family(ABC):
    """The arms of one family. J joints, the jaw's last; arrays of joint angles are float64[..., J]."""

    NAME: ClassVar[str]  # as robot files and bundles have it
    JOINTS: ClassVar[tuple[str, ...]]
    LOWER: ClassVar[np.ndarray]  # the maker's limits, float64[J]; a robot file may have narrower ones
    UPPER: ClassVar[np.ndarray]
    SHUT: ClassVar[float]  # angle of the last joint at which the jaw is shut
    # What a person behind the arm sees where each joint's angle grows from the zero pose.
    SEEN_TURNS: ClassVar[tuple[str, ...]]
    ZERO_POSE: ClassVar[str]  # all joints at 0, in words
    PAN: ClassVar[int]  # the joint that turns the whole arm about the vertical
    RAISING: ClassVar[tuple[int, ...]]  # joints that move the gripper up and down
    UPRIGHT: ClassVar[np.ndarray]  # float64[J]: a posture in which every other joint may turn as it likes
    BASE: ClassVar[tuple[Box, ...]] = ()  # what stands still, in the base frame
    LEROBOT: ClassVar[tuple[str, ...]]  # `robot_type` of its LeRobot datasets
    SECONDS: ClassVar[tuple[str, ...]] = ()  # second servos that LeRobot lists beside the joints
    STOPLESS: ClassVar[tuple[str, ...]] = ()  # joints that turn round and round: nobody can move them from stop to stop

    @property
    @abstractmethod
    def chain(self) -> tuple[Link, ...]:
        """What each joint moves, in their order; the jaw may be missing where it does not turn."""

    @property
    @abstractmethod
    def tcp(self) -> tuple[float, float, float]:
        """Tool centre in the frame of the link before the jaw, m."""

    @abstractmethod
    def reach(
        self, T: np.ndarray, jaw: float, lower: np.ndarray, upper: np.ndarray, near: np.ndarray | None = None
    ) -> Reached:
        """Joint angles for a tool at `T` (`T_base_from_tool` float64[4,4]) whose jaw is `jaw` rad open, within `lower`
        and `upper`.

        `near` float64[J]: of several ways to be there, the nearest to this one (default: to the middle of the limits).
        An arm that cannot hold the whole pose keeps its position first, then as much of its rotation as it can; the
        answer says what is missing.
        """

    @abstractmethod
    def inverse(self, pose: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, bool]:
        """Joint angles float64[J] within `lower` and `upper` for one tool pose [6], and whether it is reached
        exactly."""

    def with_links(self, lengths: Mapping[str, Any]) -> Family:
        """The family with the link lengths that a bundle was made with; those of other names raise TypeError."""
        if lengths:
            raise TypeError(f"{self.NAME} has no link lengths to set")
        return self

    @property
    def lengths(self) -> dict[str, float]:
        """Link lengths that a bundle keeps, m; those that are nought are left out."""
        return {}

    @property
    def middle(self) -> np.ndarray:
        """Joint angles float64[J] that LeRobot calls 0 degrees: the middle of the range."""
        return 0.5 * (self.LOWER + self.UPPER)

    @functools.cached_property
    def reach_m(self) -> float:
        """How far from the base's middle, sideways, the tool comes when every link beyond the shoulder lies stretched
        out, m."""
        return (
            float(np.hypot(*self.chain[self.PAN].at[:2]) + np.hypot(*self.chain[self.PAN + 1].at[:2]))
            + self._stretched_m
        )

    @functools.cached_property
    def highest_m(self) -> float:
        """How high above the table the tool comes when every link beyond the shoulder stands upright, m."""
        return float(sum(link.at[2] for link in self.chain[: self.PAN + 2])) + self._stretched_m

    @property
    def _stretched_m(self) -> float:
        """From the shoulder to the tool along all links, m."""
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
        """`T_base_from_tool` float64[..., 4, 4] at joint angles [..., >= J - 1]; the jaw is not looked at."""
        q = np.asarray(q, float)
        T = np.eye(4)
        for k, link in enumerate(self.chain[: len(self.JOINTS) - 1]):
            T = T @ turned(link.axis, q[..., k] - link.zero, link.at)
        return T @ placed(self.tcp)

    def forward(self, q: np.ndarray) -> np.ndarray:
        """Tool poses float64[..., 6] of joint angles [..., J]. Pitch and roll are seen in the plane in which the arm
        reaches out."""
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
        """Corners, and after them the middles of the edges, of each link's boxes and of those that may come near
        others."""
        return [(points(link.boxes[link.low :]), points(link.boxes[link.apart :])) for link in self.chain]

    def lowest(self, q: np.ndarray) -> np.ndarray:
        """Height above the table, float64[...] m, of the lowest point of all that moves, at joint angles [..., J]."""
        frames = self.frames(q)
        heights = [
            (frames[..., k, 2:3, :3] @ corners.T)[..., 0, :].min(-1) + frames[..., k, 2, 3]
            for k, (corners, _) in enumerate(self._shapes)
            if k != self.PAN and len(corners)
        ]
        return np.min(heights, axis=0)

    def room(self, q: np.ndarray) -> np.ndarray:
        """How far forearm, wrist and gripper stay clear of base, shoulder and upper arm, float64[...] m, at joint
        angles [..., J]; negative where they touch. Looks at corners and edges' middles, along the axes of what they
        come near: an estimate, good to a few millimetres."""
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
        """Columns of a LeRobot vector, whose entries have these names, that hold this family's joints in order; None
        where the names are of another arm. Old datasets prefix the names (`main_shoulder_pan`) or number the motors
        (`motor_1`)."""
        if isinstance(names, str) or not all(isinstance(n, str) for n in names):
            return None
        plain = [n.removesuffix(".pos").removeprefix("main_") for n in names]
        if set(plain) - set(self.SECONDS) == set(self.JOINTS) and len(set(plain)) == len(plain):
            return tuple(plain.index(j) for j in self.JOINTS)
        n = len(self.JOINTS)
        numbered = [[f"motor_{k + first}" for k in range(n)] for first in (0, 1)]
        return tuple(range(n)) if plain in numbered else None

    def from_lerobot(self, values: np.ndarray) -> np.ndarray:
        """Joint angles float64[..., J] (rad) of LeRobot's values [..., J]: degrees about the middle of each range, and
        0 (shut) to 100 (wide open) for the jaw, which spans the maker's limits."""
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
    """A frame that is only moved: float64[4,4]."""
    T = np.eye(4)
    T[:3, 3] = at
    return T


def turned(axis: Sequence[float], angle: np.ndarray | float, at: Sequence[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Frames float64[..., 4, 4] at `at`, turned about a unit vector by angles [...] (Rodrigues)."""
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
    """How far two frames float64[4,4] are apart: m and rad."""
    R = a[:3, :3].T @ b[:3, :3]
    sine = 0.5 * np.linalg.norm([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.arctan2(sine, 0.5 * (np.trace(R) - 1)))


def wrapped(angle: float, lower: float, upper: float) -> float:
    """The angle, whole turns added, that lies between the limits or else nearest to them."""
    turns = [angle + 2 * np.pi * k for k in (-2, -1, 0, 1, 2)]
    return min(turns, key=lambda a: (max(lower - a, a - upper, 0.0), abs(a - 0.5 * (lower + upper))))


def points(boxes: tuple[Box, ...]) -> np.ndarray:
    """Corners float64[8 n, 3] of boxes, and after them the middles of their edges, [12 n, 3]."""
    if not boxes:
        return np.zeros((0, 3))
    lattice = [p for p in itertools.product((-1, 0, 1), repeat=3) if p.count(0) <= 1]
    signs = np.array(sorted(lattice, key=lambda p: p.count(0)), float)
    box = np.array(boxes)
    middle, half = box.mean(-1), np.ptp(box, axis=-1) / 2
    return np.concatenate([(middle[:, None] + s * half[:, None]).reshape(-1, 3) for s in (signs[:8], signs[8:])])


def outside(at: np.ndarray, boxes: tuple[Box, ...]) -> np.ndarray:
    """How far outside of all boxes the nearest of points [..., N, 3] is, float64[...] m; negative inside of one."""
    box = np.array(boxes)
    away = np.abs(at[..., None, :] - box.mean(-1)) - np.ptp(box, axis=-1) / 2
    return away.max(-1).min((-1, -2))
