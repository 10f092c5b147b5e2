"""Outlines of an arm's convex shapes in a camera's pictures, filled by OpenCV, and fitted to masks of what moves.

A point of an outline is a point of the arm's body: where it lies in the picture, and how it moves with the camera, its
lens and the joint angles, is known in closed form. Its residual is its distance to the edge of the mask.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.arm_shapes import BASE, Shapes
from calibration.transforms import inverse, skew, transform
from firmware_bridge.arms.family import Family

FAR = 60.0  # px; distances to the mask's edge are cut there
SIXTEENTH = 4  # bits of a pixel's fraction for OpenCV's filling
OFTEN = 0.35  # share of the pictures; where the arm is seen more often the background is not known
MARGIN = 3  # px at the picture's border that are not used
NEAR = 0.05  # m; nothing of the arm is nearer to a camera


@dataclass(frozen=True)
class State:
    """`pose`: T_cam_from_base float64[4,4]; `theta`: of the lens (`calibration.lens`); `zeros` float64[J] rad, added to
    the reported angles; `grown`: px by which the masks are larger than the arm."""

    pose: np.ndarray
    theta: np.ndarray
    zeros: np.ndarray
    grown: float = 0.0


@dataclass(frozen=True)
class Seen:
    """N poses of the arm: reported angles `q` float64[N,J], and distances to the masks' edges, float32[N,H,W] px,
    positive outside. `episode` int64[N]."""

    q: np.ndarray
    distance: np.ndarray
    episode: np.ndarray

    def at(self, index: np.ndarray) -> Seen:
        return Seen(self.q[index], self.distance[index], self.episode[index])


@dataclass(frozen=True)
class Outline:
    """M points of the outlines: `frame` int64[M], `link` int64[M], `body` float64[M,3] in the frame of the link."""

    frame: np.ndarray
    link: np.ndarray
    body: np.ndarray


def distances(masks: np.ndarray) -> np.ndarray:
    """Signed distance float32[N,H,W] (px) to the edge of masks uint8[N,H,W] (0 or not), positive outside."""
    out = np.empty(masks.shape, np.float32)
    for k, mask in enumerate(masks):
        inside = (mask != 0).astype(np.uint8)
        away = [cv2.distanceTransform(m, cv2.DIST_L2, 5) for m in (1 - inside, inside)]
        # two pixels beside an edge are half a pixel from it, and OpenCV counts to the next pixel's centre
        out[k] = np.where(inside, 0.5 - away[1], away[0] - 0.5)
    return np.clip(out, -FAR, FAR)


def vertices(shapes: Shapes, arm: Family, q: np.ndarray) -> np.ndarray:
    """The shapes' vertices in the base frame, float64[N,V,3], at joint angles [N,J]."""
    frames = np.concatenate([arm.frames(q), np.broadcast_to(np.eye(4), (len(q), 1, 4, 4))], 1)  # BASE is the last
    T = frames[:, shapes.of_vertex]
    return np.einsum("nvij,vj->nvi", T[..., :3, :3], shapes.vertices) + T[..., :3, 3]


def pixels(points: np.ndarray, state: State, model: str) -> np.ndarray:
    """Pixels float32[..., 2] of points [..., 3] in the base frame; NaN behind the camera."""
    at = points @ state.pose[:3, :3].T + state.pose[:3, 3]
    flat = at.reshape(-1, 3)
    K, D = lens.matrix(state.theta), state.theta[4:]
    if np.any(D):
        near = np.where(flat[:, 2:] > NEAR, flat, [0, 0, 1.0])
        uv = lens.project(near, state.theta, model)[0]
    else:
        uv = flat[:, :2] / np.maximum(flat[:, 2:], NEAR) * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]
    return np.where(flat[:, 2:] > NEAR, uv, np.nan).astype(np.float32).reshape(*points.shape[:-1], 2)


def fill(picture: np.ndarray, uv: np.ndarray, shapes: Shapes, solids: np.ndarray, value: int = 1) -> list[np.ndarray]:
    """Fill the hulls of the `solids` in `picture` uint8[H,W] from the vertices' pixels float32[V,2]; returns each one's
    hull as numbers of vertices (empty where it is behind the camera)."""
    hulls = []
    for s in solids:
        first, last = shapes.ends[s], shapes.ends[s + 1]
        part = uv[first:last]
        if not np.isfinite(part).all() or np.abs(part).max() > 20000:
            hulls.append(np.zeros(0, int))
            continue
        index = cv2.convexHull(part, returnPoints=False).ravel()
        cv2.fillConvexPoly(picture, np.round(part[index] * 16).astype(np.int32), value, shift=SIXTEENTH)
        hulls.append(index + first)
    return hulls


def walk(
    picture: np.ndarray, uv: np.ndarray, hulls: list[np.ndarray], shapes: Shapes, step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points every `step` px along the hulls (numbers of vertices, at pixels float32[V,2]) that lie at the edge of what
    is filled in `picture` uint8[H,W]: a vertex near each int64[M], body points float64[M,3], outward normals
    float64[M,2]."""
    height, width = picture.shape
    a, b = np.concatenate(hulls), np.concatenate([np.roll(h, -1) for h in hulls])
    edge = uv[b] - uv[a]
    length = np.linalg.norm(edge, axis=1)
    along = np.cumsum(length)
    at = np.arange(0.5 * step, along[-1], step)
    k = np.searchsorted(along, at)
    share = 1 - (along[k] - at) / np.maximum(length[k], 1e-6)
    point = uv[a[k]] + edge[k] * share[:, None]
    # OpenCV's hulls run clockwise in a picture whose y points down: the outside lies to the left
    out = np.stack([edge[k, 1], -edge[k, 0]], 1) / np.maximum(length[k], 1e-6)[:, None]
    probe = np.round(point + 2.0 * out).astype(int)
    good = ((probe >= MARGIN) & (probe < [width - MARGIN, height - MARGIN])).all(1)
    good[good] = picture[probe[good, 1], probe[good, 0]] == 0
    k, share = k[good], share[good, None]
    return a[k], shapes.vertices[a[k]] * (1 - share) + shapes.vertices[b[k]] * share, out[good]


def outlines(
    shapes: Shapes, arm: Family, q: np.ndarray, state: State, model: str, size: tuple[int, int], step: float
) -> tuple[Outline, np.ndarray]:
    """Points of the arm's outline every `step` px, and the share of the pictures in which each pixel is covered,
    float32[H,W]. Points that lie on the arm, on the base or shoulder, or at the border are left out."""
    uv = pixels(vertices(shapes, arm, q + state.zeros), state, model)
    moving = np.flatnonzero(shapes.link > arm.PAN)
    still = np.flatnonzero(shapes.link <= arm.PAN)
    of_vertex, found = shapes.of_vertex, []
    width, height = size
    covered = np.zeros((height, width), np.float32)
    for n in range(len(q)):
        picture = np.zeros((height, width), np.uint8)
        hulls = [h for h in fill(picture, uv[n], shapes, moving) if len(h)]
        covered += picture
        fill(picture, uv[n], shapes, still)
        if not hulls:
            continue
        first, body, _ = walk(picture, uv[n], hulls, shapes, step)
        found.append((np.full(len(first), n), of_vertex[first], body))
    if not found:
        return Outline(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))), covered / max(len(q), 1)
    return Outline(*(np.concatenate(x) for x in zip(*found))), covered / len(q)


def placed(o: Outline, q: np.ndarray, arm: Family, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The outline's points in the base frame and in the camera's, float64[M,3], and the links' frames float64[N,L,4,4]
    at reported angles [N,J]."""
    frames = arm.frames(q + state.zeros)
    T = np.where((o.link == BASE)[:, None, None], np.eye(4), frames[o.frame, np.maximum(o.link, 0)])
    P = np.einsum("mij,mj->mi", T[:, :3, :3], o.body) + T[:, :3, 3]
    at = P @ state.pose[:3, :3].T + state.pose[:3, 3]
    at[:, 2] = np.maximum(at[:, 2], NEAR)
    return P, at, frames


def derivatives(
    o: Outline,
    arm: Family,
    state: State,
    model: str,
    along: np.ndarray,
    where: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """Derivatives float64[M,9+J] of the points' pixels along directions [M,2], by rotation and translation of the
    camera (3+3), log of the focal length, first distortion, growth (0) and zeros; `where`: what `placed` gave."""
    P, at, frames = where
    _, by_theta, by_pose = lens.project(at, state.theta, model)
    by_point = np.einsum("mi,mij->mj", along, by_pose[:, :, 3:6])
    lensed = np.einsum("mi,mij->mj", along, by_theta)
    J = np.zeros((len(at), 9 + len(state.zeros)))
    J[:, :3] = np.einsum("mi,mij->mj", by_point, -skew(at))
    J[:, 3:6] = by_point
    J[:, 6] = lensed[:, 0] * state.theta[0] + lensed[:, 1] * state.theta[1]
    J[:, 7] = lensed[:, 4]
    in_base = by_point @ state.pose[:3, :3]
    for k, link in enumerate(arm.chain):
        axis = frames[o.frame, k, :3, :3] @ np.array(link.axis, float)
        turned = np.einsum("mi,mi->m", in_base, np.cross(axis, P - frames[o.frame, k, :3, 3]))
        J[:, 9 + k] = np.where(o.link >= k, turned, 0.0)
    return J


def residuals(
    o: Outline, seen: Seen, arm: Family, state: State, model: str, covered: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Residuals float64[M] (px), their `derivatives`, and which count, bool[M]: those inside the picture where the arm
    is not `covered` (share float32[H,W]) too often."""
    where = placed(o, seen.q, arm, state)
    uv = lens.project(where[1], state.theta, model)[0]
    r, gradient, inside = _sampled(seen.distance, o.frame, uv)
    J = derivatives(o, arm, state, model, gradient, where)
    J[:, 8] = 1.0
    if covered is not None:
        x, y = (np.clip(np.round(uv[:, i]).astype(int), 0, covered.shape[1 - i] - 1) for i in (0, 1))
        inside = inside & (covered[y, x] <= OFTEN)
    return r + state.grown, J, inside


def _sampled(fields: np.ndarray, frame: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear values float64[M] of fields [N,H,W] at pixels [M,2], gradients float64[M,2], and whether inside."""
    height, width = fields.shape[1:]
    inside = np.asarray(((uv >= MARGIN) & (uv <= [width - 1 - MARGIN, height - 1 - MARGIN])).all(1))
    safe = np.where(inside[:, None], uv, 5.0)

    def at(dx: float, dy: float) -> np.ndarray:
        x, y = safe[:, 0] + dx, safe[:, 1] + dy
        i, j = np.floor(x).astype(int), np.floor(y).astype(int)
        a, b = x - i, y - j
        f = fields
        top = f[frame, j, i] * (1 - a) + f[frame, j, i + 1] * a
        return top * (1 - b) + (f[frame, j + 1, i] * (1 - a) + f[frame, j + 1, i + 1] * a) * b

    gradient = np.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], 1) / 2
    return at(0, 0), gradient, inside


def moved(state: State, step: np.ndarray) -> State:
    """The state after a step float64[9+J] in the order of `residuals`."""
    pose = transform(step[:3], step[3:6]) @ state.pose
    theta = state.theta.copy()
    theta[:2] *= np.exp(step[6])
    theta[4] += step[7]
    return dataclasses.replace(
        state, pose=pose, theta=theta, zeros=state.zeros + step[9:], grown=state.grown + float(step[8])
    )


def base_from_camera(state: State) -> np.ndarray:
    return inverse(state.pose)
