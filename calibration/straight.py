"""A picture before and after its lens is taken out, with a straight line through each row and column of the board."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.report import figure, picture_svg
from calibration.views import View

WIDTH = 900  # px: wider pictures are drawn smaller
WIDEST = np.tan(np.radians(65))  # of a ray to the axis: beyond that a flat picture stretches without end
STEP = 8  # px: the lens is evaluated this often, and interpolated between
FEWEST = 3  # corners that show whether a line is straight


@dataclass(frozen=True)
class Straight:
    """Lines through corners that lie on one line of the board: ends float64[lines,2,2] (px), and how far their corners
    are from them at most, px."""

    ends: np.ndarray
    off: float


def lines(points: np.ndarray, pixels: np.ndarray) -> Straight:
    """Through the first and last corner of each row and column of board points float64[n,3]; pixels float64[n,2]."""
    ends, off = [np.zeros((0, 2, 2))], 0.0
    for axis in (0, 1):
        place = np.round(points[:, axis] / max(float(np.ptp(points)), 1e-9), 6)
        for value in np.unique(place):
            on = np.nonzero(place == value)[0]
            row = pixels[on[np.argsort(points[on, 1 - axis])]]
            if len(row) < FEWEST:
                continue
            a, b = row[0], row[-1]
            across = np.array([a[1] - b[1], b[0] - a[0]]) / max(float(np.linalg.norm(b - a)), 1e-9)
            off = max(off, float(np.abs((row - a) @ across).max()))
            ends.append(np.array([[a, b]]))
    return Straight(np.concatenate(ends), off)


def flat_lens(size: tuple[int, int], theta: np.ndarray, model: str) -> np.ndarray:
    """Camera matrix float64[3,3] of a picture of `size` without distortion that holds what the lens sees, to 65 degrees
    from its axis."""
    pixels, _ = lens.grid(*size)
    rays, good = lens.unproject(pixels, theta, model)
    xy = rays[:, :2] / np.maximum(rays[:, 2:], 1e-6)
    xy = xy[good & (rays[:, 2] > 0) & (np.linalg.norm(xy, axis=1) < WIDEST)]
    low, high = xy.min(0), xy.max(0)
    focal = float(((np.array(size) - 1) / np.maximum(high - low, 1e-6)).min())
    middle = (np.array(size) - 1) / 2 - focal * (low + high) / 2
    return np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1.0]])


def undistort(picture: np.ndarray, K: np.ndarray, theta: np.ndarray, model: str) -> np.ndarray:
    """Picture uint8[H,W] as a camera K float64[3,3] without distortion sees it; black where the lens saw nothing."""
    height, width = picture.shape
    u, v = np.arange(0, width + STEP, STEP, float), np.arange(0, height + STEP, STEP, float)
    x, y = np.meshgrid((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], 1)
    uv = lens.project(rays, theta, model)[0]
    # A polynomial bends back far outside the picture: only rays that come back are the lens's.
    back, good = lens.unproject(np.clip(uv, -width, 2 * width), theta, model)
    good &= np.linalg.norm(back - rays / np.linalg.norm(rays, axis=1, keepdims=True), axis=1) < 1e-3
    coarse = np.where(good[:, None], uv, -1e4).reshape(*x.shape, 2).astype(np.float32)
    at = np.meshgrid(np.arange(width, dtype=np.float32) / STEP, np.arange(height, dtype=np.float32) / STEP)
    fine = cv2.remap(coarse, at[0], at[1], cv2.INTER_LINEAR)
    return cv2.remap(picture, fine, np.empty(0, np.float32), cv2.INTER_LINEAR)


def figures(picture: np.ndarray, view: View, theta: np.ndarray, model: str) -> list[str]:
    """The picture uint8[H,W] of a view as it was taken, and without its lens."""
    size = picture.shape[1], picture.shape[0]
    K = flat_lens(size, theta, model)
    rays, good = lens.unproject(view.pixels, theta, model)
    good &= rays[:, 2] > lens.FORWARD
    flat = (rays[:, :2] / np.where(good, rays[:, 2], 1.0)[:, None]) @ K[:2, :2] + K[:2, 2]
    before, after = lines(view.points[good], view.pixels[good]), lines(view.points[good], flat[good])
    said = "Straight lines through the ends of the board's rows and columns; the corners lie at most"
    return [
        figure(_drawn(picture, before), f"Picture {view.name} as it was taken. {said} {before.off:.2f} px off them."),
        figure(
            _drawn(undistort(picture, K, theta, model), after),
            f"The same without the lens's distortion. The corners lie at most {after.off:.2f} px off the lines.",
        ),
    ]


def _drawn(picture: np.ndarray, straight: Straight) -> str:
    height, width = picture.shape
    scale = min(1.0, WIDTH / width)
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    href = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return picture_svg((width, height), href, straight.ends)
