"""Where a camera that stands is, its focal length, and the joints' zeros, from pictures and joint angles alone.

Masks of what moves; a search of the half sphere; a fit of the arm's outlines to the masks, all unknowns together; the
base's edges for the zero of the joint that turns the whole arm. No board, no network. The standard deviations are those
of the fit plus those of fits to other episodes with the shapes drawn within their tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens, moving_masks
from calibration.arm_shapes import Shapes
from calibration.base_edges import BaseEdges, about_pan, pan_zero, standing
from calibration.camera import CalibrationError, Camera
from calibration.silhouette_fit import FOCAL, SHARED, Fit, Prior, Problem, descend, judged, refine, unknowns
from calibration.silhouette_start import candidates, focal_lengths
from calibration.silhouettes import Seen, State, distances, fill, moved, pixels, vertices
from calibration.transforms import inverse, log
from firmware_bridge.arms.family import Family

WIDEST = 640  # px; larger pictures are scaled down
POSES, MIN_POSES, MIN_EPISODES = 60, 24, 4
FAST = 0.5  # rad/s; the arm's pose in a picture is not known well beyond
MIN_INLIERS = 0.75
MOST_PX = 0.6  # held-out median, px of the fitted pictures: up to 0.5 with true shapes, 0.7 with links 7 % too thick
MOST_MM, MOST_DEG = 25.0, 2.0  # standard deviations
MOST_GROWN = 3.0  # px at 640 columns; the masks are larger than the arm by about one
LIGHT, LIT = 0.06, 0.15  # change of the brightness of what stands, and share of pictures with it, that are refused
DRAWS = 6
TOLD = 0.6  # share of its prior deviation above which a zero is undetermined
FOCAL_SD = (0.005, 0.15)  # of its log: from a stored lens, without one
FOCAL_AWAY = 0.04  # share by which a focal length that is fitted may differ from the stored one


@dataclass(frozen=True)
class Recorded:
    """Pictures uint8[n,H,W,3] (RGB) of one camera that stands, reported joint angles `q` float64[n,J] rad and their
    `speed` float64[n] rad/s (the fastest joint's), and the `episode` int64[n] of each."""

    pictures: np.ndarray
    q: np.ndarray
    speed: np.ndarray
    episode: np.ndarray


@dataclass(frozen=True)
class Found:
    """The camera at the size of the pictures, with T_base_from_cam; `zeros` float64[J] rad to add to the reported
    angles, `zeros_sd` (NaN: undetermined); standard deviations of the camera's place (mm) and rotation (degrees);
    `heldout_px`: median distance of outlines from masks in episodes that the fit has not seen, px of the pictures.
    `refused`: why the result must not be used; `overlays` uint8[H,W,3]: outlines over pictures."""

    camera: Camera
    zeros: np.ndarray
    zeros_sd: np.ndarray
    position_sd_mm: float
    angle_sd_deg: float
    heldout_px: float
    inliers: float
    focal_sd: float
    refused: tuple[str, ...]
    overlays: tuple[np.ndarray, ...]


def solve(
    arm: Family,
    shapes: Shapes,
    recorded: Recorded,
    name: str = "front",
    known: Camera | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Solve for the camera `name`. `known`: its lens at the pictures' size, where it is calibrated. Raises
    CalibrationError where the recording holds too little to start with."""
    small, factor = _scaled(recorded.pictures)
    size = (small.shape[2], small.shape[1])
    say("masks")
    whole, each = moving_masks.backgrounds(small, recorded.episode)
    if (light := _light(small, whole)) > LIT:
        raise CalibrationError(
            f"the light changes in {100 * light:.0f} % of the pictures: record in steady light, the camera's exposure "
            "fixed."
        )
    chosen = _poses(recorded)
    masks = moving_masks.masks(small[chosen], recorded.episode[chosen], whole, each)
    area = masks.mean((1, 2))
    good = (area > 0.004) & (area < 0.5)
    chosen, masks = chosen[good], masks[good]
    groups = np.unique(recorded.episode[chosen])
    if len(chosen) < MIN_POSES or len(groups) < MIN_EPISODES:
        raise CalibrationError(
            f"{len(chosen)} poses of {len(groups)} episodes show a slow arm that differs from its background, and "
            f"{MIN_POSES} of {MIN_EPISODES} are needed: record more episodes, the camera and the light fixed."
        )
    seen = Seen(recorded.q[chosen], distances(masks), recorded.episode[chosen])
    thetas, model, prior = _lenses(known, size, factor)
    problem = Problem(shapes, arm, seen, model, size, prior)
    say("search")
    state = _searched(problem, thetas, known)
    say("fit")
    state = refine(problem, state, known is None, known is None)
    base, state, pan_sd = _panned(problem, state, small[chosen], masks)
    say("uncertainty")
    fit = judged(problem, state)
    heldout = _heldout(problem, state, known)
    covariance = _covariance(problem, fit, known, base, pan_sd)
    refused = _refused(problem, fit, heldout, covariance, known)
    camera = _camera(name, state, model, size, known, recorded.pictures.shape)
    sd = np.sqrt(np.diag(covariance))
    spread = sd[SHARED:]
    return Found(
        camera,
        state.zeros,
        np.where(spread > TOLD * prior.zeros_sd, np.nan, spread),
        1000 * float(np.sqrt((sd[3:6] ** 2).sum())),
        float(np.degrees(np.sqrt((sd[:3] ** 2).sum()))),
        heldout / factor * problem.scale,
        fit.inliers,
        float(sd[FOCAL]),
        tuple(refused),
        tuple(_overlays(problem, state, small[chosen])),
    )


def _scaled(pictures: np.ndarray) -> tuple[np.ndarray, float]:
    """The pictures at most `WIDEST` wide, and the factor."""
    if pictures.shape[2] <= WIDEST:
        return pictures, 1.0
    factor = WIDEST / pictures.shape[2]
    size = (WIDEST, round(pictures.shape[1] * factor))
    return np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in pictures]), factor


def _light(pictures: np.ndarray, whole: np.ndarray) -> float:
    """Share of the pictures whose brightness, where most stands, differs by more than `LIGHT` from the median one."""
    coarse = pictures[:, ::8, ::8].mean(-1)
    ratio = np.median(coarse / np.maximum(whole[::8, ::8].mean(-1), 8.0), (1, 2))
    return float((np.abs(ratio - np.median(ratio)) > LIGHT).mean())


def _poses(recorded: Recorded) -> np.ndarray:
    """Up to `POSES` slow pictures whose joint angles are spread (farthest points)."""
    slow = np.flatnonzero(recorded.speed < FAST)
    if not len(slow):
        return slow
    q = recorded.q[slow]
    taken = [0]
    away = np.linalg.norm(q - q[0], axis=1)
    while len(taken) < min(POSES, len(slow)):
        taken.append(int(away.argmax()))
        if away[taken[-1]] < 0.02:
            taken.pop()
            break
        away = np.minimum(away, np.linalg.norm(q - q[taken[-1]], axis=1))
    return np.sort(slow[taken])


def _lenses(known: Camera | None, size: tuple[int, int], factor: float) -> tuple[list[np.ndarray], str, Prior]:
    if known is not None:
        model = "fisheye" if known.model == "fisheye" else "rational"
        scaled = known.scaled(*size)
        theta = lens.parameters(scaled.K, scaled.D, model)
        return [theta], model, Prior(float(theta[0]), FOCAL_SD[0], float(theta[4]))
    middle = [(size[0] - 1) / 2, (size[1] - 1) / 2]
    thetas = [np.array([f, f, *middle, 0, 0, 0, 0, 0.0]) for f in focal_lengths(size[0])]
    return thetas, "pinhole", Prior(float(np.median([t[0] for t in thetas])), 2 * FOCAL_SD[1])


def _searched(p: Problem, thetas: list[np.ndarray], known: Camera | None) -> State:
    """The best of a few starts, after a fit to part of the pictures."""
    n, joints, focal = len(p.seen.q), p.seen.q.shape[1], known is None
    few = p.at(np.unique(np.linspace(0, n - 1, 20).astype(int)))
    best: tuple[float, State] | None = None
    for state in candidates(few, thetas):
        state = descend(few, state, unknowns(joints, zeros=False, focal=focal), 30.0, 10, 8.0)
        state = descend(few, state, unknowns(joints, zeros=True, focal=focal), 12.0, 4, 8.0)
        share = judged(few, state, 8.0).inliers
        if best is None or share > best[0]:
            best = share, state
    if best is None:
        raise CalibrationError("no place of the camera explains what moves: record the arm alone, in steady light.")
    return best[1]


def _panned(p: Problem, state: State, pictures: np.ndarray, masks: np.ndarray) -> tuple[BaseEdges, State, float]:
    """What stands, the state with the pan joint's zero from the base's edges, and that zero's deviation (rad)."""
    for _ in range(2):
        base = standing(pictures, masks, p.seen.q, p.shapes, p.arm, state, p.model)
        angle, sd = pan_zero(base, p.shapes, p.arm, state, p.model, p.prior.zeros_sd)
        state = about_pan(state, p.arm, angle)
    return base, state, sd


def _heldout(p: Problem, state: State, known: Camera | None) -> float:
    """Median distance (px at 640 columns) in every third episode, after a fit to the others."""
    groups = np.unique(p.seen.episode)
    out = np.isin(p.seen.episode, groups[::3])
    free = unknowns(p.seen.q.shape[1], zeros=True, bent=known is None, focal=known is None)
    there = descend(p.at(np.flatnonzero(~out)), state, free, 4.0, 4, 8.0)
    return judged(p.at(np.flatnonzero(out)), there).typical


def _covariance(p: Problem, fit: Fit, known: Camera | None, base: BaseEdges, pan_sd: float) -> np.ndarray:
    """Covariance float64[9+J,9+J] of T_base_from_cam (rotation, place), log of the focal length, distortion, growth and
    zeros: of the fit, and of `DRAWS` fits to episodes drawn again with shapes drawn within their tolerance; and of the
    pan joint's zero, with which the camera turns."""
    joints, rng = p.seen.q.shape[1], np.random.default_rng(0)
    free = unknowns(joints, zeros=True, bent=known is None, focal=known is None)
    pan = SHARED + p.arm.PAN
    free[pan] = False
    inverse_ = np.zeros((len(free), len(free)))
    inverse_[np.ix_(free, free)] = np.linalg.inv(fit.normal[np.ix_(free, free)])
    turn = _as_place(fit.state)
    formal = turn @ inverse_ @ turn.T
    groups, away, pans = np.unique(p.seen.episode), [], list[float]()
    for _ in range(DRAWS):
        drawn = rng.choice(groups, len(groups))
        index = np.concatenate([np.flatnonzero(p.seen.episode == g) for g in drawn])
        again = dataclasses.replace(p.at(np.unique(index)), shapes=p.shapes.drawn(rng))
        state = descend(again, fit.state, free, 4.0, 5, 8.0)
        pans.append(pan_zero(base, again.shapes, p.arm, state, p.model, p.prior.zeros_sd)[0])
        d = log(inverse(fit.pose) @ inverse(state.pose))
        focal = np.log(state.theta[0] / fit.state.theta[0])
        bent = state.theta[4] - fit.state.theta[4]
        away.append([*d[:3], *d[3:], focal, bent, state.grown - fit.state.grown, *(state.zeros - fit.state.zeros)])
    spread = np.array(away)
    gauge = np.zeros(len(free))
    gauge[:6] = log(inverse(fit.pose) @ inverse(about_pan(fit.state, p.arm, 0.01).pose)) / 0.01
    gauge[pan] = 1.0
    return formal + spread.T @ spread / DRAWS + np.outer(gauge, gauge) * (pan_sd**2 + float(np.mean(np.square(pans))))


def _as_place(state: State, small: float = 1e-3) -> np.ndarray:
    """Derivative float64[n,n] of T_base_from_cam (as `log` of its change), and the rest as it is, by a step
    that is large enough for `cv2.Rodrigues`, which takes rotations below 1e-5 rad for none."""
    n = SHARED + len(state.zeros)
    out = np.eye(n)
    for k in range(6):
        step = np.zeros(n)
        step[k] = small
        out[:6, k] = log(state.pose @ inverse(moved(state, step).pose)) / small
    return out


def _refused(p: Problem, fit: Fit, heldout: float, covariance: np.ndarray, known: Camera | None) -> list[str]:
    """Why the result must not be used; empty where it may."""
    sd = np.sqrt(np.diag(covariance))
    mm, degrees = 1000 * np.sqrt((sd[3:6] ** 2).sum()), np.degrees(np.sqrt((sd[:3] ** 2).sum()))
    out = []
    if not fit.inliers >= MIN_INLIERS:
        out.append(
            f"the outlines fit in {100 * fit.inliers:.0f} % of their points, and {100 * MIN_INLIERS:.0f} % are needed: "
            "give the arm's true shapes with --urdf, or record the arm alone"
        )
    if not heldout * p.scale <= MOST_PX:
        out.append(
            f"episodes that were held out are {heldout * p.scale:.2f} px off, at most {MOST_PX:.2f}: give the arm's "
            "true shapes with --urdf, or record more episodes"
        )
    if abs(fit.state.grown) > MOST_GROWN:
        out.append(
            f"the arm is {fit.state.grown:+.1f} px larger than its shapes: give the true ones with --urdf, or switch "
            "off what throws its shadow"
        )
    if not (mm <= MOST_MM and degrees <= MOST_DEG):
        out.append(
            f"the pose is known to {mm:.0f} mm and {degrees:.1f} degrees, at most {MOST_MM:.0f} and {MOST_DEG:.0f}: "
            "record 20 s in which the arm sweeps the free space, its base in the picture"
        )
    if known is not None:
        free = unknowns(p.seen.q.shape[1], zeros=True)
        loose = dataclasses.replace(p, prior=dataclasses.replace(p.prior, focal_sd=FOCAL_SD[1]))
        away = descend(loose, fit.state, free, 4.0, 8, 8.0).theta[0] / fit.state.theta[0] - 1
        if abs(away) > FOCAL_AWAY:
            out.append(
                f"this arm would need a lens of {100 * away:+.0f} % focal length: the shapes are another arm's size; "
                "give the true ones with --urdf"
            )
    return out


def _camera(
    name: str, state: State, model: str, size: tuple[int, int], known: Camera | None, shape: tuple[int, ...]
) -> Camera:
    pose = inverse(state.pose)
    if known is not None:
        return dataclasses.replace(known, name=name, T_base_from_cam=pose, T_tool_from_cam=None)
    D = state.theta[4:9].copy()
    found = Camera(name, size[0], size[1], lens.matrix(state.theta), D, pose)
    return found.scaled(shape[2], shape[1])


def _overlays(p: Problem, state: State, pictures: np.ndarray, count: int = 4) -> list[np.ndarray]:
    """Pictures with the fitted arm's outline: moving links magenta, base green."""
    index = np.unique(np.linspace(0, len(pictures) - 1, count).astype(int))
    uv = pixels(vertices(p.shapes, p.arm, p.seen.q[index] + state.zeros), state, p.model)
    out = []
    for k, at in zip(index, uv, strict=True):
        picture = pictures[k].copy()
        for solids, colour in ((p.shapes.link >= 0, (255, 0, 255)), (p.shapes.link < 0, (0, 255, 0))):
            filled = np.zeros(picture.shape[:2], np.uint8)
            fill(filled, at, p.shapes, np.flatnonzero(solids))
            lines, _ = cv2.findContours(filled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, lines, -1, colour, 1)
        out.append(picture)
    return out


def to_json(cameras: dict[str, Found]) -> dict[str, object]:
    """The JSON of `harmowam calibrate from-recording`. A zero that is undetermined is null."""
    out: dict[str, object] = {
        "cameras": {
            name: {
                "base_from_camera": None if f.camera.T_base_from_cam is None else f.camera.T_base_from_cam.tolist(),
                "fx_px": float(f.camera.K[0, 0]),
                "fx_sd_px": float(f.camera.K[0, 0]) * f.focal_sd,
                "distortion": f.camera.D.tolist(),
                "position_sd_mm": f.position_sd_mm,
                "angle_sd_deg": f.angle_sd_deg,
                "heldout_px": f.heldout_px,
                "inliers": f.inliers,
                "accepted": not f.refused,
                "refused": list(f.refused),
            }
            for name, f in cameras.items()
        }
    }
    for f in list(cameras.values())[:1]:
        told = np.isfinite(f.zeros_sd)
        degrees, sd = np.degrees(f.zeros), np.degrees(f.zeros_sd)
        out["joint_zero_deg"] = [float(v) if k else None for v, k in zip(degrees, told, strict=True)]
        out["joint_zero_sd_deg"] = [float(v) if k else None for v, k in zip(sd, told, strict=True)]
    return out
