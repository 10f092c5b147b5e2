"""Edges of an arm's base in the picture of what stands.

What moves tells nothing about the zero of the joint that turns the whole arm: the camera may turn with it about that
joint's axis. The base does not turn, so its edges tell the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from calibration import lens
from calibration.arm_shapes import BASE, Shapes
from calibration.silhouettes import Outline, State, derivatives, fill, pixels, placed, vertices, walk
from firmware_bridge.arms.family import Family

REACH = 9.0  # px to either side of the outline in which an edge is looked for
SOFT = 4.0  # px; an edge farther from the outline counts less
STEEP = 10.0  # grey levels per px that make an edge
FREE = 5  # pictures at least in which a pixel is not covered by the arm
AROUND = 5  # px around the arm that count as covered
STEP = 2.0  # px from point to point


@dataclass(frozen=True)
class BaseEdges:
    """`picture` float32[H,W,3]: what stands; `known` bool[H,W]: where that is known."""

    picture: np.ndarray
    known: np.ndarray

    def residuals(self, shapes: Shapes, arm: Family, state: State, model: str) -> tuple[np.ndarray, np.ndarray]:
        """Distance float64[M] (px) of the base's outline from the edges beside it, and its derivatives float64[M,9+J].
        Points without an edge are left out."""
        solids, joints = np.flatnonzero(shapes.link == BASE), len(state.zeros)
        nothing = np.zeros(0), np.zeros((0, 9 + joints))
        if not len(solids):
            return nothing
        q = np.zeros((1, joints))
        uv = pixels(vertices(shapes, arm, q), state, model)[0]
        picture = np.zeros(self.known.shape, np.uint8)
        hulls = [h for h in fill(picture, uv, shapes, solids) if len(h)]
        if not hulls:
            return nothing
        _, body, out = walk(picture, uv, hulls, shapes, STEP)
        o = Outline(np.zeros(len(body), int), np.full(len(body), BASE), body)
        where = placed(o, q, arm, state)
        at = lens.project(where[1], state.theta, model)[0]
        away, good = self._edges(at, out)
        o = Outline(o.frame[good], o.link[good], o.body[good])
        kept = (where[0][good], where[1][good], where[2])
        return -away[good], derivatives(o, arm, state, model, out[good], kept)

    def _edges(self, at: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far along the normals `out` [M,2] from pixels `at` [M,2] the clearest edge lies, and whether there is
        one."""
        t = np.arange(-REACH, REACH + 0.25, 0.5)
        spots = (at[:, None] + t[:, None] * out[:, None]).astype(np.float32)
        profile = cv2.remap(
            self.picture, spots[..., 0], spots[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        known = cv2.remap(self.known.astype(np.float32), spots[..., 0], spots[..., 1], cv2.INTER_LINEAR)
        steep = (
            np.abs(profile[:, 2:] - profile[:, :-2]).max(-1) if profile.ndim == 3 else np.zeros((len(at), len(t) - 2))
        )
        judged = steep * np.exp(-0.5 * (t[1:-1] / SOFT) ** 2)
        best = judged.argmax(1)
        rows = np.arange(len(at))
        inside = (best > 0) & (best < judged.shape[1] - 1)
        k = np.clip(best, 1, judged.shape[1] - 2)
        left, top, right = steep[rows, k - 1], steep[rows, k], steep[rows, k + 1]
        bend = left - 2 * top + right
        shift = np.where(np.abs(bend) > 1e-6, 0.5 * (left - right) / np.where(np.abs(bend) > 1e-6, bend, 1), 0.0)
        good = inside & (top > STEEP) & (known.min(1) > 0.99)
        return t[1:-1][k] + 0.5 * np.clip(shift, -1, 1), good


def standing(
    pictures: np.ndarray, masks: np.ndarray, q: np.ndarray, shapes: Shapes, arm: Family, state: State, model: str
) -> BaseEdges:
    """What stands, from pictures uint8[N,H,W,3]: their mean without what moves (masks uint8[N,H,W]) and without the
    pixels of the moving links at reported angles [N,J]."""
    height, width = masks.shape[1:]
    total, count = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * AROUND + 1,) * 2)
    uv = pixels(vertices(shapes, arm, q + state.zeros), state, model)
    moving = np.flatnonzero(shapes.link >= arm.PAN)
    for n, picture in enumerate(pictures):
        arm_there = (masks[n] != 0).astype(np.uint8)
        fill(arm_there, uv[n], shapes, moving)
        free = (1 - cv2.dilate(arm_there, kernel)).astype(np.float32)
        total += picture * free[..., None]
        count += free
    return BaseEdges(total / np.maximum(count, 1)[..., None], count >= FREE)
