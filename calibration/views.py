"""Views of a board: corners in one picture, the arm's joint angles, and the board's pose under a known lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.camera import CalibrationError
from calibration.transforms import transform

Size = tuple[int, int]  # of a picture: width and height, px
Forward = Callable[[np.ndarray], np.ndarray]  # joint angles float64[J] (rad) to T_base_from_tool float64[4,4]

MIN_CORNERS = 8  # of a picture that a lens is fitted to
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


def first_pose(view: View, theta: np.ndarray, model: str) -> np.ndarray:
    """(rvec, tvec) float64[6] of a planar board under a known lens: the better of the plane's two solutions, UNKNOWN
    where there is none. An adjustment starts from it."""
    rays, good = lens.unproject(view.pixels, theta, model)
    good &= rays[:, 2] > 0.05
    if good.sum() < 4:
        return UNKNOWN
    xy = rays[good, :2] / rays[good, 2:]
    ok, rvecs, tvecs, _ = cv2.solvePnPGeneric(view.points[good], xy, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not ok or not np.isfinite(tvecs[0]).all():
        return UNKNOWN
    r, t = cv2.solvePnPRefineLM(view.points[good], xy, np.eye(3), None, rvecs[0], tvecs[0])
    return np.concatenate([r.ravel(), t.ravel()])


def board_pose(view: View, theta: np.ndarray, model: str) -> np.ndarray:
    """T_cam_from_board float64[4,4] under a known lens. Raises CalibrationError where the view does not determine
    it."""
    rays, _ = lens.unproject(view.pixels, theta, model)
    xy = np.ascontiguousarray(rays[:, :2] / rays[:, 2:])
    ok, rvecs, tvecs, _ = cv2.solvePnPGeneric(view.points, xy, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not ok:
        raise CalibrationError(f"picture {view.name} does not determine the board's pose: leave it out.")
    r, t = cv2.solvePnPRefineLM(view.points, xy, np.eye(3), None, rvecs[0], tvecs[0])
    return transform(r, t)
