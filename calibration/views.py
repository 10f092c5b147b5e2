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
    """(rvec, tvec) float64[6] of a nearly planar board under a known lens: the better of the two solutions of the
    flattened board, refined on its true points; UNKNOWN where there is none. An adjustment starts from it."""
    rays, good = lens.unproject(view.pixels, theta, model)
    good &= rays[:, 2] > 0.05
    if good.sum() < 4:
        return UNKNOWN
    xy = rays[good, :2] / rays[good, 2:]
    found = _pose(view.points[good], xy)
    return UNKNOWN if found is None else np.concatenate(found)


def board_pose(view: View, theta: np.ndarray, model: str) -> np.ndarray:
    """T_cam_from_board float64[4,4] under a known lens. Raises CalibrationError where the view does not determine
    it."""
    rays, _ = lens.unproject(view.pixels, theta, model)
    xy = np.ascontiguousarray(rays[:, :2] / rays[:, 2:])
    found = _pose(view.points, xy)
    if found is None:
        raise CalibrationError(f"picture {view.name} does not determine the board's pose: leave it out.")
    return transform(*found)


def _pose(points: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """rvec, tvec float64[3] that carry points float64[n,3] to rays float64[n,2] (x/z, y/z); None where there are none.

    OpenCV's solution for planes takes points that lie 1 mm or more out of the plane for a plane that is turned, and
    answers with a wrong pose; so it gets the flattened board."""
    flat = points * [1.0, 1.0, 0.0]
    ok, rvecs, tvecs, _ = cv2.solvePnPGeneric(flat, xy, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not ok or not np.isfinite(tvecs[0]).all():
        return None
    r, t = cv2.solvePnPRefineLM(points, xy, np.eye(3), None, rvecs[0], tvecs[0])
    return np.ravel(r), np.ravel(t)
