"""Views of a board: corners in one picture, the arm's joint angles, and the board's pose under a known lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.camera import CalibrationError
from calibration.transforms import distance, skew, transform

Size = tuple[int, int]  # of a picture: width and height, px
Forward = Callable[[np.ndarray], np.ndarray]  # joint angles float64[J] (rad) to T_base_from_tool float64[4,4]

MIN_CORNERS = 8  # of a picture that a lens is fitted to
SAME = 5.0  # deg: two poses of a board that are nearer do the same for a start
CLEARLY = 16.0  # in variances of a corner: by how much the better of two poses must fit better
UNKNOWN = np.array([0, 0, 0, 0, 0, 1.0])  # rvec, tvec where a view does not tell its board's pose: 1 m ahead


@dataclass(frozen=True)
class View:
    """Corners in one picture: the picture's name, board points float64[n,3] (m, board frame), pixels float64[n,2]."""

    name: str
    points: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class ArmView(View):
    """A view with the joint angles `q` float64[J] (rad) that the arm measured when the picture was taken."""

    q: np.ndarray


@dataclass(frozen=True)
class ArmNoise:
    """Standard deviation of the errors of an arm pose: an error of each picture by itself (rotation and translation of
    the tool), and joint zero offsets that all pictures have in common.

    The defaults are a real SO-101's (0.5 degrees, 2 mm). With `offset_deg` 0 no joint offsets are estimated.
    """

    rotation_deg: float = 0.5
    translation_m: float = 0.002
    offset_deg: float = 0.5


def reach(pixels: np.ndarray, size: Size) -> float:
    """How much of the picture corners float64[n,2] (px) tell: RMS distance from its middle, px, times the square root
    of their number."""
    return float(np.sqrt(((pixels - (np.array(size) - 1) / 2) ** 2).sum()))


def first_pose(view: View, theta: np.ndarray, model: str) -> np.ndarray:
    """(rvec, tvec) float64[6] of a nearly planar board under a known lens: the better of the two solutions of the
    flattened board, refined on its true points; UNKNOWN where there is none. An adjustment starts from it."""
    rays, good = lens.unproject(view.pixels, theta, model)
    good &= rays[:, 2] > 0.05
    if good.sum() < 4:
        return UNKNOWN
    xy = rays[good, :2] / rays[good, 2:]
    found = _poses(view.points[good], xy)
    return np.concatenate(found[0]) if found else UNKNOWN


def board_pose(view: View, theta: np.ndarray, model: str) -> np.ndarray:
    """T_cam_from_board float64[4,4] under a known lens: the better of the two solutions. Raises CalibrationError where
    the view does not determine it."""
    return _both_poses(view, theta, model)[0][1]


def pose_sd(view: View, T: np.ndarray, theta: np.ndarray, model: str, sigma: float) -> tuple[float, float]:
    """Standard deviation of the board's pose `T` float64[4,4] in one view with corner noise `sigma` (px): rotation
    (rad) and position (m), all axes together."""
    turned = view.points @ T[:3, :3].T
    by_place = lens.project(turned + T[:3, 3], theta, model)[2][..., 3:6] / sigma
    J = np.concatenate([-by_place @ skew(turned), by_place], axis=2).reshape(-1, 6)
    covariance = np.linalg.pinv(J.T @ J)
    return float(np.sqrt(np.trace(covariance[:3, :3]))), float(np.sqrt(np.trace(covariance[3:, 3:])))


def second_pose(view: View, theta: np.ndarray, model: str, sigma: float) -> float:
    """Rotation (deg) from the board's pose in a view to a second one that explains its corners, of noise `sigma` (px),
    nearly as well; 0 where there is none. A plane has two poses that differ in perspective alone (Collins and Bartoli
    2014), which a small or distant board hardly shows. Raises CalibrationError as `board_pose` does."""
    both = _both_poses(view, theta, model)
    if len(both) < 2:
        return 0.0
    (least, T), (more, other) = both
    # Residuals far above the noise come from a wrong lens or board: then neither pose can be judged by them.
    noise = np.clip(least / max(1, 2 * len(view.pixels) - 6), sigma**2, 9 * sigma**2)
    degrees, _ = distance(T, other)
    return degrees if degrees > SAME and more - least < CLEARLY * noise else 0.0


def _both_poses(view: View, theta: np.ndarray, model: str) -> list[tuple[float, np.ndarray]]:
    """Sum of the squared residuals (px) and T_cam_from_board float64[4,4] of each solution, the better one first.
    Raises CalibrationError where there is none."""
    rays, _ = lens.unproject(view.pixels, theta, model)
    xy = np.ascontiguousarray(rays[:, :2] / rays[:, 2:])
    out = []
    for r, t in _poses(view.points, xy):
        uv = lens.project(view.points, theta, model, r, t)[0]
        out.append((float(((view.pixels - uv) ** 2).sum()), transform(r, t)))
    if not out:
        raise CalibrationError(f"picture {view.name} does not determine the board's pose: leave it out.")
    return sorted(out, key=lambda o: o[0])


def _poses(points: np.ndarray, xy: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """rvec, tvec float64[3] of each solution that carries points float64[n,3] to rays float64[n,2] (x/z, y/z); of two,
    OpenCV's better one first.

    OpenCV's solution for planes takes points that lie 1 mm or more out of the plane for a plane that is turned, and
    answers with a wrong pose; so it gets the flattened board."""
    if len(points) < 4:
        return []
    flat = points * [1.0, 1.0, 0.0]
    ok, rvecs, tvecs, _ = cv2.solvePnPGeneric(flat, xy, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    out = []
    for rvec, tvec in zip(rvecs, tvecs, strict=True) if ok else ():
        if np.isfinite(rvec).all() and np.isfinite(tvec).all():
            r, t = cv2.solvePnPRefineLM(points, xy, np.eye(3), None, rvec, tvec)
            out.append((np.ravel(r), np.ravel(t)))
    return out
