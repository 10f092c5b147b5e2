"""A simulated SO-101 for hand-eye calibration: kinematics, servo noise, joint zero errors, a board, a camera with a
lens.

Commands and readings have the errors of a cheap arm; the pictures show its true pose. `ArmBench` is geometry only (for
thousands of trials); `ServoRig` moves the MuJoCo arm through safety machine and servo packets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from calibration import pose_planning
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.lens import parameters, project
from calibration.transforms import inverse, transform
from calibration.views import ArmNoise, ArmView
from firmware_bridge.motion.messages import Command, SafetyState
from sim.boards import render
from sim.plant import virtual_motor
from sim.tasks import ARM
from sim.world import World

BOARD = Board.parse("charuco:7x5:0.020:0.015:4x4_50")
# K and D of a cheap webcam: 1280x720, barrel distortion. It looks at the workspace from the front, from 60 cm away.
LENS = (np.array([[920.0, 0, 655], [0, 915, 348], [0, 0, 1]]), np.array([-0.32, 0.12, 0.0008, -0.0005, -0.02]))
S = 1_000_000_000  # ns


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """T_base_from_cam float64[4,4] of a camera at `eye` that looks at `target`, with the picture upright."""
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    T = np.eye(4)
    T[:3, :3] = np.stack([x, np.cross(z, x), z], 1)
    T[:3, 3] = eye
    return T


def webcam(pose: np.ndarray | None) -> Camera:
    return Camera("front", 1280, 720, LENS[0], LENS[1], pose)


@dataclass
class ArmBench:
    """Ground truth of one bench.

    `mount` "base": X is T_base_from_cam, Z is T_tool_from_board; "tool": X is T_tool_from_cam, Z is T_base_from_board.
    `offsets` float64[5]: joint zero errors (rad). `noise`: servo noise; `corner_noise`: of board corners, px. `camera`
    has the lens and, if it has a pose, X.
    """

    mount: str
    rng: np.random.Generator
    noise: ArmNoise = field(default_factory=ArmNoise)
    corner_noise: float = 0.1
    camera: Camera = field(default_factory=lambda: webcam(None))
    board: Board = BOARD

    def __post_init__(self) -> None:
        wobble = transform(self.rng.normal(0, 0.05, 3), self.rng.normal(0, 0.01, 3))
        width, height = self.board.size()
        ox, oy = self.board.origin()
        middle = np.array([ox + width / 2, oy + height / 2, 0])
        if self.mount == "base":
            self.X = look_at(np.array([0.62, 0.05, 0.45]), np.array([0.22, 0, 0.16])) @ wobble
            # Board in the gripper: its plane is normal to the approach axis, seen from the front.
            R = np.array([[0, 0, -1.0], [-1, 0, 0], [0, 1, 0]])
            self.Z = np.eye(4)
            self.Z[:3, :3] = R
            self.Z[:3, 3] = np.array([0.03, 0, 0]) - R @ middle
        else:
            R = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])  # looks along the approach axis
            self.X = np.eye(4)
            self.X[:3, :3], self.X[:3, 3] = R, [-0.06, 0, 0.06]
            self.X = self.X @ wobble
            self.Z = np.eye(4)
            self.Z[:3, :3] = np.array([[0, -1.0, 0], [-1, 0, 0], [0, 0, -1]])
            self.Z[:3, 3] = np.array([0.24, 0, 0.0]) - self.Z[:3, :3] @ middle
        self.offsets = np.radians(self.noise.offset_deg) * self.rng.normal(0, 1, len(ARM.JOINTS) - 1)
        self.offsets[[0, -1]] = 0.0  # base and tool frame belong to zero readings of the first and the last encoder
        self.theta = parameters(self.camera.K, self.camera.D, "rational")
        if self.camera.T_base_from_cam is not None:
            self.X = self.camera.T_base_from_cam

    def cam_from_board(self, tool: np.ndarray) -> np.ndarray:
        return inverse(self.X) @ tool @ self.Z if self.mount == "base" else inverse(self.X) @ inverse(tool) @ self.Z

    def visible(self, q: np.ndarray) -> bool:
        """Whether most of the board is in the picture, with its front to the camera, and not at a grazing angle."""
        T = self.cam_from_board(ARM.tool(q))
        if T[2, 3] < 0.08 or T[:3, 2] @ T[:3, 3] / np.linalg.norm(T[:3, 3]) < 0.5:
            return False
        uv = project(self.board.points(), self.theta, "rational", cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]
        return bool(self._inside(uv).mean() >= (0.6 if self.board.kind == "charuco" else 1.0))

    def _inside(self, uv: np.ndarray) -> np.ndarray:
        size, edge = np.array([self.camera.width, self.camera.height]), 0.012 * self.camera.width
        return np.asarray(((uv > edge) & (uv < size - edge)).all(1))

    def poses(self, count: int) -> np.ndarray:
        return pose_planning.propose(self.rng, ARM.tool, ARM.LOWER[:-1], ARM.UPPER[:-1], self.visible, count)

    def view(self, name: str, q: np.ndarray) -> ArmView:
        """Corners in one picture while the arm reports `q` float64[5] (rad); its true pose differs by zero errors and
        noise."""
        error = (
            self.rng.normal(0, 1, 6)
            / np.sqrt(3)
            * ([np.radians(self.noise.rotation_deg)] * 3 + [self.noise.translation_m] * 3)
        )
        T = self.cam_from_board(ARM.tool(q + self.offsets) @ transform(error[:3], error[3:]))
        uv = project(self.board.points(), self.theta, "rational", cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]
        seen = self._inside(uv)
        return ArmView(name, self.board.points()[seen], (uv + self.rng.normal(0, self.corner_noise, uv.shape))[seen], q)


class ServoRig:
    """The MuJoCo arm, moved through limiter, state machine and servo packets in virtual time; pictures by ray casting.

    `bench.offsets` (rad, [5]) are zero errors of the encoders: the servos report the true angle minus them.
    """

    def __init__(self, bench: ArmBench, seed: int = 0):
        self.bench, self.world = bench, World(seed)
        self._motor = virtual_motor(self.world)
        self._now = S
        self._rng = np.random.default_rng([seed, 11])
        self.state = self._motor(self._now, None)

    def move_to(self, q: np.ndarray, velocity: float = 1.2) -> np.ndarray:
        """Move to joint angles float64[5] (rad, as the servos report them), wait 0.6 s; returns the reported angles.

        Raises CalibrationError when the safety machine stops the arm.
        """
        goal = np.append(q + self.bench.offsets, 0.3)
        start = self.state.q_rad.astype(float)
        ticks = max(1, int(np.abs(goal - start).max() / velocity * 100))
        for k in range(ticks + 60):
            at = start + (goal - start) * min(1.0, (k + 1) / ticks)
            command = Command(self._now, self._now + S // 10, at.astype(np.float32), np.zeros(len(at), np.float32))
            self.state = self._motor(self._now, command)
            if self.state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
                raise CalibrationError(f"the arm stopped ({self.state.reason}): clear the way, then repeat.")
            self.world.advance(0.01)
            self._now += S // 100
        return self.state.q_rad[:-1].astype(float) - self.bench.offsets

    def picture(self) -> np.ndarray:
        """Picture uint8[H,W] of the board with the arm at its true pose."""
        T = self.bench.cam_from_board(ARM.tool(self.world.q[:-1]))
        return render(self.bench.camera, T, self.bench.board, self._rng)
