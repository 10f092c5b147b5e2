"""The simulated robot and its table: MuJoCo physics, servos with finite speed, latency and resolution, two cameras.

One `World` is one episode's worth of reality. It knows nothing of policies or buses: joint goals go in (radians, through
`set_goals`), positions and pictures come out. `sim.plant` puts the virtual servo bus on top of it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault(
    "LP_NUM_THREADS", "0"
)  # Mesa's software rasteriser: one thread a process is fastest for small frames

import mujoco

from calibration.camera import Camera
from runtime.kinematics import SO101_LOWER, SO101_UPPER, so101_forward, so101_inverse

ASSET = Path(__file__).parent / "assets" / "table_top.xml"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
J = len(JOINTS)
STEP_RAD = 2 * math.pi / 4096  # STS3215 resolution
SERVO_DT = 0.004  # the servos' own control period, s
SERVO_SPEED = 5.0  # rad/s, STS3215 at 7.4 V
LATENCY_TICKS = 3  # goal register to motion: 12 ms
CAMERA_SIZE = (320, 240)
OPEN, CLOSED = 1.0, 0.05  # jaw angles, rad
TOOL_PITCH = 1.40  # rad; 10 degrees off vertical keeps the wrist inside its limits over the whole table
HOME = np.array([0.17, 0.0, 0.09, TOOL_PITCH, 0.0])

INSTRUCTIONS = {
    "put the red cube on the plate": "red_cube",
    "put the blue cube on the plate": "blue_cube",
}
TASKS = tuple(INSTRUCTIONS)
CUBES = ("red_cube", "blue_cube")


@dataclass(frozen=True)
class Layout:
    """Where a start puts things: cubes (x, y, yaw), plate (x, y), instruction. Metres, radians."""

    cubes: tuple[tuple[float, float, float], ...]
    plate: tuple[float, float]
    instruction: str
    start: np.ndarray  # end-effector pose [5]


def sample_layout(rng: np.random.Generator, instruction: str | None = None) -> Layout:
    """A random start in distribution: cubes and plate in the reachable part of the table, apart from one another."""
    if instruction is None:
        instruction = TASKS[int(rng.integers(len(TASKS)))]

    def spot() -> np.ndarray:
        while True:
            p = rng.uniform([0.155, -0.11], [0.255, 0.11])
            if math.hypot(p[0] - 0.0388, p[1]) < 0.222:
                return p

    while True:
        plate, *cubes = (spot() for _ in range(1 + len(CUBES)))
        gaps = [np.linalg.norm(plate - c) for c in cubes]
        if min(gaps) > 0.075 and np.linalg.norm(cubes[0] - cubes[1]) > 0.065:
            break
    yaws = rng.uniform(-0.6, 0.6, len(CUBES))
    start = HOME + rng.uniform([-0.01, -0.05, -0.015, 0, -0.3], [0.03, 0.05, 0.01, 0, 0.3])
    placed = tuple((float(c[0]), float(c[1]), float(w)) for c, w in zip(cubes, yaws, strict=True))
    return Layout(placed, (float(plate[0]), float(plate[1])), instruction, start)


class World:
    """Physics at 500 Hz, servos at 250 Hz. `q` float64[J] are true angles (rad); `measured` what the encoders say."""

    def __init__(self, seed: int = 0, instruction: str | None = None, *, layout: Layout | None = None):
        self.model = mujoco.MjModel.from_xml_path(str(ASSET))
        self.data = mujoco.MjData(self.model)
        self._renderer: mujoco.Renderer | None = None
        self._substeps = round(SERVO_DT / self.model.opt.timestep)
        self._force = self.model.actuator_forcerange.copy()
        self._cube_qpos = {c: int(self.model.joint(self.model.body(c).jntadr[0]).qposadr[0]) for c in CUBES}
        self._jaw_geoms = {self.model.geom(g).id for g in ("fixed_jaw", "moving_jaw")}
        self.reset(layout or sample_layout(np.random.default_rng(seed), instruction))

    def reset(self, layout: Layout) -> None:
        """Start an episode; the arm stands at `layout.start`, gripper open, at rest."""
        mujoco.mj_resetData(self.model, self.data)
        self.layout = layout
        self.model.body("plate").pos[:2] = layout.plate
        for name, (x, y, yaw) in zip(CUBES, layout.cubes, strict=True):
            at = self._cube_qpos[name]
            self.data.qpos[at : at + 7] = [x, y, 0.0125, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
        q, _ = so101_inverse(layout.start)
        self.data.qpos[:J] = [*q, OPEN]
        self._goal = self.data.qpos[:J].copy()
        self._profile = self._goal.copy()
        self._delay = [self._goal.copy()] * LATENCY_TICKS
        self._torque: np.ndarray = np.ones(J, bool)
        self._speed: np.ndarray = np.full(J, SERVO_SPEED)
        self.model.actuator_forcerange[:] = self._force
        self.data.ctrl[:] = self._goal
        self._debt = 0.0
        self._still = 0.0
        for _ in range(3):  # let the cubes settle on the table
            mujoco.mj_step(self.model, self.data, 20)
        self.data.time = 0.0

    @property
    def instruction(self) -> str:
        return self.layout.instruction

    @property
    def time_s(self) -> float:
        return float(self.data.time)

    @property
    def q(self) -> np.ndarray:
        return self.data.qpos[:J].copy()

    @property
    def qd(self) -> np.ndarray:
        return self.data.qvel[:J].copy()

    @property
    def load(self) -> np.ndarray:
        """Actuator force over its limit, [-1, 1]."""
        return self.data.actuator_force / self._force[:, 1]

    @property
    def measured(self) -> np.ndarray:
        """Joint angles as the encoders give them: whole steps of 1/4096 turn."""
        return np.round(self.data.qpos[:J] / STEP_RAD) * STEP_RAD

    @property
    def pose(self) -> np.ndarray:
        """Measured end-effector pose and jaw angle, [x, y, z, pitch, roll, gripper]."""
        q = self.measured
        return np.append(so101_forward(q), q[5])

    def set_goals(
        self, goal_rad: np.ndarray, torque_on: np.ndarray | None = None, speed_rad_s: np.ndarray | None = None,
        torque_limit: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """New goal registers; angles are rounded to servo steps and cut to the joint limits. `torque_limit` in [0, 1]."""
        self._goal = np.clip(np.round(np.asarray(goal_rad, float) / STEP_RAD) * STEP_RAD, SO101_LOWER, SO101_UPPER)
        if torque_on is not None:
            self._torque = np.asarray(torque_on, bool)
        if speed_rad_s is not None:
            self._speed = np.clip(np.asarray(speed_rad_s, float), 0.0, SERVO_SPEED)
        if torque_limit is not None:
            force = self._force * np.asarray(torque_limit, float)[:, None]
            self.model.actuator_forcerange[:] = force

    def advance(self, dt: float) -> None:
        """Let `dt` seconds pass (whole servo periods; the remainder is carried over)."""
        self._debt += dt
        while self._debt > SERVO_DT / 2:
            self._debt -= SERVO_DT
            self._servo_period()

    def _servo_period(self) -> None:
        limit = self._speed * SERVO_DT
        self._profile += np.clip(self._goal - self._profile, -limit, limit)
        self._delay.append(self._profile.copy())
        self.data.ctrl[:] = self._delay.pop(0)
        if not self._torque.all():  # a limp servo follows its joint and pushes nothing
            limp = ~self._torque
            self._profile[limp] = self.data.qpos[:J][limp]
            self._delay = [np.where(limp, self.data.qpos[:J], d) for d in self._delay]
            self.data.ctrl[limp] = self.data.qpos[:J][limp]
        mujoco.mj_step(self.model, self.data, self._substeps)

    def camera(self, name: str) -> Camera:
        """Calibration of a simulated camera: exact pinhole, 320x240."""
        width, height = CAMERA_SIZE
        cam = self.model.camera(name)
        f = 0.5 * height / math.tan(math.radians(float(cam.fovy[0])) / 2)
        K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1.0]])
        pose = None
        if name == "front":
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
            pose = np.eye(4)
            pose[:3, :3] = self.data.camera(name).xmat.reshape(3, 3) @ np.diag([1, -1, -1.0])  # GL looks along -z
            pose[:3, 3] = self.data.camera(name).xpos
        return Camera(name, width, height, K, np.zeros(0), pose)

    def render(self, camera: str) -> np.ndarray:
        """uint8[240, 320, 3] RGB."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, CAMERA_SIZE[1], CAMERA_SIZE[0])
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._renderer.update_scene(self.data, camera)
        return self._renderer.render()

    def render_pose(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Both views of the scene at `qpos` float64[nq], without physics (the camera process)."""
        self.data.qpos[:] = qpos
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return {name: self.render(name) for name in ("front", "wrist")}

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def cube(self, name: str) -> np.ndarray:
        """True centre of a cube [3], m. Privileged: for the scripted expert and the success test only."""
        at = self._cube_qpos[name]
        return self.data.qpos[at : at + 3].copy()

    def success(self) -> bool:
        """The named cube rests on the plate, flat, and no jaw touches it: judged from physics alone."""
        name = INSTRUCTIONS[self.layout.instruction]
        at = self._cube_qpos[name]
        p = self.data.qpos[at : at + 3]
        v = self.data.qvel[self.model.jnt_dofadr[self.model.body(name).jntadr[0]] :][:6]
        on_plate = np.hypot(*(p[:2] - self.layout.plate)) < 0.035 and 0.012 < p[2] < 0.022
        if not on_plate or np.abs(v[:3]).max() > 0.02:
            return False
        geom = self.model.geom(name).id
        for c in self.data.contact[: self.data.ncon]:
            if (c.geom1 == geom and c.geom2 in self._jaw_geoms) or (c.geom2 == geom and c.geom1 in self._jaw_geoms):
                return False
        return True
