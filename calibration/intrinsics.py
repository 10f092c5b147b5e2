"""Intrinsics from pictures of a board: robust bundle adjustment, its covariance, and cross-validation.

The camera's parameters, one pose a view and the true places of the board's corners are fitted by Levenberg-Marquardt;
poses are eliminated block by block (Schur complement), so that 100 views take seconds. No sheet is printed and glued
exactly: on OpenCV's sample images the corners are 0.08 mm off, seen alike by both cameras; taken as exact, such a board
doubles the error of the projection, and one that is bowed by 0.5 mm makes it thirty times as large
(docs/calibration.md; Strobl and Hirzinger 2011). How far corners stray is itself estimated, so that an exact board
stays exact. Corners that disagree are weighed down (Huber), then left out. Weak priors say what any camera is like
(square pixels, principal point near the middle, small coefficients): data overrule them wherever there are data, and
they keep the lens tame where there are none. Uncertainty is propagated to pixels, rotation of the camera apart (Kojima,
mrcal: "projection uncertainty"); a fit is judged by held-out views and by two halves, never by its own RMS.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.camera import CalibrationError

MIN_VIEWS, MIN_CORNERS = 8, 8
HUBER = 1.5  # standard deviations
REJECT = 4.0  # standard deviations: beyond, a corner is left out
BAD_VIEW = 3.0  # a view whose corners are so many times worse than the median view's is left out
STRAY = (1e-6, 2e-3, 2e-2)  # of the board's diagonal: how far its corners stray at least, as a first guess, and at most


@dataclass(frozen=True)
class View:
    """One picture's corners: board points float64[n,3] (m), pixels float64[n,2], and the picture's name."""

    name: str
    points: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Result of one adjustment. `theta` and its covariance, `poses` float64[views,6] (rvec, tvec), residuals px a view,
    `inlier` bool a view's corner, `sigma` px: the noise of one coordinate of one corner."""

    model: str
    size: tuple[int, int]
    theta: np.ndarray
    covariance: np.ndarray
    poses: np.ndarray
    views: tuple[View, ...]
    residuals: tuple[np.ndarray, ...]
    inlier: tuple[np.ndarray, ...]
    sigma: float
    clustered: np.ndarray  # covariance of theta by views
    corners: np.ndarray  # float64[m,3] the board's corners as described, m
    shape: (
        np.ndarray
    )  # float64[m,3] how far each is from there in truth, m (next to nothing for a board that was taken as exact)
    stray: np.ndarray  # float64[3] standard deviation of that by axis, m

    @property
    def rms(self) -> float:
        r = np.concatenate([r[k] for r, k in zip(self.residuals, self.inlier, strict=True)])
        return float(np.sqrt((r**2).sum(1).mean()))

    def on_true_board(self, views: list[View] | tuple[View, ...]) -> list[View]:
        """The same views with the board's corners where this fit found them; a corner that it has not seen stays as
        described."""
        out = []
        for v in views:
            far = np.linalg.norm(v.points[:, None] - self.corners, axis=2)
            shape = np.where(far.min(1)[:, None] < 1e-6, self.shape[far.argmin(1)], 0.0)
            out.append(View(v.name, v.points + shape, v.pixels))
        return out


@dataclass(frozen=True)
class Calibration:
    """A fit with what is needed to trust it (px)."""

    fit: Fit
    rejected: tuple[tuple[str, str], ...]
    heldout: float  # RMS of views that the fit has not seen
    crossval: np.ndarray  # [grid] difference of two halves
    predicted: np.ndarray  # [grid] standard deviation of the projection
    used: np.ndarray  # bool[grid] where there were corners
    grid: tuple[int, int]

    def quality(self) -> dict[str, float]:
        v = self.crossval[self.used & np.isfinite(self.crossval)]
        u = self.predicted[self.used]
        return {
            "rms_px": self.fit.rms,
            "heldout_px": self.heldout,
            "crossval_median_px": float(np.median(v)),
            "crossval_p90_px": float(np.quantile(v, 0.9)),
            "uncertainty_median_px": float(np.median(u)),
            "uncertainty_p90_px": float(np.quantile(u, 0.9)),
            "corner_noise_px": self.fit.sigma,
            "board_rms_mm": 1000 * float(np.sqrt((self.fit.shape**2).sum(1).mean())),
        }

    def verdict(self) -> list[str]:
        """Why this must not be used; empty when it may be."""
        q = self.quality()
        out = []
        if q["rms_px"] > 1.0:
            out.append(f"RMS is {q['rms_px']:.2f} px (at most 1): pictures are blurred or the board is bent")
        if q["heldout_px"] > 1.5 * q["rms_px"] + 0.1:
            out.append(
                f"views left out fit much worse ({q['heldout_px']:.2f} px) than those used ({q['rms_px']:.2f} px)"
            )
        if q["crossval_median_px"] > 0.3 or q["crossval_p90_px"] > 1.0:
            out.append(
                f"two halves of the views disagree by {q['crossval_median_px']:.2f} px (90 %: "
                f"{q['crossval_p90_px']:.2f}; "
                "at most 0.30 and 1.00): take more, closer and more tilted views"
            )
        return out


def _prior(model: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and standard deviation of theta (0: free), and of fx/fy - 1."""
    width, height = size
    mean = np.concatenate([[0, 0, (width - 1) / 2, (height - 1) / 2], np.zeros(lens.COEFFICIENTS[model])])
    spread = {
        "pinhole": [0.5, 0.5, 0.003, 0.003, 0.3],
        "rational": [0.5, 0.5, 0.003, 0.003, 0.3, 0.3, 0.3, 0.3],
        "fisheye": [0.3, 0.2, 0.1, 0.1],
    }[model]
    return mean, np.array([0, 0, 0.04 * width, 0.04 * width, *spread]), 0.01


def _start(views: list[View], size: tuple[int, int], model: str) -> tuple[np.ndarray, np.ndarray]:
    """First theta and poses: the focal length whose perspective poses fit best, no distortion."""
    width, height = size
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    D = np.zeros(lens.COEFFICIENTS[model])
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    candidates = [0.35, 0.5, 0.7, 1.0, 1.4, 2.0]
    if model != "fisheye":
        K0 = cv2.initCameraMatrix2D(
            [v.points.astype(np.float32) for v in views], [v.pixels.astype(np.float32) for v in views], size, 1.0
        )
        if 0.3 < K0[0, 0] / width < 10:
            candidates.append(float(K0[0, 0] / width))
    sample = views[:: max(1, len(views) // 12)]
    for f in candidates:
        theta = np.concatenate([[f * width, f * width, *centre], D])
        poses = np.array([_pose(v, theta, model) for v in sample])
        e = [
            np.linalg.norm(v.pixels - lens.project(v.points, theta, model, p[:3], p[3:])[0], axis=1).mean()
            for v, p in zip(sample, poses)
        ]
        error = float(np.median(e))
        if best is None or error < best[0]:
            best = (error, theta, poses)
    assert best is not None
    return best[1], np.array([_pose(v, best[1], model) for v in views])


def _pose(view: View, theta: np.ndarray, model: str) -> np.ndarray:
    """(rvec, tvec) float64[6] of a planar board under a known lens; the better of the plane's two solutions."""
    rays, good = lens.unproject(view.pixels, theta, model)
    good &= rays[:, 2] > 0.05
    if good.sum() < 4:
        return np.array([0, 0, 0, 0, 0, 1.0])
    xy = rays[good, :2] / rays[good, 2:]
    ok, rvecs, tvecs, _ = cv2.solvePnPGeneric(view.points[good], xy, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not ok or not np.isfinite(tvecs[0]).all():
        return np.array([0, 0, 0, 0, 0, 1.0])
    r, t = cv2.solvePnPRefineLM(view.points[good], xy, np.eye(3), None, rvecs[0], tvecs[0])
    return np.concatenate([r.ravel(), t.ravel()])


@dataclass
class _State:
    """What is fitted: `theta`, `poses` float64[views,6], `shape` float64[m,3] (m, deviations of the board's
    corners)."""

    theta: np.ndarray
    poses: np.ndarray
    shape: np.ndarray


@dataclass(frozen=True)
class _Known:
    """What is given: the views, each view's corners as rows of `shape`, which are used, the corner noise (px), and the
    standard deviation of `shape` by axis float64[3] (m)."""

    views: list[View]
    index: list[np.ndarray]
    inlier: list[np.ndarray]
    size: tuple[int, int]
    model: str
    sigma: float
    stray: np.ndarray


@dataclass(frozen=True)
class _Fitted:
    """A minimum: residuals px, derivatives and weights by view, the normal matrix [n+3m,n+3m] of theta and shape with
    the poses eliminated, and by view what takes the poses out of a gradient, [views,n+3m,6]."""

    state: _State
    residuals: list[np.ndarray]
    parts: list[tuple[np.ndarray, ...]]
    normal: np.ndarray
    through_pose: np.ndarray


def adjust(
    views: list[View],
    size: tuple[int, int],
    model: str = "rational",
    start: Fit | None = None,
    exact_board: bool = False,
) -> Fit:
    """Bundle adjustment of one lens, a pose for each view, and (unless `exact_board`) the board's shape.

    `start`: a fit of other views, or of more, by the same model; it saves time and changes nothing but the starting
    point. Raises CalibrationError when it does not settle."""
    corners, rows = np.unique(np.round(np.concatenate([v.points for v in views]), 7), axis=0, return_inverse=True)
    index = np.split(np.ravel(rows), np.cumsum([len(v.points) for v in views])[:-1])
    inlier = [np.ones(len(v.pixels), bool) for v in views]
    diagonal = float(np.linalg.norm(np.ptp(corners, axis=0)))
    least, guess, most = (s * diagonal for s in STRAY)
    stray = np.full(3, least)
    shape = np.zeros_like(corners)
    if start is None:
        theta, poses = _start(views, size, "pinhole" if model == "rational" else model)
        if model == "rational":  # walk up: five coefficients first, then eight
            known = _Known(views, index, inlier, size, "pinhole", 1.0, stray)
            rough = _levenberg(known, _State(theta, poses, shape)).state
            theta, poses = np.concatenate([rough.theta, np.zeros(3)]), rough.poses
    else:
        known_poses = {id(v): p for v, p in zip(start.views, start.poses, strict=True)}
        theta, stray = start.theta.copy(), start.stray.copy()
        poses = np.array([known_poses[id(v)] if id(v) in known_poses else _pose(v, theta, model) for v in views])
    state, sigma, n = _State(theta, poses, shape), 1.0 if start is None else start.sigma, len(theta)
    fitted: _Fitted
    for k in range(8):
        fitted = _levenberg(_Known(views, index, inlier, size, model, sigma, stray), state)
        state = fitted.state
        variances = np.diag(np.linalg.inv(fitted.normal))[n:].reshape(-1, 3)
        # How many of the shape's numbers the data have determined (MacKay 1992): they stray by as much as those do.
        determined = np.maximum((1 - variances / stray**2).sum(0), 1e-3)
        used = np.concatenate([r[k].ravel() for r, k in zip(fitted.residuals, inlier, strict=True)])
        dof = max(1.0, len(used) - 6 * len(views) - n - float(determined.sum()))
        spread = 1.4826 * np.median(np.abs(used)) * np.sqrt(len(used) / dof)
        new = [np.linalg.norm(r, axis=1) < REJECT * 1.5 * spread for r in fitted.residuals]
        settled = all((a == b).all() for a, b in zip(new, inlier, strict=True)) and abs(spread / sigma - 1) < 0.05
        if not exact_board:
            before = stray
            found = np.sqrt((state.shape**2).sum(0) / determined)
            # The noise is not known in the first round of a new fit, and nothing else can be told from it.
            stray = np.full(3, guess) if k == 0 and start is None else np.clip(found, least, most)
            settled &= bool((np.abs(np.log(stray / before)) < 0.35).all())  # the spread of a prior: roughly will do
        sigma, inlier = max(spread, 1e-3), new
        if settled:
            break
    used = np.concatenate([r[k].ravel() for r, k in zip(fitted.residuals, inlier, strict=True)])
    chi = float(np.sqrt((used**2).sum() / max(1.0, len(used) - 6 * len(views) - n - float(determined.sum()))))
    if not np.isfinite(state.theta).all() or not (0.1 < state.theta[0] / size[0] < 30):
        raise CalibrationError(
            "the calibration does not settle: check the board's description, and take more tilted views."
        )
    inverse = np.linalg.inv(fitted.normal)
    covariance = inverse[:n, :n] * (chi / sigma) ** 2
    return Fit(
        model,
        size,
        state.theta,
        covariance,
        state.poses,
        tuple(views),
        tuple(fitted.residuals),
        tuple(inlier),
        chi,
        _clustered(fitted, index, inverse, n),
        corners,
        state.shape,
        stray,
    )


def _levenberg(known: _Known, state: _State, rounds: int = 60) -> _Fitted:
    """Minimise Huber(residual / sigma) + priors over theta, poses and shape, from `state`."""
    mean, spread, aspect = _prior(known.model, known.size)
    n, m = len(state.theta), len(state.shape)
    weak = np.concatenate(
        [np.where(spread > 0, 1 / np.where(spread > 0, spread, 1) ** 2, 0.0), np.tile(1 / known.stray**2, m)]
    )
    mean = np.concatenate([mean, np.zeros(3 * m)])

    def cost_of(s: _State) -> tuple[float, list[np.ndarray], list[tuple[np.ndarray, ...]]]:
        total = float((weak * (_vector(s) - mean) ** 2).sum() + ((s.theta[0] / s.theta[1] - 1) / aspect) ** 2)
        residuals: list[np.ndarray] = []
        parts: list[tuple[np.ndarray, ...]] = []
        for v, at, p, keep in zip(known.views, known.index, s.poses, known.inlier, strict=True):
            uv, j_theta, j_pose = lens.project(v.points + s.shape[at], s.theta, known.model, p[:3], p[3:])
            r = v.pixels - uv
            size_r = np.linalg.norm(r, axis=1) / known.sigma
            w = np.where(size_r > HUBER * 1.5, HUBER * 1.5 / np.maximum(size_r, 1e-12), 1.0)
            total += float((np.where(w < 1, 2 * HUBER * 1.5 * size_r - (HUBER * 1.5) ** 2, size_r**2) * keep).sum())
            residuals.append(r)
            j_shape = j_pose[..., 3:] @ cv2.Rodrigues(p[:3])[0]
            parts.append((j_theta, j_pose, j_shape, w * keep / known.sigma**2))
        return total, residuals, parts

    def blocks_of(
        residuals: list[np.ndarray], parts: list[tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Normal matrix and gradient of theta and shape; a view's pose block [6,6], its coupling [n+3m,6] and gradient
        [6]."""
        A, g = np.diag(weak), weak * (mean - _vector(state))
        ratio = np.array([1 / state.theta[1], -state.theta[0] / state.theta[1] ** 2])
        A[:2, :2] += np.outer(ratio, ratio) / aspect**2
        g[:2] -= ratio * (state.theta[0] / state.theta[1] - 1) / aspect**2
        P, C, h = np.zeros((len(parts), 6, 6)), np.zeros((len(parts), n + 3 * m, 6)), np.zeros((len(parts), 6))
        for k, (r, (jt, jp, js, w), at) in enumerate(zip(residuals, parts, known.index, strict=True)):
            columns = n + 3 * at[:, None] + np.arange(3)  # each corner moves with three numbers of its own
            wt, wp, ws, e = jt * w[:, None, None], jp * w[:, None, None], js * w[:, None, None], r.ravel()
            A[:n, :n] += wt.reshape(-1, n).T @ jt.reshape(-1, n)
            cross = np.einsum("kij,kil->kjl", ws, jt)
            A[columns, :n] += cross
            A[:n, columns] += cross.transpose(2, 0, 1)
            A[columns[:, :, None], columns[:, None, :]] += np.einsum("kij,kil->kjl", ws, js)
            g[:n] += wt.reshape(-1, n).T @ e
            g[columns] += np.einsum("kij,ki->kj", ws, r)
            P[k], h[k] = wp.reshape(-1, 6).T @ jp.reshape(-1, 6), wp.reshape(-1, 6).T @ e
            C[k, :n] = wt.reshape(-1, n).T @ jp.reshape(-1, 6)
            C[k, columns] = np.einsum("kij,kil->kjl", ws, jp)
        return A, g, P, C, h

    cost, residuals, parts = cost_of(state)
    damping = 1e-4
    for _ in range(rounds):
        A, g, P, C, h = blocks_of(residuals, parts)
        improved = False
        for _ in range(8):
            inverses = _inverse(P * (1 + damping * np.eye(6)))
            CP = C @ inverses
            S = A + damping * np.diag(np.diag(A)) - np.concatenate(CP, 1) @ np.concatenate(C, 1).T
            step = np.linalg.solve(S, g - np.einsum("vij,vj->i", CP, h))
            moves = np.einsum("vij,vj->vi", inverses, h - np.einsum("vij,i->vj", C, step))
            if state.theta[0] + step[0] > 1 and state.theta[1] + step[1] > 1:
                new = _State(state.theta + step[:n], state.poses + moves, state.shape + step[n:].reshape(-1, 3))
                new_cost, new_residuals, new_parts = cost_of(new)
                if np.isfinite(new_cost) and new_cost <= cost:
                    improved = cost - new_cost > 1e-7 * cost
                    state, cost, residuals, parts = new, new_cost, new_residuals, new_parts
                    damping = max(damping / 10, 1e-10)
                    break
            damping = min(damping * 10, 1e6)
        if not improved:
            break
    A, _, P, C, _ = blocks_of(residuals, parts)
    CP = C @ _inverse(P)
    return _Fitted(state, residuals, parts, A - np.concatenate(CP, 1) @ np.concatenate(C, 1).T, CP)


def _inverse(P: np.ndarray) -> np.ndarray:
    """Of normal matrices [...,6,6]; finite for a view that has lost so many corners that its pose is free."""
    trace = np.trace(P, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.inv(P + 1e-12 * (1 + trace) * np.eye(6))


def _vector(state: _State) -> np.ndarray:
    return np.concatenate([state.theta, state.shape.ravel()])


def _clustered(fitted: _Fitted, index: list[np.ndarray], inverse: np.ndarray, n: int) -> np.ndarray:
    """Covariance [n,n] of theta from what the views say, each taken as a whole (Liang and Zeger 1986): corners of one
    picture err alike, which the residuals' size alone does not show. Corrected for what the fit itself takes out of the
    scores."""
    scores, data, taken = [], np.zeros((n, n)), np.zeros((n, n))
    for r, (jt, jp, js, w), at, out in zip(fitted.residuals, fitted.parts, index, fitted.through_pose, strict=True):
        full = np.zeros((len(r), 2, len(inverse)))
        full[..., :n] = jt
        full[np.arange(len(r))[:, None, None], np.arange(2)[:, None], n + 3 * at[:, None, None] + np.arange(3)] = js
        free = full.reshape(-1, len(inverse)) - jp.reshape(-1, 6) @ out.T
        weighted = free * np.repeat(w, 2)[:, None]
        scores.append(weighted.T @ r.ravel())
        through = weighted.T @ (free @ inverse[:, :n])  # this view's information on its way to theta
        data += inverse[:n] @ through
        taken += through.T @ inverse @ through
    precision = np.linalg.inv(inverse[:n, :n])
    whole, lost = float(np.trace(precision @ data)), float(np.trace(precision @ taken))
    influence = np.array(scores) @ inverse[:, :n]
    return influence.T @ influence * (whole / max(whole - lost, 0.2 * whole))


def used_area(views: tuple[View, ...] | list[View], pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool[n]: grid pixels with a corner nearby (a twelfth of the width)."""
    corners = np.concatenate([v.pixels for v in views])
    near = np.zeros(len(pixels), bool)
    for k, p in enumerate(pixels):
        near[k] = ((corners - p) ** 2).sum(1).min() < (size[0] / 12) ** 2
    return near


def projection_sd(fit: Fit, pixels: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Predicted standard deviation (px, both axes together) of where the lens sends a ray, rotation of the camera
    apart."""
    rays, good = lens.unproject(pixels, fit.theta, fit.model)
    good &= rays[:, 2] > 0.02
    p = rays / np.where(good, rays[:, 2], 1.0)[:, None]
    A = lens.project(p, fit.theta, fit.model)[1]
    G = lens.rotation_jacobian(np.where(good[:, None], rays, [0, 0, 1.0]), fit.theta, fit.model)
    fitted = (good & used).nonzero()[0]
    g, a = G[fitted].reshape(-1, 3), A[fitted].reshape(-1, A.shape[-1])
    absorbed = np.linalg.solve(g.T @ g, g.T @ a)
    B = A - G @ absorbed
    # Corners of one picture err alike: the larger of both estimates, or the promise is a fifth too good
    # (docs/calibration.md).
    each = [np.einsum("nij,jk,nik->n", B, c, B) for c in (fit.covariance, fit.clustered)]
    variance = np.maximum(*each)
    return np.where(good, np.sqrt(np.maximum(variance, 0)), np.nan)


def heldout_rms(
    theta: np.ndarray, model: str, views: list[View] | tuple[View, ...], sigma: float | None = None
) -> float:
    """RMS (px) of views that the lens was not fitted to; only their poses are. Gross outliers (10 sigma) are left
    out."""
    total, count = 0.0, 0
    for v in views:
        p = _pose(v, theta, model)
        for _ in range(6):  # in pixels, not on the normalised plane
            uv, _, jac = lens.project(v.points, theta, model, p[:3], p[3:])
            J, e = jac.reshape(-1, 6), (v.pixels - uv).ravel()
            p = p + np.linalg.lstsq(J, e, rcond=None)[0]
        r = np.linalg.norm(v.pixels - lens.project(v.points, theta, model, p[:3], p[3:])[0], axis=1)
        if sigma is not None:
            r = r[r < 10 * sigma] if (r < 10 * sigma).sum() >= 4 else r
        total, count = total + float((r**2).sum()), count + len(r)
    return float(np.sqrt(total / max(count, 1)))


def screen(views: list[View], size: tuple[int, int]) -> tuple[list[View], list[tuple[str, str]]]:
    """Leave out views that cannot help: too few corners, near-duplicates of another. Returns the rest and name,
    reason."""
    kept: list[View] = []
    rejected = []
    for v in views:
        if len(v.pixels) < MIN_CORNERS or np.linalg.matrix_rank(v.points[:, :2] - v.points[:, :2].mean(0)) < 2:
            rejected.append((v.name, f"only {len(v.pixels)} corners (partly hidden or blurred)"))
            continue
        twin = next((k for k in kept if _same(k, v, size)), None)
        if twin is not None:
            rejected.append((v.name, f"duplicate of {twin.name}"))
            continue
        kept.append(v)
    return kept, rejected


def _same(a: View, b: View, size: tuple[int, int]) -> bool:
    """Whether two views show the board in the same place, to 0.4 % of the picture's width."""
    common = (np.abs(a.points[:, None, :2] - b.points[None, :, :2]).max(-1) < 1e-6).nonzero()
    if len(common[0]) < 6:
        return False
    moved = np.linalg.norm(a.pixels[common[0]] - b.pixels[common[1]], axis=1)
    return bool(np.median(moved) < 0.004 * size[0])


def tilt_spread(poses: np.ndarray) -> float:
    """Largest angle (deg) between two boards' normals: without tilt the focal length cannot be told from the
    distance."""
    normals = np.array([cv2.Rodrigues(p[:3])[0][:, 2] for p in poses])
    return float(np.degrees(np.arccos(np.clip((normals @ normals.T).min(), -1, 1))))


def calibrate(views: list[View], size: tuple[int, int], model: str = "rational") -> Calibration:
    """Fit, leave out what disagrees, cross-validate. Raises CalibrationError with the reason and what to do."""
    views, rejected = screen(views, size)
    if len(views) < MIN_VIEWS:
        why = "; ".join(sorted({r.split(" of ")[0] for _, r in rejected}))
        raise CalibrationError(
            f"only {len(views)} usable views{f' ({why})' if why else ''}, at least {MIN_VIEWS} are needed (30 are "
            "good): take more."
        )
    fit = adjust(views, size, model)
    each = np.array([np.sqrt(np.median((r**2).sum(1))) for r in fit.residuals])
    lost = np.array([1 - k.mean() for k in fit.inlier])
    bad = (each > max(BAD_VIEW * float(np.median(each)), 0.15)) | (lost > 0.4)
    if bad.any():
        if bad.mean() > 0.4:
            raise CalibrationError(
                f"{int(bad.sum())} of {len(views)} views contradict the others: "
                "check that the board is flat and was not moved in the exposure."
            )
        rejected += [
            (v.name, f"residual {e:.2f} px (blurred, or the board was bent or moved)")
            for v, e, b in zip(views, each, bad)
            if b
        ]
        views = [v for v, b in zip(views, bad, strict=True) if not b]
        if len(views) < MIN_VIEWS:
            raise CalibrationError(
                f"only {len(views)} views agree with one another, at least {MIN_VIEWS} are needed: take more."
            )
        fit = adjust(views, size, model, start=fit)
    spread = tilt_spread(fit.poses)
    if spread < 15:
        raise CalibrationError(
            f"the board was hardly tilted ({spread:.0f} degrees between views): tilt it 20 to 45 degrees both ways."
        )
    pixels, shape = lens.grid(*size)
    used = used_area(views, pixels, size)
    # Neighbouring pictures are alike: halves and folds take every second, every fourth.
    halves = [adjust(views[k::2], size, model, start=fit) for k in (0, 1)]
    crossval = lens.difference(halves[0].theta, halves[1].theta, model, model, pixels, used)
    squares, count = 0.0, 0
    for k in range(4):
        train = [v for i, v in enumerate(views) if i % 4 != k]
        test = views[k::4]
        part = adjust(train, size, model, start=fit)
        corners = sum(len(v.pixels) for v in test)
        test = part.on_true_board(test)  # as the other views tell it
        squares, count = squares + heldout_rms(part.theta, model, test, fit.sigma) ** 2 * corners, count + corners
    return Calibration(
        fit, tuple(rejected), float(np.sqrt(squares / count)), crossval, projection_sd(fit, pixels, used), used, shape
    )
