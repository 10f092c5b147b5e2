"""Robust bundle adjustment of a lens to views of a board, with its covariance.

The lens, one pose a view and the true places of the board's corners are fitted together; poses are eliminated view by
view (`calibration.least_squares`), so that 100 views take seconds. No sheet is printed and glued exactly: on OpenCV's
sample images the corners are 0.08 mm off, seen alike by both cameras. Taken as exact, such a board doubles the error of
the projection, and one that is bowed by 0.5 mm makes it thirty times as large (docs/calibration.md; Strobl and
Hirzinger 2011). The standard deviation of the corners is estimated as well, so that an exact board stays exact. Corners
that disagree are weighed down (Huber), then left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.camera import CalibrationError
from calibration.least_squares import Blocks, minimise
from calibration.lens_start import first_lens, lens_prior
from calibration.views import Size, View, first_pose

# In standard deviations of one coordinate: residuals of a corner longer than HUBER weigh less, those longer than REJECT
# nothing.
HUBER, REJECT = 2.25, 6.0
STRAY = (1e-6, 2e-3, 2e-2)  # of the board's diagonal: standard deviation of its corners, least, first guess, and most
FARTHEST = 0.1  # of the board's diagonal: how far from its described place a corner can be found, by axis
ROUNDS = 8  # of estimating noise, outliers and the board's standard deviation anew


@dataclass(frozen=True)
class Fit:
    """Result of one adjustment. `theta` and its covariance, `poses` float64[views,6] (rvec, tvec), residuals px a view,
    `inlier` bool a view's corner, `sigma` px: the noise of one coordinate of one corner."""

    model: str
    size: Size
    theta: np.ndarray
    covariance: np.ndarray
    poses: np.ndarray
    views: tuple[View, ...]
    residuals: tuple[np.ndarray, ...]
    inlier: tuple[np.ndarray, ...]
    sigma: float
    clustered: np.ndarray  # covariance of theta from the views' scores: `_clustered`
    corners: np.ndarray  # float64[m,3] the board's corners as described, m
    shape: np.ndarray  # float64[m,3] true minus described corners, m; nearly 0 for a board that was taken as exact
    stray: np.ndarray  # float64[3] standard deviation of `shape` by axis, m

    @property
    def rms(self) -> float:
        """RMS (px) of the residuals of the corners that were used."""
        r = np.concatenate([r[k] for r, k in zip(self.residuals, self.inlier, strict=True)])
        return float(np.sqrt((r**2).sum(1).mean()))

    def on_true_board(self, views: Sequence[View]) -> list[View]:
        """The same views with the board's corners where this fit found them; a corner that it has not seen stays as
        described."""
        out = []
        for v in views:
            far = np.linalg.norm(v.points[:, None] - self.corners, axis=2)
            shape = np.where(far.min(1)[:, None] < 1e-6, self.shape[far.argmin(1)], 0.0)
            out.append(View(v.name, v.points + shape, v.pixels))
        return out


@dataclass(frozen=True)
class _State:
    """What is fitted: `theta` float64[n], `poses` float64[views,6], `shape` float64[c,3] (m, true minus described
    corners of the board). Shared by all views: theta and shape, float64[n+3c]."""

    theta: np.ndarray
    poses: np.ndarray
    shape: np.ndarray

    @property
    def shared(self) -> np.ndarray:
        return np.concatenate([self.theta, self.shape.ravel()])


@dataclass(frozen=True)
class _Given:
    """What one adjustment takes as given: the views, each view's corners as rows of `shape`, which of them are used,
    the corner noise `sigma` (px), the standard deviation `stray` of `shape` by axis float64[3] (m), and `farthest` (m),
    which no number of `shape` passes."""

    views: list[View]
    index: list[np.ndarray]
    inlier: list[np.ndarray]
    size: Size
    model: str
    sigma: float
    stray: np.ndarray
    farthest: float


@dataclass(frozen=True)
class _Term:
    """One view's part of the cost, k corners."""

    residual: np.ndarray  # float64[k,2], px
    by_theta: np.ndarray  # float64[k,2,n] derivatives of the pixel
    by_pose: np.ndarray  # float64[k,2,6]
    by_corner: np.ndarray  # float64[k,2,3] of the board
    weight: np.ndarray  # float64[k], 1/px^2


class _LensProblem:
    """Huber(residual / sigma) plus priors, over theta, poses and shape."""

    def __init__(self, given: _Given, corners: int):
        mean, spread, self.aspect = lens_prior(given.model, given.size)
        self.given, self.n = given, len(mean)
        free = spread == 0
        precision = np.where(free, 0.0, 1 / np.where(free, 1.0, spread) ** 2)
        self.mean = np.concatenate([mean, np.zeros(3 * corners)])
        self.precision = np.concatenate([precision, np.tile(1 / given.stray**2, corners)])

    def cost(self, state: _State) -> tuple[float, list[_Term]]:
        given = self.given
        fx, fy = state.theta[:2]
        total = float((self.precision * (state.shared - self.mean) ** 2).sum() + ((fx / fy - 1) / self.aspect) ** 2)
        terms = []
        for v, at, p, used in zip(given.views, given.index, state.poses, given.inlier, strict=True):
            uv, by_theta, by_pose = lens.project(v.points + state.shape[at], state.theta, given.model, p[:3], p[3:])
            residual = v.pixels - uv
            length = np.linalg.norm(residual, axis=1) / given.sigma
            w = np.where(length > HUBER, HUBER / np.maximum(length, 1e-12), 1.0)
            total += float((np.where(w < 1, 2 * HUBER * length - HUBER**2, length**2) * used).sum())
            by_corner = by_pose[..., 3:] @ cv2.Rodrigues(p[:3])[0]
            terms.append(_Term(residual, by_theta, by_pose, by_corner, w * used / given.sigma**2))
        return total, terms

    def blocks(self, state: _State, terms: list[_Term]) -> Blocks:
        n, m, views = self.n, len(self.mean), len(terms)
        A, g = np.diag(self.precision), self.precision * (self.mean - state.shared)
        fx, fy = state.theta[:2]
        ratio = np.array([1 / fy, -fx / fy**2])
        A[:2, :2] += np.outer(ratio, ratio) / self.aspect**2
        g[:2] -= ratio * (fx / fy - 1) / self.aspect**2
        P, C, h = np.zeros((views, 6, 6)), np.zeros((views, m, 6)), np.zeros((views, 6))
        for k, (t, at) in enumerate(zip(terms, self.given.index, strict=True)):
            columns = n + 3 * at[:, None] + np.arange(3)  # each corner moves with three numbers of its own
            w, e = t.weight[:, None, None], t.residual.ravel()
            jt, jp, weighted = t.by_theta.reshape(-1, n), t.by_pose.reshape(-1, 6), t.by_corner * w
            wt, wp = (t.by_theta * w).reshape(-1, n), (t.by_pose * w).reshape(-1, 6)
            A[:n, :n] += wt.T @ jt
            cross = np.einsum("kij,kil->kjl", weighted, t.by_theta)
            A[columns, :n] += cross
            A[:n, columns] += cross.transpose(2, 0, 1)
            A[columns[:, :, None], columns[:, None, :]] += np.einsum("kij,kil->kjl", weighted, t.by_corner)
            g[:n] += wt.T @ e
            g[columns] += np.einsum("kij,ki->kj", weighted, t.residual)
            P[k], h[k] = wp.T @ jp, wp.T @ e
            C[k, :n] = wt.T @ jp
            C[k, columns] = np.einsum("kij,kil->kjl", weighted, t.by_pose)
        # Keeps the inverse finite where a view has lost so many corners that its pose is free.
        P += 1e-12 * (1 + np.trace(P, axis1=1, axis2=2))[:, None, None] * np.eye(6)
        return Blocks(A, g, P, h, C)

    def moved(self, state: _State, shared: np.ndarray, own: np.ndarray) -> _State | None:
        theta, shape = state.theta + shared[: self.n], state.shape + shared[self.n :].reshape(-1, 3)
        if not (theta[:2] > 1).all():  # a focal length of less than a pixel
            return None
        if not np.abs(shape).max() <= self.given.farthest:
            return None
        return _State(theta, state.poses + own, shape)


@dataclass(frozen=True)
class _Fitted:
    """A minimum: the terms of its views, the normal matrix float64[m,m] of theta and shape with the poses eliminated,
    and float64[views,m,6] that carries a pose's gradient into theirs."""

    state: _State
    terms: list[_Term]
    normal: np.ndarray
    through_pose: np.ndarray


def _minimum(given: _Given, state: _State) -> _Fitted:
    problem = _LensProblem(given, len(state.shape))
    found = minimise(problem, state, rounds=60, tolerance=1e-7)
    return _Fitted(found.state, found.terms, *problem.blocks(found.state, found.terms).reduced())


def adjust(
    views: list[View], size: Size, model: str = "rational", start: Fit | None = None, exact_board: bool = False
) -> Fit:
    """Bundle adjustment of one lens, a pose for each view, and (unless `exact_board`) the board's shape.

    `start`: a fit of the same model to more or to other views; it saves time and changes nothing but the starting
    point. Raises CalibrationError when it does not settle."""
    corners, rows = np.unique(np.round(np.concatenate([v.points for v in views]), 7), axis=0, return_inverse=True)
    index = np.split(np.ravel(rows), np.cumsum([len(v.points) for v in views])[:-1])
    diagonal = float(np.linalg.norm(np.ptp(corners, axis=0)))
    least, guess, most = (s * diagonal for s in STRAY)
    sigma, stray = (1.0, np.full(3, least)) if start is None else (start.sigma, start.stray)
    inlier = [np.ones(len(v.pixels), bool) for v in views]
    given = _Given(views, index, inlier, size, model, sigma, stray, FARTHEST * diagonal)
    state = _first_state(given, np.zeros_like(corners), start)
    for k in range(ROUNDS):
        fitted = _minimum(given, state)
        state = fitted.state
        determined = _determined(fitted, given.stray)
        used, dof = _used(fitted, given, determined)
        spread = 1.4826 * np.median(np.abs(used)) * np.sqrt(len(used) / dof)
        inlier = [np.linalg.norm(t.residual, axis=1) < REJECT * spread for t in fitted.terms]
        if not exact_board:
            # In the first round of a new fit the noise is not known yet, so residuals do not tell the board's errors.
            first = k == 0 and start is None
            stray = np.full(3, guess) if first else np.sqrt((state.shape**2).sum(0) / determined).clip(least, most)
        settled = (
            all((a == b).all() for a, b in zip(inlier, given.inlier, strict=True))
            and abs(spread / given.sigma - 1) < 0.05
            and (np.abs(np.log(stray / given.stray)) < 0.35).all()  # it only sets a prior, so roughly is enough
        )
        given = dataclasses.replace(given, sigma=max(spread, 1e-3), inlier=inlier, stray=stray)
        if settled:
            break
    if not np.isfinite(state.theta).all() or not (0.1 < state.theta[0] / size[0] < 30):
        raise CalibrationError(
            "the calibration does not settle: check the board's description, and take more tilted views."
        )
    return _finished(given, fitted, determined, corners)


def _first_state(given: _Given, shape: np.ndarray, start: Fit | None) -> _State:
    """theta and poses to start from: those of `start`, or else of a lens without distortion. The rational model starts
    from a fit of the pinhole one, which has fewer coefficients."""
    views, size, model = given.views, given.size, given.model
    if start is not None:
        known = {id(v): p for v, p in zip(start.views, start.poses, strict=True)}
        poses = [known[id(v)] if id(v) in known else first_pose(v, start.theta, model) for v in views]
        return _State(start.theta, np.array(poses), shape)
    if model != "rational":
        return _State(*first_lens(views, size, model), shape)
    first = _State(*first_lens(views, size, "pinhole"), shape)
    rough = _minimum(dataclasses.replace(given, model="pinhole"), first).state
    return _State(np.concatenate([rough.theta, np.zeros(3)]), rough.poses, shape)


def _determined(fitted: _Fitted, stray: np.ndarray) -> np.ndarray:
    """float64[3]: how many of the shape's numbers the data have determined, by axis (MacKay 1992)."""
    n = len(fitted.state.theta)
    variances = np.diag(np.linalg.inv(fitted.normal))[n:].reshape(-1, 3)
    return np.asarray(np.maximum((1 - variances / stray**2).sum(0), 1e-3))


def _used(fitted: _Fitted, given: _Given, determined: np.ndarray) -> tuple[np.ndarray, float]:
    """All coordinates (px) of the residuals of corners that are used, and their degrees of freedom."""
    used = np.concatenate([t.residual[k].ravel() for t, k in zip(fitted.terms, given.inlier, strict=True)])
    unknown = 6 * len(given.views) + len(fitted.state.theta) + float(determined.sum())
    return used, max(1.0, len(used) - unknown)


def _finished(given: _Given, fitted: _Fitted, determined: np.ndarray, corners: np.ndarray) -> Fit:
    """The fit of a minimum whose noise, inliers and stray are in `given`."""
    state, n = fitted.state, len(fitted.state.theta)
    used, dof = _used(fitted, given, determined)
    sigma = float(np.sqrt((used**2).sum() / dof))
    inverse = np.linalg.inv(fitted.normal)
    return Fit(
        model=given.model,
        size=given.size,
        theta=state.theta,
        covariance=inverse[:n, :n] * (sigma / given.sigma) ** 2,
        poses=state.poses,
        views=tuple(given.views),
        residuals=tuple(t.residual for t in fitted.terms),
        inlier=tuple(given.inlier),
        sigma=sigma,
        clustered=_clustered(fitted, given.index, inverse),
        corners=corners,
        shape=state.shape,
        stray=given.stray,
    )


def _clustered(fitted: _Fitted, index: list[np.ndarray], inverse: np.ndarray) -> np.ndarray:
    """Covariance float64[n,n] of theta from the scores of the views, each view taken as a whole (Liang and Zeger 1986):
    corners of one picture err alike, which the size of the residuals alone does not show. Corrected for the part of the
    scores that the fit itself takes out. `inverse` float64[m,m]: of the normal matrix of theta and shape."""
    m, n = len(inverse), len(fitted.state.theta)
    scores, data, taken = [], np.zeros((n, n)), np.zeros((n, n))
    for t, at, through in zip(fitted.terms, index, fitted.through_pose, strict=True):
        full = np.zeros((len(at), 2, m))
        full[..., :n] = t.by_theta
        columns = n + 3 * at[:, None, None] + np.arange(3)
        full[np.arange(len(at))[:, None, None], np.arange(2)[:, None], columns] = t.by_corner
        free = full.reshape(-1, m) - t.by_pose.reshape(-1, 6) @ through.T
        weighted = free * np.repeat(t.weight, 2)[:, None]
        scores.append(weighted.T @ t.residual.ravel())
        own = weighted.T @ (free @ inverse[:, :n])  # this view's information, carried to theta
        data += inverse[:n] @ own
        taken += own.T @ inverse @ own
    precision = np.linalg.inv(inverse[:n, :n])
    whole, lost = float(np.trace(precision @ data)), float(np.trace(precision @ taken))
    influence = np.array(scores) @ inverse[:, :n]
    return influence.T @ influence * (whole / max(whole - lost, 0.2 * whole))
