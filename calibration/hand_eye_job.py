"""The calibration of a camera's pose as a job: views in, record in the store and report out. No terminal, no robot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import hand_eye, lens, report
from calibration.camera import Camera
from calibration.hand_eye import HandEye
from calibration.records import camera_of, pose_of, theta_of
from calibration.store import Store, new_record
from calibration.transforms import distance, inverse, log
from calibration.views import ArmNoise, ArmView, Forward

SAME_POSE = 12.6  # squared distance in standard deviations: 95 % of chi-square with six degrees of freedom


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
    """Solve, store and report: the lens of the record `old` with a new pose. Returns the JSON of `calibrate hand-eye`
    with "accepted", "hash" and "said" (lines for people). `joints`: the arm's, () where its poses come from no joint
    angles. Raises CalibrationError; the stored calibration is untouched then."""
    camera = camera_of(old)
    theta, model = theta_of(camera)
    sigma = max(float(old["uncertainty"].get("corner_noise_px", 0.15)), 0.05)
    h, halves = hand_eye.calibrate(mount, views, theta, model, forward, noise, sigma, joints)
    was = pose_of(camera, mount)
    moved = None if was is None else distance(was, h.X)
    refused = [] if was is None else _no_better(h, was, old["uncertainty"])
    good = [v for v in views if v.name in h.kept]
    report.hand_eye_page(page, name, h, halves, moved, _maps(camera, h, good, was, forward), refused, joints)
    arms = [{"q": v.q.tolist()} if joints else {"T_base_from_tool": forward(v.q).tolist()} for v in views]
    digest = None if dry_run or refused else _put(store, name, old, h, halves, views, arms, board)
    degrees, metres = h.sd
    out: dict[str, Any] = {
        "X": h.X.tolist(),
        "mount": mount,
        "sd_mm": 1000 * metres,
        "sd_deg": degrees,
        **halves,
        "poses_used": len(h.kept),
        "poses_rejected": [{"pose": v, "reason": r} for v, r in h.rejected],
        "joint_offsets_deg": np.degrees(h.offsets).tolist() if joints else [],
        "joint_offsets_sd_deg": np.degrees(h.offsets_sd).tolist() if joints else [],
        "pixel_rms": h.pixel_rms,
        "report": str(page),
        "hash": digest,
        "accepted": not refused,
        "refused": refused,
    }
    if moved is not None:
        out.update(moved_deg=moved[0], moved_mm=1000 * moved[1])
    place = ", ".join(f"{v:.3f}" for v in h.X[:3, 3])
    out["said"] = [
        *(f"left out: {v}: {r}" for v, r in h.rejected),
        f"camera at {place} m, standard deviation {1000 * metres:.1f} mm and {degrees:.2f} degrees",
        f"halves differ by {halves['halves_mm']:.1f} mm and {halves['halves_deg']:.2f} degrees",
        *(f"kept the stored pose: {why}" for why in refused),
        *([f"stored as {digest[:10]} in {store.root}"] if digest else []),
        f"report: {page}",
    ]
    return out


def _no_better(h: HandEye, was: np.ndarray, quality: dict[str, Any]) -> list[str]:
    """Why the stored pose `was` stays in use; empty where the new one replaces it."""
    if quality.get("pose_sd_mm", np.inf) > 1000 * h.sd[1]:
        return []
    d = log(inverse(h.X) @ was)
    same = float(d @ np.linalg.solve(h.covariance, d)) < SAME_POSE
    return ["it fits these views as well, and was known more exactly"] if same else []


def _maps(
    camera: Camera, h: HandEye, views: list[ArmView], was: np.ndarray | None, forward: Forward
) -> report.HandEyeMaps:
    """What the report draws of the `views` that were used; `was`: the stored pose."""
    theta, model = theta_of(camera)
    corners, residuals, depths, shifts = [], [], [], []
    for v in views:
        A = forward(v.q + h.offsets)
        T = inverse(h.X) @ (A if h.mount == "base" else inverse(A)) @ h.Z
        uv = _seen(v.points, T, theta, model)
        corners.append(v.pixels)
        depths.append(float(np.linalg.norm(T[:3, 3])))
        if was is not None:
            shifts.append(_seen(v.points, inverse(was) @ h.X @ T, theta, model) - uv)
        residuals.append(v.pixels - uv - np.median(v.pixels - uv, axis=0))
    pixels, grid = lens.grid(camera.width, camera.height)
    rays, seen = lens.unproject(pixels, theta, model)
    return report.HandEyeMaps(
        size=(camera.width, camera.height),
        views=tuple(
            (v.name, len(r), float(np.sqrt((r**2).sum(1).mean()))) for v, r in zip(views, residuals, strict=True)
        ),
        corners=np.concatenate(corners),
        residuals=np.concatenate(residuals),
        grid=grid,
        ray_sd_mm=np.where(seen, 1000 * h.ray_sd(rays, float(np.median(depths))), np.nan),
        shifts=np.concatenate(shifts) if shifts else None,
    )


def _seen(points: np.ndarray, T_cam_from_board: np.ndarray, theta: np.ndarray, model: str) -> np.ndarray:
    """Pixels float64[n,2] of board points float64[n,3]."""
    T = T_cam_from_board
    return lens.project(points, theta, model, cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]


def _put(
    store: Store,
    name: str,
    old: dict[str, Any],
    h: HandEye,
    halves: dict[str, float],
    views: list[ArmView],
    arms: list[dict[str, Any]],
    board: str,
) -> str:
    """Store the camera of the record `old` with the pose found and put it to use; returns the new record's hash.
    `arms`: where the arm was at each view."""
    pose, on_tool = (h.X, None) if h.mount == "base" else (None, h.X)
    camera = dataclasses.replace(camera_of(old), name=name, T_base_from_cam=pose, T_tool_from_cam=on_tool)
    quality = {k: v for k, v in old["uncertainty"].items() if k.endswith("_px")}
    current = store.current_hash(name)
    digest = store.put(
        new_record(
            "camera",
            name,
            camera.to_json(),
            identity={**old["identity"], "mount": h.mount},
            parents=[current] if current else [],
            uncertainty={**quality, "pose_sd_mm": 1000 * h.sd[1], "pose_sd_deg": h.sd[0], **halves},
            evidence={
                "board": board,
                "lens": current,
                "covariance": h.covariance.tolist(),
                "views": [
                    {
                        "name": v.name,
                        "points": v.points.tolist(),
                        "pixels": np.round(v.pixels, 4).tolist(),
                        **arm,
                    }
                    for v, arm in zip(views, arms, strict=True)
                ],
            },
        )
    )
    store.set_current(name, digest, "hand-eye")
    return digest
