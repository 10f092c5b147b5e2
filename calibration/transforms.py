"""Rigid transforms float64[4,4]: built from a rotation vector, inverted, compared. Metres and radians."""

from __future__ import annotations

import cv2
import numpy as np


def transform(rvec: np.ndarray, tvec: np.ndarray) -> np.ndarray:
    """float64[4,4] of a rotation vector float64[3] (rad) and a translation float64[3] (m)."""
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.asarray(rvec, float))[0]
    T[:3, 3] = np.ravel(tvec)
    return T


def inverse(T: np.ndarray) -> np.ndarray:
    """The inverse of a rigid transform float64[4,4]."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def log(T: np.ndarray) -> np.ndarray:
    """Rotation vector (rad) and translation (m), float64[6]."""
    return np.concatenate([cv2.Rodrigues(T[:3, :3])[0].ravel(), T[:3, 3]])


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Rotation (deg) and distance (m) between two poses."""
    d = log(inverse(a) @ b)
    return float(np.degrees(np.linalg.norm(d[:3]))), float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


def skew(p: np.ndarray) -> np.ndarray:
    """Cross-product matrices float64[n,3,3] of vectors float64[n,3]: skew(p) @ v is p x v."""
    zero = np.zeros(len(p))
    x, y, z = p.T
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
