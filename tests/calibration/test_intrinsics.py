"""Boards and intrinsics against ray-cast ground truth; bad views are named, bad data refused."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibration_views import uneven_views
from calibration import intrinsics, lens, lens_fit, lens_quality
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.intrinsics_job import find_views, run_intrinsics
from calibration.store import Store
from calibration.views import View
from sim.boards import look_at_board, render
from sim.calibration_rig import webcam

SHEET = Board.parse("charuco:11x8:0.030:0.022:4x4_50")
SIZE = (1280, 720)
CAMERA = webcam(None)
THETA = lens.parameters(CAMERA.K, CAMERA.D, "rational")
FISHEYE = np.array([560.0, 559, 640, 360, 0.02, -0.01, 0.004, -0.001])


def exact(rng, count, noise=0.1, theta=THETA, model="rational", tilt=(0, 45), board=SHEET, true=None):
    """Corners by exact projection plus noise: fast, for statistics. `true`: where the board's corners really are."""
    out: list[View] = []
    points = board.points()
    true = points if true is None else true
    while len(out) < count:
        T = look_at_board(rng, board, Camera("c", *SIZE, lens.matrix(theta), np.zeros(0)), tilt)
        uv = lens.project(true, theta, model, cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]
        seen = ((uv > 0) & (uv < np.array(SIZE) - 1)).all(1)
        if seen.sum() > 20:
            out.append(View(f"view-{len(out)}", points[seen], (uv + rng.normal(0, noise, uv.shape))[seen]))
    return out


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    return [(f"{k}", render(CAMERA, look_at_board(rng, SHEET, CAMERA), SHEET, rng)) for k in range(30)]


def test_thirty_pictures_give_the_lens_to_a_thousandth(pictures):
    views, size, rejected = find_views(pictures, SHEET)
    done = intrinsics.calibrate(views, size)
    pixels, _ = lens.grid(*SIZE)
    error = lens.difference(done.fit.theta, THETA, "rational", "rational", pixels, done.used)[done.used]
    assert abs(done.fit.theta[0] / THETA[0] - 1) < 0.001 and abs(done.fit.theta[1] / THETA[1] - 1) < 0.001
    assert np.median(error) < 0.10 and np.quantile(error, 0.9) < 0.30
    assert not rejected and not done.verdict()


def test_a_fisheye_is_found_too():
    done = intrinsics.calibrate(exact(np.random.default_rng(2), 25, theta=FISHEYE, model="fisheye"), SIZE, "fisheye")
    assert np.allclose(done.fit.theta[:4], FISHEYE[:4], atol=1.0) and not done.verdict()


def around(rng, count, theta, farthest):
    """Views all around a fisheye, corners up to `farthest` degrees from its axis."""
    out: list[View] = []
    points = SHEET.points()
    while len(out) < count:
        angle, about, lean = np.radians(rng.uniform(0, farthest)), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        facing = cv2.Rodrigues(angle * np.array([-np.sin(about), np.cos(about), 0]))[0]
        R = facing @ cv2.Rodrigues(rng.uniform(0, 0.7) * np.array([np.cos(lean), np.sin(lean), 0]))[0]
        at = (points - points.mean(0)) @ R.T + facing[:, 2] * rng.uniform(0.25, 0.5)
        at = at[front := at[:, 2] / np.linalg.norm(at, axis=1) > np.cos(np.radians(farthest))]
        uv = lens.project(at, theta, "fisheye")[0] + rng.normal(0, 0.1, (len(at), 2))
        seen = ((uv > 0) & (uv < np.array(SIZE) - 1)).all(1)
        if seen.sum() > 20:
            out.append(View(f"view-{len(out)}", points[front][seen], uv[seen]))
    return out


def test_a_wide_fisheye_is_judged_and_stored_only_as_far_as_its_corners_reach(tmp_path):
    theta = np.array([300.0, 300, 640, 360, 0.02, -0.01, 0.004, -0.001])  # 89 degrees at 440 px from the centre
    views = around(np.random.default_rng(0), 30, theta, 71)
    done = intrinsics.calibrate(views, SIZE, "fisheye")
    pixels, _ = lens.grid(*SIZE)
    angles = np.degrees(np.arccos(lens.unproject(pixels[done.used], theta, "fisheye")[0][:, 2]))
    assert 65 < angles.max() < 72 and np.isfinite(list(done.quality().values())).all()
    store = Store(tmp_path / "store")
    result = run_intrinsics(store, "front", views, SIZE, [], "fisheye", None, SHEET.text, {}, tmp_path / "page.html")
    assert result["accepted"] and store.current_hash("front") == result["hash"]


def test_predicted_uncertainty_is_honest():
    rng = np.random.default_rng(3)
    pixels, _ = lens.grid(*SIZE, 12)
    used = np.ones(len(pixels), bool)
    actual, predicted = [], []
    for _ in range(20):
        fit = lens_fit.adjust(exact(rng, 15, noise=0.2), SIZE, "pinhole")
        actual.append(lens.difference(fit.theta, THETA[:9], "pinhole", "pinhole", pixels, used))
        predicted.append(lens_quality.projection_sd(fit, pixels, used))
    ratio = np.sqrt(np.mean(np.square(predicted)) / np.nanmean(np.square(actual)))
    assert 0.8 < ratio < 1.2


@pytest.mark.parametrize(("stray", "bow", "gain"), [(8e-5, 0.0, 1.2), (0.0, 5e-4, 5.0)])
def test_a_sheet_that_is_not_as_described_is_found_out(stray, bow, gain):
    rng = np.random.default_rng(9)
    pixels, _ = lens.grid(*SIZE, 12)
    errors: list[list[float]] = []
    for _ in range(3):
        views = uneven_views(rng, 15, stray, bow)
        used = lens_quality.used_area(views, pixels, SIZE)
        fits = [lens_fit.adjust(views, SIZE, "pinhole", exact_board=e) for e in (False, True)]
        errors.append(
            [float(np.median(lens.difference(f.theta, THETA, "pinhole", "rational", pixels, used)[used])) for f in fits]
        )
    found, exact_board = np.mean(errors, axis=0)
    assert exact_board > gain * found and found < 0.15


@pytest.mark.parametrize("off", [0.0011, 0.0012, 0.005])
def test_a_corner_out_of_the_boards_plane_does_not_spoil_the_pose(off):
    board = Board.parse("chessboard:9x6:0.020")
    true = board.points()
    true[0, 2] += off
    views = exact(np.random.default_rng(11), 6, noise=0, board=board, true=true)
    found = [View(v.name, true[np.abs(board.points()[:, None] - v.points).sum(2).argmin(0)], v.pixels) for v in views]
    assert lens_quality.heldout_rms(THETA, "rational", found) < 1e-9


def test_an_a4_board_that_is_bowed_by_two_millimetres_is_accepted_and_gives_the_lens():
    board = Board.parse("charuco:11x8:0.024:0.018:4x4_50")
    true = board.points()
    r2 = ((true - true.mean(0)) ** 2).sum(1)
    true[:, 2] = 0.002 * r2 / r2.max()
    done = intrinsics.calibrate(exact(np.random.default_rng(12), 24, board=board, true=true), SIZE)
    pixels, _ = lens.grid(*SIZE)
    error = lens.difference(done.fit.theta, THETA, "rational", "rational", pixels, done.used)[done.used]
    assert not done.verdict() and np.median(error) < 0.10 and done.heldout < 0.2


def test_the_shape_of_a_board_stays_within_a_tenth_of_its_size_whatever_the_views_say():
    true = SHEET.points()
    true[:30, 0] += 0.08  # three rows printed far to the side
    fit = lens_fit.adjust(exact(np.random.default_rng(3), 10, true=true), SIZE, "pinhole")
    assert np.abs(fit.shape).max() <= 0.1 * np.linalg.norm(np.ptp(SHEET.points(), axis=0))


def test_an_exact_board_stays_exact():
    fit = lens_fit.adjust(exact(np.random.default_rng(10), 20), SIZE, "pinhole")
    assert np.sqrt((fit.shape**2).mean()) < 1e-5


def test_wild_corners_are_left_out_and_a_blurred_view_is_named():
    rng = np.random.default_rng(4)
    views = exact(rng, 20)
    views[3].pixels[5] += 8.0
    views[7].pixels[:] += rng.normal(0, 3, views[7].pixels.shape)
    done = intrinsics.calibrate(views, SIZE)
    kept = dict(zip([v.name for v in done.fit.views], done.fit.inlier, strict=True))
    assert not kept["view-3"][5] and [n for n, _ in done.rejected] == ["view-7"]
    assert abs(done.fit.theta[0] / THETA[0] - 1) < 0.001


def test_bad_pictures_are_excluded_by_name(pictures):
    blurred = cv2.GaussianBlur(pictures[3][1], (0, 0), 9)
    mirrored = np.ascontiguousarray(pictures[4][1][:, ::-1])
    hidden = pictures[5][1].copy()
    hidden[:, :] = np.where(np.arange(1280) < 1200, 90, hidden)
    spoilt = [
        ("blurred", blurred),
        ("mirrored", mirrored),
        ("hidden", hidden),
        ("small", pictures[6][1][::2, ::2]),
        ("text", None),
    ]
    views, size, rejected = find_views([*pictures[10:20], *spoilt], SHEET)
    why = dict(rejected)
    assert len(views) == 10 and size == SIZE
    assert "mirrored" in why["mirrored"] and "resolution 640x360" in why["small"] and "readable" in why["text"]
    assert {"blurred", "hidden"} < set(why)
    _, again = lens_quality.screen([*views, View("twin", views[0].points, views[0].pixels + 0.3)], SIZE)
    assert again == [("twin", f"duplicate of {views[0].name}")]


def test_a_legacy_board_is_recognised():
    even = Board.parse("charuco:8x6:0.030:0.022:4x4_50:legacy")
    rng = np.random.default_rng(6)
    shots = [("a", render(CAMERA, look_at_board(rng, even, CAMERA), even, rng)) for _ in range(3)]
    with pytest.raises(CalibrationError, match="legacy board layout"):
        find_views(shots, Board.parse("charuco:8x6:0.030:0.022:4x4_50"))


def test_what_cannot_give_a_lens_is_refused():
    rng = np.random.default_rng(7)
    with pytest.raises(CalibrationError, match="only 5 usable views"):
        intrinsics.calibrate(exact(rng, 5), SIZE)
    with pytest.raises(CalibrationError, match="hardly tilted"):
        intrinsics.calibrate(exact(rng, 12, tilt=(0, 2)), SIZE)
    with pytest.raises(CalibrationError, match=r"contradict|agree|settle"):
        intrinsics.calibrate(
            [View(v.name, v.points, rng.uniform(0, 700, v.pixels.shape)) for v in exact(rng, 12)], SIZE
        )


def test_few_noisy_views_are_not_accepted_whatever_their_rms():
    done = intrinsics.calibrate(exact(np.random.default_rng(8), 8, noise=0.6), SIZE)
    assert done.quality()["rms_px"] < 1 and any("halves" in v for v in done.verdict())


@given(st.floats(0, 1279), st.floats(0, 719), st.sampled_from(["rational", "fisheye"]))
def test_a_ray_projects_back_to_its_pixel(u, v, model):
    theta = FISHEYE if model == "fisheye" else THETA
    rays, good = lens.unproject(np.array([[u, v]]), theta, model)
    assert good[0] and abs(np.linalg.norm(rays) - 1) < 1e-9
    assert np.allclose(lens.project(rays / rays[:, 2:], theta, model)[0], [[u, v]], atol=0.01)


@pytest.mark.parametrize(
    "text",
    [
        "charuco:11x8:0.030",
        "chessboard:2x7:0.02",
        "chessboard:9x6:0",
        "chessboard:9x6:-1",
        "chessboard:9x6:nan",
        "chessboard:9x6:inf",
        "charuco:11x8:0.03:0.02:9x9_9",
        "charuco:20x20:0.03:0.02:4x4_50",
    ],
)
def test_impossible_boards_are_refused(text):
    with pytest.raises(CalibrationError, match="board"):
        Board.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("chessboard:8x6:0.02", "upside down"),
        ("chessboard:7x7:0.02", "upside down"),
        ("chessboard:15x9:0.02", "upside down"),
        ("chessboard:9x6:1.0", "in metres"),
        ("charuco:11x8:30:22:4x4_50", "in metres"),
    ],
)
def test_a_board_that_tells_the_lens_but_no_pose_is_refused_for_poses_alone(text, why):
    with pytest.raises(CalibrationError, match=why):
        Board.parse(text).for_poses()


@pytest.mark.parametrize("text", ["chessboard:8x6:0.02", "chessboard:7x7:0.02", "chessboard:7x5:0.02"])
def test_a_board_with_several_ways_up_is_counted_from_the_same_corner_in_every_picture(text):
    board, camera = Board.parse(text), Camera("c", 640, 480, np.diag([460.0, 460, 1]), np.zeros(5))
    camera.K[:2, 2] = 319.5, 239.5
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(9):
        T = look_at_board(rng, board, camera, fill=(0.4, 0.6))
        seen = board.detect(render(camera, T, board))
        if len(seen.ids):
            found += 1
            uv = cv2.projectPoints(board.points(), cv2.Rodrigues(T[:3, :3])[0], T[:3, 3], camera.K, None)[0]
            assert np.abs(uv[seen.ids, 0] - seen.pixels).max() < 2
    assert found > 3


@pytest.mark.parametrize("text", ["chessboard:15x9:0.02", "chessboard:14x9:0.02"])
def test_small_squares_are_found_in_large_pictures_too_and_counted_from_the_same_corner(text):
    board, width, height = Board.parse(text), 960, 600
    K = np.array([[0.45 * width, 0, width / 2], [0, 0.45 * width, height / 2], [0, 0, 1]])
    camera = Camera("action", width, height, K, np.array([-0.26, 0.07, 0, 0, -0.008]))
    rng = np.random.default_rng(5)
    for _ in range(3):
        T = look_at_board(rng, board, camera, fill=(0.17, 0.24))
        seen = board.detect(render(camera, T, board, rng))
        assert len(seen.ids) == len(board.points())
        uv = cv2.projectPoints(board.points(), cv2.Rodrigues(T[:3, :3])[0], T[:3, 3], K, camera.D)[0][:, 0]
        assert np.median(np.linalg.norm(uv - seen.pixels, axis=1)) < 0.5


def test_the_edge_of_a_board_that_is_cut_off_is_not_taken_for_a_row_of_corners():
    board = Board.parse("chessboard:9x6:0.02")
    camera = Camera("c", 640, 480, np.array([[460.0, 0, 319.5], [0, 459, 239.5], [0, 0, 1]]), np.zeros(5))
    T = np.eye(4)
    T[:3, :3] = [[-0.91, 0.18, -0.373], [-0.343, -0.833, 0.434], [-0.233, 0.523, 0.82]]
    T[:3, 3] = -0.027, 0.092, 0.278  # one corner is 11 px beyond the picture's left edge
    assert not len(board.detect(np.pad(render(camera, T, board), ((0, 0), (0, 100)), constant_values=90)).ids)


@pytest.mark.parametrize("text", ["chessboard:9x6:1.0", "chessboard:8x6:25", "charuco:11x8:30:22:4x4_50"])
def test_the_lens_does_not_depend_on_the_unit_of_the_board_and_hand_eye_is_said_to(text, tmp_path):
    board = Board.parse(text)
    views = exact(np.random.default_rng(13), 16, board=board)
    result = run_intrinsics(
        Store(tmp_path / "store"), "front", views, SIZE, [], "pinhole", None, text, {}, tmp_path / "page.html"
    )
    assert result["accepted"] and abs(result["K"][0][0] / THETA[0] - 1) < 0.002
    assert any("hand-eye needs" in line for line in result["said"])


@pytest.mark.parametrize("text", ["charuco:11x8:0.024:0.018:4x4_50", "chessboard:9x6:0.025"])
def test_the_printed_board_is_the_detected_one_in_true_size(text):
    board = Board.parse(text)
    seen = board.detect(board.texture(4000))
    assert len(seen.ids) == len(board.points())
    step = np.linalg.norm(seen.pixels[1] - seen.pixels[0]) / 4000
    assert abs(step - board.square) < 1e-4
    box = re.search(rb"MediaBox\[0 0 ([\d.]+) ([\d.]+)\]", board.pdf())
    assert abs(float(box[1]) / 72 * 0.0254 - (board.size()[0] + 0.024)) < 1e-6
    assert float(box[1]) / 72 * 25.4 <= 297 and float(box[2]) / 72 * 25.4 <= 210  # an A4 sheet across
    png = board.png(300)
    assert cv2.imdecode(np.frombuffer(png, np.uint8), 0) is not None and b"pHYs" in png[:60]
