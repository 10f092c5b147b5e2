"""A calibrated camera: intrinsics, distortion, pose, and the files that hold them.

Conventions: pixel (0, 0) is the centre of the top-left pixel; the camera frame is right-handed, x right, y down, z
forward (OpenCV); `T_base_from_cam` maps camera coordinates to the arm's base frame, `T_tool_from_cam` those of a camera
that rides on the arm to the tool's frame (`firmware_bridge.arms.family`), metres.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from common.errors import Mendable
from common.schema import Malformed, Shape, Text, shaped

SCHEMA = 1
DISTORTION = {"rational": (0, 4, 5, 8), "fisheye": (4,)}  # how many numbers of distortion a lens model takes
ROUNDED = 1e-3  # how far the elements of R^T R may be from the identity for a rotation in a file


class CalibrationError(Mendable):
    """A calibration that must not be used; the text says why and what to do next."""


Pixels = Annotated[int, Meta(ge=8, le=16384)]
Lens = Annotated[float, Meta(ge=-1e5, le=1e5)]
Metres = Annotated[float, Meta(ge=-10, le=10)]  # also the elements of a rotation
Pose = Annotated[
    list[Annotated[list[Metres], Meta(min_length=4, max_length=4)]],
    Meta(min_length=4, max_length=4, description="a pose: 4 rows of 4 numbers from -10 to 10 (m)"),
]


class CameraFile(Shape, frozen=True):
    """What `Camera.to_json` gives."""

    name: Text
    width: Pixels
    height: Pixels
    K: Annotated[list[Annotated[list[Lens], Meta(min_length=3, max_length=3)]], Meta(min_length=3, max_length=3)]
    D: Annotated[list[Lens], Meta(max_length=8)]
    T_base_from_cam: Pose | None
    schema: Annotated[int, Meta(ge=0, le=SCHEMA)] = 0
    model: Text = "rational"
    T_tool_from_cam: Pose | None = None


@dataclass(frozen=True)
class Camera:
    """Intrinsics `K` float64[3,3], distortion `D` float64[n], pose, size in pixels.

    `D` is in OpenCV's rational order (0, 4, 5 or 8 numbers), or the four of its fisheye model where `model` says so.
    `T_base_from_cam` is float64[4,4]; None for a camera that rides on the arm (wrist), which has `T_tool_from_cam` once
    it is calibrated hand-eye.
    """

    name: str
    width: int
    height: int
    K: np.ndarray
    D: np.ndarray
    T_base_from_cam: np.ndarray | None = None
    model: str = "rational"  # or "fisheye"
    T_tool_from_cam: np.ndarray | None = None

    def scaled(self, width: int, height: int) -> Camera:
        """The same camera at another resolution, px; D acts on normalised coordinates and stays."""
        sx, sy = width / self.width, height / self.height
        K = self.K.copy()
        K[0, 0] *= sx
        K[1, 1] *= sy
        K[0, 2] = (K[0, 2] + 0.5) * sx - 0.5
        K[1, 2] = (K[1, 2] + 0.5) * sy - 0.5
        return dataclasses.replace(self, width=width, height=height, K=K)

    def project(self, points_base: np.ndarray) -> np.ndarray:
        """Pixels float64[..., 2] of points float64[..., 3] in the base frame; pinhole part only (D is not applied)."""
        if self.T_base_from_cam is None:
            raise CalibrationError(
                f"camera '{self.name}' has no fixed pose; only a camera fixed to the base can project."
            )
        R, t = self.T_base_from_cam[:3, :3], self.T_base_from_cam[:3, 3]
        p = (np.asarray(points_base, float) - t) @ R
        uv = p[..., :2] / p[..., 2:3]
        return uv * [self.K[0, 0], self.K[1, 1]] + [self.K[0, 2], self.K[1, 2]]

    def at_height(self, pixels: np.ndarray, z: np.ndarray | float) -> np.ndarray:
        """Points float64[..., 3] in the base frame where the rays of `pixels` [..., 2] cross the plane of height `z`
        (m)."""
        if self.T_base_from_cam is None:
            raise CalibrationError(
                f"camera '{self.name}' has no fixed pose; only a camera fixed to the base can unproject."
            )
        uv = (np.asarray(pixels, float) - [self.K[0, 2], self.K[1, 2]]) / [self.K[0, 0], self.K[1, 1]]
        R, t = self.T_base_from_cam[:3, :3], self.T_base_from_cam[:3, 3]
        rays = np.concatenate([uv, np.ones_like(uv[..., :1])], -1) @ R.T
        scale = (np.asarray(z, float) - t[2]) / rays[..., 2]
        return t + rays * scale[..., None]

    def to_json(self) -> dict[str, Any]:
        pose = None if self.T_base_from_cam is None else self.T_base_from_cam.tolist()
        return {
            "schema": SCHEMA,
            "name": self.name,
            "width": self.width,
            "height": self.height,
            "K": self.K.tolist(),
            "D": self.D.tolist(),
            "T_base_from_cam": pose,
            **({"model": self.model} if self.model != "rational" else {}),
            **({"T_tool_from_cam": self.T_tool_from_cam.tolist()} if self.T_tool_from_cam is not None else {}),
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "camera") -> Camera:
        """From what `to_json` gave. Raises CalibrationError for anything else: no object, a missing field, a newer
        schema, numbers that are no camera."""
        mend = "calibrate the camera again or restore the file."
        schema = data.get("schema", 0) if isinstance(data, dict) else 0
        if isinstance(schema, int) and schema > SCHEMA:
            raise CalibrationError(
                f"{source} has calibration schema {schema}, this version reads {SCHEMA}: upgrade harmowam."
            )
        try:
            file = shaped(data, CameraFile)
        except Malformed as e:
            raise CalibrationError(f"{source} is not a camera calibration ({e}): {mend}") from e
        camera = cls(
            file.name,
            file.width,
            file.height,
            np.array(file.K),
            np.array(file.D, float),
            _matrix(file.T_base_from_cam),
            file.model,
            _matrix(file.T_tool_from_cam),
        )
        if wrong := _impossible(camera):
            raise CalibrationError(f"{source} holds {wrong}: {mend}")
        return camera


def _matrix(pose: list[list[float]] | None) -> np.ndarray | None:
    return None if pose is None else np.array(pose)


def _impossible(camera: Camera) -> str:
    """What of this camera is impossible; empty where nothing is."""
    K, size = camera.K, np.array([camera.width, camera.height])
    straight = K[0, 1] == K[1, 0] == K[2, 0] == K[2, 1] == 0 and K[2, 2] == 1
    if not (straight and min(K[0, 0], K[1, 1]) >= 1 and (-size <= K[:2, 2]).all() and (K[:2, 2] <= 2 * size).all()):
        return "impossible intrinsics"
    if camera.model not in DISTORTION:
        return f"an unknown lens model ('{camera.model}')"
    if len(camera.D) not in DISTORTION[camera.model]:
        return f"{len(camera.D)} numbers of distortion, which the {camera.model} model does not take"
    for key, pose in (("T_base_from_cam", camera.T_base_from_cam), ("T_tool_from_cam", camera.T_tool_from_cam)):
        if pose is not None and not rigid(pose):
            return f"a {key} that is no pose (a rotation and a place)"
    return ""


def rigid(T: np.ndarray) -> bool:
    """Whether T float64[4,4] is a rotation and a translation; false for NaN. Files may hold rounded numbers."""
    R = T[:3, :3]
    turned = np.abs(R.T @ R - np.eye(3)).max() < ROUNDED and np.linalg.det(R) > 0
    return bool(turned and np.isfinite(T).all() and np.abs(T[3] - [0, 0, 0, 1]).max() < ROUNDED)


def parallax(src: Camera, dst: Camera, height: float = 0.05, at: tuple[float, float] = (0.2, 0.0)) -> float:
    """Error (m, on the table) of the homography of the table plane from `src` to `dst`, for a point `height` (m) above
    the table at `at` (x, y in the base frame, m); 0 for a wrist camera.

    On the table itself the homography is exact.
    """
    if src.T_base_from_cam is None or dst.T_base_from_cam is None:
        return 0.0
    point = np.array([*at, height])
    feet = [camera.at_height(camera.project(point), 0.0) for camera in (src, dst)]
    return float(np.linalg.norm(feet[0] - feet[1]))


def moved_mount(src: Camera, dst: Camera) -> tuple[float, float]:
    """Distance (m) and angle (rad) between the mounts of two cameras on the tool; 0 where the pose of one is not
    known."""
    if src.T_tool_from_cam is None or dst.T_tool_from_cam is None:
        return 0.0, 0.0
    between = np.linalg.inv(dst.T_tool_from_cam) @ src.T_tool_from_cam
    cosine = np.clip((np.trace(between[:3, :3]) - 1) / 2, -1.0, 1.0)
    return float(np.linalg.norm(between[:3, 3])), float(np.arccos(cosine))


def policy_camera(native: Camera, size: int = 96) -> Camera:
    """The camera that a policy is trained for: the central square of the native picture, `size` pixels wide."""
    side = min(native.width, native.height)
    K = native.K.copy()
    K[0, 2] -= (native.width - side) / 2
    K[1, 2] -= (native.height - side) / 2
    return dataclasses.replace(native, width=side, height=side, K=K, D=np.zeros(0), model="rational").scaled(size, size)
