"""Edges of an arm's base in the picture of what stands.

What moves tells nothing about the zero of the joint that turns the whole arm: the camera may turn with it about that
joint's axis. The base does not turn, so its edges tell the two apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.arm_shapes import BASE, Shapes
from calibration.silhouettes import State, fill, pixels, vertices, walk
from firmware_bridge.arms.family import Family, placed, turned

REACH = 9.0  # px to either side of the outline in which an edge is looked for
SOFT = 4.0  # px; an edge farther from the outline counts less
STEEP = 10.0  # grey levels per px that make an edge
FREE = 5  # pictures at least in which a pixel is not covered by the arm
AROUND = 5  # px around the arm that count as covered
CLOSE = 1.5  # px; an edge that far off counts half
LEAST = 40  # points of the base's outline without which nothing is told
TURNS = np.radians(np.arange(-6, 6.01, 0.25))  # of the pan joint's zero that are tried
POINTS = 3.0  # neighbouring points err alike: so many count as one
STEP = 2.0  # px at 640 columns from point to point


@dataclass(frozen=True)
class BaseEdges:
    """`picture` float32[H,W,3]: what stands; `known` bool[H,W]: where that is known."""

    picture: np.ndarray
    known: np.ndarray

    def score(self, shapes: Shapes, arm: Family, state: State, model: str) -> tuple[float, int]:
        """How well the base's outline lies on edges, as a number of its points, and how many it has where what stands
        is known."""
        solids = np.flatnonzero(shapes.link == BASE)
        uv = pixels(vertices(shapes, arm, np.zeros((1, len(state.zeros)))), state, model)[0]
        picture = np.zeros(self.known.shape, np.uint8)
        hulls = [h for h in fill(picture, uv, shapes, solids) if len(h)]
        if not hulls:
            return 0.0, 0
        _, body, out = walk(picture, uv, hulls, shapes, STEP * picture.shape[1] / 640)
        away, clear, known = self._edges(pixels(body, state, model), out)
        return float((1 / (1 + (away[clear] / CLOSE) ** 2)).sum()), int(known.sum())

    def _edges(self, at: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How far along the normals `out` [M,2] from pixels `at` [M,2] the clearest edge lies, whether there is
        one, and whether what stands is known there."""
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
        there = known.min(1) > 0.99
        return t[1:-1][k] + 0.5 * np.clip(shift, -1, 1), inside & (top > STEEP) & there, there


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


def about_pan(state: State, arm: Family, angle: float) -> State:
    """The state with the pan joint's zero larger by `angle` (rad) and the camera turned with the arm: what moves looks
    the same in every picture."""
    link = arm.chain[arm.PAN]
    turn = turned(link.axis, -angle, link.at) @ placed([-v for v in link.at])
    zeros = state.zeros.copy()
    zeros[arm.PAN] += angle
    return dataclasses.replace(state, pose=state.pose @ turn, zeros=zeros)


def pan_zero(
    base: BaseEdges, shapes: Shapes, arm: Family, state: State, model: str, prior_sd: float
) -> tuple[float, float]:
    """By how much (rad) the pan joint's zero, and the camera with it, has to turn for the base to lie on edges, and
    the standard deviation: of the posterior over `TURNS`, whose prior is `prior_sd` about 0."""
    likely = np.empty(len(TURNS))
    fewest = np.inf
    for k, angle in enumerate(TURNS):
        there = about_pan(state, arm, angle - state.zeros[arm.PAN])
        score, count = base.score(shapes, arm, there, model)
        likely[k] = score / POINTS - 0.5 * (angle / prior_sd) ** 2
        fewest = min(fewest, count)
    if fewest < LEAST:
        return -float(state.zeros[arm.PAN]), prior_sd
    share = np.exp(likely - likely.max())
    share /= share.sum()
    mean = float(share @ TURNS)
    return mean - float(state.zeros[arm.PAN]), float(np.sqrt(share @ (TURNS - mean) ** 2 + np.radians(0.1) ** 2))
