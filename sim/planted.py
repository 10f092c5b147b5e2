"""Recordings of an arm with planted truth: joint angles and pictures of a camera that stands, rendered by MuJoCo.

The arm is any MJCF model whose first joints are the family's, so that the shapes in the pictures are not those by which
`calibration.from_recording` solves. Nothing is simulated: the arm is posed and looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import mujoco
import numpy as np

from calibration.transforms import inverse
from firmware_bridge.arms.family import Family

FLIP = np.diag([1.0, -1.0, -1.0])  # MuJoCo's camera looks along -z, y up


@dataclass(frozen=True)
class Planted:
    """The truth, and what spoils it.

    `pose`: T_base_from_cam float64[4,4]; `fx` px of square pixels; `size`: width, height. `zeros` float64[J] rad: true
    angle minus reported one. `noise`: of the pictures, grey levels. `k1`: radial distortion. `backlash` rad: the
    arm lags behind its reported angles by up to half of it. `thicker`: factor on the links' shapes alone, about their
    own frames. `larger`: factor on the whole arm, but its base. `flicker`: change of the light between pictures, as a
    share. `shadows`: of one lamp.
    """

    pose: np.ndarray
    fx: float
    size: tuple[int, int] = (640, 480)
    zeros: np.ndarray = field(default_factory=lambda: np.zeros(6))
    noise: float = 3.0
    k1: float = 0.0
    backlash: float = 0.0
    thicker: float = 1.0
    larger: float = 1.0
    flicker: float = 0.0
    shadows: bool = False
    distractors: int = 4
    seed: int = 0


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """T_base_from_cam float64[4,4] of a camera at `eye` that looks at `target`, turned by `roll` (rad) about its
    axis."""
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = np.cos(roll), np.sin(roll)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = np.stack([c * x + s * y, c * y - s * x, z], 1), eye
    return T


def drawn(rng: np.random.Generator, size: tuple[int, int] = (640, 480), **changes: Any) -> Planted:
    """A camera somewhere in front of or beside the arm, 45 to 85 cm from the middle of its table, with a usual lens,
    and joint zeros wrong by 2 degrees (sd)."""
    azimuth, height = rng.uniform(-1.9, 1.9), np.radians(rng.uniform(20, 60))
    away = rng.uniform(0.55, 0.85)
    target = np.array([0.18, 0.0, 0.12]) + rng.uniform(-0.04, 0.04, 3)
    eye = target + away * np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    zeros = np.radians(rng.normal(0, 2, 6)) * [1, 1, 1, 1, 1, 0.5]
    fx = size[0] / 2 / np.tan(np.radians(rng.uniform(50, 70)) / 2)
    pose = look_at(eye, target, rng.normal(0, 0.05))
    return dataclasses.replace(Planted(pose, fx, size, zeros, seed=int(rng.integers(1 << 30))), **changes)


def motions(arm: Family, episodes: int, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reported joint angles float64[n,J] (rad) of reaches over the table, and each row's episode int64[n]."""
    out = []
    for _ in range(episodes):
        places: list[np.ndarray] = []
        while len(places) < 5:
            xy = rng.uniform(0.14, 0.32) * np.array([np.cos(a := rng.uniform(-1.0, 1.0)), np.sin(a)])
            tool = np.array([*xy, rng.uniform(0.02, 0.2), rng.uniform(0.7, 1.5), rng.uniform(-1.4, 1.4)])
            q, exact = arm.inverse(np.append(tool, rng.uniform(0.1, 1.2)), arm.LOWER, arm.UPPER)
            if exact and arm.lowest(q) > 0.004 and arm.room(q) > 0.002:
                places.append(q)
        at = np.linspace(0, len(places) - 1, rows)
        k = np.minimum(at.astype(int), len(places) - 2)
        share = np.clip((at - k - 0.15) / 0.7, 0, 1)
        share = share**3 * (10 - 15 * share + 6 * share**2)  # least jerk
        rests = np.array(places)
        out.append(rests[k] + (rests[k + 1] - rests[k]) * share[:, None])
    return np.concatenate(out), np.repeat(np.arange(episodes), rows)


def _model(mjcf: Path, p: Planted, rng: np.random.Generator) -> mujoco.MjModel:
    spec = mujoco.MjSpec.from_file(str(mjcf))
    if p.thicker != 1.0 or p.larger != 1.0:
        for mesh in spec.meshes:
            mesh.scale = np.asarray(mesh.scale) * p.thicker * p.larger
        for body in spec.bodies[1:]:
            if body.parent.name != "world" and p.larger != 1.0:
                body.pos = np.asarray(body.pos) * p.larger
            for geom in body.geoms:
                geom.pos = np.asarray(geom.pos) * p.larger
    spec.visual.global_.offwidth, spec.visual.global_.offheight = p.size
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.45] * 3, [0.25] * 3
    world = spec.worldbody
    world.add_light(pos=[*rng.uniform(-0.5, 0.5, 2), 1.5], dir=[0, 0, -1], castshadow=p.shadows, diffuse=[0.5] * 3)
    low, high = rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.85)
    tint = rng.uniform(0.8, 1.1, 3)
    spec.add_texture(
        name="table",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=np.clip(low * tint, 0, 1),
        rgb2=np.clip(high * tint, 0, 1),
        width=64,
        height=64,
    )
    spec.add_material(name="table", texrepeat=[float(rng.uniform(3, 12))] * 2, specular=0.1).textures[
        mujoco.mjtTextureRole.mjTEXROLE_RGB
    ] = "table"
    world.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1.5, 1.5, 0.1], pos=[0, 0, -0.003], material="table"
    )
    for k in range(p.distractors):
        body = world.add_body(name=f"thing{k}", mocap=True, pos=[0, 0, -1])
        box = k % 2 == 0
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX if box else mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[0.015, 0.015, 0.015],
            rgba=[*rng.uniform(0, 1, 3), 1],
            contype=0,
            conaffinity=0,
        )
    fovy = np.degrees(2 * np.arctan(p.size[1] / 2 / p.fx))
    R = p.pose[:3, :3] @ FLIP
    world.add_camera(name="planted", pos=p.pose[:3, 3], xyaxes=[*R[:, 0], *R[:, 1]], fovy=fovy)
    return spec.compile()


def lens(p: Planted) -> tuple[np.ndarray, np.ndarray]:
    """K float64[3,3] and D float64[5] of the planted camera."""
    K = np.array([[p.fx, 0, (p.size[0] - 1) / 2], [0, p.fx, (p.size[1] - 1) / 2], [0, 0, 1]])
    return K, np.array([p.k1, 0, 0, 0, 0.0])


def rendered(mjcf: Path, p: Planted, q: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Pictures uint8[n,H,W,3] (RGB) of reported joint angles `q` float64[n,J] (rad); the things on the table change
    their places with each `episode` int64[n]."""
    rng = np.random.default_rng(p.seed)
    model = _model(mjcf, p, rng)
    data = mujoco.MjData(model)
    K, D = lens(p)
    bent = None
    if p.k1:
        grid = np.stack(np.meshgrid(np.arange(p.size[0]), np.arange(p.size[1])), -1).reshape(-1, 1, 2).astype(float)
        bent = cv2.undistortPoints(grid, K, D, P=K).reshape(p.size[1], p.size[0], 2).astype(np.float32)
    out = np.empty((len(q), p.size[1], p.size[0], 3), np.uint8)
    behind, seen = np.zeros(q.shape[1]), -1
    with mujoco.Renderer(model, p.size[1], p.size[0]) as renderer:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = p.shadows
        for k, angles in enumerate(q):
            if episode[k] != seen:
                seen = episode[k]
                for m in range(model.nmocap):
                    data.mocap_pos[m] = [rng.uniform(0.12, 0.34), rng.uniform(-0.25, 0.25), 0.012]
            behind = p.backlash / 2 * np.sign(angles - q[k - 1]) if k else behind
            data.qpos[: len(angles)] = angles + p.zeros - behind
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, "planted")
            picture: np.ndarray = renderer.render().astype(np.float32)
            if bent is not None:
                picture = cv2.remap(
                    picture, bent[..., 0], bent[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                )
            picture *= 1 + p.flicker * rng.normal()
            picture += rng.normal(0, p.noise, picture.shape).astype(np.float32)
            out[k] = np.clip(picture, 0, 255)
    return out


def errors(p: Planted, pose: np.ndarray) -> Mapping[str, float]:
    """How far a found T_base_from_cam float64[4,4] is from the planted one."""
    d = inverse(p.pose) @ pose
    turned = np.degrees(np.linalg.norm(cv2.Rodrigues(d[:3, :3])[0]))
    return {"mm": 1000 * float(np.linalg.norm(p.pose[:3, 3] - pose[:3, 3])), "deg": float(turned)}
