"""Bundle adjustment of a hand-eye calibration over pixels, with arm poses that may be wrong.

Fitted together: X and Z (`calibration.hand_eye`), a zero offset of each joint, the board's scale, and an error of each
arm pose; `ArmNoise` says how large offsets and errors may be. A cheap arm whose poses are taken as exact gives
centimetres of error (docs/calibration.md). The arm's errors are eliminated view by view (`calibration.least_squares`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibration import lens
from calibration.camera import CalibrationError
from calibration.least_squares import Blocks, minimise
from calibration.transforms import inverse, log, skew, transform
from calibration.views import ArmNoise, ArmView, Forward

HUBER = 3.0  # standard deviations: longer residuals of a corner weigh less
NEAREST = 1e-3  # m ahead of the camera: a corner that is nearer has no pixels
FIXED = 1e16  # precision of an unknown that is not estimated


@dataclass(frozen=True)
class Setup:
    """What is given besides the views: where the camera sits ("base" or "arm"), its lens, the arm's kinematics and
    precision, and the corner noise `sigma` (px)."""

    mount: str
    theta: np.ndarray
    model: str
    forward: Forward
    noise: ArmNoise
    sigma: float


@dataclass(frozen=True)
class State:
    """What is fitted. Shared by all views: X and Z float64[4,4], `offsets` float64[J] (rad) and `scale`; a view's own:
    `arms` float64[views,6], error of its arm pose (rotation rad, translation m, in the tool's frame)."""

    X: np.ndarray
    Z: np.ndarray
    arms: np.ndarray
    offsets: np.ndarray
    scale: float

    @property
    def departures(self) -> np.ndarray:
        """The shared unknowns that have a prior, from its mean: float64[12+J+1], zero for X and Z."""
        return np.concatenate([np.zeros(12), self.offsets, [self.scale - 1]])


@dataclass(frozen=True)
class Adjusted:
    """A minimum: `covariance` float64[12+J+1,12+J+1] of X, Z (rotation and translation in their own frames), offsets
    and scale; RMS of the pixels; chi2 of the arm's errors a degree of freedom, 1 when ArmNoise is right."""

    state: State
    covariance: np.ndarray
    pixel_rms: float
    chi2: float


def behind(setup: Setup, X: np.ndarray, Z: np.ndarray, arm: np.ndarray, points: np.ndarray) -> bool:
    """Whether X and Z put one of the board's `points` float64[n,3] behind the camera, at the arm pose float64[4,4]."""
    T = inverse(X) @ (arm if setup.mount == "base" else inverse(arm)) @ Z
    return bool((points @ T[2, :3] + T[2, 3] < NEAREST).any())


def adjust(setup: Setup, views: list[ArmView], X: np.ndarray, Z: np.ndarray, free_scale: bool) -> Adjusted:
    """Adjust from a first X and Z; the board's scale is 1 unless `free_scale`.

    Raises CalibrationError where that first guess puts a corner behind the camera: no adjustment can start there.
    """
    lost = [v.name for v in views if behind(setup, X, Z, setup.forward(v.q), v.points)]
    if lost:
        raise CalibrationError(
            f"the first guess puts the board behind the camera in {', '.join(lost)}: leave that out, or repeat with "
            "other arm poses."
        )
    J = len(views[0].q)
    problem = _HandEyeProblem(setup, views, free_scale)
    start = State(X, Z, np.zeros((len(views), 6)), np.zeros(J), 1.0)
    found = minimise(problem, start, rounds=50, tolerance=1e-8)
    normal, _ = found.blocks.reduced()
    squares = sum(float((t.residual**2).sum()) for t in found.terms) * setup.sigma**2
    dof = max(1, 6 * len(views) - 12 - (J if setup.noise.offset_deg > 0 else 0))
    chi2 = float((problem.arm_precision * found.state.arms**2).sum()) / dof
    corners = sum(len(v.pixels) for v in views)
    return Adjusted(found.state, np.linalg.inv(normal), float(np.sqrt(squares / corners)), chi2)


@dataclass(frozen=True)
class _Term:
    """One view's part of the cost, n corners; residuals and derivatives in standard deviations of a corner."""

    residual: np.ndarray  # float64[2n]
    shared: np.ndarray  # float64[2n,12+J+1] derivatives of the pixels
    arm: np.ndarray  # float64[2n,6]
    weight: np.ndarray  # float64[2n]


class _HandEyeProblem:
    """Huber(residual / sigma) plus priors of arm errors, joint offsets and scale."""

    def __init__(self, setup: Setup, views: list[ArmView], free_scale: bool):
        noise, J = setup.noise, len(views[0].q)
        self.setup, self.views = setup, views
        deviations = [np.radians(noise.rotation_deg)] * 3 + [noise.translation_m] * 3  # of all three axes together
        self.arm_precision = 1 / (np.array(deviations) / np.sqrt(3)) ** 2
        offsets = np.full(J, 1 / np.radians(noise.offset_deg) ** 2 if noise.offset_deg > 0 else FIXED)
        # The first joint's zero turns the base's frame, the last one's the tool's: neither can be told from X and Z.
        offsets[[0, -1]] = FIXED
        self.precision = np.concatenate([np.zeros(12), offsets, [1 / 0.2**2 if free_scale else FIXED]])
        self.twists = [_joint_jacobian(setup.forward, v.q) for v in views]  # offsets are small: once is enough

    def cost(self, state: State) -> tuple[float, list[_Term]]:
        cost = float((self.precision * state.departures**2).sum() + (self.arm_precision * state.arms**2).sum())
        terms = []
        for view, arm, twists in zip(self.views, state.arms, self.twists, strict=True):
            term = self._term(state, view, arm, twists)
            if term is None:
                return np.inf, []
            length = np.linalg.norm(term.residual.reshape(-1, 2), axis=1)
            cost += float(np.where(length > HUBER, 2 * HUBER * length - HUBER**2, length**2).sum())
            terms.append(term)
        return cost, terms

    def _term(self, state: State, view: ArmView, arm: np.ndarray, twists: np.ndarray) -> _Term | None:
        """One view at `state`; None where a corner is behind the camera."""
        setup, X, Z = self.setup, state.X, state.Z
        A = setup.forward(view.q + state.offsets) @ transform(arm[:3], arm[3:])
        B = A if setup.mount == "base" else inverse(A)
        Rx = X[:3, :3]
        board = view.points * state.scale  # corners in the board's frame,
        held = board @ Z[:3, :3].T + Z[:3, 3]  # in the frame that the board is fixed to,
        other = held @ B[:3, :3].T + B[:3, 3]  # in the frame that the camera is fixed to,
        seen = other @ Rx + inverse(X)[:3, 3]  # and in the camera's
        if (seen[:, 2] < NEAREST).any():
            return None
        uv, _, jac = lens.project(seen, setup.theta, setup.model)
        e = (view.pixels - uv) / setup.sigma
        length = np.linalg.norm(e, axis=1)
        weight = np.where(length > HUBER, HUBER / np.maximum(length, 1e-9), 1.0)
        by_seen = jac[..., 3:6] / setup.sigma
        by_held = by_seen @ (Rx.T @ B[:3, :3])
        by_board = by_held @ Z[:3, :3]
        if setup.mount == "base":
            by_arm = _by_twist(by_held, held)
        else:
            by_arm = -_by_twist(by_seen @ Rx.T, other)
        # An offset moves the arm's pose before its error does; the error is small, so its twist counts as the pose's.
        by_joints = by_arm @ twists
        by_scale = by_board @ view.points[:, :, None]
        parts = [-_by_twist(by_seen, seen), _by_twist(by_board, board), by_joints, by_scale]
        shared = np.concatenate(parts, axis=2).reshape(2 * len(e), -1)
        return _Term(e.ravel(), shared, by_arm.reshape(-1, 6), np.repeat(weight, 2))

    def blocks(self, state: State, terms: list[_Term]) -> Blocks:
        A, g = np.diag(self.precision), -self.precision * state.departures
        own, own_gradient, coupling = [], [], []
        for t, arm in zip(terms, state.arms, strict=True):
            shared, by_arm = t.shared * t.weight[:, None], t.arm * t.weight[:, None]
            A += shared.T @ t.shared
            g += shared.T @ t.residual
            own.append(by_arm.T @ t.arm + np.diag(self.arm_precision))
            own_gradient.append(by_arm.T @ t.residual - self.arm_precision * arm)
            coupling.append(shared.T @ t.arm)
        return Blocks(A, g, np.array(own), np.array(own_gradient), np.array(coupling))

    def moved(self, state: State, shared: np.ndarray, own: np.ndarray) -> State:
        return State(
            state.X @ transform(shared[:3], shared[3:6]),
            state.Z @ transform(shared[6:9], shared[9:12]),
            state.arms + own,
            state.offsets + shared[12:-1],
            state.scale + shared[-1],
        )


def _by_twist(by_point: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Derivatives float64[n,2,6] by a twist (rotation, translation) of the frame that holds `points` float64[n,3], from
    those by the points float64[n,2,3]."""
    return np.concatenate([-by_point @ skew(points), by_point], axis=2)


def _joint_jacobian(forward: Forward, q: np.ndarray) -> np.ndarray:
    """float64[6,J]: twist of the tool (rotation, translation, in its own frame) a radian of each joint."""
    step = 1e-3  # rad; OpenCV's Rodrigues takes much smaller rotations for none
    out = np.zeros((6, len(q)))
    middle = inverse(forward(q))
    for j in range(len(q)):
        d = np.zeros(len(q))
        d[j] = step
        out[:, j] = (log(middle @ forward(q + d)) - log(middle @ forward(q - d))) / (2 * step)
    return out
