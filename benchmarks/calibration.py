"""Every figure of docs/calibration.md: `python -m benchmarks.calibration PART [--json FILE]`, PART one of intrinsics,
honest, board, hand-eye, drift, samples, mrcal, before-after."""

from __future__ import annotations

import argparse
import functools
import glob
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import check, hand_eye, intrinsics, lens, lens_fit, lens_quality
from calibration.board import Board
from calibration.camera import CalibrationError, Camera, parallax
from calibration.transforms import distance, inverse, log, transform
from calibration.views import MIN_CORNERS, ArmNoise, View, board_pose
from sim.boards import look_at_board, render
from sim.calibration_rig import ArmBench, look_at, webcam
from sim.tasks import ARM

SHEET = Board.parse("charuco:11x8:0.030:0.022:4x4_50")
SIZE = (1280, 720)


def views(rng: np.random.Generator, count: int) -> list[View]:
    out: list[View] = []
    while len(out) < count:
        d = SHEET.detect(render(webcam(None), look_at_board(rng, SHEET, webcam(None)), SHEET, rng))
        if len(d.ids) >= MIN_CORNERS:
            out.append(View(str(len(out)), SHEET.points()[d.ids], d.pixels))
    return out


def truth() -> np.ndarray:
    camera = webcam(None)
    return lens.parameters(camera.K, camera.D, "rational")


def part_intrinsics(repeats: int) -> dict[str, Any]:
    """30 ray-cast views each time, and the time for 100."""
    rows = []
    pixels, _ = lens.grid(*SIZE)
    for seed in range(repeats):
        done = intrinsics.calibrate(views(np.random.default_rng([seed, 1]), 30), SIZE)
        error = lens.difference(done.fit.theta, truth(), "rational", "rational", pixels, done.used)[done.used]
        rows.append(
            [
                100 * abs(done.fit.theta[0] / truth()[0] - 1),
                float(np.median(error)),
                float(np.quantile(error, 0.9)),
                done.heldout,
                done.quality()["crossval_median_px"],
            ]
        )
    many = views(np.random.default_rng(77), 100)
    began = time.monotonic()
    intrinsics.calibrate(many, SIZE)
    names = ("focal_error_percent", "error_median_px", "error_p90_px", "heldout_px", "crossval_median_px")
    out: dict[str, Any] = {
        n: {"median": round(float(np.median(c)), 4), "worst": round(float(max(c)), 4)}
        for n, c in zip(names, zip(*rows, strict=True), strict=True)
    }
    out["solve_100_views_s"] = round(time.monotonic() - began, 2)
    return out


def part_honest(repeats: int) -> dict[str, Any]:
    """Predicted against actual standard deviation of the projection: `repeats` draws of 30 from 300 ray-cast views."""
    pool = views(np.random.default_rng(5), 300)
    rng = np.random.default_rng(6)
    pixels, _ = lens.grid(*SIZE)
    used = lens_quality.used_area(pool, pixels, SIZE)
    actual, predicted = [], []
    for _ in range(repeats):
        part = [pool[k] for k in rng.choice(len(pool), 30, replace=False)]
        fit = lens_fit.adjust(part, SIZE)
        actual.append(lens.difference(fit.theta, truth(), "rational", "rational", pixels, used)[used])
        predicted.append(lens_quality.projection_sd(fit, pixels, used)[used])
    a, p = np.sqrt(np.nanmean(np.square(actual), 0)), np.sqrt(np.nanmean(np.square(predicted), 0))
    ratio = p / a
    return {
        "repeats": repeats,
        "predicted_over_actual": round(float(np.median(ratio)), 3),
        "p10": round(float(np.quantile(ratio, 0.1)), 3),
        "p90": round(float(np.quantile(ratio, 0.9)), 3),
        "actual_rms_px": round(float(np.median(a)), 4),
    }


def part_hand_eye(repeats: int) -> dict[str, Any]:
    """15 proposed poses, 0.5 degrees and 2 mm of noise a pose and 0.5 degrees a joint zero; beside it Park alone and
    pixels only."""
    out: dict[str, Any] = {}
    for mount in ("base", "arm"):
        rows, refused = [], 0
        for seed in range(repeats):
            bench = ArmBench(mount, np.random.default_rng([seed, 2]))
            shots = [bench.view(str(k), q) for k, q in enumerate(bench.poses(15))]
            try:
                done, halves = hand_eye.calibrate(mount, shots, bench.theta, "rational", ARM.tool, sigma=0.1)
            except CalibrationError as e:
                print(f"{mount} {seed}: {e}", file=sys.stderr)
                refused += 1
                continue
            park, _ = hand_eye.park(
                mount,
                [ARM.tool(v.q) for v in shots],
                [board_pose(v, bench.theta, "rational") for v in shots],
            )
            exact = (
                hand_eye.solve(mount, shots, bench.theta, "rational", ARM.tool, ArmNoise(0.001, 1e-6, 0.0), 0.1).X
                if seed < 10
                else None
            )
            error = log(inverse(done.X) @ bench.X)
            degrees, metres = distance(done.X, bench.X)
            rows.append(
                {
                    "mm": 1000 * metres,
                    "deg": degrees,
                    "sd_mm": 1000 * done.sd[1],
                    "sd_deg": done.sd[0],
                    "halves_mm": halves["halves_mm"],
                    "nees": float(error @ np.linalg.solve(done.covariance, error)) / 6,
                    "park_mm": 1000 * distance(park, bench.X)[1],
                    "park_deg": distance(park, bench.X)[0],
                    "exact_mm": np.nan if exact is None else 1000 * distance(exact, bench.X)[1],
                }
            )
        table = {k: np.array([r[k] for r in rows]) for k in rows[0]}
        out[mount] = {
            **{k: round(float(np.nanmedian(v)), 2) for k, v in table.items()},
            "p90_mm": round(float(np.quantile(table["mm"], 0.9)), 2),
            "sd_over_actual_mm": round(float(np.sqrt((table["sd_mm"] ** 2).mean() / (table["mm"] ** 2).mean())), 2),
            "sd_over_actual_deg": round(float(np.sqrt((table["sd_deg"] ** 2).mean() / (table["deg"] ** 2).mean())), 2),
            "nees_mean": round(float(table["nees"].mean()), 2),
            "refused": refused,
            "repeats": repeats,
        }
    return out


def part_drift(trials: int) -> dict[str, Any]:
    """640x480 pictures of a base marker; light and focus differ a little between learning and checking."""
    rng = np.random.default_rng(9)
    marker = Board.parse("charuco:5x4:0.030:0.022:4x4_50")
    pose = look_at(np.array([0.62, 0.05, 0.45]), np.array([0.25, 0.0, 0.0]))
    K = np.array([[460.0, 0, 322], [0, 459, 238], [0, 0, 1]])
    camera = Camera("front", 640, 480, K, np.array([-0.2, 0.05, 0, 0, 0]), pose)
    table = np.eye(4)
    table[:3, :3] = np.array([[0, -1.0, 0], [-1, 0, 0], [0, 0, -1]])
    table[:3, 3] = [0.33, 0.08, 0.0]

    def frames(T: np.ndarray, count: int, gain: float = 1.0, blur: float = 0.6) -> list[np.ndarray]:
        clean = render(camera, inverse(T) @ table, marker, None, blur_px=blur).astype(np.float32) * gain
        return [
            np.clip(clean + rng.normal(0, 2, clean.shape).astype(np.float32), 0, 255).astype(np.uint8)
            for _ in range(count)
        ]

    found, false, seconds = {"rotation": 0, "translation": 0}, 0, []
    reference = check.learn(frames(pose, check.LEARN_FRAMES), marker)
    shifts: dict[str, list[float]] = {"still": [], "rotation": [], "translation": []}
    for k in range(trials):
        gain, blur = rng.uniform(0.95, 1.05), rng.uniform(0.57, 0.63)
        began = time.monotonic()
        still = check.check(reference, frames(pose, check.FRAMES, gain, blur))
        seconds.append(time.monotonic() - began)
        false += still.level != check.OK
        axis = rng.normal(0, 1, 3)
        axis /= np.linalg.norm(axis)
        kind = ("rotation", "translation")[k % 2]
        moved = (
            transform(np.radians(0.25) * axis, np.zeros(3))
            if kind == "rotation"
            else transform(np.zeros(3), 0.002 * axis)
        )
        verdict = check.check(reference, frames(pose @ moved, check.FRAMES, gain, blur))
        found[kind] += verdict.level != check.OK
        shifts["still"].append(still.shift_px)
        shifts[kind].append(verdict.shift_px)
    n = {"rotation": (trials + 1) // 2, "translation": trials // 2}
    return {
        "trials": trials,
        "false_alarms_percent": 100 * false / trials,
        "warn_px": round(float(still.warn_px), 3),
        "noise_px": round(reference.noise, 4),
        **{f"found_{k}_percent": 100 * v / n[k] for k, v in found.items()},
        "worst_still_px": round(max(shifts["still"]), 3),
        "least_rotation_px": round(min(shifts["rotation"]), 3),
        "least_translation_px": round(min(shifts["translation"]), 3),
        "check_s_rendering_included": round(float(np.median(seconds)), 3),
    }


def part_board(repeats: int) -> dict[str, Any]:
    """A sheet that is not as described: corners strayed by 0.08 mm (as in `samples`), or bowed by 0.5 mm; 30 views,
    corners by exact projection with 0.1 px of noise. "exact" takes the board at its word, as OpenCV does; "found"
    estimates its shape."""
    out: dict[str, Any] = {}
    pixels, _ = lens.grid(*SIZE, 16)
    for sheet, stray, bow in (("as printed", 0.0, 0.0), ("strayed 0.08 mm", 8e-5, 0.0), ("bowed 0.5 mm", 0.0, 5e-4)):
        rng = np.random.default_rng(13)
        rows: dict[str, list[list[np.ndarray]]] = {"exact": [], "found": []}
        for _ in range(repeats):
            seen = uneven_views(rng, 30, stray, bow)
            used = lens_quality.used_area(seen, pixels, SIZE)
            for name in rows:
                fit = lens_fit.adjust(seen, SIZE, exact_board=name == "exact")
                error = lens.difference(fit.theta, truth(), "rational", "rational", pixels, used)
                rows[name].append(
                    [np.where(used, v, np.nan) for v in (error, lens_quality.projection_sd(fit, pixels, used))]
                )
        for name, pairs in rows.items():
            error, predicted = np.array(pairs).transpose(1, 0, 2)
            actual = np.sqrt(np.nanmean(error**2, 0))
            out[f"{sheet}, {name}"] = {
                "error_median_px": round(float(np.nanmedian(error)), 3),
                "error_p90_px": round(float(np.nanquantile(error, 0.9)), 3),
                "predicted_over_actual": round(float(np.nanmedian(np.sqrt(np.nanmean(predicted**2, 0)) / actual)), 2),
            }
    return out


def uneven_views(rng: np.random.Generator, count: int, stray: float, bow: float) -> list[View]:
    """Views of a sheet whose corners are off by `stray` (m, each axis) and which sags by `bow` (m) from its middle to
    its corners."""
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


Solved = tuple[np.ndarray, Callable[[list[View]], list[View]]]  # theta; views on the board as found


def _opencv(part: list[View], size: tuple[int, int]) -> Solved:
    K0: Any = None
    _, K, D, _, _ = cv2.calibrateCamera(
        [v.points.astype(np.float32) for v in part], [v.pixels.astype(np.float32) for v in part], size, K0, K0
    )
    return lens.parameters(K, D.ravel(), "pinhole"), lambda views: views


def _own(part: list[View], size: tuple[int, int], exact_board: bool) -> Solved:
    fit = lens_fit.adjust(part, size, "pinhole", exact_board=exact_board)
    return fit.theta, fit.on_true_board


def part_samples(folder: str, halvings: int = 24) -> dict[str, Any]:
    """OpenCV's own sample images: our calibration beside OpenCV's recipe (cornerSubPix 11x11, calibrateCamera), one
    measure for all.

    Two halves of 13 views differ by luck as well: the same `halvings` random ones for every contender."""
    board = Board.parse("chessboard:9x6:0.025")
    out: dict[str, Any] = {}
    shapes = []
    for side in ("left", "right"):
        pictures: list[Any] = [
            cv2.imread(p, cv2.IMREAD_GRAYSCALE) for p in sorted(glob.glob(f"{folder}/{side}[0-9][0-9].jpg"))
        ]
        if not pictures:
            raise SystemExit(
                f"no {side}*.jpg in {folder}: install opencv-doc and name its examples/data folder with --samples"
            )
        ours, theirs = [], []
        size = (pictures[0].shape[1], pictures[0].shape[0])
        for k, g in enumerate(pictures):
            d = board.detect(g)
            ok, corners = cv2.findChessboardCorners(g, (9, 6))
            if not (len(d.ids) and ok):
                continue
            corners = cv2.cornerSubPix(
                g, corners, (11, 11), (-1, -1), (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 30, 0.001)
            )
            ours.append(View(str(k), board.points(), d.pixels))
            theirs.append(View(str(k), board.points(), corners.reshape(-1, 2).astype(float)))
        pixels, _ = lens.grid(*size)
        used = lens_quality.used_area(ours, pixels, size)
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(ours)) for _ in range(halvings)]
        shapes.append(lens_fit.adjust(ours, size, "pinhole").shape)
        for name, data in (
            ("opencv recipe", theirs),
            ("opencv, our corners", ours),
            ("ours, board exact", ours),
            ("ours", ours),
        ):
            solve = _opencv if name.startswith("opencv") else functools.partial(_own, exact_board=name != "ours")
            squares = []
            for k in range(4):
                theta, correct = solve([v for i, v in enumerate(data) if i % 4 != k], size)
                squares.append(lens_quality.heldout_rms(theta, "pinhole", correct(data[k::4])) ** 2)
            median, high = [], []
            for order in orders:
                a, b = (solve([data[i] for i in sorted(order[k::2])], size)[0] for k in (0, 1))
                cross = lens.difference(a, b, "pinhole", "pinhole", pixels, used)[used]
                median.append(float(np.median(cross)))
                high.append(float(np.quantile(cross, 0.9)))
            out[f"{side}, {name}"] = {
                "views": len(data),
                "heldout_px": round(float(np.sqrt(np.mean(squares))), 3),
                "crossval_median_px": round(float(np.median(median)), 3),
                "crossval_quartiles_px": [round(float(q), 3) for q in np.quantile(median, [0.25, 0.75])],
                "crossval_worst_px": round(max(median), 3),
                "crossval_p90_px": round(float(np.median(high)), 3),
            }
        out[f"{side}, crossval to opencv recipe's"] = round(
            out[f"{side}, ours"]["crossval_median_px"] / out[f"{side}, opencv recipe"]["crossval_median_px"], 3
        )
    # Two cameras, one board: what they find of its shape is either the board's or chance.
    out["board_shape_rms_mm"] = [[round(1000 * float(v), 3) for v in np.sqrt((s**2).mean(0))] for s in shapes]
    out["board_shape_correlation"] = [
        round(float(np.corrcoef(shapes[0][:, k], shapes[1][:, k])[0, 1]), 3) for k in range(3)
    ]
    return out


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


def part_before_after(bundle: Path, episodes: int) -> dict[str, Any]:
    """The front camera moved by 3 cm and 5 degrees, with another lens."""
    from sim.bumped_camera import CONDITIONS, bumped, drift, recalibrate, success
    from sim.world import World

    world = World(0)
    training = world.camera("front")
    world.close()
    verdict = drift()
    camera, quality = recalibrate()
    print(f"check: {verdict.level}, {verdict.reason}\nrecalibration: {quality}", file=sys.stderr)
    rows = []
    for condition in CONDITIONS:
        rows.append(success(bundle, condition, range(episodes), camera))
        print(rows[-1], file=sys.stderr, flush=True)
    return {
        "check": {"level": verdict.level, "shift_px": verdict.shift_px, "block_px": verdict.block_px},
        "recalibration": quality,
        "parallax_5cm_mm": 1000 * parallax(bumped(training), training),
        "success": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part", choices=["intrinsics", "honest", "board", "hand-eye", "drift", "samples", "mrcal", "before-after"]
    )
    parser.add_argument("--repeats", type=int, help="repeats, trials, halvings or episodes")
    parser.add_argument("--samples", default="/usr/share/doc/opencv-doc/examples/data")
    parser.add_argument("--bundle", type=Path, default=Path("out/so101.bundle"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    n = args.repeats
    result = {
        "intrinsics": lambda: part_intrinsics(n or 10),
        "honest": lambda: part_honest(n or 100),
        "hand-eye": lambda: part_hand_eye(n or 60),
        "board": lambda: part_board(n or 20),
        "drift": lambda: part_drift(n or 500),
        "samples": lambda: part_samples(args.samples, n or 24),
        "mrcal": lambda: part_mrcal(n or 10),
        "before-after": lambda: part_before_after(args.bundle, n or 50),
    }[args.part]()
    text = json.dumps(result, indent=1, default=float)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
