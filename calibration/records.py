"""What the store's records mean: the camera in one, its lens, the one in use, and what changed between two."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibration import lens
from calibration.camera import CalibrationError, Camera
from calibration.store import Store
from calibration.transforms import distance

POSE_KEYS = {"base": "T_base_from_cam", "arm": "T_tool_from_cam"}  # of a camera record's result, by mount


def camera_of(record: dict[str, Any]) -> Camera:
    """The camera in a record. Raises CalibrationError where the record holds none."""
    return Camera.from_json(record["result"], record["name"])


def theta_of(camera: Camera) -> tuple[np.ndarray, str]:
    """A camera's lens as `calibration.lens` takes it: theta and model."""
    return lens.parameters(camera.K, camera.D, camera.model), camera.model


def pose_of(camera: Camera, mount: str) -> np.ndarray | None:
    """The pose float64[4,4] of a camera that is fixed to the base or rides on the arm; None where there is none yet."""
    return camera.T_base_from_cam if mount == "base" else camera.T_tool_from_cam


def current(store: Store, name: str) -> dict[str, Any] | None:
    """The record in use; None where there is none or it is damaged, which a new calibration mends."""
    try:
        return store.get(name, kind="camera")
    except CalibrationError:
        return None


def compare_records(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What changed from record `a` to `b` of one name: lines of text and numbers (units in their names). Raises
    CalibrationError where they are of different kinds."""
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
