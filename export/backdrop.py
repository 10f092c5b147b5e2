"""Replaces the table top in recorded demonstrations, so that recordings on one plain table train for many tables.

The plain table is separated from the things on it by its colour, as with a green screen (GreenAug: Teoh et al., arXiv
2407.07868), and replaced by a drawn table with foreign things on it, some flat and some standing. Both views show the
drawn table in perspective: the front camera by its calibration, the wrist camera by the arm's pose and its hand-eye
mount. Pictures of a table that is not plain stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from calibration.camera import Camera
from export.config import Config
from export.data import Demonstrations
from export.labels import wrist_mount
from export.lerobot import DataError
from firmware_bridge.arms.family import rotation
from sim.tasks import PAN_X
from sim.variety import draw_table_top

LOW, HIGH = (-0.3, -0.7), (0.9, 0.7)  # corners of the drawn table, m in the base frame
CELL = 0.0025  # m a pixel of the drawn table
CLEAR = 0.06  # m between clutter and where the gripper acts: a ring's post stands 35 mm from there
NEAR = 0.03  # m: nothing nearer to a camera is drawn
# grey levels of difference to the plain table: up to the first surely table, from the second surely a thing
TOLD_APART = (10.0, 24.0)
PLAIN = 45.0  # grey levels round the table's colour: the median picture counts as table within them


@dataclass(frozen=True)
class Prism:
    """A foreign thing that stands on the drawn table: its foot float64[corners, 2] (m, base frame, convex), its height
    (m), and the RGB colour of its top in grey levels."""

    foot: np.ndarray
    height: float
    colour: tuple[int, int, int]


def with_other_tables(data: Demonstrations, share: float, seed: int, cfg: Config) -> Demonstrations:
    """The same rows with a drawn table under a `share` of the demonstrations' episodes (never under play); drawn from
    `seed`.

    Arm, things and labels of every row stay. The arrays given are not written to. Raises DataError for a front camera
    without a pose.
    """
    rng = np.random.default_rng([seed, 5])
    plain = np.flatnonzero(~data.play)
    if not share or not len(plain):
        return data
    shown = np.sort(rng.choice(plain, min(len(plain), 400), replace=False))
    pictures = {"front": _own(data.front), "wrist": _own(data.wrist)}
    empty = {view: empty_table(x[shown]) for view, x in pictures.items()}
    shade = {view: x / np.median(x, (1, 2), keepdims=True) for view, x in empty.items()}
    rays = {view: _rays(data.cameras[view]) for view in pictures}
    K = {view: data.cameras[view].K for view in pictures}
    front = data.cameras["front"].T_base_from_cam
    if front is None:
        raise DataError(
            "other tables need to know where the front camera stands: calibrate it hand-eye, or leave --tables out."
        )
    stands = _on_table(rays["front"], front)
    mount = wrist_mount(data.cameras["wrist"], cfg)
    for e in tqdm(np.unique(data.episode[plain]), desc="other tables", unit="episode", mininterval=5):
        if rng.random() >= share:
            continue
        rows = np.flatnonzero(data.episode == e)
        events = data.pose[data.events[(data.events >= rows[0]) & (data.events <= rows[-1])], :2]
        top, foreign = draw_table(rng, events), draw_foreign(rng, events)
        light = (rng.uniform(0.75, 1.2) * rng.uniform(0.95, 1.05, 3)).astype(np.float32)
        under = _look(top, stands, shade["front"], foreign, K["front"], front)
        for i in rows:
            front_view, wrist_view = pictures["front"], pictures["wrist"]
            front_view[i] = _replaced(front_view[i], empty["front"], under, light)
            wrist = wrist_pose(data.pose[i], mount)
            seen = _look(top, _on_table(rays["wrist"], wrist), shade["wrist"], foreign, K["wrist"], wrist)
            wrist_view[i] = _replaced(wrist_view[i], empty["wrist"], seen, light)
    return dataclasses.replace(data, front=pictures["front"], wrist=pictures["wrist"])


def empty_table(pictures: np.ndarray) -> np.ndarray:
    """The view of the plain table without anything on it, float32[3, H, W], from many pictures uint8[N, 3, H, W].

    It is the median picture. Where the median is not of the table's colour (jaws, a held thing), a smooth surface
    fitted to the rest fills in.
    """
    usual = np.median(pictures, 0)
    colour = np.median(usual, (1, 2))  # the median colour is the table's: most of a picture is table
    table = np.abs(usual - colour[:, None, None]).max(0) < PLAIN
    v, u = np.mgrid[-1 : 1 : usual.shape[1] * 1j, -1 : 1 : usual.shape[2] * 1j]
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], -1)
    smooth = (terms @ np.linalg.lstsq(terms[table], usual[:, table].T, rcond=None)[0]).transpose(2, 0, 1)
    return np.where(np.abs(usual - smooth).max(0) < TOLD_APART[0] / 2, usual, smooth).astype(np.float32)


def draw_table(rng: np.random.Generator, keep_clear: np.ndarray) -> np.ndarray:
    """A drawn table top float32[rows, columns, 3] in grey levels, `CELL` m per pixel, with flat clutter away from
    `keep_clear` [N, 2] (m)."""
    height, width = (round((b - a) / CELL) for a, b in zip(LOW, HIGH, strict=True))
    tile = draw_table_top(rng, 128)
    side = round(rng.uniform(0.12, 0.8) / CELL)
    tile = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA if side < 128 else cv2.INTER_LINEAR)
    top = np.tile(tile, (height // side + 1, width // side + 1, 1))[:height, :width].copy()
    for _ in range(int(rng.integers(0, 4))):
        outline, colour = _outline(rng, keep_clear), [int(c) for c in rng.integers(20, 235, 3)]
        if outline is not None:
            cv2.fillPoly(top, [np.round((outline - LOW)[:, ::-1] / CELL).astype(np.int32)], colour)
    return top.astype(np.float32)


def draw_foreign(rng: np.random.Generator, keep_clear: np.ndarray) -> list[Prism]:
    """Up to eleven things that stand on the drawn table, away from `keep_clear` [N, 2] (m)."""
    out = []
    for _ in range(int(rng.integers(0, 12))):
        outline, height = _outline(rng, keep_clear), float(rng.uniform(0.008, 0.05))
        r, g, b = (int(c) for c in rng.integers(20, 235, 3))
        if outline is not None:
            out.append(Prism(outline, height, (r, g, b)))
    return out


def _outline(rng: np.random.Generator, keep_clear: np.ndarray) -> np.ndarray | None:
    """Four or sixteen corners float64[corners, 2] round a random place on the table; None where that place must stay
    clear."""
    at, size, turn = rng.uniform([0.10, -0.19], [0.36, 0.19]), rng.uniform(0.009, 0.02), rng.uniform(0, math.pi)
    corners, narrow = (4 if rng.random() < 0.6 else 16), rng.uniform(0.6, 1.0)
    if len(keep_clear) and np.hypot(*(keep_clear - at).T).min() < CLEAR:
        return None
    angle = np.arange(corners) * 2 * math.pi / corners
    flat = size * np.stack([np.cos(angle), narrow * np.sin(angle)], 1)
    return at + flat @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])


def wrist_pose(pose: np.ndarray, mount: np.ndarray) -> np.ndarray:
    """Pose of the wrist camera, float64[4, 4], base from camera (x right, y down, z forward), for tool pose `pose` [6]
    and the camera's pose on the tool `mount`."""
    tool = np.eye(4)
    tool[:3, :3] = rotation(np.arctan2(pose[1], pose[0] - PAN_X), pose[3], pose[4])
    tool[:3, 3] = pose[:3]
    return tool @ mount


def _rays(camera: Camera) -> np.ndarray:
    """Directions float32[H, W, 3] of the pixels in the camera's frame."""
    v, u = np.mgrid[0 : camera.height, 0 : camera.width]
    K = camera.K
    return np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u, float)], -1).astype(np.float32)


def _on_table(rays: np.ndarray, T: np.ndarray) -> np.ndarray:
    """The points (row, column) float32[H, W, 2] on the drawn table that the rays of a camera at `T` meet; NaN where a
    ray meets none."""
    out = rays @ T[:3, :3].T.astype(np.float32)
    down = np.where(out[..., 2] < -0.02, out[..., 2], np.float32("nan"))
    start = ((T[:2, 3] - LOW) / CELL).astype(np.float32)
    return start - np.float32(T[2, 3] / CELL) * out[..., :2] / down[..., None]


def _look(
    top: np.ndarray, at: np.ndarray, shade: np.ndarray, foreign: list[Prism], K: np.ndarray, T: np.ndarray
) -> np.ndarray:
    """The drawn table and what stands on it, float32[3, H, W], as a camera with intrinsics `K` at `T` sees it, shaded
    like the plain table; NaN outside the table."""
    flat = cv2.remap(top, at[..., 1], at[..., 0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    new = stand(np.round(flat).astype(np.uint8), foreign, K, T).transpose(2, 0, 1) * shade
    new[:, np.isnan(at[..., 0])] = np.nan
    return new


def stand(picture: np.ndarray, foreign: list[Prism], K: np.ndarray, T: np.ndarray) -> np.ndarray:
    """`picture` uint8[H, W, 3] with `foreign` painted into it, the farthest first, as a camera with intrinsics `K` at
    `T` (base from camera) sees them. Sides are darker than tops. Paints into the array given."""
    for prism in sorted(foreign, key=lambda p: -np.linalg.norm(p.foot.mean(0) - T[:2, 3])):
        z = np.full((len(prism.foot), 1), prism.height)
        corners = np.concatenate([np.concatenate([prism.foot, z * 0], 1), np.concatenate([prism.foot, z], 1)])
        seen = (corners - T[:3, 3]) @ T[:3, :3]
        if seen[:, 2].min() < NEAR:
            continue
        # coordinates in sixteenths of a pixel
        pixels = np.round(16 * (seen @ K.T)[:, :2] / seen[:, 2:]).astype(np.int32)
        side = tuple(round(0.65 * c) for c in prism.colour)
        cv2.fillConvexPoly(picture, cv2.convexHull(pixels), side, cv2.LINE_AA, shift=4)
        cv2.fillConvexPoly(picture, cv2.convexHull(pixels[len(prism.foot) :]), prism.colour, cv2.LINE_AA, shift=4)
    return picture


def _replaced(picture: np.ndarray, empty: np.ndarray, under: np.ndarray, light: np.ndarray) -> np.ndarray:
    """`picture` uint8[3, H, W] with `under` in place of the empty table, in another light."""
    x = picture.astype(np.float32)
    low, high = TOLD_APART
    thing = ((np.abs(x - empty).max(0) - low) / (high - low)).clip(0, 1)
    out = np.where(np.isnan(under), x, under + thing * (x - under))
    return (out * light[:, None, None]).clip(0, 255).astype(np.uint8)


def _own(x: np.ndarray) -> np.ndarray:
    """A copy that may be written to; of a memory-mapped file, only pages that are written to are copied."""
    if isinstance(x, np.memmap) and x.filename is not None:
        return np.memmap(x.filename, x.dtype, "c", x.offset, x.shape)
    return x.copy()
