"""The SO-101: joint names, limits, link lengths, forward and closed-form inverse kinematics.

Joint angles (rad, gripper last) follow the maker's model `so101_new_calib`, which LeRobot uses too:

* `shoulder_pan` turns the arm to its right, seen from behind, as the angle grows;
* `shoulder_lift`, `elbow_flex`, `wrist_flex` turn the gripper down; all joints at 0: upper arm up, forearm and gripper level, forward;
* `wrist_roll` turns the gripper counter-clockwise, seen from behind; at 0 the moving jaw is above the fixed one;
* `gripper` opens: `SHUT` (-10 degrees) is shut, 0 leaves the tips 16 mm apart.

Tool poses are `[x, y, z, pitch, roll, jaw]`: tool centre in the base frame (metres; origin on the table under the base, x forward, y left,
z up), pitch of the approach axis below the horizon (rad, pi/2 = straight down), rotation about the approach axis (rad, 0 = the moving jaw
is on the left), and how far the jaw is open (rad, 0 = shut). The yaw of a tool pose is what the pan joint gives.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

FAMILY = "so101"
JOINTS: tuple[str, ...] = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LOWER = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.174533])
UPPER = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.84121, 1.74533])
# What a person standing behind the arm sees where each joint's angle grows from the zero pose.
SEEN_TURNS = (
    "did the arm turn to its right",
    "did the whole arm lean forward and down",
    "did the forearm tilt down",
    "did the gripper tilt down",
    "did the gripper turn counter-clockwise, seen from behind",
    "did the jaw open",
)
SHUT = -0.174533  # gripper angle at which the tips touch
# Roll of the tool where wrist_roll is 0: the maker's jaw hinge lies across, and 2.79 degrees off, the horizontal plane.
ROLL_AT_ZERO = np.pi / 2 + 0.0486795

PAN = 0
RAISING: tuple[int, ...] = (1, 2, 3)
UPRIGHT = np.array([0.0, -0.6, 0.2, 0.4, ROLL_AT_ZERO, SHUT])
# What each link fills: boxes ((x, x), (y, y), (z, z)) in its own frame (m), with all joints at 0 but jaws side by side and shut.
# They hold the maker's parts, the simulated arm's jaws and a small camera on the gripper.
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
BASE: tuple[Box, ...] = (
    ((-0.031, 0.065), (-0.056, 0.056), (-0.003, 0.027)),
    ((-0.031, 0.054), (-0.026, 0.026), (0.024, 0.070)),
)
SHOULDER: tuple[Box, ...] = (
    ((-0.013, 0.051), (-0.027, 0.029), (0.016, 0.127)),
)  # its own frame: on the table under the pan axis
UPPER_ARM: tuple[Box, ...] = (
    ((-0.013, 0.013), (-0.032, 0.036), (-0.012, 0.096)),
    ((-0.012, 0.039), (-0.026, 0.026), (0.094, 0.131)),  # the elbow's servo
)
LOWER_ARM: tuple[Box, ...] = (
    ((-0.012, 0.088), (-0.031, 0.035), (-0.012, 0.012)),
    ((0.086, 0.146), (-0.027, 0.030), (-0.015, 0.022)),  # the wrist's servo
)
HAND: tuple[Box, ...] = (((-0.012, 0.066), (-0.028, 0.035), (-0.016, 0.020)),)
GRIPPER: tuple[Box, ...] = (
    ((-0.001, 0.040), (-0.036, 0.031), (-0.024, 0.028)),
    ((0.036, 0.068), (-0.036, -0.011), (-0.0145, 0.0145)),  # the fixed jaw
    ((0.064, 0.105), (-0.030, -0.008), (-0.009, 0.009)),
    ((-0.005, 0.030), (-0.020, 0.020), (0.028, 0.065)),  # the camera
)
JAW: tuple[Box, ...] = (
    ((-0.011, 0.037), (-0.017, 0.010), (-0.024, 0.024)),
    ((0.034, 0.080), (-0.037, 0.001), (-0.0095, 0.0095)),
)
ROLL_AT, HINGE = np.array([0.0611, 0.0, 0.0]), np.array([0.0234, 0.0202, 0.0])  # of gripper and jaw, in the link before


@dataclass(frozen=True)
class Links:
    """Metres. `*_up`/`*_forward` are components of a link with all joints at zero (upper arm up, forearm level)."""

    pan_forward: float = 0.0388353
    shoulder_forward: float = 0.0303992
    shoulder_up: float = 0.1166
    upper_forward: float = 0.028
    upper_up: float = 0.11257
    lower_forward: float = 0.1349
    lower_up: float = 0.0052
    wrist_to_tcp: float = 0.1592


def _polar(links: Links) -> tuple[float, float, float, float]:
    """Length and downward angle at zero of upper arm and forearm."""
    upper = float(np.hypot(links.upper_forward, links.upper_up))
    lower = float(np.hypot(links.lower_forward, links.lower_up))
    return (
        upper,
        -float(np.arctan2(links.upper_up, links.upper_forward)),
        lower,
        -float(np.arctan2(links.lower_up, links.lower_forward)),
    )


def forward(q: np.ndarray, links: Links = Links()) -> np.ndarray:
    """Tool poses float64[..., 6] of joint angles [..., 6] (rad)."""
    q = np.asarray(q, float)
    upper, upper0, lower, lower0 = _polar(links)
    a = upper0 + q[..., 1]
    b = lower0 + q[..., 1] + q[..., 2]
    pitch = q[..., 1] + q[..., 2] + q[..., 3]
    r = links.shoulder_forward + upper * np.cos(a) + lower * np.cos(b) + links.wrist_to_tcp * np.cos(pitch)
    x, y = links.pan_forward + r * np.cos(q[..., 0]), -r * np.sin(q[..., 0])
    z = links.shoulder_up - upper * np.sin(a) - lower * np.sin(b) - links.wrist_to_tcp * np.sin(pitch)
    return np.stack([x, y, z, pitch, ROLL_AT_ZERO - q[..., 4], q[..., 5] - SHUT], axis=-1)


def inverse(pose: np.ndarray, links: Links = Links()) -> tuple[np.ndarray, bool]:
    """Joint angles float64[6] (rad) for one tool pose [6], and whether it is reached exactly.

    Elbow-up solution. A pose outside the workspace is answered with the nearest the arm can do: the wrist is drawn onto
    the reachable ring and the pitch gives way where wrist_flex ends (position is kept before pitch).
    """
    x, y, z, pitch, roll, jaw = (float(v) for v in pose)
    upper, upper0, lower, lower0 = _polar(links)
    pan = -float(np.arctan2(y, x - links.pan_forward))
    reach = float(np.hypot(x - links.pan_forward, y))
    exact = True
    q = np.zeros(6)
    for _ in range(6):
        r = reach - links.wrist_to_tcp * np.cos(pitch) - links.shoulder_forward
        up = z + links.wrist_to_tcp * np.sin(pitch) - links.shoulder_up
        d = float(np.hypot(r, up))
        d_ok = min(max(d, abs(upper - lower) + 1e-4), upper + lower - 1e-5)
        if d_ok != d:
            exact = False
        bend = np.arccos(np.clip((d_ok * d_ok - upper**2 - lower**2) / (2 * upper * lower), -1, 1))
        a = -float(np.arctan2(up, r)) - float(np.arctan2(lower * np.sin(bend), upper + lower * np.cos(bend)))
        b = a + bend
        lift, elbow = a - upper0, b - lower0 - (a - upper0)
        flex = pitch - lift - elbow
        q[:] = pan, lift, elbow, flex, ROLL_AT_ZERO - roll, jaw + SHUT
        excess = flex - min(max(flex, LOWER[3]), UPPER[3])
        if abs(excess) < 1e-6:
            break
        exact = False
        pitch -= 1.2 * excess
    clipped = np.clip(q, LOWER, UPPER)
    return clipped, exact and bool(np.allclose(clipped, q, atol=1e-9))


def heading(pose: np.ndarray, links: Links = Links()) -> np.ndarray:
    """Yaw (rad, left positive) of the tool at poses [..., >=2]: the direction in which the pan joint points the arm."""
    pose = np.asarray(pose, float)
    return np.arctan2(pose[..., 1], pose[..., 0] - links.pan_forward)


def tool_rotation(yaw: float | np.ndarray, pitch: float | np.ndarray, roll: float | np.ndarray) -> np.ndarray:
    """`R_base_from_tool` float64[..., 3, 3]: tool x = approach, y = the side the moving jaw opens to."""
    yaw, pitch, roll = np.broadcast_arrays(np.asarray(yaw, float), pitch, roll)
    c, s = np.cos, np.sin
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    rz = np.stack([c(yaw), -s(yaw), zero, s(yaw), c(yaw), zero, zero, zero, one], -1).reshape(*yaw.shape, 3, 3)
    ry = np.stack([c(pitch), zero, s(pitch), zero, one, zero, -s(pitch), zero, c(pitch)], -1).reshape(*yaw.shape, 3, 3)
    rx = np.stack([one, zero, zero, zero, c(roll), -s(roll), zero, s(roll), c(roll)], -1).reshape(*yaw.shape, 3, 3)
    return rz @ ry @ rx


def tool(q: np.ndarray, links: Links = Links()) -> np.ndarray:
    """`T_base_from_tool` float64[4,4] of joint angles [>=5] (rad, the jaw is not looked at); axes as in `tool_rotation`."""
    pose = forward(np.append(np.asarray(q, float)[:5], SHUT), links)
    T = np.eye(4)
    T[:3, :3] = tool_rotation(-float(q[0]), float(pose[3]), float(pose[4]))
    T[:3, 3] = pose[:3]
    return T


def _points(boxes: tuple[Box, ...]) -> np.ndarray:
    """Corners float64[8 n, 3], and after them the middles of the edges, [12 n, 3]."""
    lattice = [p for p in itertools.product((-1, 0, 1), repeat=3) if p.count(0) <= 1]
    signs = np.array(sorted(lattice, key=lambda p: p.count(0)), float)
    box = np.array(boxes)
    middle, half = box.mean(-1), np.ptp(box, axis=-1) / 2
    return np.concatenate([(middle[:, None] + s * half[:, None]).reshape(-1, 3) for s in (signs[:8], signs[8:])])


def _turned(points: np.ndarray, axis: int, angle: np.ndarray) -> np.ndarray:
    """Points [..., N, 3] turned about x, y or z by angles [...]."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    c, s = np.cos(angle)[..., None], np.sin(angle)[..., None]
    out = np.empty((*np.broadcast_shapes(points.shape[:-1], c.shape), 3))
    out[..., axis] = points[..., axis]
    out[..., one] = c * points[..., one] - s * points[..., two]
    out[..., two] = s * points[..., one] + c * points[..., two]
    return out


def from_mirrored(q: np.ndarray) -> np.ndarray:
    """Joint angles [..., 6] (rad) out of those of a dataset of schema 1: pan and roll of the opposite sign, roll 0 where the moving jaw is
    on the left, gripper 0 where it is shut."""
    return np.asarray(q) * [-1, 1, 1, 1, -1, 1] + [0, 0, 0, 0, ROLL_AT_ZERO, SHUT]


_SHAPES = {
    "upper": _points(UPPER_ARM),
    "lower": _points(LOWER_ARM[:1]),
    "wrist": _points(LOWER_ARM[1:]),
    "hand": _points(HAND),
    "gripper": _points(GRIPPER),
    "jaw": _points(JAW),
}
_CORNERS = {name: points[: len(points) * 2 // 5] for name, points in _SHAPES.items()}


def _placed(q: np.ndarray, shapes: dict[str, np.ndarray], links: Links) -> dict[str, np.ndarray]:
    """The shapes' points [..., N, 3] at joint angles [..., 6], in the frame that turns with the pan joint (m)."""
    lift, bend, pitch = q[..., 1], q[..., 1] + q[..., 2], q[..., 1] + q[..., 2] + q[..., 3]
    shoulder = np.array([links.shoulder_forward, 0.0, links.shoulder_up])
    elbow = shoulder + _turned(np.array([[links.upper_forward, 0.0, links.upper_up]]), 1, lift)
    wrist = elbow + _turned(np.array([[links.lower_forward, 0.0, links.lower_up]]), 1, bend)
    jaw = HINGE + _turned(shapes["jaw"], 2, q[..., 5] - SHUT)
    shape = q.shape[:-1]
    rolling = np.concatenate([np.broadcast_to(shapes["gripper"], (*shape, *shapes["gripper"].shape)), jaw], axis=-2)
    rolled = ROLL_AT + _turned(rolling, 0, ROLL_AT_ZERO - q[..., 4])
    hand = np.concatenate([np.broadcast_to(shapes["hand"], (*shape, *shapes["hand"].shape)), rolled], axis=-2)
    return {
        "upper": shoulder + _turned(shapes["upper"], 1, lift),
        "lower": elbow + _turned(shapes["lower"], 1, bend),
        "wrist": elbow + _turned(shapes["wrist"], 1, bend),
        "hand": wrist + _turned(hand, 1, pitch),  # with gripper and jaw
    }


def lowest(q: np.ndarray, links: Links = Links()) -> np.ndarray:
    """Height above the table, float64[...] m, of the lowest point of all that moves, at joint angles [..., 6] (rad)."""
    return np.min([p[..., 2].min(-1) for p in _placed(np.asarray(q, float), _CORNERS, links).values()], axis=0)


def _outside(points: np.ndarray, boxes: tuple[Box, ...]) -> np.ndarray:
    """How far outside of all boxes the nearest of points [..., N, 3] is, float64[...] m; negative inside of one."""
    box = np.array(boxes)
    away = np.abs(points[..., None, :] - box.mean(-1)) - np.ptp(box, axis=-1) / 2
    return away.max(-1).min((-1, -2))


def room(q: np.ndarray, links: Links = Links()) -> np.ndarray:
    """How far wrist, gripper and jaw stay clear of base, shoulder and upper arm, float64[...] m, at joint angles [..., 6] (rad); negative
    where they touch. Looks at corners and edges' middles, along the axes of what they come near: an estimate, good to a few millimetres."""
    q = np.asarray(q, float)
    placed = _placed(q, _SHAPES, links)
    distal = np.concatenate([placed["wrist"], placed["hand"]], axis=-2)
    shoulder = np.array([links.shoulder_forward, 0.0, links.shoulder_up])
    on_base = _turned(distal, 2, -q[..., 0]) + np.array([links.pan_forward, 0.0, 0.0])
    on_upper = _turned(distal - shoulder, 1, -q[..., 1])
    return np.minimum(np.minimum(_outside(distal, SHOULDER), _outside(on_base, BASE)), _outside(on_upper, UPPER_ARM))
