"""Fit of a camera, its focal length and the joints' zeros to masks of an arm: robust, damped Gauss-Newton on outlines.

Weights: Geman and McClure's, with a threshold that falls from stage to stage. Source of the linearisation: the points
of an outline move, to first order, as the points of the body do that lie on it (Cipolla and Giblin 2000).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from calibration.arm_shapes import Shapes
from calibration.silhouettes import Seen, State, base_from_camera, moved, outlines, residuals
from firmware_bridge.arms.family import Family

INLIER = 2.0  # px at 640 columns
ALIKE = 12.0  # neighbouring points of an outline err alike: so many count as one
NOISE = 1.5  # px at 640 columns
SHARED = 9  # unknowns in front of the joints' zeros, in the order of `silhouettes.residuals`
FOCAL, BENT, GROWN = 6, 7, 8
MOST_STEP = 0.2  # rad, m or share that one round may move


@dataclass(frozen=True)
class Prior:
    """Standard deviations of what is known without pictures: log of the focal length about `fx`, distortion about
    `k1`, growth (px), zeros (rad)."""

    fx: float
    focal_sd: float
    k1: float = 0.0
    k1_sd: float = 0.03
    grown_sd: float = 3.0
    zeros_sd: float = float(np.radians(2.0))

    def terms(self, state: State, joints: int) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and weight float64[9+J] of the prior at a state."""
        weight = np.zeros(SHARED + joints)
        weight[FOCAL], weight[BENT], weight[GROWN] = self.focal_sd**-2, self.k1_sd**-2, self.grown_sd**-2
        weight[SHARED:] = self.zeros_sd**-2
        away = np.zeros(SHARED + joints)
        away[FOCAL], away[BENT] = np.log(state.theta[0] / self.fx), state.theta[4] - self.k1
        away[GROWN], away[SHARED:] = state.grown, state.zeros
        return weight * away, weight


@dataclass(frozen=True)
class Problem:
    """What is fitted: `shapes` of an `arm`, `seen`, lens `model`, picture `size` (width, height) px."""

    shapes: Shapes
    arm: Family
    seen: Seen
    model: str
    size: tuple[int, int]
    prior: Prior

    @property
    def scale(self) -> float:
        """Pixels of this picture per pixel at 640 columns."""
        return self.size[0] / 640

    def at(self, index: np.ndarray) -> Problem:
        return dataclasses.replace(self, seen=self.seen.at(index))

    def sampled(self, state: State, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Residuals (px at 640 columns) of outline points that count, their derivatives, frames and links."""
        o, covered = outlines(
            self.shapes, self.arm, self.seen.q, state, self.model, self.size, max(2.0, step * self.scale)
        )
        if not len(o.frame):
            return np.zeros(0), np.zeros((0, SHARED + self.seen.q.shape[1])), o.frame, o.link
        known = covered if len(self.seen.q) >= 8 else None
        r, J, good = residuals(o, self.seen, self.arm, state, self.model, known)
        return r[good] / self.scale, J[good] / self.scale, o.frame[good], o.link[good]


@dataclass(frozen=True)
class Fit:
    """`inliers`: share of outline points within `INLIER` of a mask's edge; `typical`: median distance, px at 640
    columns; `normal`: normal matrix float64[9+J,9+J] with the prior; `count`: points."""

    state: State
    inliers: float
    typical: float
    normal: np.ndarray
    count: int

    @property
    def pose(self) -> np.ndarray:
        """T_base_from_cam float64[4,4]."""
        return base_from_camera(self.state)


def unknowns(joints: int, *, zeros: bool, bent: bool = False, focal: bool = True) -> np.ndarray:
    """Which unknowns are free, bool[9+J]; the camera's pose and the growth always are."""
    free = np.ones(SHARED + joints, bool)
    free[FOCAL], free[BENT], free[SHARED:] = focal, bent, zeros
    return free


def descend(p: Problem, state: State, free: np.ndarray, threshold: float, rounds: int, step: float = 4.0) -> State:
    """Rounds of Gauss-Newton with weights that fall beyond `threshold` px at 640 columns."""
    for _ in range(rounds):
        r, J, _, _ = p.sampled(state, step)
        if len(r) < 50:
            return state
        A, g = _normal(p, state, r, J, threshold, step)
        A, g = A[np.ix_(free, free)], g[free]
        move = np.zeros(len(free))
        move[free] = -np.linalg.solve(A + 1e-5 * np.diag(np.diag(A)) + 1e-9 * np.eye(len(A)), g)
        largest = np.abs(np.delete(move, GROWN)).max()
        move *= min(1.0, MOST_STEP / max(largest, 1e-12))
        move[GROWN] = np.clip(move[GROWN], -2, 2)
        state = moved(state, move)
        if largest < 2e-5:
            break
    return state


def _normal(
    p: Problem, state: State, r: np.ndarray, J: np.ndarray, threshold: float, step: float
) -> tuple[np.ndarray, np.ndarray]:
    weight = (threshold**2 / (threshold**2 + r**2)) ** 2 * (step / 4.0) / (ALIKE * NOISE**2)
    gradient, prior = p.prior.terms(state, p.seen.q.shape[1])
    return (J * weight[:, None]).T @ J + np.diag(prior), J.T @ (weight * r) + gradient


def judged(p: Problem, state: State, step: float = 4.0) -> Fit:
    r, J, _, _ = p.sampled(state, step)
    if len(r) < 50:
        return Fit(state, 0.0, np.inf, np.diag(p.prior.terms(state, p.seen.q.shape[1])[1]), len(r))
    found = np.abs(r)
    A, _ = _normal(p, state, r, J, 4.0, step)
    return Fit(state, float((found < INLIER).mean()), float(np.median(found)), A, len(found))


def refine(p: Problem, state: State, bent: bool, focal: bool) -> State:
    """From a state that is about right to the best one, all unknowns together."""
    joints = p.seen.q.shape[1]
    for threshold, rounds in ((12.0, 8), (8.0, 6), (4.0, 10)):
        state = descend(
            p, state, unknowns(joints, zeros=True, bent=bent and threshold < 12, focal=focal), threshold, rounds
        )
    return state
