"""AprilTags: Kalibr's grid and a single tag, held against Kalibr's codes and another reader's numbering."""

import re

import cv2
import numpy as np
import pytest

from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.check import FRAMES, check, learn
from calibration.intrinsics_job import find_views
from calibration.lens_fit import adjust
from calibration.transforms import transform
from sim.boards import look_at_board, render
from sim.calibration_rig import webcam
from tests.calibration.verbs import calibrate

GRID = "aprilgrid:6x5:0.03:0.3"
# Codes by family and id in Kalibr's kalibr_create_target_pdf: bits row by row from the upper left, 1 is white.
CODES = {
    ("36h11", 6): {0: 0xD5D628584, 1: 0xD97F18B49, 29: 0xD607E1962, 586: 0xE83BE4B73},
    ("25h9", 5): {0: 0x155CBF1, 34: 0x0B991CE},
    ("16h5", 4): {0: 0x231B, 29: 0xAF2E},
}
# Numbers of the corners of a tag in the order of the `aprilgrid` package (python -m benchmarks.aprilgrid_witness).
WITNESS = {0: [0, 1, 13, 12], 5: [10, 11, 23, 22], 6: [24, 25, 37, 36], 29: [106, 107, 119, 118]}


def shown(board, T, camera=None, seed=0):
    """Picture, and pixels float64[n,2] of the board's corners in it."""
    camera = camera or webcam(None)
    uv = cv2.projectPoints(board.points(), cv2.Rodrigues(T[:3, :3])[0], T[:3, 3], camera.K, camera.D)[0][:, 0]
    return render(camera, T, board, np.random.default_rng(seed)), uv


@pytest.mark.parametrize(("family", "edge"), CODES)
def test_a_tag_is_drawn_upright_with_the_bits_of_its_code(family, edge):
    for tag, code in CODES[family, edge].items():
        board = Board.parse(f"apriltag:0.04:{tag}:tag{family}")
        cell = 20
        picture = board.texture((edge + 2) * cell / 0.04, border=0.0)
        bits = picture[cell * 3 // 2 : -cell : cell, cell * 3 // 2 : -cell : cell] > 0
        assert "".join("1" if b else "0" for b in bits.ravel()) == format(code, f"0{edge**2}b"), tag
        assert not picture[:cell].any() and not picture[:, -cell:].any()  # the border


def test_corners_are_numbered_from_the_lower_left_and_lie_where_another_reader_finds_them():
    board = Board.parse(GRID)
    points = board.points()
    for tag, numbers in WITNESS.items():
        row, column = divmod(tag, 6)
        left, bottom = 0.039 * column, -0.039 * row
        corners = [(left, bottom), (left + 0.03, bottom), (left + 0.03, bottom - 0.03), (left, bottom - 0.03)]
        assert np.allclose(points[numbers][:, :2], corners)
    seen = board.detect(board.texture(3000))
    assert list(seen.ids) == list(range(120))
    there = (points[:, :2] - board.origin() + 0.015) * 3000 - 0.5
    assert np.abs(there - seen.pixels).max() < 0.1


def test_the_print_has_a_black_square_at_each_corner_of_a_tag_as_kalibr_s():
    board = Board.parse(GRID)
    assert np.allclose(board.size(), (6 * 0.039 + 0.009, 5 * 0.039 + 0.009))
    squares = {(round(x, 6), round(y, 6)) for x, y, w, _ in board.rectangles() if abs(w - 0.009) < 1e-9}
    assert squares == {(round(0.039 * c, 6), round(0.039 * r, 6)) for c in range(7) for r in range(6)}


@pytest.mark.parametrize("text", [GRID, "aprilgrid:6x6:0.04:0.2", "aprilgrid:5x4:0.04:0.3:t36h11b1"])
def test_the_corners_of_a_grid_are_found_to_a_tenth_of_a_pixel_also_where_the_board_is_cut_off(text):
    board, rng = Board.parse(text), np.random.default_rng(0)
    errors, in_sight = [], 0
    for k in range(3):
        picture, uv = shown(board, look_at_board(rng, board, webcam(None)), seed=k)
        seen = board.detect(picture)
        errors.append(np.linalg.norm(seen.pixels - uv[seen.ids], axis=1))
        whole = ((uv > 14) & (uv < [1266, 706])).all(1)[board.tags.numbers(np.arange(len(uv) // 4))].all(1)
        in_sight += 4 * int(whole.sum())
    error = np.concatenate(errors)
    assert np.sqrt((error**2).mean()) < 0.1 and error.max() < 0.5
    assert len(error) > 0.8 * in_sight


@pytest.mark.parametrize("distance", [0.25, 0.6])
def test_the_corners_of_a_lone_tag_are_where_its_edges_meet(distance):
    board = Board.parse("apriltag:0.05:7")
    for turn in ([0.5, 0.1, 0.3], [-0.3, 0.6, -1.2], [0.1, -0.7, 2.9]):
        picture, uv = shown(board, transform(np.array(turn), np.array([0.05, -0.03, distance])))
        seen = board.detect(picture)
        assert list(seen.ids) == [0, 1, 2, 3]
        assert np.linalg.norm(seen.pixels - uv, axis=1).max() < 0.2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("aprilgrid:6x5:0.03", "is not understood: write charuco:.*aprilgrid:COLUMNSxROWS:TAG:SPACING"),
        ("aprilgrid:6x5:0.03:0.3:tag37h11", "is not understood"),
        ("aprilgrid:6x5:0.03:30", "0.1 to 1 of a tag's edge: give it as that share, as Kalibr does"),
        ("aprilgrid:1x5:0.03:0.3", "2 to 40 squares or tags"),
        ("aprilgrid:30x20:0.03:0.3", "needs 600 markers, apriltag_36h11 has 587"),
        ("apriltag:0.05:600", "needs 601 markers"),
        ("apriltag:0.05:-1", "is not understood"),
        ("apriltag:nan", "edge in metres"),
    ],
)
def test_tags_that_there_are_not_are_refused_with_the_way_to_write_them(text, why):
    with pytest.raises(CalibrationError, match=why):
        Board.parse(text)


@pytest.mark.parametrize(
    ("shows", "named", "why"),
    [
        ("aprilgrid:5x6:0.03:0.3", GRID, "another layout .columns and rows swapped"),
        ("aprilgrid:6x5:0.03:0.3:tag36h11b1", GRID, "border of 1 bits .append ':tag36h11b1'"),
        ("aprilgrid:8x6:0.03:0.3", GRID, "tags of another board .3"),
        ("apriltag:0.05:3", "apriltag:0.05:4", "tags of another board .3"),
    ],
)
def test_why_the_tags_are_not_the_named_ones_is_said(shows, named, why):
    assert re.search(why, Board.parse(named).why_unseen(Board.parse(shows).texture(2500)))


@pytest.mark.parametrize("text", [GRID, "apriltag:0.05:3"])
def test_mirrored_tags_are_named(text):
    board = Board.parse(text)
    mirrored = np.ascontiguousarray(board.texture(2500)[:, ::-1])
    assert not len(board.detect(mirrored).ids) and board.why_unseen(mirrored) == "mirrored picture"


def test_pictures_of_a_grid_tell_the_lens():
    board, camera, rng = Board.parse("aprilgrid:6x6:0.03:0.3"), webcam(None).scaled(640, 360), np.random.default_rng(1)
    pictures = [(str(k), render(camera, look_at_board(rng, board, camera), board, rng)) for k in range(10)]
    views, size, _ = find_views(pictures, board)
    fit = adjust(views, size, "rational")
    assert fit.rms < 0.1 and np.abs(fit.theta[:4] - [460, 457.5, 327.25, 173.75]).max() < 0.5


def test_no_white_line_stays_between_two_black_cells_where_they_are_half_pixels():
    board = Board.parse("aprilgrid:4x3:0.03:0.3")
    picture = board.texture(2500)  # 7.5 px a cell
    x, y = 0.015 + 0.009 + 0.039 * np.arange(4), 0.015 + 0.009 + 0.039 * np.arange(3)
    for left in np.rint(x * 2500).astype(int):
        for top in np.rint(y * 2500).astype(int):
            assert not picture[top + 1 : top + 12, left + 1 : left + 73].any()  # the border of a tag


@pytest.mark.parametrize(("text", "mm"), [(GRID, "243 x 204"), ("apriltag:0.05:7", "50 x 50")])
def test_the_verb_prints_them_in_true_size(text, mm, tmp_path):
    done = calibrate("board", tmp_path / "b.png", "--board", text)
    assert done.exit_code == 0 and f"{mm} mm" in done.output
    printed = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_GRAYSCALE)
    assert printed is not None
    assert len(Board.parse(text).detect(printed).ids) == len(Board.parse(text).points())


def test_a_lone_tag_is_refused_for_a_lens_in_one_sentence(tmp_path):
    done = calibrate("intrinsics", "--images", str(tmp_path / "*.png"), "--board", "apriltag:0.05")
    assert done.exit_code == 2 and "four corners, too few to tell a lens: use a chessboard" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_lone_tag_is_a_marker_for_the_drift_check():
    board, at = Board.parse("apriltag:0.06:2"), transform(np.array([0.4, 0.2, 0.1]), np.array([0, 0, 0.5]))
    camera = webcam(None).scaled(640, 360)
    frames = [shown(board, at, camera, seed)[0] for seed in range(2 * FRAMES)]
    reference = learn(frames, board)
    assert check(reference, [shown(board, at, camera, 30 + k)[0] for k in range(3)]).level == "ok"
    moved = at @ transform(np.zeros(3), np.array([0.004, 0, 0]))
    assert check(reference, [shown(board, moved, camera, 40)[0]]).level == "block"
