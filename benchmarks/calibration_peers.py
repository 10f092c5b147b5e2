"""Our calibration beside other people's: OpenCV's recipe on its own sample images, mrcal on ray-cast views."""

from __future__ import annotations

import functools
import glob
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.calibration_views import SHEET, SIZE, truth, views
from calibration import lens, lens_fit, lens_quality
from calibration.board import Board
from calibration.views import Size, View

Solved = tuple[np.ndarray, Callable[[list[View]], list[View]]]  # theta, and views on the board as found
Solver = Callable[[list[View], Size], Solved]


def _opencv(part: list[View], size: tuple[int, int]) -> Solved:
    K0: Any = None
    _, K, D, _, _ = cv2.calibrateCamera(
        [v.points.astype(np.float32) for v in part], [v.pixels.astype(np.float32) for v in part], size, K0, K0
    )
    return lens.parameters(K, D.ravel(), "pinhole"), lambda views: views


def _own(part: list[View], size: tuple[int, int], exact_board: bool) -> Solved:
    fit = lens_fit.adjust(part, size, "pinhole", exact_board=exact_board)
    return fit.theta, fit.on_true_board


Contender = tuple[str, str, Solver]  # name, whose corners, and how they are solved

CONTENDERS: tuple[Contender, ...] = (
    ("opencv recipe", "opencv", _opencv),
    ("opencv, our corners", "ours", _opencv),
    ("ours, board exact", "ours", functools.partial(_own, exact_board=True)),
    ("ours", "ours", functools.partial(_own, exact_board=False)),
)


def part_samples(folder: str, halvings: int = 24) -> dict[str, Any]:
    """OpenCV's own sample images: our calibration beside OpenCV's recipe (cornerSubPix 11x11, calibrateCamera), one
    measure for all.

    Two halves of 13 views differ by luck as well: the same `halvings` random ones for every contender."""
    board = Board.parse("chessboard:9x6:0.025")
    out: dict[str, Any] = {}
    shapes = []
    for side in ("left", "right"):
        found, size = sample_views(folder, side, board)
        ours = found["ours"]
        pixels, _ = lens.grid(*size)
        used = lens_quality.used_area(ours, pixels, size)
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(ours)) for _ in range(halvings)]
        shapes.append(lens_fit.adjust(ours, size, "pinhole").shape)
        for name, whose, solve in CONTENDERS:
            data = found[whose]
            halves = _halves(solve, data, size, orders, pixels, used)
            out[f"{side}, {name}"] = {"views": len(data), "heldout_px": _heldout(solve, data, size), **halves}
        out[f"{side}, crossval to opencv recipe's"] = round(
            out[f"{side}, ours"]["crossval_median_px"] / out[f"{side}, opencv recipe"]["crossval_median_px"], 3
        )
    # Two cameras, one board: what they find of its shape is either the board's or chance.
    out["board_shape_rms_mm"] = [[round(1000 * float(v), 3) for v in np.sqrt((s**2).mean(0))] for s in shapes]
    out["board_shape_correlation"] = [
        round(float(np.corrcoef(shapes[0][:, k], shapes[1][:, k])[0, 1]), 3) for k in range(3)
    ]
    return out


def sample_views(folder: str, side: str, board: Board) -> tuple[dict[str, list[View]], Size]:
    """The sample pictures of one camera in which both find the board: corners of "ours" and of "opencv"'s recipe; and
    the pictures' size."""
    pictures: list[Any] = [
        cv2.imread(p, cv2.IMREAD_GRAYSCALE) for p in sorted(glob.glob(f"{folder}/{side}[0-9][0-9].jpg"))
    ]
    if not pictures:
        raise SystemExit(
            f"no {side}*.jpg in {folder}: install opencv-doc and name its examples/data folder with --samples"
        )
    ours, theirs = [], []
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 30, 0.001)
    for k, g in enumerate(pictures):
        d = board.detect(g)
        ok, corners = cv2.findChessboardCorners(g, (9, 6))
        if not (len(d.ids) and ok):
            continue
        corners = cv2.cornerSubPix(g, corners, (11, 11), (-1, -1), criteria)
        ours.append(View(str(k), board.points(), d.pixels))
        theirs.append(View(str(k), board.points(), corners.reshape(-1, 2).astype(float)))
    return {"ours": ours, "opencv": theirs}, (pictures[0].shape[1], pictures[0].shape[0])


def _heldout(solve: Solver, data: list[View], size: Size) -> float:
    """RMS (px) of every fourth view under the lens that the others give, over all four choices."""
    squares = []
    for k in range(4):
        theta, correct = solve([v for i, v in enumerate(data) if i % 4 != k], size)
        squares.append(lens_quality.heldout_rms(theta, "pinhole", correct(data[k::4])) ** 2)
    return round(float(np.sqrt(np.mean(squares))), 3)


def _halves(
    solve: Solver, data: list[View], size: Size, orders: list[np.ndarray], pixels: np.ndarray, used: np.ndarray
) -> dict[str, Any]:
    """How far the lenses of two halves differ (px, at the `used` ones of `pixels`), over the halvings by `orders`."""
    median, high = [], []
    for order in orders:
        a, b = (solve([data[i] for i in sorted(order[k::2])], size)[0] for k in (0, 1))
        cross = lens.difference(a, b, "pinhole", "pinhole", pixels, used)[used]
        median.append(float(np.median(cross)))
        high.append(float(np.quantile(cross, 0.9)))
    return {
        "crossval_median_px": round(float(np.median(median)), 3),
        "crossval_quartiles_px": [round(float(q), 3) for q in np.quantile(median, [0.25, 0.75])],
        "crossval_worst_px": round(max(median), 3),
        "crossval_p90_px": round(float(np.median(high)), 3),
    }


MRCAL_PYTHON = "/usr/bin/python3"  # Debian's mrcal is for the system's own


def has_mrcal() -> bool:
    """Whether the system's Python imports mrcal (Debian `python3-mrcal`)."""
    try:
        return subprocess.run([MRCAL_PYTHON, "-c", "import mrcal"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def part_mrcal(repeats: int) -> dict[str, Any]:
    """The same ray-cast corners to mrcal and to us: whose lens is nearer to the truth, and how far both are apart (px,
    used area)."""
    if not has_mrcal():
        raise SystemExit("mrcal is not installed: apt install python3-mrcal, then repeat.")
    rows, columns = SHEET.rows - 1, SHEET.columns - 1
    pixels, _ = lens.grid(*SIZE, 16)
    found: dict[str, list[np.ndarray]] = {"ours": [], "mrcal": [], "apart": []}
    for seed in range(repeats):
        seen = views(np.random.default_rng([seed, 5]), 30)
        corners = np.full((len(seen), rows, columns, 3), -1.0)  # weight -1: not seen
        for view, seat in zip(seen, corners, strict=True):
            column, row = (np.rint(view.points[:, :2] / SHEET.square).astype(int) - 1).T
            seat[row, column] = np.column_stack([view.pixels, np.ones(len(row))])
        with tempfile.TemporaryDirectory() as folder:
            np.savez(f"{folder}/in.npz", corners=corners, spacing=SHEET.square, size=SIZE)
            peer = Path(__file__).with_name("mrcal_peer.py")
            subprocess.run(
                [MRCAL_PYTHON, str(peer), f"{folder}/in.npz", f"{folder}/out.npy"], check=True, stdout=sys.stderr
            )
            theirs = np.load(f"{folder}/out.npy")
        ours = lens_fit.adjust(seen, SIZE, "rational").theta
        used = lens_quality.used_area(seen, pixels, SIZE)
        for name, a, b in (("ours", ours, truth()), ("mrcal", theirs, truth()), ("apart", ours, theirs)):
            found[name].append(lens.difference(a, b, "rational", "rational", pixels, used)[used])
    return {
        name: {
            "median_px": round(float(np.median([np.median(e) for e in each])), 4),
            "p90_px": round(float(np.median([np.quantile(e, 0.9) for e in each])), 4),
        }
        for name, each in found.items()
    }
