"""Masks of an arm that moves in front of a background that stands: what differs from the median picture."""

from __future__ import annotations

import cv2
import numpy as np

DIFFERENT = 12  # grey levels of the channel that differs most
SMALL = 0.12  # share of the largest part below which a part is no arm
HOLE = 250  # px at 640 columns; smaller holes are filled
SAMPLED = 21  # pictures at most, of which a median is taken


def median(pictures: np.ndarray) -> np.ndarray:
    """The median picture uint8[H,W,3] of pictures uint8[n,H,W,3]: sorted by exchanges of whole pictures."""
    index = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), SAMPLED)).round().astype(int))
    rows = [pictures[k] for k in index]
    for odd in range(len(rows)):
        for j in range(odd % 2, len(rows) - 1, 2):
            rows[j], rows[j + 1] = np.minimum(rows[j], rows[j + 1]), np.maximum(rows[j], rows[j + 1])
    return rows[len(rows) // 2]


def backgrounds(pictures: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The median of all pictures, and that of each episode."""
    each = {int(e): median(pictures[episode == e]) for e in np.unique(episode)}
    spread = np.argsort(np.argsort(np.random.default_rng(0).random(len(pictures))))  # over all episodes alike
    return median(pictures[spread]), each


def masks(pictures: np.ndarray, of: np.ndarray, whole: np.ndarray, each: dict[int, np.ndarray]) -> np.ndarray:
    """Masks uint8[n,H,W] of pictures uint8[n,H,W,3] of the episodes `of` int64[n]."""
    return np.stack([_mask(p, whole, each[int(e)]) for p, e in zip(pictures, of, strict=True)])


def _mask(picture: np.ndarray, whole: np.ndarray, own: np.ndarray) -> np.ndarray:
    scale = picture.shape[1] / 640
    # A median of pictures has no noise; a picture's is smoothed, which moves no straight edge.
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.8)
    changed = np.minimum(*(cv2.absdiff(smooth, b).max(2) for b in (whole, own))) > DIFFERENT
    mask = changed.astype(np.uint8)
    for operation, px in ((cv2.MORPH_OPEN, 3), (cv2.MORPH_CLOSE, 9)):
        side = max(3, round(px * scale) | 1)
        mask = cv2.morphologyEx(mask, operation, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count > 1:
        area = stats[:, cv2.CC_STAT_AREA].copy()
        area[0] = 0
        mask = (area >= SMALL * area.max())[parts].astype(np.uint8) & (parts > 0).astype(np.uint8)
    count, holes, stats, _ = cv2.connectedComponentsWithStats(1 - mask, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < HOLE * scale * scale
    small[0] = False
    return mask | small[holes].astype(np.uint8)
