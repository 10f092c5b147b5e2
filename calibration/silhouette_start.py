"""Where a camera may stand, from masks of an arm alone: places on the half sphere over the table are tried in turn.

For each place and focal length the camera's rotation follows in closed form from the rays to the middles of the masks
and the middles of the arm (Kabsch 1976); the best by the overlap of filled outlines with the masks are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from calibration import lens
from calibration.silhouette_fit import Problem
from calibration.silhouettes import State, fill, pixels, vertices
from calibration.transforms import distance

AZIMUTHS, ELEVATIONS, DISTANCES = 24, (8, 20, 32, 45, 58, 72), (0.35, 0.48, 0.65, 0.88, 1.2)
ANGLES = (42.0, 52.0, 62.0, 74.0, 88.0)  # horizontal field of view, degrees
MIDDLE = np.array([0.2, 0.0, 0.1])  # m; what places are counted from
FRAMES, TRIED, KEPT = 12, 500, 6
SMALL = (80, 60)
APART_M, APART_DEG = 0.06, 6.0  # of places that are kept


def focal_lengths(width: int) -> list[float]:
    return [width / 2 / float(np.tan(np.radians(a) / 2)) for a in ANGLES]


def _places() -> np.ndarray:
    a, e, d = np.meshgrid(np.arange(AZIMUTHS) * 2 * np.pi / AZIMUTHS, np.radians(ELEVATIONS), DISTANCES, indexing="ij")
    on = np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], -1) * d[..., None]
    return MIDDLE + on.reshape(-1, 3)


def _rotations(rays: np.ndarray, ways: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R_cam_from_base float64[P,3,3] that turn ways float64[P,n,3] onto rays float64[n,3], and the mean cosine."""
    U, _, Vt = np.linalg.svd(np.einsum("ni,pnj->pij", rays, ways))
    U[:, :, 2] *= np.sign(np.linalg.det(U @ Vt))[:, None]
    R = U @ Vt
    return R, np.einsum("ni,pij,pnj->p", rays, R, ways) / len(rays)


def candidates(p: Problem, thetas: Sequence[np.ndarray]) -> list[State]:
    """Up to `KEPT` states of the camera, the best overlap first, for each of the lenses `thetas`."""
    p = dataclasses.replace(p, shapes=p.shapes.coarse())
    arm, shapes = p.arm, p.shapes
    q, inside = p.seen.q, p.seen.distance < 0
    area = inside.mean((1, 2))
    chosen = np.flatnonzero(area > 0.25 * np.median(area))[:FRAMES]
    at = vertices(shapes, arm, q[chosen])
    moving = shapes.of_vertex > arm.PAN
    middles = 0.5 * (at[:, moving].min(1) + at[:, moving].max(1))
    spots = np.array([np.argwhere(m).mean(0)[::-1] for m in inside[chosen]])
    places = _places()
    ways = middles[None] - places[:, None]
    ways /= np.linalg.norm(ways, axis=-1, keepdims=True)
    found: list[tuple[float, State]] = []
    for theta in thetas:
        rays, _ = lens.unproject(spots, theta, p.model)
        R, cosine = _rotations(rays, ways)
        for k in range(len(places)):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = R[k], -R[k] @ places[k]
            found.append(
                (float(np.arccos(np.clip(cosine[k], -1, 1)) * theta[0]), State(pose, theta, np.zeros(q.shape[1])))
            )
    found = sorted(found, key=lambda f: f[0])[:TRIED]
    small = np.stack([cv2.resize(m.astype(np.uint8), SMALL, interpolation=cv2.INTER_AREA) for m in inside[chosen]])
    scored = sorted(((_overlap(p, s, at, small), k) for k, (_, s) in enumerate(found)), reverse=True)
    kept: list[State] = []
    for _, k in scored:
        state = found[k][1]
        near = (distance(state.pose, other.pose) for other in kept)
        if all(metres > APART_M or degrees > APART_DEG for degrees, metres in near):
            kept.append(state)
        if len(kept) == KEPT:
            break
    return kept


def _overlap(p: Problem, state: State, at: np.ndarray, small: np.ndarray) -> float:
    """Mean intersection over union of the filled arm with masks uint8[n,60,80]."""
    uv = pixels(at, state, p.model) * (SMALL[0] / p.size[0], SMALL[1] / p.size[1])
    shares, solids = [], np.flatnonzero(p.shapes.link > p.arm.PAN)
    for n in range(len(small)):
        picture = np.zeros(small.shape[1:], np.uint8)
        fill(picture, uv[n].astype(np.float32), p.shapes, solids)
        both = np.count_nonzero(picture & small[n])
        shares.append(both / max(np.count_nonzero(picture | small[n]), 1))
    return float(np.mean(shares))
