"""Views of a sheet whose camera and board are known exactly: what the calibration's figures are measured on."""

from __future__ import annotations

import cv2
import numpy as np

from calibration import lens
from calibration.board import Board
from calibration.views import MIN_CORNERS, View
from sim.boards import look_at_board, render
from sim.calibration_rig import webcam

SHEET = Board.parse("charuco:11x8:0.030:0.022:4x4_50")
SIZE = (1280, 720)


def views(rng: np.random.Generator, count: int, board: Board = SHEET) -> list[View]:
    """Ray-cast pictures of a board through the simulated webcam, with the corners that are detected in them."""
    out: list[View] = []
    while len(out) < count:
        d = board.detect(render(webcam(None), look_at_board(rng, board, webcam(None)), board, rng))
        if len(d.ids) >= MIN_CORNERS:
            out.append(View(str(len(out)), board.points()[d.ids], d.pixels))
    return out


def truth() -> np.ndarray:
    """theta of the simulated webcam, rational model."""
    camera = webcam(None)
    return lens.parameters(camera.K, camera.D, "rational")


def uneven_views(rng: np.random.Generator, count: int, stray: float, bow: float) -> list[View]:
    """Views, corners by exact projection with 0.1 px of noise, of a sheet whose corners are off by `stray` (m, standard
    deviation of each axis) and which is bowed by `bow` (m) between its middle and its corners."""
    points = SHEET.points()
    r2 = ((points - points.mean(0)) ** 2).sum(1)
    true = points + rng.normal(0, stray, points.shape) + np.outer(bow * r2 / r2.max(), [0, 0, 1.0])
    out: list[View] = []
    while len(out) < count:
        T = look_at_board(rng, SHEET, webcam(None))
        uv = lens.project(true, truth(), "rational", cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]
        seen = ((uv > 0) & (uv < np.array(SIZE) - 1)).all(1)
        if seen.sum() > 20:
            out.append(View(str(len(out)), points[seen], (uv + rng.normal(0, 0.1, uv.shape))[seen]))
    return out
