"""The picture without its lens that a report of intrinsics shows."""

import re

import numpy as np
import pytest

from calibration import lens, straight
from calibration.board import Board
from calibration.camera import Camera
from calibration.transforms import transform
from calibration.views import View
from sim.boards import render
from tests.calibration.verbs import calibrate

BOARD = Board.parse("chessboard:9x6:0.02")
SIZE = (640, 360)
BENT = Camera(
    "c", *SIZE, np.array([[460.0, 0, 327], [0, 457, 174], [0, 0, 1]]), np.array([-0.32, 0.12, 0.001, 0, -0.02])
)
FISHEYE = Camera(
    "f", *SIZE, np.array([[210.0, 0, 322], [0, 210, 178], [0, 0, 1]]), np.array([0.02, 0, 0, 0]), None, "fisheye"
)


def shot(camera, distance):
    """Picture of the board at the picture's edge, its view, and the lens."""
    picture = render(camera, transform(np.array([0.2, 0.4, 0.1]), np.array([-0.11, -0.05, distance])), BOARD)
    found = BOARD.detect(picture)
    model = "fisheye" if camera.model == "fisheye" else "rational"
    return (
        picture,
        View("7.png", BOARD.points()[found.ids], found.pixels),
        (
            lens.parameters(camera.K, camera.D, model),
            model,
        ),
    )


@pytest.mark.parametrize(("camera", "distance"), [(BENT, 0.24), (FISHEYE, 0.11)], ids=["rational", "fisheye"])
def test_without_the_lens_the_board_s_lines_are_straight_and_its_corners_where_the_picture_shows_them(camera, distance):
    picture, view, (theta, model) = shot(camera, distance)
    K = straight.flat_lens(SIZE, theta, model)
    rays, _ = lens.unproject(view.pixels, theta, model)
    flat = rays[:, :2] / rays[:, 2:] @ K[:2, :2] + K[:2, 2]
    assert straight.lines(view.points, view.pixels).off > 1.5
    assert straight.lines(view.points, flat).off < 0.3
    seen = BOARD.detect(straight.undistort(picture, K, theta, model))
    assert len(seen.ids) == len(flat) and np.abs(seen.pixels - flat).max() < 0.5


def test_a_row_of_corners_is_one_line_and_how_far_they_are_off_it_is_measured():
    points = BOARD.points()
    pixels = points[:, :2] * 1000
    pixels[4] += [0, 2.5]  # the middle of the first row
    found = straight.lines(points, pixels)
    assert found.ends.shape == (15, 2, 2) and abs(found.off - 2.5) < 1e-9


def test_a_lens_that_sees_beyond_a_plane_is_shown_to_65_degrees():
    K = straight.flat_lens(SIZE, lens.parameters(FISHEYE.K, FISHEYE.D, "fisheye"), "fisheye")
    assert np.hypot(*(SIZE - K[:2, 2]) / K[0, 0]) < 1.6 * np.tan(np.radians(65))
    wide = np.array([120.0, 120, 320, 180, 0, 0, 0, 0])
    black = straight.undistort(
        np.full((360, 640), 200, np.uint8), straight.flat_lens(SIZE, wide, "fisheye"), wide, "fisheye"
    )
    assert black[180, 320] == 200 and (black == 200).mean() > 0.5


def test_the_report_shows_one_picture_twice_with_its_lines(pictures, tmp_path):
    page = tmp_path / "page.html"
    board = ("--board", "charuco:11x8:0.030:0.022:4x4_50", "--images", pictures / "*.png")
    done = calibrate("intrinsics", *board, "--report", page, "--store", tmp_path / "store", "--dry-run")
    assert done.exit_code == 0, done.output
    text = page.read_text()
    shown = re.findall(r"<figcaption>(?:Picture (\d+\.png) as it was|The same without)[^<]*at most ([\d.]+) px", text)
    assert text.count('<image href="data:image/jpeg;base64,') == 2 and len(shown) == 2
    assert float(shown[0][1]) > 5 * float(shown[1][1])
