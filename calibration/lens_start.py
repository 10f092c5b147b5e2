"""Where the fit of a lens starts, and what is known of any lens before there is a picture."""

from __future__ import annotations

import cv2
import numpy as np

from calibration import lens
from calibration.views import Size, View, first_pose

FOCAL_LENGTHS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # tried at the start, in picture widths


def lens_prior(model: str, size: Size) -> tuple[np.ndarray, np.ndarray, float]:
    """What any camera is like: mean and standard deviation of theta (0: free), and standard deviation of fx/fy - 1.

    Data overrule it wherever there are data; it bounds the lens where there are none."""
    width, height = size
    mean = np.concatenate([[0, 0, (width - 1) / 2, (height - 1) / 2], np.zeros(lens.COEFFICIENTS[model])])
    spread = {
        "pinhole": [0.5, 0.5, 0.003, 0.003, 0.3],
        "rational": [0.5, 0.5, 0.003, 0.003, 0.3, 0.3, 0.3, 0.3],
        "fisheye": [0.3, 0.2, 0.1, 0.1],
    }[model]
    return mean, np.array([0, 0, 0.04 * width, 0.04 * width, *spread]), 0.01


def first_lens(views: list[View], size: Size, model: str) -> tuple[np.ndarray, np.ndarray]:
    """theta and poses float64[views,6] (rvec, tvec): no distortion, and the focal length under which the boards' poses
    explain the pictures best."""
    width, height = size
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    D = np.zeros(lens.COEFFICIENTS[model])
    candidates = [*FOCAL_LENGTHS]
    if model != "fisheye":
        K0 = cv2.initCameraMatrix2D(
            [v.points.astype(np.float32) for v in views], [v.pixels.astype(np.float32) for v in views], size, 1.0
        )
        if 0.3 < K0[0, 0] / width < 10:
            candidates.append(float(K0[0, 0] / width))
    sample = views[:: max(1, len(views) // 12)]
    tried = [np.concatenate([[f * width, f * width, *centre], D]) for f in candidates]
    theta = min(tried, key=lambda t: _error(sample, t, model))
    return theta, np.array([first_pose(v, theta, model) for v in views])


def _error(views: list[View], theta: np.ndarray, model: str) -> float:
    """Median over the views of their mean residual (px) under a lens."""
    each = []
    for v in views:
        p = first_pose(v, theta, model)
        each.append(np.linalg.norm(v.pixels - lens.project(v.points, theta, model, p[:3], p[3:])[0], axis=1).mean())
    return float(np.median(each))
