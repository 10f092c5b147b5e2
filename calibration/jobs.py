"""The calibrations as jobs: views in, record in the store and report out. No terminal, no argument parsing, no
robot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import hand_eye, intrinsics, lens, lens_quality, report
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.check import FRAMES, Reference, check, learn
from calibration.store import Store, new_record
from calibration.transforms import distance, inverse, log
from calibration.views import MIN_CORNERS, ArmNoise, ArmView, Forward, View

Size = tuple[int, int]
SAME_LENS_PX = 0.5  # median difference of two lenses under which a pose found through one holds for the other
POSE_KEYS = {"base": "T_base_from_cam", "arm": "T_tool_from_cam"}  # of a record's result, by mount


def find_views(
    pictures: Sequence[tuple[str, np.ndarray | None]], board: Board
) -> tuple[list[View], Size, list[tuple[str, str]]]:
    """Detected views, the resolution that most pictures have, and name, reason of every picture left out."""
    sizes = [i.shape[::-1] for _, i in pictures if i is not None]
    if not sizes:
        raise CalibrationError("no picture can be read: give PNG or JPEG files.")
    size: Size = max(set(sizes), key=sizes.count)
    views, rejected = [], []
    for name, image in pictures:
        if image is None:
            rejected.append((name, "not a readable picture"))
        elif image.shape[::-1] != size:
            rejected.append(
                (name, f"resolution {image.shape[1]}x{image.shape[0]}, the others have {size[0]}x{size[1]}")
            )
        else:
            found = board.detect(image)
            if len(found.ids) < MIN_CORNERS:
                rejected.append((name, board.why_unseen(image)))
            else:
                views.append(View(name, board.points()[found.ids], found.pixels))
    legacy = [r for _, r in rejected if "legacy" in r]
    if len(legacy) > len(views):
        raise CalibrationError(f"the pictures show a {legacy[0]}: correct --board.")
    return views, size, rejected


def camera_of(record: dict[str, Any]) -> Camera:
    return Camera.from_json(record["result"], record["name"])


def theta_of(camera: Camera) -> tuple[np.ndarray, str]:
    return lens.parameters(camera.K, camera.D, camera.model), camera.model


def current(store: Store, name: str) -> dict[str, Any] | None:
    """The record in use, None where there is none or it is damaged (a new calibration is the cure for that)."""
    try:
        return store.get(name, kind="camera")
    except CalibrationError:
        return None


def run_intrinsics(
    store: Store,
    name: str,
    views: list[View],
    size: Size,
    rejected: list[tuple[str, str]],
    model: str,
    mount: str | None,
    board: str,
    identity: dict[str, Any],
    page: Path,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Calibrate, judge, store if it is better than what is in use, and report. A stored pose and how exactly it is
    known stay where both lenses agree. Returns the design's `calibrate intrinsics` JSON and "accepted", "hash", "said".
    Raises CalibrationError; the stored calibration is untouched then."""
    done = intrinsics.calibrate(views, size, model)
    fit, q = done.fit, done.quality()
    verdict, old = done.verdict(), current(store, name)
    said, before, parents = [], None, []
    pose: dict[str, Any] = {}  # the old record's pose where it still holds, and how exactly it is known
    known: dict[str, float] = {}
    if old is not None:
        parents = [store.current_hash(name) or ""]
        camera = camera_of(old)
        mount = mount or old["identity"].get("mount") or "base"
        if (camera.width, camera.height) == size:
            theta, old_model = theta_of(camera)
            pixels, _ = lens.grid(*size)
            before = lens.difference(theta, fit.theta, old_model, model, pixels, done.used)
            stored = lens_quality.heldout_rms(theta, old_model, fit.on_true_board(fit.views), fit.sigma)
            said.append(f"stored lens on these views: {stored:.3f} px, new one held out: {q['heldout_px']:.3f} px")
            if stored < q["heldout_px"] * 1.001:
                verdict.append(
                    f"the stored calibration explains these views better ({stored:.3f} px) "
                    f"than the new one held out ({q['heldout_px']:.3f} px)"
                )
            # The pose was found through the old lens: it holds as long as the lenses agree and the camera sits where it
            # sat.
            found = old["result"].get(POSE_KEYS[mount])
            if found is not None and float(np.nanmedian(before[done.used])) < SAME_LENS_PX:
                pose = {POSE_KEYS[mount]: found}
                known = {k: v for k, v in old["uncertainty"].items() if k.startswith(("pose_sd_", "halves_"))}
    mount = mount or "base"
    D = fit.theta[4:]
    camera = Camera(name, *size, lens.matrix(fit.theta), D, None, "fisheye" if model == "fisheye" else "rational")
    left_out = [*rejected, *done.rejected]
    report.intrinsics_page(page, name, done, before, verdict, left_out)
    result: dict[str, Any] = {
        "K": camera.K.tolist(),
        "D": D.tolist(),
        "model": model,
        "rms_px": q["rms_px"],
        "heldout_px": q["heldout_px"],
        "crossval_px": {"median": q["crossval_median_px"], "p90": q["crossval_p90_px"]},
        "uncertainty_px": {"median": q["uncertainty_median_px"], "p90": q["uncertainty_p90_px"]},
        "views_used": len(fit.views),
        "views_rejected": [{"view": v, "reason": r} for v, r in left_out],
        "accepted": not verdict,
        "refused": verdict,
        "report": str(page),
        "hash": None,
    }
    if not verdict and not dry_run:
        evidence = {
            "board": board,
            "views": [
                {"name": v.name, "points": v.points.tolist(), "pixels": np.round(v.pixels, 4).tolist()} for v in views
            ],
        }
        kept = {k: v for k, v in identity.items() if v is not None}
        result["hash"] = store.put(
            new_record(
                "camera",
                name,
                {**camera.to_json(), **pose},
                identity={**kept, "width": size[0], "height": size[1], "mount": mount},
                parents=parents,
                uncertainty={**q, **known},
                evidence=evidence,
            )
        )
        store.set_current(name, result["hash"], "intrinsics")
    said += [f"left out: {v}: {r}" for v, r in left_out]
    said.append(
        f"{len(fit.views)} views: held-out {q['heldout_px']:.3f} px, "
        f"halves differ by {q['crossval_median_px']:.3f} px (90 %: {q['crossval_p90_px']:.3f})"
    )
    said += [f"refused: {v}" for v in verdict]
    if result["hash"]:
        said.append(f"stored as {result['hash'][:10]} in {store.root}")
        if not pose:
            said.append(f"next: harmowam calibrate hand-eye --camera {name} --mount {mount}")
    said.append(f"report: {page}")
    return {**result, "said": said}


def finish_hand_eye(
    store: Store,
    name: str,
    old: dict[str, Any],
    views: list[ArmView],
    mount: str,
    noise: ArmNoise,
    page: Path,
    dry_run: bool,
    board: str,
    forward: Forward,
    joints: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Solve and store: the same lens as `old` with a new pose. Raises CalibrationError; what is in use stays then."""
    camera = camera_of(old)
    theta, model = theta_of(camera)
    sigma = max(float(old["uncertainty"].get("corner_noise_px", 0.15)), 0.05)
    h, halves = hand_eye.calibrate(mount, views, theta, model, forward, noise, sigma, joints)
    degrees, metres = h.sd
    pose, on_tool = (h.X, None) if mount == "base" else (None, h.X)
    result = dataclasses.replace(camera, name=name, T_base_from_cam=pose, T_tool_from_cam=on_tool).to_json()
    was = camera.T_base_from_cam if mount == "base" else camera.T_tool_from_cam
    before = None if was is None else distance(was, h.X)
    refused = ""
    if was is not None and old["uncertainty"].get("pose_sd_mm", np.inf) <= 1000 * metres:
        d = log(inverse(h.X) @ was)
        if float(d @ np.linalg.solve(h.covariance, d)) < 12.6:  # 95 % of chi-square with six degrees of freedom
            refused = "it fits these views as well, and was known more exactly"
    good = [v for v in views if v.name in h.kept]
    corners, residuals, depths, shifts = [], [], [], []
    for v in good:
        A = forward(v.q + h.offsets)
        T = inverse(h.X) @ (A if mount == "base" else inverse(A)) @ h.Z
        uv = _seen(v.points, T, theta, model)
        corners.append(v.pixels)
        depths.append(float(np.linalg.norm(T[:3, 3])))
        if was is not None:
            shifts.append(_seen(v.points, inverse(was) @ h.X @ T, theta, model) - uv)
        residuals.append(v.pixels - uv - np.median(v.pixels - uv, axis=0))
    pixels, grid = lens.grid(camera.width, camera.height)
    rays, seen = lens.unproject(pixels, theta, model)
    report.hand_eye_page(
        page,
        name,
        h,
        halves,
        (camera.width, camera.height),
        np.concatenate(corners),
        np.concatenate(residuals),
        grid,
        np.where(seen, 1000 * h.ray_sd(rays, float(np.median(depths))), np.nan),
        before,
        np.concatenate(shifts) if shifts else None,
        [refused] if refused else [],
    )
    quality = {
        **{k: v for k, v in old["uncertainty"].items() if k.endswith("_px")},
        "pose_sd_mm": 1000 * metres,
        "pose_sd_deg": degrees,
        **halves,
    }
    out: dict[str, Any] = {
        "X": h.X.tolist(),
        "mount": mount,
        "sd_mm": 1000 * metres,
        "sd_deg": degrees,
        **halves,
        "poses_used": len(h.kept),
        "poses_rejected": [{"pose": v, "reason": r} for v, r in h.rejected],
        "joint_offsets_deg": np.degrees(h.offsets).tolist(),
        "joint_offsets_sd_deg": np.degrees(h.offsets_sd).tolist(),
        "pixel_rms": h.pixel_rms,
        "report": str(page),
        "hash": None,
    }
    out["accepted"], out["refused"] = not refused, [refused] if refused else []
    if before is not None:
        out.update(moved_deg=before[0], moved_mm=1000 * before[1])
    if not dry_run and not refused:
        evidence = {
            "board": board,
            "lens": store.current_hash(name),
            "covariance": h.covariance.tolist(),
            "views": [
                {
                    "name": v.name,
                    "points": v.points.tolist(),
                    "pixels": np.round(v.pixels, 4).tolist(),
                    "q": v.q.tolist(),
                }
                for v in views
            ],
        }
        current = store.current_hash(name)
        out["hash"] = store.put(
            new_record(
                "camera",
                name,
                result,
                identity={**old["identity"], "mount": mount},
                parents=[current] if current else [],
                uncertainty=quality,
                evidence=evidence,
            )
        )
        store.set_current(name, out["hash"], "hand-eye")
    out["said"] = [
        *(f"left out: {v}: {r}" for v, r in h.rejected),
        (
            f"camera at {', '.join(f'{v:.3f}' for v in h.X[:3, 3])} m, standard deviation {1000 * metres:.1f} mm and "
            f"{degrees:.2f} degrees"
        ),
        f"halves differ by {halves['halves_mm']:.1f} mm and {halves['halves_deg']:.2f} degrees",
        *([f"kept the stored pose: {refused}"] if refused else []),
        *(
            [f"stored as {out['hash'][:10]} in {store.root}", "next: harmowam calibrate check --learn"]
            if out["hash"]
            else []
        ),
        f"report: {page}",
    ]
    return out


def _seen(points: np.ndarray, T_cam_from_board: np.ndarray, theta: np.ndarray, model: str) -> np.ndarray:
    """Pixels float64[n,2] of board points float64[n,3]."""
    T = T_cam_from_board
    return lens.project(points, theta, model, cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]


def run_learn(
    store: Store,
    name: str,
    frames: list[np.ndarray],
    board: Board,
    arm: list[np.ndarray] | None,
    arm_board: Board | None,
) -> dict[str, Any]:
    """Learn the drift reference of the calibration in use and store it beside it."""
    camera = store.get(name, kind="camera")
    # Pictures of the arm's marker come one a return to rest.
    reference = learn(frames, board, [[a] for a in arm] if arm else None, arm_board)
    if (reference.width, reference.height) != (camera["identity"]["width"], camera["identity"]["height"]):
        raise CalibrationError(
            f"the camera gives {reference.width}x{reference.height}, its calibration is for "
            f"{camera['identity']['width']}x"
            f"{camera['identity']['height']}: set the resolution back or calibrate again."
        )
    digest = store.put(
        new_record(
            "reference",
            f"{name}.reference",
            reference.to_json(),
            identity=camera["identity"],
            parents=[store.current_hash(name) or ""],
            uncertainty={"noise_px": reference.noise},
            evidence={},
        )
    )
    store.set_current(f"{name}.reference", digest, "learn")
    return {
        "noise_px": reference.noise,
        "corners": len(reference.ids),
        "hash": digest,
        "said": f"learnt {len(reference.ids)} corners, noise {reference.noise:.3f} px",
    }


def stored_reference(store: Store, name: str) -> Reference:
    """The drift reference of camera `name`; raises CalibrationError when there is none, or the camera was calibrated
    since."""
    record = store.get(f"{name}.reference", kind="reference")
    if record["parents"][:1] != [store.current_hash(name) or ""]:
        raise CalibrationError(
            f"camera '{name}' was calibrated or rolled back after its drift reference was learnt: run `harmowam "
            "calibrate check --learn`."
        )
    return Reference.from_json(record["result"])


def run_check(
    store: Store, name: str, frames: list[np.ndarray], arm: list[np.ndarray] | None, page: Path
) -> dict[str, Any]:
    """Judge pictures against the stored reference, and report."""
    reference = stored_reference(store, name)
    v = check(reference, frames[-FRAMES:], arm)
    parts = [
        report.table(
            [
                ("verdict", v.level),
                ("shift", f"{v.shift_px:.3f} px"),
                ("warns above", f"{v.warn_px:.3f} px"),
                ("blocks above", f"{v.block_px:.3f} px"),
            ]
        )
    ]
    if v.shift is not None and v.corners is not None:
        magnify = 0.04 * reference.width / max(float(np.abs(v.shift).max()), 0.01)
        parts.append(
            report.figure(
                report.arrows((reference.width, reference.height), v.corners, v.shift, magnify),
                f"Where the marker's corners went, {magnify:.0f} times as far.",
            )
        )
    report.page(page, f"Drift check of camera {name}", [] if v.level == "ok" else [v.reason], parts)
    return {
        "level": v.level,
        "reason": v.reason,
        "shift_px": None if np.isnan(v.shift_px) else v.shift_px,
        "warn_px": v.warn_px,
        "block_px": v.block_px,
        "arm_shift_px": v.arm_shift_px,
        "report": str(page),
        "said": f"{v.level}: {v.reason}",
    }


def compare_records(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What changed between two records of one name."""
    out: dict[str, Any] = {"from": a["created"], "to": b["created"]}
    if a["kind"] != b["kind"]:
        raise CalibrationError(f"a {a['kind']} and a {b['kind']} calibration cannot be compared: name two of one kind.")
    if a["kind"] == "joints":
        for x, y in zip(a["result"]["joints"], b["result"]["joints"], strict=True):
            out.update({f"{x['name']}_{k}": f"{x.get(k)} -> {y.get(k)}" for k in {**x, **y} if x.get(k) != y.get(k)})
        return out
    if a["kind"] == "camera":
        old, new = camera_of(a), camera_of(b)
        for k, (x, y) in {
            "fx": (old.K[0, 0], new.K[0, 0]),
            "fy": (old.K[1, 1], new.K[1, 1]),
            "cx": (old.K[0, 2], new.K[0, 2]),
            "cy": (old.K[1, 2], new.K[1, 2]),
        }.items():
            out[k] = f"{x:.3f} -> {y:.3f}"
        if (old.width, old.height) == (new.width, new.height):
            pixels, _ = lens.grid(old.width, old.height)
            d = lens.difference(
                theta_of(old)[0], theta_of(new)[0], old.model, new.model, pixels, np.ones(len(pixels), bool)
            )
            out.update(projection_median_px=float(np.nanmedian(d)), projection_p90_px=float(np.nanquantile(d, 0.9)))
        for x, y in ((old.T_base_from_cam, new.T_base_from_cam), (old.T_tool_from_cam, new.T_tool_from_cam)):
            if x is not None and y is not None:
                degrees, metres = distance(x, y)
                out.update(pose_mm=1000 * metres, pose_deg=degrees)
    for k, v in b["uncertainty"].items():
        if k in a["uncertainty"]:
            out[k] = f"{a['uncertainty'][k]:.4g} -> {v:.4g}"
    return out
