"""How far a fitted lens can be trusted: what it was fitted to, its predicted uncertainty, and views that it has not
seen.

Uncertainty is propagated to pixels, with the rotation of the camera taken out (Kojima, mrcal: "projection
uncertainty").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.least_squares import Blocks, minimise
from calibration.lens_fit import Fit
from calibration.views import MIN_CORNERS, Size, View, first_pose


def used_area(views: Sequence[View], pixels: np.ndarray, size: Size) -> np.ndarray:
    """bool[n]: which of `pixels` float64[n,2] have a corner nearby (within a twelfth of the picture's width)."""
    corners = np.concatenate([v.pixels for v in views])
    near = np.zeros(len(pixels), bool)
    for k, p in enumerate(pixels):
        near[k] = ((corners - p) ** 2).sum(1).min() < (size[0] / 12) ** 2
    return near


def seen_rays(fit: Fit, pixels: np.ndarray) -> np.ndarray:
    """bool[n]: at which of `pixels` float64[n,2] the lens has a ray that is no farther from its axis than the farthest
    corner that it was fitted to. Beyond it a wide lens is extrapolated; near 90 degrees it has no ray in front."""
    corners = np.concatenate([v.pixels[k] for v, k in zip(fit.views, fit.inlier, strict=True)])
    known, has = lens.unproject(corners, fit.theta, fit.model)
    rays, good = lens.unproject(pixels, fit.theta, fit.model)
    farthest = float(known[has, 2].min(initial=1.0))  # rays have length 1: z is the cosine of the angle
    return np.asarray(good & (rays[:, 2] >= farthest) & (rays[:, 2] > lens.FORWARD))


def projection_sd(fit: Fit, pixels: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Predicted standard deviation float64[n] (px, both axes together) of where the lens sends the rays of `pixels`
    float64[n,2], after the rotation of the camera that fits the `used` ones (bool[n]) best; NaN where the lens has no
    ray."""
    rays, good = lens.unproject(pixels, fit.theta, fit.model)
    good &= rays[:, 2] > lens.FORWARD
    p = rays / np.where(good, rays[:, 2], 1.0)[:, None]
    A = lens.project(p, fit.theta, fit.model)[1]
    G = lens.rotation_jacobian(np.where(good[:, None], rays, [0, 0, 1.0]), fit.theta, fit.model)
    fitted = (good & used).nonzero()[0]
    g, a = G[fitted].reshape(-1, 3), A[fitted].reshape(-1, A.shape[-1])
    absorbed = np.linalg.solve(g.T @ g, g.T @ a)
    B = A - G @ absorbed
    # The larger of both covariances: corners of one picture err alike, and `covariance` alone promises a fifth too much
    # (docs/calibration.md).
    each = [np.einsum("nij,jk,nik->n", B, c, B) for c in (fit.covariance, fit.clustered)]
    variance = np.maximum(*each)
    return np.where(good, np.sqrt(np.maximum(variance, 0)), np.nan)


@dataclass(frozen=True)
class _PoseTerms:
    """Residual float64[n,2] (px) of one view's corners, and the pixel's derivatives by the pose float64[n,2,6]."""

    residual: np.ndarray
    by_pose: np.ndarray


@dataclass(frozen=True)
class _PoseProblem:
    """Squared residuals (px) of one view under a known lens, over its pose float64[6] (rvec, tvec) alone."""

    view: View
    theta: np.ndarray
    model: str

    def cost(self, state: np.ndarray) -> tuple[float, _PoseTerms]:
        uv, _, by_pose = lens.project(self.view.points, self.theta, self.model, state[:3], state[3:])
        residual = self.view.pixels - uv
        return float((residual**2).sum()), _PoseTerms(residual, by_pose)

    def blocks(self, state: np.ndarray, terms: _PoseTerms) -> Blocks:
        J = terms.by_pose.reshape(-1, 6)
        own = J.T @ J
        own += 1e-12 * (1 + np.trace(own)) * np.eye(6)  # a pose that the corners leave free stays where it is
        gradient = J.T @ terms.residual.ravel()
        return Blocks(np.zeros((0, 0)), np.zeros(0), own[None], gradient[None], np.zeros((1, 0, 6)))

    def moved(self, state: np.ndarray, shared: np.ndarray, own: np.ndarray) -> np.ndarray | None:
        return np.asarray(state + own[0])


def heldout_rms(theta: np.ndarray, model: str, views: Sequence[View], sigma: float | None = None) -> float:
    """RMS (px) of views that the lens was not fitted to; only their poses are. With the corner noise `sigma` (px),
    corners that are off by more than 10 sigma do not count."""
    total, count = 0.0, 0
    for v in views:
        # Least squares in pixels; the first pose is the best on the normalised plane.
        found = minimise(_PoseProblem(v, theta, model), first_pose(v, theta, model), rounds=30, tolerance=1e-9)
        r = np.linalg.norm(found.terms.residual, axis=1)
        if sigma is not None:
            r = r[r < 10 * sigma] if (r < 10 * sigma).sum() >= 4 else r
        total, count = total + float((r**2).sum()), count + len(r)
    return float(np.sqrt(total / max(count, 1)))


def screen(views: Sequence[View], size: Size) -> tuple[list[View], list[tuple[str, str]]]:
    """Leave out views that cannot help: too few corners, or nearly the same picture as another. Returns the others,
    and (name, reason) of those left out."""
    kept: list[View] = []
    rejected = []
    for v in views:
        if len(v.pixels) < MIN_CORNERS:
            rejected.append((v.name, f"fewer than {MIN_CORNERS} corners (partly hidden or blurred)"))
            continue
        if np.linalg.matrix_rank(v.points[:, :2] - v.points[:, :2].mean(0)) < 2:
            rejected.append((v.name, "all corners lie on one line (the rest of the board is hidden)"))
            continue
        twin = next((k for k in kept if _same(k, v, size)), None)
        if twin is not None:
            rejected.append((v.name, f"duplicate of {twin.name}"))
            continue
        kept.append(v)
    return kept, rejected


def _same(a: View, b: View, size: Size) -> bool:
    """Whether two views show the board in the same place, to 0.4 % of the picture's width."""
    common = (np.abs(a.points[:, None, :2] - b.points[None, :, :2]).max(-1) < 1e-6).nonzero()
    if len(common[0]) < 6:
        return False
    moved = np.linalg.norm(a.pixels[common[0]] - b.pixels[common[1]], axis=1)
    return bool(np.median(moved) < 0.004 * size[0])


def tilt_spread(poses: np.ndarray) -> float:
    """Largest angle (deg) between the normals of two boards, `poses` float64[views,6] (rvec, tvec). Without tilt the
    focal length cannot be told from the distance."""
    normals = np.array([cv2.Rodrigues(p[:3])[0][:, 2] for p in poses])
    return float(np.degrees(np.arccos(np.clip((normals @ normals.T).min(), -1, 1))))
