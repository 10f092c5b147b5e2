"""Hand-eye calibration: where a camera is, from views of a board at known arm poses.

Two mounts. "base" (eye-to-hand): the camera is fixed and the board is in the gripper; X = T_base_from_cam, Z =
T_tool_from_board. "arm" (eye-in-hand): the camera rides on the tool and the board is fixed; X = T_tool_from_cam, Z =
T_base_from_board.

Park's closed form (Park and Martin 1994) starts; then a bundle adjustment over pixels in which every arm pose may be
wrong by what the arm's own precision says, and the joints by a common offset. A cheap arm taken as exact gives
centimetres (docs/calibration.md); Andreff's and Li's forms break on small noise and are not offered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.camera import CalibrationError

Forward = Callable[[np.ndarray], np.ndarray]  # joint angles float64[J] (rad) to T_base_from_tool float64[4,4]

MIN_POSES = 8
MIN_ROTATION = 20.0  # deg: spread of the arm's rotations about at least two axes
AGREE = 4.0  # standard deviations that two halves may differ


@dataclass(frozen=True)
class ArmNoise:
    """One standard deviation of what an arm pose may be wrong by: each picture on its own, and joint zero offsets
    common to all.

    The defaults are a real SO-101's (0.5 degrees, 2 mm); 0 for `offset_deg` leaves the joints as they are.
    """

    rotation_deg: float = 0.5
    translation_m: float = 0.002
    offset_deg: float = 0.5


@dataclass(frozen=True)
class ArmView:
    """One picture: board points [n,3] (m), pixels [n,2], and measured joint angles [J] (rad)."""

    name: str
    points: np.ndarray
    pixels: np.ndarray
    q: np.ndarray


@dataclass(frozen=True)
class HandEye:
    """X and Z float64[4,4] (module docstring), covariance float64[6,6] of X (rotation rad, translation m, in the
    camera's frame)."""

    mount: str
    X: np.ndarray
    Z: np.ndarray
    covariance: np.ndarray
    offsets: np.ndarray  # joint zero offsets, rad
    offsets_sd: np.ndarray
    scale: float  # of the board: 1 unless the square size is wrong
    scale_sd: float
    arm_rms: tuple[float, float]  # how much the arm poses had to give: deg, m
    pixel_rms: float
    kept: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    chi2: float  # of the arm's errors a degree of freedom: 1 when ArmNoise is right

    @property
    def sd(self) -> tuple[float, float]:
        """Standard deviation of the pose: rotation (deg) and position (m), all axes together."""
        return float(np.degrees(np.sqrt(np.trace(self.covariance[:3, :3])))), float(
            np.sqrt(np.trace(self.covariance[3:, 3:]))
        )

    def ray_sd(self, rays: np.ndarray, distance: float) -> np.ndarray:
        """Standard deviation (m) across each unit ray float64[n,3] of the camera, of where it passes at `distance`
        (m)."""
        J = np.concatenate([-_skew(rays * distance), np.broadcast_to(np.eye(3), (len(rays), 3, 3))], axis=2)
        across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
        J = across @ J
        return np.asarray(np.sqrt(np.einsum("nij,jk,nik->n", J, self.covariance, J)))


def transform(rvec: np.ndarray, tvec: np.ndarray) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(np.asarray(rvec, float))[0]
    T[:3, 3] = np.ravel(tvec)
    return T


def inverse(T: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def log(T: np.ndarray) -> np.ndarray:
    """Rotation vector and translation float64[6]."""
    return np.concatenate([cv2.Rodrigues(T[:3, :3])[0].ravel(), T[:3, 3]])


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Rotation (deg) and position (m) between two poses."""
    d = log(inverse(a) @ b)
    return float(np.degrees(np.linalg.norm(d[:3]))), float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


def _skew(p: np.ndarray) -> np.ndarray:
    zero = np.zeros(len(p))
    x, y, z = p.T
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)


def rotation_spread(poses: list[np.ndarray]) -> tuple[float, float]:
    """Largest rotation (deg) between poses about the best axis and about the best axis across it."""
    vectors = np.array([log(inverse(a) @ b)[:3] for i, a in enumerate(poses) for b in poses[i + 1 :]])
    _, _, axes = np.linalg.svd(vectors, full_matrices=False)
    along = np.abs(vectors @ axes.T)
    return float(np.degrees(np.quantile(along[:, 0], 0.9))), float(np.degrees(np.quantile(along[:, 1], 0.9)))


def park(mount: str, arms: list[np.ndarray], boards: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """X and Z from Park's method; boards are T_cam_from_board."""
    gripper = arms if mount == "arm" else [inverse(a) for a in arms]
    R, t = cv2.calibrateHandEye(
        [g[:3, :3] for g in gripper],
        [g[:3, 3] for g in gripper],
        [b[:3, :3] for b in boards],
        [b[:3, 3] for b in boards],
        method=cv2.CALIB_HAND_EYE_PARK,
    )
    X = np.eye(4)
    X[:3, :3], X[:3, 3] = R, t.ravel()
    if not np.isfinite(X).all():
        raise CalibrationError("hand-eye calibration found no solution: turn the gripper more between the pictures.")
    # Z: the mean over all views, rotation by the chordal mean.
    each = [(a @ X @ b) if mount == "arm" else (inverse(a) @ X @ b) for a, b in zip(arms, boards, strict=True)]
    U, _, Vt = np.linalg.svd(sum(e[:3, :3] for e in each))
    Z = np.eye(4)
    Z[:3, :3] = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
    Z[:3, 3] = np.median([e[:3, 3] for e in each], axis=0)
    return X, Z


def _joint_jacobian(forward: Forward, q: np.ndarray) -> np.ndarray:
    """float64[6,J]: twist of the tool (rotation, translation, in its own frame) a radian of each joint."""
    step = 1e-3  # OpenCV takes smaller rotations for none
    out = np.zeros((6, len(q)))
    for j in range(len(q)):
        d = np.zeros(len(q))
        d[j] = step
        back, ahead = forward(q - d), forward(q + d)
        middle = inverse(forward(q))
        out[:, j] = (log(middle @ ahead) - log(middle @ back)) / (2 * step)
    return out


@dataclass
class _State:
    X: np.ndarray
    Z: np.ndarray
    arms: np.ndarray  # [n,6] error twists in the tool frame
    offsets: np.ndarray
    scale: float


def _adjust(
    mount: str,
    views: list[ArmView],
    theta: np.ndarray,
    model: str,
    forward: Forward,
    noise: ArmNoise,
    sigma: float,
    X: np.ndarray,
    Z: np.ndarray,
    free_scale: bool,
) -> tuple[_State, np.ndarray, float, float]:
    """Levenberg-Marquardt over X, Z, joint offsets, board scale and an error for each arm pose.

    Arm errors are eliminated view by view. Returns the state, the covariance of (X, Z, offsets, scale), pixel RMS, arm
    chi2 a dof.
    """
    J = len(views[0].q)
    prior = (
        1 / np.array([np.radians(noise.rotation_deg) / np.sqrt(3)] * 3 + [noise.translation_m / np.sqrt(3)] * 3) ** 2
    )
    m = 12 + J + 1
    weak = np.zeros(m)
    weak[12 : 12 + J] = 1 / np.radians(noise.offset_deg) ** 2 if noise.offset_deg > 0 else 1e16
    weak[[12, 11 + J]] = (
        1e16  # the first zero is where the base frame points, the last where the tool does: one with X and Z
    )
    weak[12 + J] = 1 / 0.2**2 if free_scale else 1e16
    twists = [_joint_jacobian(forward, v.q) for v in views]  # offsets are small: once is enough
    state = _State(X.copy(), Z.copy(), np.zeros((len(views), 6)), np.zeros(J), 1.0)

    def evaluate(s: _State) -> tuple[float, float, list[tuple[np.ndarray, ...]]]:
        values = np.concatenate([np.zeros(12), s.offsets, [s.scale - 1]])
        cost, squares = float((weak * values**2).sum() + (prior * s.arms**2).sum()), 0.0
        parts: list[tuple[np.ndarray, ...]] = []
        Rx, Xi = s.X[:3, :3], inverse(s.X)
        for k, (v, xi) in enumerate(zip(views, s.arms, strict=True)):
            A0 = forward(v.q + s.offsets)
            A = A0 @ transform(xi[:3], xi[3:])
            b = v.points * s.scale
            y = b @ s.Z[:3, :3].T + s.Z[:3, 3]
            B = A if mount == "base" else inverse(A)
            w = y @ B[:3, :3].T + B[:3, 3]
            c = w @ Rx + Xi[:3, 3]
            if (c[:, 2] < 1e-3).any():
                return np.inf, np.inf, []
            uv, _, jac = lens.project(c, theta, model)
            e = (v.pixels - uv) / sigma
            length = np.linalg.norm(e, axis=1)
            huber = np.where(length > 3, 3 / np.maximum(length, 1e-9), 1.0)
            cost += float(np.where(length > 3, 6 * length - 9, length**2).sum())
            squares += float(((v.pixels - uv) ** 2).sum())
            D = jac[..., 3:6] / sigma  # by the point in the camera frame
            M = Rx.T @ B[:3, :3]
            top = np.concatenate([D @ _skew(c), -D], axis=2)
            DM = D @ M
            if mount == "base":
                arm = np.concatenate([-DM @ _skew(y), DM], axis=2)
            else:
                arm = np.concatenate([D @ Rx.T @ _skew(w), -(D @ Rx.T)], axis=2)
            DZ = DM @ s.Z[:3, :3]
            board = np.concatenate([-DZ @ _skew(b), DZ], axis=2)
            # The joint offsets move A0; seen through exp(xi) of the same tool, which is small: the twist is taken as
            # A's own.
            joints = arm @ twists[k]
            scale = (DZ @ v.points[:, :, None])[..., :1]
            G = np.concatenate([top, board, joints, scale], axis=2).reshape(-1, m)
            parts.append((G, arm.reshape(-1, 6), e.ravel(), np.repeat(huber, 2)))
        return cost, squares, parts

    cost, squares, parts = evaluate(state)
    damping = 1e-4
    corners = sum(len(v.pixels) for v in views)
    for _ in range(50):
        A, g = np.diag(weak), -weak * np.concatenate([np.zeros(12), state.offsets, [state.scale - 1]])
        blocks = []
        for (G, E, e, h), xi in zip(parts, state.arms, strict=True):
            Gh, Eh = G * h[:, None], E * h[:, None]
            A += Gh.T @ G
            g += Gh.T @ e
            blocks.append((Eh.T @ E + np.diag(prior), Gh.T @ E, Eh.T @ e - prior * xi))
        done = True
        for _ in range(8):
            S, r, inverses = A + damping * np.diag(np.diag(A)), g.copy(), []
            for P, C, h6 in blocks:
                Pi = np.linalg.inv(P + damping * np.diag(np.diag(P)))
                S -= C @ Pi @ C.T
                r -= C @ Pi @ h6
                inverses.append(Pi)
            d = np.linalg.solve(S, r)
            arms = state.arms + np.array([Pi @ (h6 - C.T @ d) for Pi, (_, C, h6) in zip(inverses, blocks, strict=True)])
            new = _State(
                state.X @ transform(d[:3], d[3:6]),
                state.Z @ transform(d[6:9], d[9:12]),
                arms,
                state.offsets + d[12 : 12 + J],
                state.scale + d[-1],
            )
            new_cost, new_squares, new_parts = evaluate(new)
            if new_cost <= cost:
                done = cost - new_cost < 1e-8 * cost
                state, cost, squares, parts, damping = new, new_cost, new_squares, new_parts, max(damping / 10, 1e-12)
                break
            damping = min(damping * 10, 1e8)
        if done:
            break
    S = A.copy()
    for P, C, _ in blocks:
        S -= C @ np.linalg.inv(P) @ C.T
    dof = max(1, 6 * len(views) - 12 - (J if noise.offset_deg > 0 else 0))
    chi2 = float((prior * state.arms**2).sum()) / dof
    return state, np.linalg.inv(S), float(np.sqrt(squares / corners)), chi2


def board_pose(view: ArmView, theta: np.ndarray, model: str) -> np.ndarray:
    rays, _ = lens.unproject(view.pixels, theta, model)
    xy = np.ascontiguousarray(rays[:, :2] / rays[:, 2:])
    ok, rvecs, tvecs, _ = cv2.solvePnPGeneric(view.points, xy, np.eye(3), None, flags=cv2.SOLVEPNP_IPPE)
    if not ok:
        raise CalibrationError(f"picture {view.name} does not determine the board's pose: leave it out.")
    r, t = cv2.solvePnPRefineLM(view.points, xy, np.eye(3), None, rvecs[0], tvecs[0])
    return transform(r, t)


def solve(
    mount: str,
    views: list[ArmView],
    theta: np.ndarray,
    model: str,
    forward: Forward,
    noise: ArmNoise = ArmNoise(),
    sigma: float = 0.2,
    free_scale: bool = False,
    joints: tuple[str, ...] = (),
) -> HandEye:
    """One calibration without the comparison of halves. `sigma` is the corner noise, px. Raises CalibrationError."""
    if mount not in ("base", "arm"):
        raise CalibrationError(f"mount '{mount}' is not known: a camera is fixed to the base or rides on the arm.")
    rejected = [(v.name, f"only {len(v.pixels)} corners") for v in views if len(v.pixels) < 6]
    views = [v for v in views if len(v.pixels) >= 6]
    _enough(views, forward)
    arms = [forward(v.q) for v in views]
    boards = [board_pose(v, theta, model) for v in views]
    X, Z = park(mount, arms, boards)
    # A picture in which board, camera or arm was elsewhere: its pose contradicts all the others.
    off = _contradiction(mount, X, Z, arms, boards, noise)
    bad = off > max(4.0, 3.5 * float(np.median(off)))
    if bad.any() and bad.mean() <= 0.3:
        rejected += [
            (v.name, "contradicts the others: the board or the camera was moved")
            for v, b in zip(views, bad, strict=True)
            if b
        ]
        keep = np.nonzero(~bad)[0]
        views, arms, boards = [views[k] for k in keep], [arms[k] for k in keep], [boards[k] for k in keep]
        _enough(views, forward)
        X, Z = park(mount, arms, boards)
        off = _contradiction(mount, X, Z, arms, boards, noise)
    if bad.mean() > 0.3 or np.median(off) > 12:
        if turned := _turned_joints(mount, views, boards, forward, noise):
            names = ", ".join(joints[k] if joints else f"joint {k + 1}" for k in turned)
            raise CalibrationError(
                f"{names} turned the other way than the angle says (with the sign changed, arm poses and pictures "
                "agree): "
                "correct its direction (`harmowam calibrate joints --signs`), then repeat."
            )
        raise CalibrationError(
            "arm poses and pictures do not belong together: check that board and camera are firmly fixed, the "
            "board's size, "
            "and the joint calibration."
        )
    state, covariance, pixels, chi2 = _adjust(mount, views, theta, model, forward, noise, sigma, X, Z, free_scale)
    covariance = covariance * max(1.0, chi2)  # an arm that is worse than it was said to be
    J = len(views[0].q)
    arm = state.arms
    return HandEye(
        mount,
        state.X,
        state.Z,
        covariance[:6, :6],
        state.offsets,
        np.sqrt(np.diag(covariance)[12 : 12 + J]),
        state.scale,
        float(np.sqrt(covariance[-1, -1])),
        (float(np.degrees(np.sqrt((arm[:, :3] ** 2).sum(1).mean()))), float(np.sqrt((arm[:, 3:] ** 2).sum(1).mean()))),
        pixels,
        tuple(v.name for v in views),
        tuple(rejected),
        chi2,
    )


def _enough(views: list[ArmView], forward: Forward) -> None:
    if len(views) < MIN_POSES:
        raise CalibrationError(
            f"only {len(views)} usable arm poses, at least {MIN_POSES} are needed (15 are good): take more."
        )
    _, second = rotation_spread([forward(v.q) for v in views])
    if second < MIN_ROTATION:
        raise CalibrationError(
            f"the arm turned about one axis only ({second:.0f} degrees about a second one, {MIN_ROTATION:.0f} are "
            "needed): "
            "turn and tilt the gripper between the pictures."
        )


def _contradiction(
    mount: str, X: np.ndarray, Z: np.ndarray, arms: list[np.ndarray], boards: list[np.ndarray], noise: ArmNoise
) -> np.ndarray:
    """float64[n]: how many standard deviations each view is from the median view's board pose on the arm or table."""
    rotation = np.radians(max(np.hypot(noise.rotation_deg, 2 * noise.offset_deg), 0.1))
    translation = max(np.hypot(noise.translation_m, 0.3 * np.radians(noise.offset_deg)), 0.0005)
    out = []
    for a, b in zip(arms, boards, strict=True):
        d = log(inverse(Z) @ ((a @ X @ b) if mount == "arm" else (inverse(a) @ X @ b)))
        out.append(max(np.linalg.norm(d[:3]) / rotation, np.linalg.norm(d[3:]) / translation) / 2)
    return np.array(out)


def _turned_joints(
    mount: str, views: list[ArmView], boards: list[np.ndarray], forward: Forward, noise: ArmNoise
) -> tuple[int, ...]:
    """The fewest joints that, with the signs of their angles changed, make arm poses and pictures agree; () where none
    do."""
    J = len(views[0].q)
    for count in range(1, J + 1):
        found = []
        for turned in itertools.combinations(range(J), count):
            sign = np.ones(J)
            sign[list(turned)] = -1
            arms = [forward(v.q * sign) for v in views]
            try:
                X, Z = park(mount, arms, boards)
            except CalibrationError:
                continue
            found.append((float(np.median(_contradiction(mount, X, Z, arms, boards, noise))), turned))
        if found and min(found)[0] < 3:
            return min(found)[1]
    return ()


def calibrate(
    mount: str,
    views: list[ArmView],
    theta: np.ndarray,
    model: str,
    forward: Forward,
    noise: ArmNoise = ArmNoise(),
    sigma: float = 0.2,
    joints: tuple[str, ...] = (),
) -> tuple[HandEye, dict[str, float]]:
    """Solve with all views and with each half; returns the result and the halves' difference. Raises CalibrationError,
    in which `joints` names the arm's.

    Refused: too few poses, rotation about one axis only, a wrong square size, a joint that turns the other way than its
    angle says, halves that differ more than their covariances allow.
    """
    whole = solve(mount, views, theta, model, forward, noise, sigma, joints=joints)
    scaled = solve(mount, views, theta, model, forward, noise, sigma, free_scale=True)
    if abs(scaled.scale - 1) > max(4 * scaled.scale_sd, 0.02):
        raise CalibrationError(
            f"the board is {scaled.scale:.3f} times as large as described: measure a square with a ruler and correct "
            "the board's size."
        )
    if whole.chi2 > 16:
        raise CalibrationError(
            f"the arm contradicts the pictures {np.sqrt(whole.chi2):.0f} times as much as its precision explains: "
            "check that board and camera are firmly fixed, and the joint calibration."
        )
    good = [v for v in views if v.name in whole.kept]
    halves = [_half(mount, good[k::2], theta, model, forward, noise, sigma, whole) for k in (0, 1)]
    d = log(inverse(halves[0][0]) @ halves[1][0])
    spread = halves[0][1] + halves[1][1]
    sigmas = float(np.sqrt(d @ np.linalg.solve(spread, d) / 6))
    degrees, metres = distance(halves[0][0], halves[1][0])
    if sigmas > AGREE:
        raise CalibrationError(
            f"two halves of the poses disagree by {1000 * metres:.1f} mm and {degrees:.2f} degrees, "
            "more than the arm's precision explains: "
            "check that nothing moved, and repeat."
        )
    return whole, {"halves_deg": degrees, "halves_mm": 1000 * metres, "halves_sigma": sigmas}


def _half(
    mount: str,
    views: list[ArmView],
    theta: np.ndarray,
    model: str,
    forward: Forward,
    noise: ArmNoise,
    sigma: float,
    whole: HandEye,
) -> tuple[np.ndarray, np.ndarray]:
    """X and its covariance from half of the views, started from the whole."""
    state, covariance, _, chi2 = _adjust(mount, views, theta, model, forward, noise, sigma, whole.X, whole.Z, False)
    return state.X, covariance[:6, :6] * max(1.0, chi2)


def clear_path(forward: Forward, start: np.ndarray, end: np.ndarray, floor: float) -> bool:
    """Whether the tool stays above `floor` (m) on the straight way in joint angles."""
    return all(forward(start + (end - start) * s)[2, 3] > floor for s in np.linspace(0, 1, 15))


def propose(
    rng: np.random.Generator,
    forward: Forward,
    lower: np.ndarray,
    upper: np.ndarray,
    visible: Callable[[np.ndarray], bool],
    count: int = 15,
    floor: float = 0.09,
    tries: int = 20000,
) -> np.ndarray:
    """Arm poses float64[count,J] with much rotation: random ones inside the limits (a tenth kept free), tool above
    `floor` (m), board `visible`; then each next one is the farthest in rotation and place from those chosen. Raises
    CalibrationError when too few are found."""
    margin = 0.1 * (upper - lower)
    pool: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    for _ in range(tries):
        q = rng.uniform(lower + margin, upper - margin)
        if pool and rng.random() < 0.7:  # near one that is known to be good
            near = pool[int(rng.integers(len(pool)))] + rng.normal(0, 0.25, len(q))
            q = np.clip(near, lower + margin, upper - margin)
        T = forward(q)
        if T[2, 3] > floor and visible(q):
            pool.append(q)
            frames.append(T)
            if len(pool) >= 15 * count:
                break
    if len(pool) < count:
        raise CalibrationError(
            f"only {len(pool)} safe arm poses show the board, {count} are needed: aim the camera at the space above "
            "the table."
        )
    chosen = [0]
    gap = np.full(len(pool), np.inf)
    while len(chosen) < count:
        last = frames[chosen[-1]]
        for k, T in enumerate(frames):
            degrees, metres = distance(last, T)
            gap[k] = min(gap[k], degrees / 30 + metres / 0.1)
        chosen.append(int(gap.argmax()))
    return np.array([pool[k] for k in chosen])
