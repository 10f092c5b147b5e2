"""Lens models: points in the camera frame to pixels and back, with derivatives.

`model` is "pinhole" (k1 k2 p1 p2 k3), "rational" (k1 k2 p1 p2 k3 k4 k5 k6) or "fisheye" (k1..k4, equidistant);
parameters are one vector `theta` = fx, fy, cx, cy, then the distortion. Models: OpenCV calib3d; fisheye: Kannala and
Brandt 2006.
"""

from __future__ import annotations

import cv2
import numpy as np

COEFFICIENTS = {"pinhole": 5, "rational": 8, "fisheye": 4}
FORWARD = 0.02  # least z of a unit ray that is compared by x/z and y/z: 88.9 degrees from the axis
_ZERO = np.zeros(3)


def matrix(theta: np.ndarray) -> np.ndarray:
    """Camera matrix K float64[3,3] of theta."""
    return np.array([[theta[0], 0, theta[2]], [0, theta[1], theta[3]], [0, 0, 1.0]])


def parameters(K: np.ndarray, D: np.ndarray, model: str) -> np.ndarray:
    """theta float64[4+n]; missing coefficients are zero."""
    full = np.zeros(COEFFICIENTS[model])
    full[: len(D)] = D
    return np.concatenate([[K[0, 0], K[1, 1], K[0, 2], K[1, 2]], full])


def project(
    points: np.ndarray, theta: np.ndarray, model: str, rvec: np.ndarray = _ZERO, tvec: np.ndarray = _ZERO
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels float64[n,2] of points float64[n,3], d/dtheta float64[n,2,4+k], d/d(rvec, tvec) float64[n,2,6]."""
    p = np.ascontiguousarray(points, np.float64).reshape(-1, 1, 3)
    K, D = matrix(theta), np.ascontiguousarray(theta[4:])
    r, t = np.array(rvec, np.float64).reshape(3, 1), np.array(tvec, np.float64).reshape(3, 1)
    if model == "fisheye":
        uv, jac = cv2.fisheye.projectPoints(p, r, t, K, D.reshape(4, 1))
        jac = jac.reshape(-1, 2, 15)  # fx fy, cx cy, k1..4, rvec, tvec, skew
        return uv.reshape(-1, 2), jac[..., :8], jac[..., 8:14]
    uv, jac = cv2.projectPoints(p, r, t, K, D)
    jac = jac.reshape(-1, 2, 10 + len(D))  # rvec, tvec, fx fy, cx cy, D
    return uv.reshape(-1, 2), jac[..., 6:], jac[..., :6]


def unproject(pixels: np.ndarray, theta: np.ndarray, model: str, rounds: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Unit rays float64[n,3] of pixels float64[n,2], and which of them project back to within 0.01 px (bool[n]).

    Gauss-Newton on the normalised plane with bounded steps converges where OpenCV's fixed-point iteration diverges.
    """
    want = np.asarray(pixels, float).reshape(-1, 2)
    xy = (want - theta[2:4]) / theta[:2]
    if model == "fisheye":
        # Newton's method for the angle from the distorted angle, then the ray.
        rd = np.linalg.norm(xy, axis=1)
        k = theta[4:8]
        a = np.minimum(rd, 1.5)
        for _ in range(rounds):
            a2 = a * a
            f = a * (1 + a2 * (k[0] + a2 * (k[1] + a2 * (k[2] + a2 * k[3])))) - rd
            df = 1 + a2 * (3 * k[0] + a2 * (5 * k[1] + a2 * (7 * k[2] + a2 * 9 * k[3])))
            a = np.clip(a - f / np.where(np.abs(df) < 1e-6, 1e-6, df), 0, 3.0)
        unit = xy / np.maximum(rd, 1e-12)[:, None]
        rays = np.concatenate([unit * np.sin(a)[:, None], np.cos(a)[:, None]], 1)
        back = np.where(rays[:, 2:] > 1e-3, project(rays / np.maximum(rays[:, 2:], 1e-3), theta, model)[0], np.inf)
        return rays, np.linalg.norm(back - want, axis=1) < 0.01
    for _ in range(rounds):
        rays = np.concatenate([xy, np.ones((len(xy), 1))], 1)
        uv, _, jac = project(rays, theta, model)
        step = np.linalg.solve(jac[..., 3:5] + 1e-9 * np.eye(2), (want - uv)[..., None])[..., 0]
        length = np.linalg.norm(step, axis=1, keepdims=True)
        if length.max() < 1e-11:
            break
        xy = xy + step * np.minimum(1.0, 0.3 / np.maximum(length, 1e-12))
    rays = np.concatenate([xy, np.ones((len(xy), 1))], 1)
    good = np.linalg.norm(project(rays, theta, model)[0] - want, axis=1) < 0.01
    return rays / np.linalg.norm(rays, axis=1, keepdims=True), good


def grid(width: int, height: int, columns: int = 32) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixel centres float64[n,2] of an even grid over the picture, and its (rows, columns)."""
    rows = max(2, round(columns * height / width))
    u = (np.arange(columns) + 0.5) * width / columns - 0.5
    v = (np.arange(rows) + 0.5) * height / rows - 0.5
    return np.stack(np.meshgrid(u, v), -1).reshape(-1, 2), (rows, columns)


def rotation_jacobian(rays: np.ndarray, theta: np.ndarray, model: str) -> np.ndarray:
    """Derivative float64[n,2,3] of the pixel by a small rotation of the camera (rad), which another pose can absorb."""
    jac = project(rays / rays[:, 2:], theta, model)[2][..., 3:6]
    p = rays / rays[:, 2:]
    zero = np.zeros(len(p))
    cross = np.stack([zero, p[:, 2], -p[:, 1], -p[:, 2], zero, p[:, 0], p[:, 1], -p[:, 0], zero], -1).reshape(-1, 3, 3)
    return jac @ cross


def difference(
    theta_a: np.ndarray, theta_b: np.ndarray, model_a: str, model_b: str, pixels: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """Distance float64[n] (px) between the pixels to which two lenses send the same ray, after the best rotation of the
    camera; NaN where lens a has no ray.

    A rotation of the whole camera is no error of the lens, since the pose absorbs it. It is fitted to the `used` ones
    of `pixels` float64[n,2] (bool[n]).
    """
    rays, good = unproject(pixels, theta_a, model_a)
    good &= rays[:, 2] > FORWARD
    out = np.full(len(pixels), np.nan)
    if not (good & used).any():
        return out
    rvec: np.ndarray = np.zeros(3)
    p = rays / np.where(good, rays[:, 2], 1.0)[:, None]
    fit = good & used
    for _ in range(8):
        uv, _, jac = project(p[fit], theta_b, model_b, rvec)
        error = pixels[fit] - uv
        weight = (
            1.0 / np.maximum(np.linalg.norm(error, axis=1), 1e-3)[:, None, None]
        )  # the median ray, not the farthest
        J = jac[..., :3]
        A, b = (J * weight).reshape(-1, 3).T @ J.reshape(-1, 3), (J * weight).reshape(-1, 3).T @ error.reshape(-1)
        rvec = rvec + np.linalg.solve(A + 1e-9 * np.eye(3), b)
    out[good] = np.linalg.norm(project(p[good], theta_b, model_b, rvec)[0] - pixels[good], axis=1)
    return out
