"""Closed-form kinematics, one pair of functions per arm family, from the manifest's link lengths.

End-effector poses are `[x, y, z, pitch, roll]`: tool centre point in the base frame (metres; origin on the table under
the base, x forward, y left, z up), pitch of the approach axis below the horizon (rad, pi/2 = straight down) and rotation
about it. A 5-axis arm reaches every such pose in its workspace with the yaw that its pan joint gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class So101Links:
    """Metres. `*_up`/`*_forward` are components of a link with all joints at zero (upper arm up, forearm level)."""

    pan_forward: float = 0.0388353
    shoulder_forward: float = 0.0303992
    shoulder_up: float = 0.1166
    upper_forward: float = 0.028
    upper_up: float = 0.11257
    lower_forward: float = 0.1349
    lower_up: float = 0.0052
    wrist_to_tcp: float = 0.1592


ARM_FAMILY = "so101"  # the one that this version drives
SO101_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SO101_LOWER = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.174533])
SO101_UPPER = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.84121, 1.74533])


def _polar(links: So101Links) -> tuple[float, float, float, float]:
    """Length and downward angle at zero of upper arm and forearm."""
    upper = float(np.hypot(links.upper_forward, links.upper_up))
    lower = float(np.hypot(links.lower_forward, links.lower_up))
    return (
        upper,
        -float(np.arctan2(links.upper_up, links.upper_forward)),
        lower,
        -float(np.arctan2(links.lower_up, links.lower_forward)),
    )


def so101_forward(q: np.ndarray, links: So101Links = So101Links()) -> np.ndarray:
    """`[..., >=5]` joint angles (rad) to poses float64[..., 5]."""
    q = np.asarray(q, float)
    upper, upper0, lower, lower0 = _polar(links)
    a = upper0 + q[..., 1]
    b = lower0 + q[..., 1] + q[..., 2]
    pitch = q[..., 1] + q[..., 2] + q[..., 3]
    r = links.shoulder_forward + upper * np.cos(a) + lower * np.cos(b) + links.wrist_to_tcp * np.cos(pitch)
    z = links.shoulder_up - upper * np.sin(a) - lower * np.sin(b) - links.wrist_to_tcp * np.sin(pitch)
    return np.stack([links.pan_forward + r * np.cos(q[..., 0]), r * np.sin(q[..., 0]), z, pitch, q[..., 4]], axis=-1)


def so101_inverse(pose: np.ndarray, links: So101Links = So101Links()) -> tuple[np.ndarray, bool]:
    """Joint angles float64[5] for one pose and whether it is reached exactly.

    Elbow-up solution. A pose outside the workspace is answered with the nearest the arm can do: the wrist is drawn onto
    the reachable ring and the pitch gives way where wrist_flex ends (position is kept before pitch).
    """
    x, y, z, pitch, roll = (float(v) for v in pose)
    upper, upper0, lower, lower0 = _polar(links)
    pan = float(np.arctan2(y, x - links.pan_forward))
    reach = float(np.hypot(x - links.pan_forward, y))
    exact = True
    q = np.zeros(5)
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
        q[:] = pan, lift, elbow, flex, roll
        excess = flex - min(max(flex, SO101_LOWER[3]), SO101_UPPER[3])
        if abs(excess) < 1e-6:
            break
        exact = False
        pitch -= 1.2 * excess
    clipped = np.clip(q, SO101_LOWER[:5], SO101_UPPER[:5])
    return clipped, exact and bool(np.allclose(clipped, q, atol=1e-9))


def tool_rotation(pan: float | np.ndarray, pitch: float | np.ndarray, roll: float | np.ndarray) -> np.ndarray:
    """`R_base_from_tool` float64[..., 3, 3]: tool x = approach, y = the side the moving jaw opens to at roll 0."""
    pan, pitch, roll = np.broadcast_arrays(np.asarray(pan, float), pitch, roll)
    c, s = np.cos, np.sin
    zero, one = np.zeros_like(pan), np.ones_like(pan)
    rz = np.stack([c(pan), -s(pan), zero, s(pan), c(pan), zero, zero, zero, one], -1).reshape(*pan.shape, 3, 3)
    ry = np.stack([c(pitch), zero, s(pitch), zero, one, zero, -s(pitch), zero, c(pitch)], -1).reshape(*pan.shape, 3, 3)
    rx = np.stack([one, zero, zero, zero, c(roll), -s(roll), zero, s(roll), c(roll)], -1).reshape(*pan.shape, 3, 3)
    return rz @ ry @ rx


def so101_tool(q: np.ndarray, links: So101Links = So101Links()) -> np.ndarray:
    """`T_base_from_tool` float64[4,4] of joint angles [>=5] (rad); tool axes as in `tool_rotation`."""
    pose = so101_forward(q, links)
    T = np.eye(4)
    T[:3, :3] = tool_rotation(float(q[0]), float(pose[3]), float(pose[4]))
    T[:3, 3] = pose[:3]
    return T
