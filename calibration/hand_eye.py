"""Hand-eye calibration: where a camera is, from views of a board at known arm poses.

Two mounts. "base" (eye-to-hand): the camera is fixed and the board is in the gripper; X = T_base_from_cam, Z =
T_tool_from_board. "arm" (eye-in-hand): the camera rides on the tool and the board is fixed; X = T_tool_from_cam, Z =
T_base_from_board.

Park's closed form (Park and Martin 1994) gives the start of a bundle adjustment (`calibration.hand_eye_fit`). Andreff's
and Li's forms break on small noise and are not offered.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.camera import CalibrationError
from calibration.hand_eye_fit import Adjusted, Setup, adjust, behind
from calibration.transforms import distance, inverse, log, skew
from calibration.views import ArmNoise, ArmView, Forward, board_pose, pose_sd, second_pose

MIN_POSES, MIN_CORNERS = 8, 4
MIN_ROTATION = 20.0  # deg: spread of the arm's rotations about at least two axes
MOST_BAD = 0.3  # share of views that may contradict the others
MOVED = "contradicts the others: the board or the camera was moved"
AMBIGUOUS = "its corners fit two poses of the board"
VAGUE = "its corners do not tell the board's pose"
MOST_SD = 10.0  # deg: of the board's pose in a view that counts
BEHIND = "contradicts the others: by them its board is behind the camera"
AGREE = 4.0  # standard deviations that two halves may differ
MOST_CHI2 = 16.0  # of the arm's errors a degree of freedom: four times what ArmNoise says
# Another focal length than the stored one looks like a board of another size or like a wrong arm.
LENS = (
    "that the camera's focus and resolution are those at which its lens was calibrated (if not, set them back or run "
    "`harmowam calibrate intrinsics` again)"
)


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
    arms: np.ndarray  # float64[kept,6] error of each arm pose: rotation rad, translation m, in the tool's frame
    arm_rms: tuple[float, float]  # of all of them: deg, m
    pixel_rms: float
    kept: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    chi2: float  # of the arm's errors a degree of freedom: 1 when ArmNoise is right

    @property
    def sd(self) -> tuple[float, float]:
        """Standard deviation of the pose: rotation (deg) and position (m), all axes together."""
        rotation, position = np.trace(self.covariance[:3, :3]), np.trace(self.covariance[3:, 3:])
        return float(np.degrees(np.sqrt(rotation))), float(np.sqrt(position))

    def ray_sd(self, rays: np.ndarray, distance: float) -> np.ndarray:
        """Standard deviation float64[n] (m), across each unit ray float64[n,3] of the camera, of the point in which the
        ray ends at `distance` (m)."""
        J = np.concatenate([-skew(rays * distance), np.broadcast_to(np.eye(3), (len(rays), 3, 3))], axis=2)
        across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
        J = across @ J
        return np.asarray(np.sqrt(np.einsum("nij,jk,nik->n", J, self.covariance, J)))


def rotation_spread(poses: list[np.ndarray]) -> tuple[float, float]:
    """Largest rotation (deg) between poses float64[4,4] about the axis with the most of it, and about the best axis
    across that one."""
    vectors = np.array([log(inverse(a) @ b)[:3] for i, a in enumerate(poses) for b in poses[i + 1 :]])
    _, _, axes = np.linalg.svd(vectors, full_matrices=False)
    along = np.abs(vectors @ axes.T)
    return float(np.degrees(np.quantile(along[:, 0], 0.9))), float(np.degrees(np.quantile(along[:, 1], 0.9)))


def park(mount: str, arms: list[np.ndarray], boards: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """X and Z by Park's method from T_base_from_tool and T_cam_from_board float64[4,4] of each view. Raises
    CalibrationError where there is no solution."""
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
    # Z is the views' average: the chordal mean of the rotations, the median of the translations.
    each = [_board_place(mount, X, a, b) for a, b in zip(arms, boards, strict=True)]
    U, _, Vt = np.linalg.svd(sum(e[:3, :3] for e in each))
    Z = np.eye(4)
    Z[:3, :3] = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
    Z[:3, 3] = np.median([e[:3, 3] for e in each], axis=0)
    return X, Z


def _board_place(mount: str, X: np.ndarray, arm: np.ndarray, board: np.ndarray) -> np.ndarray:
    """Z as one view alone gives it."""
    return (arm @ X @ board) if mount == "arm" else (inverse(arm) @ X @ board)


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
    """One calibration without the comparison of halves. `sigma`: corner noise, px; `free_scale`: estimate the board's
    scale; `joints`: names for error messages, () where the arm poses come from no joint angles. Raises
    CalibrationError."""
    if mount not in ("base", "arm"):
        raise CalibrationError(f"mount '{mount}' is not known: a camera is fixed to the base or rides on the arm.")
    setup = Setup(mount, theta, model, forward, noise, sigma)
    seen, unclear = _poses_of_board(setup, views)
    kept, moved, X, Z = _consistent(setup, seen, unclear, joints)
    return _result(setup, kept, unclear + moved, adjust(setup, kept, X, Z, free_scale))


@dataclass(frozen=True)
class _Seen:
    """One view with T_cam_from_board float64[4,4] and its standard deviation: rotation (rad) and position (m)."""

    view: ArmView
    board: np.ndarray
    sd: tuple[float, float]


def _poses_of_board(setup: Setup, views: list[ArmView]) -> tuple[list[_Seen], list[tuple[str, str]]]:
    """The views that tell where the board is; name and reason of those that do not."""
    seen, unclear = [], []
    for v in views:
        lens = setup.theta, setup.model
        if len(v.pixels) < MIN_CORNERS:
            unclear.append((v.name, f"only {len(v.pixels)} corners"))
            continue
        try:
            T, degrees = board_pose(v, *lens), second_pose(v, *lens, setup.sigma)
        except CalibrationError:
            unclear.append((v.name, VAGUE))
            continue
        sd = pose_sd(v, T, *lens, setup.sigma)
        if degrees:
            unclear.append((v.name, f"{AMBIGUOUS}, {degrees:.0f} degrees apart"))
        elif sd[0] > np.radians(MOST_SD):
            unclear.append((v.name, VAGUE))
        else:
            seen.append(_Seen(v, T, sd))
    return seen, unclear


def _result(setup: Setup, views: list[ArmView], rejected: list[tuple[str, str]], adjusted: Adjusted) -> HandEye:
    """What an adjustment of `views` found."""
    state, arm, J = adjusted.state, adjusted.state.arms, len(views[0].q)
    covariance = _covariance(adjusted)
    degrees = np.degrees(np.sqrt((arm[:, :3] ** 2).sum(1).mean()))
    metres = np.sqrt((arm[:, 3:] ** 2).sum(1).mean())
    return HandEye(
        mount=setup.mount,
        X=state.X,
        Z=state.Z,
        covariance=covariance[:6, :6],
        offsets=state.offsets,
        offsets_sd=np.sqrt(np.diag(covariance)[12 : 12 + J]),
        scale=state.scale,
        scale_sd=float(np.sqrt(covariance[-1, -1])),
        arms=arm,
        arm_rms=(float(degrees), float(metres)),
        pixel_rms=adjusted.pixel_rms,
        kept=tuple(v.name for v in views),
        rejected=tuple(rejected),
        chi2=adjusted.chi2,
    )


def _covariance(adjusted: Adjusted) -> np.ndarray:
    """The adjustment's covariance, larger where the arm's errors are larger than ArmNoise says."""
    return adjusted.covariance * max(1.0, adjusted.chi2)


def _consistent(
    setup: Setup, seen: list[_Seen], unclear: list[tuple[str, str]], joints: tuple[str, ...]
) -> tuple[list[ArmView], list[tuple[str, str]], np.ndarray, np.ndarray]:
    """The views that agree with one another, (name, reason) of those that do not, and Park's X and Z. Raises
    CalibrationError where too few agree."""
    _enough(setup, seen, unclear)
    X, Z, off = _park_and_deviations(setup, seen)
    rejected: list[tuple[str, str]] = []
    bad = off > max(4.0, 3.5 * float(np.median(off)))
    few_bad = bad.mean() <= MOST_BAD
    if bad.any() and few_bad:
        rejected = [
            (s.view.name, MOVED if np.isfinite(d) else BEHIND) for s, b, d in zip(seen, bad, off, strict=True) if b
        ]
        seen = [s for s, b in zip(seen, bad, strict=True) if not b]
        _enough(setup, seen, unclear + rejected)
        X, Z, off = _park_and_deviations(setup, seen)
    if not few_bad or np.median(off) > 12 or np.isinf(off).any():
        if joints and (turned := _turned_joints(setup, seen)):
            names = ", ".join(joints[k] for k in turned)
            raise CalibrationError(
                f"{names} turned the other way than the angle says (with the sign changed, arm poses and pictures "
                "agree): correct its direction (`harmowam calibrate joints --signs`), then repeat."
            )
        if not joints and _inverted(setup, seen):
            raise CalibrationError(
                "arm poses and pictures agree with each pose inverted: give the tool's pose in the base's frame, not "
                "the base's in the tool's, and check --mount."
            )
        raise CalibrationError(
            "arm poses and pictures do not belong together: check that board and camera are firmly fixed, the "
            f"board's size, the joint calibration, and {LENS}."
        )
    return [s.view for s in seen], rejected, X, Z


def _enough(setup: Setup, seen: list[_Seen], left_out: list[tuple[str, str]]) -> None:
    """Raises CalibrationError for too few views, with the commonest reason of those `left_out` (name, reason), or arm
    poses that turn about one axis only."""
    if len(seen) < MIN_POSES:
        kinds = Counter(AMBIGUOUS if reason.startswith(AMBIGUOUS) else reason for _, reason in left_out)
        why, count = kinds.most_common(1)[0] if kinds else ("", 0)
        mend = "tilt the board more, bring it closer, or use one with more corners" if why == AMBIGUOUS else "take more"
        told = f"; {count} of {len(left_out)} left out: {why}" if why else ""
        raise CalibrationError(
            f"only {len(seen)} usable arm poses, at least {MIN_POSES} are needed (15 are good){told}: {mend}."
        )
    _, second = rotation_spread([setup.forward(s.view.q) for s in seen])
    if second < MIN_ROTATION:
        raise CalibrationError(
            f"the arm turned about one axis only ({second:.0f} degrees about a second one, {MIN_ROTATION:.0f} are "
            "needed): turn and tilt the gripper between the pictures."
        )


def _park_and_deviations(
    setup: Setup, seen: list[_Seen], sign: np.ndarray | float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Park's X and Z of joint angles times `sign` float64[J], and float64[views]: how many standard deviations each
    view's board is from Z, infinite where X and Z put it behind the camera."""
    noise = setup.noise
    rotation = np.radians(max(np.hypot(noise.rotation_deg, 2 * noise.offset_deg), 0.1))
    translation = max(np.hypot(noise.translation_m, 0.3 * np.radians(noise.offset_deg)), 0.0005)
    arms = [setup.forward(s.view.q * sign) for s in seen]
    X, Z = park(setup.mount, arms, [s.board for s in seen])
    out = []
    for s, a in zip(seen, arms, strict=True):
        d = log(inverse(Z) @ _board_place(setup.mount, X, a, s.board))
        lost = behind(setup, X, Z, a, s.view.points)
        turned = np.linalg.norm(d[:3]) / np.hypot(rotation, s.sd[0])
        out.append(np.inf if lost else max(turned, np.linalg.norm(d[3:]) / np.hypot(translation, s.sd[1])) / 2)
    return X, Z, np.array(out)


def _turned_joints(setup: Setup, seen: list[_Seen]) -> tuple[int, ...]:
    """The fewest joints whose angles, with their signs changed, make arm poses and pictures agree; () where none do."""
    J = len(seen[0].view.q)
    for count in range(1, J + 1):
        found = []
        for turned in itertools.combinations(range(J), count):
            sign = np.ones(J)
            sign[list(turned)] = -1
            try:
                _, _, off = _park_and_deviations(setup, seen, sign)
            except CalibrationError:
                continue
            found.append((float(np.median(off)), turned))
        if found and min(found)[0] < 3:
            return min(found)[1]
    return ()


def _inverted(setup: Setup, seen: list[_Seen]) -> bool:
    """Whether the inverse of each arm pose agrees with the pictures."""
    other = dataclasses.replace(setup, forward=lambda q: inverse(setup.forward(q)))
    try:
        _, _, off = _park_and_deviations(other, seen)
    except CalibrationError:
        return False
    return float(np.median(off)) < 3


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
    in which `joints` names the arm's; () where the arm poses come from no joint angles.

    Refused: too few poses, rotation about one axis only, a wrong square size or focal length, a joint that turns the
    other way than its angle says, halves that differ more than their covariances allow.
    """
    whole = solve(mount, views, theta, model, forward, noise, sigma, joints=joints)
    scaled = solve(mount, views, theta, model, forward, noise, sigma, free_scale=True)
    if abs(scaled.scale - 1) > max(4 * scaled.scale_sd, 0.02):
        raise CalibrationError(
            f"the board is {scaled.scale:.3f} times as large as described, or the camera's focal length is another "
            "than the stored one: measure a square with a ruler and correct the board's size if it differs; if it "
            f"does not, check {LENS}."
        )
    if whole.chi2 > MOST_CHI2:
        raise CalibrationError(
            f"the arm contradicts the pictures {np.sqrt(whole.chi2):.0f} times as much as its precision explains: "
            f"check that board and camera are firmly fixed, the joint calibration, and {LENS}."
        )
    setup = Setup(mount, theta, model, forward, noise, sigma)
    good = [v for v in views if v.name in whole.kept]
    (a, a_covariance), (b, b_covariance) = (_half(setup, good[k::2], whole) for k in (0, 1))
    d = log(inverse(a) @ b)
    sigmas = float(np.sqrt(d @ np.linalg.solve(a_covariance + b_covariance, d) / 6))
    degrees, metres = distance(a, b)
    if sigmas > AGREE:
        raise CalibrationError(
            f"two halves of the poses disagree by {1000 * metres:.1f} mm and {degrees:.2f} degrees, "
            "more than the arm's precision explains: check that nothing moved, and repeat."
        )
    return whole, {"halves_deg": degrees, "halves_mm": 1000 * metres, "halves_sigma": sigmas}


def _half(setup: Setup, views: list[ArmView], whole: HandEye) -> tuple[np.ndarray, np.ndarray]:
    """X and its covariance float64[6,6] from half of the views; the result of all views is the start."""
    adjusted = adjust(setup, views, whole.X, whole.Z, free_scale=False)
    return adjusted.state.X, _covariance(adjusted)[:6, :6]
