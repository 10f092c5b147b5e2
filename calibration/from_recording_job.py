"""What `calibrate from-recording` leaves: the record in the store, and the pictures with outlines. No terminal."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from calibration.from_recording import Found
from calibration.store import Store, new_record, write_result


def write_overlays(folder: Path, name: str, found: Found) -> list[Path]:
    """The overlay pictures as PNG; returns their paths. Raises CalibrationError where one cannot be written."""
    out = []
    for k, picture in enumerate(found.overlays):
        path = folder / f"{name}-{k}.png"
        write_result(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        out.append(path)
    return out


def put(store: Store, name: str, found: Found, recording: str) -> str:
    """Store an accepted result and put it to use; returns the record's hash. `recording`: the dataset's name."""
    if found.refused:
        raise ValueError("a refused result is not stored")
    known = store.known_hash(name)
    told = np.isfinite(found.zeros_sd)
    digest = store.put(
        new_record(
            "camera",
            name,
            found.camera.to_json(),
            identity={"width": found.camera.width, "height": found.camera.height, "mount": "base"},
            parents=[known] if known else [],
            uncertainty={
                "pose_sd_mm": found.position_sd_mm,
                "pose_sd_deg": found.angle_sd_deg,
                "heldout_px": found.heldout_px,
            },
            evidence={
                "recording": recording,
                "inliers": found.inliers,
                "focal_sd": found.focal_sd,
                "zeros_rad": [float(v) if k else None for v, k in zip(found.zeros, told, strict=True)],
                "zeros_sd_rad": [float(v) if k else None for v, k in zip(found.zeros_sd, told, strict=True)],
            },
        )
    )
    store.set_current(name, digest, "from recording")
    return digest
