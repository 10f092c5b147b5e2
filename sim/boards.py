"""Synthetic pictures of calibration boards: a ray through the lens is cast from every sub-pixel onto the board's plane.

They are the ground truth for tests of calibration: K, D and the board's pose are exact; blur and noise are those of a
small camera.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from calibration.board import Board
from calibration.camera import Camera
from calibration.lens import parameters, unproject

SUPER = 3  # rays per pixel and axis
_PER_SQUARE = 120  # texture pixels per square


@functools.lru_cache(maxsize=8)
def _texture(text: str) -> tuple[np.ndarray, float, float]:
    board = Board.parse(text)
    per_metre = _PER_SQUARE / board.square
    border = board.square / 2
    return board.texture(per_metre, border), per_metre, border


@functools.lru_cache(maxsize=4)
def _rays(width: int, height: int, K: bytes, D: bytes, model: str) -> np.ndarray:
    """Normalised ray directions of the sub-pixels (x/z, y/z), float32[h*S, w*S, 2]."""
    u = (np.arange(width * SUPER) + 0.5) / SUPER - 0.5
    v = (np.arange(height * SUPER) + 0.5) / SUPER - 0.5
    theta = parameters(np.frombuffer(K).reshape(3, 3), np.frombuffer(D), model)
    # The lens is smooth: every eighth sub-pixel is exact, the others are interpolated linearly.
    step = 8
    uc, vc = np.append(u[::step], u[-1] + step / SUPER), np.append(v[::step], v[-1] + step / SUPER)
    pixels = np.stack(np.meshgrid(uc, vc), -1).reshape(-1, 2)
    rays, good = unproject(pixels, theta, model)
    xy = np.where(good[:, None] & (rays[:, 2:] > 0.02), rays[:, :2] / np.maximum(rays[:, 2:], 0.02), 1e3)
    coarse = xy.reshape(len(vc), len(uc), 2).astype(np.float32)
    map_x, map_y = np.meshgrid(np.arange(len(u)) / step, np.arange(len(v)) / step)
    return cv2.remap(coarse, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR)


def render(
    camera: Camera,
    T_cam_from_board: np.ndarray,
    board: Board,
    rng: np.random.Generator | None = None,
    *,
    background: np.ndarray | None = None,
    blur_px: float = 0.6,
    noise: float = 2.0,
) -> np.ndarray:
    """Picture of the board, uint8[H,W].

    `blur_px` and `noise` (grey levels) are standard deviations; without `rng` there is no noise. `background`
    uint8[H,W] fills the rest of the picture.
    """
    model = camera.model if camera.model == "fisheye" else "rational"
    rays = _rays(camera.width, camera.height, camera.K.tobytes(), camera.D.astype(float).tobytes(), model)
    texture, per_metre, border = _texture(board.text)
    T = np.asarray(T_cam_from_board, float)
    # A ray (x, y, 1) meets the plane at board coordinates M^-1 (x, y, 1) with M = [r1 r2 t].
    M = np.linalg.inv(np.stack([T[:3, 0], T[:3, 1], T[:3, 3]], 1))
    ox, oy = board.origin()
    shift = np.array(
        [[per_metre, 0, (border - ox) * per_metre - 0.5], [0, per_metre, (border - oy) * per_metre - 0.5], [0, 0, 1]]
    )
    H = (shift @ M).astype(np.float32)
    ground = (
        np.full((camera.height, camera.width), 90.0, np.float32)
        if background is None
        else background.astype(np.float32)
    )
    x, y = rays[..., 0], rays[..., 1]
    w = H[2, 0] * x + H[2, 1] * y + H[2, 2]
    seen = w > 1e-6
    w[~seen] = 1.0
    tx, ty = (H[0, 0] * x + H[0, 1] * y + H[0, 2]) / w, (H[1, 0] * x + H[1, 1] * y + H[1, 2]) / w
    tx[~seen] = -9.0
    fine = cv2.remap(texture, tx, ty, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0).astype(
        np.float32
    )
    inside = ((tx > -0.5) & (ty > -0.5) & (tx < texture.shape[1] - 0.5) & (ty < texture.shape[0] - 0.5)).astype(
        np.float32
    )
    paper = fine * (190 / 255) + 30.0  # printed black and white are shades of grey
    shape = (camera.width, camera.height)
    cover = cv2.resize(inside, shape, interpolation=cv2.INTER_AREA)
    image = cv2.resize(paper * inside, shape, interpolation=cv2.INTER_AREA) + ground * (1 - cover)
    if blur_px > 0:
        image = cv2.GaussianBlur(image, (0, 0), blur_px)
    if rng is not None and noise > 0:
        image = image + rng.normal(0, noise, image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def look_at_board(
    rng: np.random.Generator,
    board: Board,
    camera: Camera,
    tilt_deg: tuple[float, float] = (0, 45),
    fill: tuple[float, float] = (0.35, 0.9),
) -> np.ndarray:
    """A random T_cam_from_board float64[4,4], as a person would hold the board. `fill`: range of the board's width as a
    share of the picture's."""
    width, height = board.size()
    ox, oy = board.origin()
    middle = np.array([ox + width / 2, oy + height / 2, 0])
    distance = camera.K[0, 0] * width / (rng.uniform(*fill) * camera.width)
    at = np.array([rng.uniform(0.2, 0.8) * camera.width, rng.uniform(0.2, 0.8) * camera.height])
    ray = np.append((at - camera.K[:2, 2]) / camera.K[[0, 1], [0, 1]], 1.0)
    tilt, about = np.radians(rng.uniform(*tilt_deg)), rng.uniform(0, 2 * np.pi)
    R = (
        cv2.Rodrigues(tilt * np.array([np.cos(about), np.sin(about), 0]))[0]
        @ cv2.Rodrigues(np.array([0, 0, np.radians(rng.uniform(-20, 20))]))[0]
    )
    T = np.eye(4)
    T[:3, :3] = R
    T[:3, 3] = ray * distance - R @ middle
    return T
