"""AprilTags on boards: a grid as Kalibr prints it, and a single tag. Corner places, drawing, detection.

Corners are numbered as Kalibr numbers them (`GridCalibrationTargetAprilgrid`): row by row from the lower left, two for
each tag. Tag ids count in the same order from the lower left tag. Kalibr's print has tags with a black border of two
bits, and a black square at each corner of a tag, which makes the corner a saddle point like a chessboard's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

FAMILIES = {"36h11": 6, "36h10": 6, "25h9": 5, "16h5": 4}  # bits along an edge, without the border
FAMILY = re.compile(r"(?:tag|t)?(36h11|36h10|25h9|16h5)(?:b([12]))?")
# OpenCV's drawing of a tag is turned by 180 degrees against the AprilTag library's and Kalibr's. Its first corner, the
# upper left one of its own drawing, is therefore the lower right one; the others follow clockwise.
LOWER_RIGHT, LOWER_LEFT, UPPER_LEFT, UPPER_RIGHT = range(4)
KALIBR = [LOWER_LEFT, LOWER_RIGHT, UPPER_LEFT, UPPER_RIGHT]  # OpenCV's corners in the order of Kalibr's numbers
ROUND = [0, 1, 3, 2]  # Kalibr's order, once around the tag
WANDER = 0.1  # edges of a tag: a corner that is farther from where its neighbours put it is left out
MOVED = 0.05  # edges of a tag: a corner that refinement moves farther is another one
NEIGHBOURS = 9  # tags
AGREE = 0.3  # px
OFF = 0.25  # edges of a tag: largest median distance of tags from where the grid has them
CHECKED = 6  # tags that tell a grid's layout


def family(text: str, border: int) -> tuple[str, int] | None:
    """OpenCV's dictionary and the border's bits of a family such as tag36h11 or tag36h11b1; `border` where the text
    gives none; None for an unknown family."""
    known = FAMILY.fullmatch(text)
    return None if known is None else (f"APRILTAG_{known[1].upper()}", int(known[2] or border))


def find_tags(grey: np.ndarray, markers: Any, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64[n] and corners float64[n,4,2] (px; lower left, lower right, upper left, upper right), to a pixel or
    two, of the tags in a picture uint8[H,W]; ids that several tags have are left out."""
    parameters = cv2.aruco.DetectorParameters()
    parameters.markerBorderBits = border
    parameters.polygonalApproxAccuracyRate = 0.06  # the squares dent the outline of a tag that they touch
    detector: Any = cv2.aruco.ArucoDetector(markers, parameters)
    found, ids = detector.detectMarkers(grey)[:2]
    if ids is None:
        return np.zeros(0, int), np.zeros((0, 4, 2))
    ids, corners = np.ravel(ids).astype(int), np.array(found, float).reshape(-1, 4, 2)[:, KALIBR]
    values, count = np.unique(ids, return_counts=True)
    once = np.isin(ids, values[count == 1])
    return ids[once], corners[once]


def saddles(grey: np.ndarray, corners: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Saddle points float64[n,4,2] (px) near the corners float64[n,4,2] of a grid's tags, and bool[n,4] of those that
    lie in the picture and that a window of half the size confirms. `gap`: the space between two tags, in edges of a
    tag."""
    out, good = corners.copy(), np.zeros(corners.shape[:2], bool)
    height, width = grey.shape
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 50, 0.002)
    for k, quad in enumerate(corners):
        half = int(np.clip(0.6 * gap * _edges(quad).min(), 2, 9))  # a window that holds no other corner
        small = max(2, half // 2)
        start = np.ascontiguousarray(quad.reshape(-1, 1, 2), np.float32)
        refined = cv2.cornerSubPix(grey, start.copy(), (half, half), (-1, -1), criteria)
        again = cv2.cornerSubPix(grey, refined.copy(), (small, small), (-1, -1), criteria)
        agree = np.linalg.norm(again - refined, axis=2).ravel() < AGREE
        moved = np.linalg.norm(refined - start, axis=2).ravel()
        found = (moved > 0) & (moved <= max(3.0, MOVED * _edges(quad).min()))  # 0: OpenCV found nothing
        out[k] = refined.reshape(-1, 2)
        inside = ((out[k] >= half) & (out[k] <= [width - 1 - half, height - 1 - half])).all(1)
        good[k] = inside & found & agree
    return out, good


def _edges(quad: np.ndarray) -> np.ndarray:
    """Lengths float64[4] (px) of the edges of a tag with corners float64[4,2] in Kalibr's order."""
    return np.asarray(np.linalg.norm(quad[ROUND] - quad[np.roll(ROUND, -1)], axis=1))


def consistent(corners: np.ndarray, places: np.ndarray) -> np.ndarray:
    """bool[n,4]: which corners float64[n,4,2] (px) of tags lie where the nearest tags on the board put them; `places`
    float64[n,4,2] is where they are on the board. The square at a corner has saddle points of its own."""
    good = np.ones(corners.shape[:2], bool)
    middles = places.mean(1)
    for k, quad in enumerate(corners):
        near = np.argsort(np.linalg.norm(middles - middles[k], axis=1))[:NEIGHBOURS]
        H: Any = cv2.findHomography(places[near].reshape(-1, 2), corners[near].reshape(-1, 2), cv2.LMEDS)[0]
        if H is None:  # the corners lie on a line
            good[k] = False
            continue
        there = cv2.perspectiveTransform(places[k][:, None], H)[:, 0]
        good[k] = np.linalg.norm(there - quad, axis=1) <= max(0.5, WANDER * _edges(quad).min())
    return good


def lone_corners(grey: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Corners float64[4,2] (px) of one tag, from its rough ones float64[4,2]: where its edges meet. OpenCV's refinement
    is drawn inwards by a quarter of a pixel where no square touches the corner, and a wide lens bends the edges: each
    is a parabola, whose tangents at its ends meet those of its neighbours."""
    reach = float(np.clip(0.07 * _edges(quad).min(), 2, 6))  # px to both sides: less than the border's bit
    across = np.linspace(-reach, reach, 4 * round(reach) + 1)
    middle = (across[1:] + across[:-1]) / 2
    lines = []
    for a, b in zip(quad[ROUND], quad[np.roll(ROUND, -1)], strict=True):
        along = (b - a) / np.linalg.norm(b - a)
        normal = np.array([-along[1], along[0]])
        share = np.linspace(0.1, 0.9, max(12, round(np.linalg.norm(b - a))))
        off = np.zeros(3)
        for _ in range(3):
            at = a + share[:, None] * (b - a) + np.polyval(off, share)[:, None] * normal
            where = (at[:, None] + across[:, None] * normal).astype(np.float32)
            light = cv2.remap(grey, where[..., 0], where[..., 1], cv2.INTER_LINEAR).astype(float)
            steep = np.diff(light, axis=1) ** 2
            off = off + np.polyfit(share, steep @ middle / np.maximum(steep.sum(1), 1e-9), 2)
        lines.append(
            [
                (a + s * (b - a) + np.polyval(off, s) * normal, b - a + np.polyval(np.polyder(off), s) * normal)
                for s in (0.0, 1.0)
            ]
        )
    out = np.empty((4, 2))
    for k in range(4):
        (p, u), (q, v) = lines[k - 1][1], lines[k][0]
        out[ROUND[k]] = p + np.linalg.solve(np.stack([u, -v], 1), q - p)[0] * u
    return out


def misplaced(corners: np.ndarray, places: np.ndarray) -> float:
    """Median distance of tags from where the board has them, under the best view of a plane, in the unit of `places`;
    infinite where there is no view. Corners float64[n,4,2] (px), places float64[n,4,2]."""
    H: Any = cv2.findHomography(corners.mean(1), places.mean(1))[0]
    if H is None:
        return float("inf")
    there = cv2.perspectiveTransform(corners.mean(1)[:, None], H)[:, 0]
    return float(np.median(np.linalg.norm(there - places.mean(1), axis=1)))


@dataclass(frozen=True)
class Tags:
    """The tags of one board: OpenCV's dictionary, bits of the black border, the first id; columns and rows of a grid,
    edge of a tag and the space to the next (m; 0 for a single tag)."""

    dictionary: str
    border: int
    first: int
    columns: int
    rows: int
    edge: float
    gap: float

    def markers(self) -> cv2.aruco.Dictionary:
        return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{self.dictionary}"))

    def points(self) -> np.ndarray:
        """Corners float64[n,3] (m) by number: of a grid from its lower left corner, of a single tag from its middle; x
        to the right, y down."""
        x, y = (np.arange(n).repeat(2) * (self.edge + self.gap) for n in (self.columns, self.rows))
        right, up = np.meshgrid(x + np.tile([0.0, self.edge], self.columns), y + np.tile([0.0, self.edge], self.rows))
        out = np.stack([right, -up, 0 * up], -1).reshape(-1, 3)
        return out if self.gap else out + np.array([-self.edge / 2, self.edge / 2, 0])

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """Numbers int64[n,4] of the corners of tags int64[n]: lower left, lower right, upper left, upper right."""
        row, column = np.divmod(ids - self.first, self.columns)
        first = 4 * self.columns * row + 2 * column
        return np.stack([first, first + 1, first + 2 * self.columns, first + 2 * self.columns + 1], -1)

    def known(self, ids: np.ndarray) -> np.ndarray:
        """bool[n]: which ids are this board's."""
        return (ids >= self.first) & (ids < self.first + self.columns * self.rows)

    def detect(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers int64[n] and pixels float64[n,2] of the corners in a picture uint8[H,W]; none where the tags lie in
        another layout."""
        ids, corners = find_tags(grey, self.markers(), self.border)
        ids, corners = ids[self.known(ids)], corners[self.known(ids)]
        if not len(ids):
            return np.zeros(0, int), np.zeros((0, 2))
        numbers = self.numbers(ids)
        if not self.gap:
            return numbers[0], lone_corners(grey, corners[0])
        places = self.points()[numbers][..., :2]
        if len(ids) >= CHECKED and misplaced(corners, places) > OFF * self.edge:
            return np.zeros(0, int), np.zeros((0, 2))
        corners, good = saddles(grey, corners, self.gap / self.edge)
        good &= consistent(corners, places)
        order = np.argsort(numbers[good])
        return numbers[good][order], corners[good][order]

    def why_unseen(self, grey: np.ndarray) -> str:
        """The most probable reason why `detect` found nothing."""
        ids, corners = find_tags(grey, self.markers(), self.border)
        mirrored, _ = find_tags(np.ascontiguousarray(grey[:, ::-1]), self.markers(), self.border)
        if len(mirrored) > 2 * len(ids) + (2 if self.gap else 0):
            return "mirrored picture"
        other, _ = find_tags(grey, self.markers(), 3 - self.border)
        if len(other) > len(ids):
            name = f"{self.dictionary[5:].lower().replace('_', '')}b{3 - self.border}"
            return f"tags with a border of {3 - self.border} bits (append ':{name}')"
        if not len(ids):
            return "board not found"
        if not self.known(ids).all():
            seen = ", ".join(str(i) for i in ids[~self.known(ids)][:3])
            return f"tags of another board ({seen})"
        if len(ids) >= CHECKED and misplaced(corners, self.points()[self.numbers(ids)][..., :2]) > OFF * self.edge:
            return "tags in another layout (columns and rows swapped?)"
        return "too few corners (partly hidden or blurred)"

    def rectangles(self) -> list[tuple[float, float, float, float]]:
        """All black rectangles: x, y (from the pattern's upper left corner, y down), width, height, m."""
        step, out = self.edge + self.gap, []
        if self.gap:
            for r in range(self.rows + 1):
                out += [(c * step, r * step, self.gap, self.gap) for c in range(self.columns + 1)]
        cells = self.markers().markerSize + 2 * self.border
        cell = self.edge / cells
        for tag in range(self.columns * self.rows):
            row, column = divmod(tag, self.columns)
            x, y = self.gap + column * step, self.gap + (self.rows - 1 - row) * step
            image = cv2.aruco.generateImageMarker(self.markers(), self.first + tag, cells, borderBits=self.border)
            for r, c in zip(*np.nonzero(np.rot90(image, 2) == 0), strict=True):
                out.append((x + c * cell, y + r * cell, cell, cell))
        return out
