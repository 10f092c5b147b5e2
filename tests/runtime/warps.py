"""Pictures, cameras and pairs of cameras (source and target of a warp) for the tests of pre-processing."""

import dataclasses

import cv2
import numpy as np

from calibration.camera import Camera


def picture(h, w, seed=0):
    """Smooth shading, hard edges and noise: what a table with objects looks like to a filter."""
    rng = np.random.default_rng(seed)
    img = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (w, h), interpolation=cv2.INTER_CUBIC)
    for _ in range(25):
        p, q = rng.integers(0, [w, h], (2, 2))
        cv2.rectangle(
            img, tuple(map(int, p)), tuple(map(int, (p + q // 6))), tuple(map(int, rng.integers(0, 255, 3))), -1
        )
    return np.clip(img + rng.normal(0, 4, img.shape), 0, 255).astype(np.uint8)


def camera(w, h, f, D=(), T=None):
    return Camera(
        "front", w, h, np.array([[f, 0, (w - 1) / 2], [0, f, (h - 1) / 2], [0, 0, 1.0]]), np.array(D, float), T
    )


def looking(x, z, tilt, yaw=0.0):
    """A camera at (x, 0, z) looking down at the table by `tilt` below the horizon."""
    forward = np.array([-np.cos(tilt), np.sin(yaw) * np.cos(tilt), -np.sin(tilt)])
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    T[:3, 3] = [x, 0, z]
    return T


CASES = {
    "crop and shrink": (camera(320, 240, 330), camera(96, 96, 132)),
    "distorted": (camera(640, 480, 500, (-0.28, 0.08, 0.001, -0.0005, 0.01)), camera(96, 96, 95)),
    "rational": (camera(640, 480, 420, (0.1, 0.02, 0.0003, 0.0002, 0.001, 0.3, 0.05, 0.002)), camera(96, 96, 80)),
    "fisheye": (
        dataclasses.replace(camera(640, 480, 280, (0.05, -0.02, 0.004, -0.001)), model="fisheye"),
        camera(96, 96, 44),
    ),
    "moved camera": (
        camera(640, 480, 560, (-0.1, 0.02, 0, 0, 0), looking(0.53, 0.40, 0.85, 0.05)),
        camera(96, 96, 110, (), looking(0.5, 0.36, 0.83)),
    ),
}


GEOMETRIES = {
    **CASES,
    "whole picture, to the last pixel": (camera(333, 251, 300), camera(64, 64, 62)),
    "odd window": (camera(640, 480, 640), camera(96, 96, 128)),
    "magnified": (camera(24, 18, 30), camera(192, 144, 240)),
    "tiny": (camera(6, 5, 6), camera(7, 9, 7)),
}
