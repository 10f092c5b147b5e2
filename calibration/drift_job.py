"""The drift check as jobs: learn a reference into the store, judge pictures against it and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from calibration import report
from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.check import FRAMES, Reference, check, learn
from calibration.store import Store, new_record


def run_learn(
    store: Store,
    name: str,
    frames: list[np.ndarray],
    board: Board,
    arm: list[np.ndarray] | None,
    arm_board: Board | None,
) -> dict[str, Any]:
    """Learn the drift reference of the calibration in use and store it beside that. `frames`: pictures of the fixed
    marker `board`; `arm`: of the arm's marker `arm_board`, one after each return to rest. Raises CalibrationError."""
    camera = store.get(name, kind="camera")
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
            f"calibrate check --camera {name} --learn`."
        )
    return Reference.from_json(record["result"])


def run_check(
    store: Store, name: str, frames: list[np.ndarray], arm: list[np.ndarray] | None, page: Path
) -> dict[str, Any]:
    """Compare pictures with the stored reference, and report. Raises CalibrationError where they cannot be compared."""
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
