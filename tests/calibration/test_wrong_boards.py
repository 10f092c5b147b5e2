"""Pictures of another board than the described one: the error names the commonest reason and the board that they
show."""

import cv2
import numpy as np
import pytest

from calibration import intrinsics
from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.intrinsics_job import find_views
from calibration.views import View

SQUARE = 40  # px, of the drawings


def charuco(columns, rows, dictionary="4X4_50", legacy=False):
    """OpenCV's own drawing."""
    markers = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{dictionary}"))
    board = cv2.aruco.CharucoBoard((columns, rows), 4, 3, markers)
    board.setLegacyPattern(legacy)
    return board.generateImage((columns * SQUARE + 40, rows * SQUARE + 40), marginSize=20)


def chessboard(columns, rows):
    """Inner corners."""
    dark = np.add.outer(np.arange(rows + 1), np.arange(columns + 1)) % 2 == 0
    squares = np.kron(np.where(dark, 20, 230), np.ones((SQUARE, SQUARE), int)).astype(np.uint8)
    return np.pad(squares, 20, constant_values=230)


def shots(drawing, count=3):
    """The drawing held in front of a camera without distortion, tilted a little, grey around it."""
    rng = np.random.default_rng(0)
    h, w = drawing.shape
    out = []
    for k in range(count):
        scale = 440 / max(w, 1.4 * h)
        corners = (np.array([[0, 0], [w, 0], [w, h], [0, h]]) * scale + [90, 60] + rng.uniform(0, 40, (4, 2))).astype(
            "f4"
        )
        H = cv2.getPerspectiveTransform(np.array([[0, 0], [w, 0], [w, h], [0, h]], "f4"), corners)
        out.append((f"{k}", cv2.warpPerspective(drawing, H, (640, 440), flags=cv2.INTER_AREA, borderValue=110)))
    return out


NAMED = "charuco:7x5:0.02:0.015:4x4_50"


@pytest.mark.parametrize(
    ("drawing", "named", "why", "fits"),
    [
        (charuco(7, 5, "5X5_100"), NAMED, "board not found", "--board charuco:7x5:0.02:0.015:5x5_50"),
        (charuco(7, 5), "charuco:5x7:0.02:0.015:4x4_50", "too few corners", f"--board {NAMED}"),
        (charuco(11, 8), NAMED, "markers of another board", "--board charuco:11x8:0.02:0.015:4x4_50"),
        (charuco(7, 5), "charuco:11x8:0.02:0.015:4x4_50", "too few corners", f"--board {NAMED}"),
        (charuco(8, 6, legacy=True), NAMED, "another board", "--board charuco:8x6:0.02:0.015:4x4_50:legacy"),
        (charuco(7, 5)[:, ::-1].copy(), NAMED, "mirrored picture", "the pictures are mirrored"),
        (charuco(7, 5), "chessboard:9x6:0.025", "board not found", "--board charuco:7x5:SQUARE:MARKER:4x4_50"),
        (chessboard(9, 6), NAMED, "board not found", "--board chessboard:9x6:SQUARE"),
        (chessboard(9, 6), "chessboard:10x7:0.025", "board not found", "--board chessboard:9x6:0.025"),
    ],
    ids=["dictionary", "transposed", "bigger", "smaller", "legacy", "mirrored", "charuco", "chessboard", "squares"],
)
def test_the_reason_is_counted_and_the_board_that_fits_is_named(drawing, named, why, fits):
    with pytest.raises(CalibrationError) as error:
        find_views(shots(drawing), Board.parse(named))
    text = str(error.value)
    assert text.startswith("only 0 usable views") and "3 of 3 left out: " in text
    assert why in text and fits in text


def test_nothing_is_guessed_where_the_board_is_the_described_one_or_none():
    hidden = shots(charuco(7, 5))
    for _, picture in hidden:
        picture[:, 240:] = 110
    for pictures in (hidden, [("grey", np.full((440, 640), 110, np.uint8))]):
        with pytest.raises(CalibrationError, match=r"1 of 1 left out|3 of 3 left out") as error:
            find_views(pictures, Board.parse(NAMED))
        assert str(error.value).endswith(": take more.")


def test_reasons_of_pictures_and_of_views_are_counted_together():
    rng = np.random.default_rng(0)
    line = np.stack([np.arange(9), np.zeros(9), np.zeros(9)], 1) * 0.02
    views = [View(f"{k}", line, rng.uniform(0, 400, (9, 2))) for k in range(10)]
    with pytest.raises(CalibrationError, match=r"only 0 usable views.*10 of 12 left out: all corners lie on one line"):
        intrinsics.calibrate(views, (640, 440), left_out=[("a", "mirrored picture"), ("b", "board not found")])
