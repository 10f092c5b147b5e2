"""Measures the effect of a bumped camera: the front camera is moved and gets another lens.

Reports the policy's success with the bumped camera, the verdict of the drift check, and the success after
recalibration with the calibration functions that a user runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import hand_eye, intrinsics, lens
from calibration.board import Board
from calibration.camera import Camera
from calibration.check import LEARN_FRAMES, Verdict, check, learn
from calibration.transforms import distance, inverse, transform
from calibration.views import ArmNoise, ArmView, View
from runtime.bundle import Bundle
from runtime.policies import open_policy
from sim.boards import look_at_board, render
from sim.calibration_rig import ArmBench, ServoRig
from sim.statistics import wilson
from sim.tasks import ARM, Layout, sample_layout
from sim.virtual_time import Schedule, run_episode
from sim.world import CAMERA_SIZE, World

BUMP = transform(np.radians(5.0) * np.array([0.6, 0.64, 0.48]), 0.03 * np.array([0.6, -0.48, 0.64]))  # 5 degrees, 3 cm
K = np.array([[290.0, 0, 162.5], [0, 288.5, 117.5], [0, 0, 1]])
D = np.array([-0.22, 0.06, 0.0005, -0.0005, 0.0])
HELD = Board.parse("chessboard:6x5:0.018")  # 320x240 is too coarse for ChArUco at arm's length
SHEET = Board.parse("chessboard:9x6:0.025")
MARKER = Board.parse("chessboard:6x5:0.015")  # the marker on the table
WIDE = (520, 390)  # px; size of the pinhole picture that is warped into the picture through the lens


class BumpedWorld(World):
    """A `World` whose front camera is moved by BUMP and has the lens K, D."""

    def __init__(self, seed: int = 0):
        self._wide: dict[str, Any] = {}  # task -> renderer of its scene
        self._true: Camera | None = None
        pixels = np.stack(np.meshgrid(np.arange(CAMERA_SIZE[0]), np.arange(CAMERA_SIZE[1])), -1).reshape(-1, 2)
        rays, _ = lens.unproject(pixels, lens.parameters(K, D, "pinhole"), "pinhole")
        xy = rays[:, :2] / rays[:, 2:] * float(K[1, 1]) + (np.array(WIDE) - 1) / 2
        self._map = xy.reshape(CAMERA_SIZE[1], CAMERA_SIZE[0], 2).astype(np.float32)
        super().__init__(seed)

    def reset(self, layout: Layout) -> None:
        """Start an episode; the front camera of a scene is moved when the scene is used for the first time."""
        super().reset(layout)
        if self._true is None:
            self._true = bumped(super().camera("front"))
        if layout.task in self._wide:
            return
        import mujoco  # imported here, after sim.world has chosen the renderer

        assert self._true.T_base_from_cam is not None
        rotation = self._true.T_base_from_cam[:3, :3] @ np.diag([1, -1, -1.0])
        mujoco.mju_mat2Quat(self.model.camera("front").quat, rotation.ravel())
        self.model.camera("front").pos[:] = self._true.T_base_from_cam[:3, 3]
        f = float(K[1, 1])
        self.model.camera("front").fovy[:] = math.degrees(2 * math.atan(WIDE[1] / 2 / f))
        mujoco.mj_forward(self.model, self.data)
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = WIDE
        wide = self._wide[layout.task] = mujoco.Renderer(self.model, WIDE[1], WIDE[0])
        wide.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        wide.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def camera(self, name: str) -> Camera:
        """The true calibration; for the front camera, after the bump."""
        return self._true if name == "front" and self._true is not None else super().camera(name)

    def render(self, camera: str) -> np.ndarray:
        """Picture uint8[240,320,3] RGB; the front camera's through the lens K, D."""
        if camera != "front":
            return super().render(camera)
        wide = self._wide[self.layout.task]
        wide.update_scene(self.data, camera)
        return cv2.remap(wide.render(), self._map[..., 0], self._map[..., 1], cv2.INTER_LINEAR)

    def close(self) -> None:
        for wide in self._wide.values():
            wide.close()
        super().close()


def bumped(camera: Camera) -> Camera:
    """`camera` moved by BUMP, with the lens K, D."""
    assert camera.T_base_from_cam is not None
    return Camera(camera.name, *CAMERA_SIZE, K, D, camera.T_base_from_cam @ BUMP)


def marker_frames(world: World, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` noisy pictures uint8[240,320] of the table with the marker on it."""
    camera = world.camera("front")
    assert camera.T_base_from_cam is not None
    T = np.eye(4)
    T[:3, :3] = np.diag([1.0, -1, -1])
    T[:3, 3] = [0.24, 0.03, 0.0]
    background = cv2.cvtColor(world.render("front"), cv2.COLOR_RGB2GRAY)
    clean = render(camera, inverse(camera.T_base_from_cam) @ T, MARKER, None, background=background, blur_px=0.5)
    return [np.clip(clean + rng.normal(0, 2, clean.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def drift(seed: int = 0) -> Verdict:
    """Learn the marker with the camera in place, then check with the bumped camera."""
    rng = np.random.default_rng(seed)
    before, after = World(0), BumpedWorld(0)
    reference = learn(marker_frames(before, LEARN_FRAMES, rng), MARKER)
    verdict = check(reference, marker_frames(after, 10, rng))
    before.close()
    after.close()
    return verdict


def recalibrate(seed: int = 0, views: int = 30, poses: int = 15) -> tuple[Camera, dict[str, float]]:
    """Calibrate the bumped camera as a user would: intrinsics with a printed sheet, then hand-eye with a board on an
    arm that has the errors of an SO-101.

    `views`: pictures of the sheet; `poses`: arm poses. Returns the camera and its errors against the truth.
    """
    rng = np.random.default_rng([seed, 3])
    world = World(0)
    true = bumped(world.camera("front"))
    world.close()
    found: list[View] = []
    while len(found) < views:
        seen = SHEET.detect(render(true, look_at_board(rng, SHEET, true, fill=(0.4, 0.8)), SHEET, rng))
        if len(seen.ids):
            found.append(View(f"{len(found)}", SHEET.points()[seen.ids], seen.pixels))
    done = intrinsics.calibrate(found, CAMERA_SIZE, "rational")
    bench = ArmBench("base", rng, camera=true, board=HELD)
    rig = ServoRig(bench, seed)
    shots = []
    for k, q in enumerate(bench.poses(poses)):
        q_said = rig.move_to(q)
        seen = HELD.detect(rig.picture())
        # The simulated servos are precise; the errors of a cheap arm are added to what they report.
        shots.append(
            ArmView(f"{k}", HELD.points()[seen.ids], seen.pixels, q_said + np.radians(0.2) * rng.normal(0, 1, 5))
        )
    rig.world.close()
    pose, halves = hand_eye.calibrate(
        "base", shots, done.fit.theta, "rational", ARM.tool, ArmNoise(), max(done.fit.sigma, 0.1)
    )
    camera = Camera("front", *CAMERA_SIZE, lens.matrix(done.fit.theta), done.fit.theta[4:], pose.X)
    assert true.T_base_from_cam is not None
    degrees, metres = distance(pose.X, true.T_base_from_cam)
    return camera, {
        "heldout_px": done.heldout,
        "fx_error_percent": 100 * float(abs(done.fit.theta[0] / K[0, 0] - 1)),
        "pose_error_mm": 1000 * metres,
        "pose_error_deg": degrees,
        "pose_sd_mm": 1000 * pose.sd[1],
        "pose_sd_deg": pose.sd[0],
        "poses_used": len(pose.kept),
        **halves,
    }


CONDITIONS = ("as calibrated", "bumped, old calibration", "bumped, recalibrated", "bumped, true calibration")


def success(
    bundle_path: Path, condition: str, seeds: Sequence[int], recalibrated: Camera | None = None
) -> dict[str, Any]:
    """Success in virtual-time episodes with the given camera and calibration; starts are drawn from [seed, 7]."""
    from sim.plant import virtual_motor

    bundle = Bundle.load(bundle_path)
    nominal = World(0)
    world = nominal if condition == "as calibrated" else BumpedWorld(0)
    cameras = {
        "front": {"bumped, recalibrated": recalibrated, "bumped, true calibration": world.camera("front")}.get(
            condition
        )
        or nominal.camera("front"),
        "wrist": nominal.camera("wrist"),
    }
    wins = []
    task = next(iter(bundle.manifest.tasks))
    policy = open_policy(bundle, task, cameras)
    for seed in seeds:
        world.reset(sample_layout(np.random.default_rng([seed, 7])))
        policy.slow.set_task(world.instruction)
        wins.append(run_episode(world, policy.slow, policy.fast, virtual_motor(world), Schedule()).success)
    nominal.close()
    world.close()
    return {
        "condition": condition,
        "episodes": len(wins),
        "successes": sum(wins),
        "wilson95": wilson(sum(wins), len(wins)),
    }
