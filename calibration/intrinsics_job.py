"""The calibration of a lens as a job: pictures in, record in the store and report out. No terminal, no robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration import intrinsics, lens, report, straight
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.intrinsics import Calibration
from calibration.lens_fit import Fit
from calibration.lens_quality import heldout_rms
from calibration.other_boards import what_fits
from calibration.records import POSE_KEYS, camera_of, current, theta_of
from calibration.store import Store, new_record
from calibration.views import MIN_CORNERS, Size, View, reach

SAME_LENS_PX = 0.5  # median difference of two lenses under which a pose found through one holds for the other


def find_views(
    pictures: Sequence[tuple[str, np.ndarray | None]], board: Board
) -> tuple[list[View], Size, list[tuple[str, str]]]:
    """Detected views, the resolution that most pictures have, and name, reason of every picture left out. Raises
    CalibrationError where the board is seen in too few, with the board that they show."""
    sizes = [i.shape[::-1] for _, i in pictures if i is not None]
    if not sizes:
        raise CalibrationError("no picture can be read: give PNG or JPEG files.")
    size: Size = max(set(sizes), key=sizes.count)
    views, rejected, unseen = [], [], []
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
                unseen.append(image)
            else:
                views.append(View(name, board.points()[found.ids], found.pixels))
    legacy = [r for _, r in rejected if "legacy" in r]
    if len(legacy) > len(views):
        raise CalibrationError(f"the pictures show a {legacy[0]}: correct --board.")
    if len(views) < intrinsics.MIN_VIEWS and rejected:
        raise intrinsics.too_few(len(views), rejected, what_fits(board, unseen) if unseen else "")
    return views, size, rejected


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
    pictures: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Calibrate, judge, store if it is better than what is in use, and report. A stored pose and its uncertainty stay
    where both lenses agree. `rejected`: name and reason of pictures that gave no view; `mount` None: as stored, or
    "base"; `pictures`: uint8[H,W] by a view's name, of which the report shows the one that reaches farthest.
    Returns the JSON of `calibrate intrinsics` with "accepted", "hash" and "said" (lines for people). Raises
    CalibrationError; the stored calibration is untouched then."""
    done = intrinsics.calibrate(views, size, model, rejected)
    fit, q = done.fit, done.quality()
    beside = _beside_stored(store, name, done, mount)
    verdict, left_out = [*done.verdict(), *beside.refused], [*rejected, *done.rejected]
    kind = "fisheye" if model == "fisheye" else "rational"
    camera = Camera(name, *size, lens.matrix(fit.theta), fit.theta[4:], None, kind)
    photographs = _photographs(fit, pictures or {})
    report.intrinsics_page(page, name, done, beside.difference, verdict, left_out, photographs)
    digest = None if verdict or dry_run else _put(store, camera, done, beside, views, board, identity)
    halves = f"halves differ by {q['crossval_median_px']:.3f} px (90 %: {q['crossval_p90_px']:.3f})"
    said = [
        *beside.said,
        *(f"left out: {v}: {r}" for v, r in left_out),
        f"{len(fit.views)} views: held-out {q['heldout_px']:.3f} px, {halves}",
        *(f"refused: {v}" for v in verdict),
        *_not_for_poses(board),
    ]
    if digest:
        said.append(f"stored as {digest[:10]} in {store.root}")
        if not beside.pose:
            said.append(f"next: harmowam calibrate hand-eye --camera {name} --mount {beside.mount}")
    return {
        "K": camera.K.tolist(),
        "D": camera.D.tolist(),
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
        "hash": digest,
        "said": [*said, f"report: {page}"],
    }


def _photographs(fit: Fit, pictures: Mapping[str, np.ndarray]) -> list[str]:
    """Figures of the picture whose board reaches farthest from the middle, with and without the lens; none without
    pictures."""
    used = [View(v.name, v.points[k], v.pixels[k]) for v, k in zip(fit.views, fit.inlier, strict=True)]
    shown = [v for v in used if v.name in pictures]
    if not shown:
        return []
    view = max(shown, key=lambda v: reach(v.pixels, fit.size))
    return straight.figures(pictures[view.name], view, fit.theta, fit.model)


def _not_for_poses(board: str) -> list[str]:
    """What to say of a board that tells the lens, but not where the camera is."""
    try:
        Board.parse(board).for_poses()
    except CalibrationError as e:
        return [f"this board does for the lens, hand-eye needs another description: {e}"]
    return []


@dataclass(frozen=True)
class _Beside:
    """A new lens beside the calibration in use: why it is no better, px float64[grid] by which both lenses differ (None
    where they cannot be compared), and what the new record takes over."""

    mount: str
    parents: tuple[str, ...] = ()
    difference: np.ndarray | None = None
    refused: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    pose: dict[str, Any] | None = None  # by its key in a result, where it still holds
    pose_quality: dict[str, float] | None = None


def _beside_stored(store: Store, name: str, done: Calibration, mount: str | None) -> _Beside:
    old = current(store, name)
    if old is None:
        return _Beside(mount or "base")
    parents = (store.current_hash(name) or "",)
    mount = mount or old["identity"].get("mount") or "base"
    camera, fit = camera_of(old), done.fit
    if (camera.width, camera.height) != fit.size:
        return _Beside(mount, parents)
    theta, model = theta_of(camera)
    pixels, _ = lens.grid(*fit.size)
    difference = lens.difference(theta, fit.theta, model, fit.model, pixels, done.used)
    stored, new = heldout_rms(theta, model, fit.on_true_board(fit.views), fit.sigma), done.heldout
    refused: tuple[str, ...] = ()
    if stored < new * 1.001:
        why = f"better ({stored:.3f} px) than the new one held out ({new:.3f} px)"
        refused = (f"the stored calibration explains these views {why}",)
    said = (f"stored lens on these views: {stored:.3f} px, new one held out: {new:.3f} px",)
    # The pose was found through the stored lens: it holds where both lenses agree and the camera has the same mount.
    pose = old["result"].get(POSE_KEYS[mount])
    if pose is None or float(np.nanmedian(difference[done.used])) >= SAME_LENS_PX:
        return _Beside(mount, parents, difference, refused, said)
    quality = {k: v for k, v in old["uncertainty"].items() if k.startswith(("pose_sd_", "halves_"))}
    return _Beside(mount, parents, difference, refused, said, {POSE_KEYS[mount]: pose}, quality)


def _put(
    store: Store,
    camera: Camera,
    done: Calibration,
    beside: _Beside,
    views: list[View],
    board: str,
    identity: dict[str, Any],
) -> str:
    """Store the camera and put it to use; returns the record's hash."""
    known = {k: v for k, v in identity.items() if v is not None}
    digest = store.put(
        new_record(
            "camera",
            camera.name,
            {**camera.to_json(), **(beside.pose or {})},
            identity={**known, "width": camera.width, "height": camera.height, "mount": beside.mount},
            parents=list(beside.parents),
            uncertainty={**done.quality(), **(beside.pose_quality or {})},
            evidence={
                "board": board,
                "views": [
                    {"name": v.name, "points": v.points.tolist(), "pixels": np.round(v.pixels, 4).tolist()}
                    for v in views
                ],
            },
        )
    )
    store.set_current(camera.name, digest, "intrinsics")
    return digest
