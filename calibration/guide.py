"""Guided capture: judges each live picture, keeps those that help the calibration, and says what to do next."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from calibration.board import Board, Detection
from calibration.views import MIN_CORNERS, Size, View, reach

GRID = (6, 8)  # rows, columns of the coverage map
MIN_SHARPNESS = 0.25  # share of the sharpest picture's `sharpness`
STILL_PX = 0.004  # of the width: how much the board may move between two pictures
SHOWN = 3  # pictures that are kept for the report
APART = 0.04  # of the width: least difference of a kept view from every other


@dataclass
class Guide:
    """State of one capture: `add` judges a picture, `views` are those that were kept."""

    board: Board
    wanted: int = 30
    views: list[View] = field(default_factory=list)
    coverage: np.ndarray = field(default_factory=lambda: np.zeros(GRID, int))
    tilts: list[tuple[float, float]] = field(default_factory=list)  # deg about x and y, from an assumed lens
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # of the SHOWN views that reach farthest, by name
    sharpest: float = 0.0
    _last: Detection | None = None

    def add(self, image: np.ndarray) -> str:
        """Judge one picture uint8[H,W] or uint8[H,W,3] (RGB); returns "kept" or why it is not. Pictures of a blurred,
        moving or hidden board, or like one that was kept, are not."""
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        found = self.board.detect(grey)
        last, self._last = self._last, found
        if len(found.ids) < MIN_CORNERS:
            return self.board.why_unseen(grey)
        sharp = sharpness(grey, found.pixels)
        self.sharpest = max(self.sharpest, sharp)
        if sharp < MIN_SHARPNESS * self.sharpest:
            return "blurred: hold still, more light"
        width, height = grey.shape[1], grey.shape[0]
        if last is None or _moved(last, found) > STILL_PX * width:
            return "moving: hold still"
        if any(_moved(Detection(self._ids(v), v.pixels), found) < APART * width for v in self.views):
            return "like one already kept"
        self.views.append(View(f"view-{len(self.views):03d}", self.board.points()[found.ids], found.pixels))
        self._keep(grey, (width, height))
        rows = np.clip((found.pixels[:, 1] / height * GRID[0]).astype(int), 0, GRID[0] - 1)
        columns = np.clip((found.pixels[:, 0] / width * GRID[1]).astype(int), 0, GRID[1] - 1)
        for cell in set(zip(rows.tolist(), columns.tolist(), strict=True)):
            self.coverage[cell] += 1
        self.tilts.append(_tilt(self.views[-1], width, height))
        return "kept"

    def _keep(self, grey: np.ndarray, size: Size) -> None:
        """Keep the newest view's picture where it is one of those that reach farthest."""
        self.pictures[self.views[-1].name] = grey.copy()
        if len(self.pictures) > SHOWN:
            shown = [v for v in self.views if v.name in self.pictures]
            del self.pictures[min(shown, key=lambda v: reach(v.pixels, size)).name]

    def _ids(self, view: View) -> np.ndarray:
        all_points = self.board.points()
        return np.array([int(((all_points - p) ** 2).sum(1).argmin()) for p in view.points])

    @property
    def done(self) -> bool:
        return len(self.views) >= self.wanted and self.next_step().startswith("enough")

    def next_step(self) -> str:
        """What to do next: what the views lack most."""
        if len(self.views) < 3:
            return "hold the board so that it fills half of the picture"
        names = [("top", "middle", "bottom"), ("left", "centre", "right")]
        empty = np.argwhere(self.coverage == 0)
        tilts = np.array(self.tilts)
        for axis, way in ((0, ("top", "bottom")), (1, ("left", "right"))):
            for sign, side in zip((1, -1), way, strict=True):
                if (sign * tilts[:, axis] > 15).sum() < max(2, len(self.views) // 10):
                    return f"tilt the board: its {side} edge 30 degrees away from the camera"
        if len(empty) > 0.1 * self.coverage.size:
            r, c = empty[np.abs(empty - (np.array(GRID) - 1) / 2).sum(1).argmax()]
            return (
                f"move the board to the {names[0][int(r * 3 // GRID[0])]} {names[1][int(c * 3 // GRID[1])]} of the "
                "picture"
            )
        if len(self.views) < self.wanted:
            return "close-ups: let the board reach over the picture's edges"
        return "enough: the calibration can be computed"

    def picture(self, image: np.ndarray, said: str) -> np.ndarray:
        """uint8[H,W,3] BGR: the live picture with coverage (red: none, green: enough), corners, tilt dial and the next
        step."""
        out = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
        h, w = out.shape[:2]
        tint = np.zeros((*GRID, 3), np.uint8)
        share: np.ndarray = np.clip(self.coverage / 4, 0, 1)
        tint[..., 1], tint[..., 2] = (160 * share).astype(np.uint8), (160 * (1 - share)).astype(np.uint8)
        out = cv2.addWeighted(out, 0.8, cv2.resize(tint, (w, h), interpolation=cv2.INTER_NEAREST), 0.35, 0)
        if self._last is not None:
            for p in self._last.pixels:
                cv2.circle(out, (round(p[0]), round(p[1])), max(2, w // 300), (255, 180, 0), -1)
        r = h // 9
        centre = (w - r - 12, r + 12)
        cv2.circle(out, centre, r, (255, 255, 255), 1)
        for tx, ty in self.tilts:
            dot = (round(centre[0] + ty / 60 * r), round(centre[1] + tx / 60 * r))
            cv2.circle(out, dot, 3, (255, 255, 255), -1)
        size = w / 1100
        for k, text in enumerate((f"{len(self.views)}/{self.wanted}  {said}", self.next_step())):
            at = (12, round(h - (1 - k) * 34 * size - 14))
            cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), round(5 * size) + 1, cv2.LINE_AA)
            cv2.putText(
                out, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), max(1, round(1.6 * size)), cv2.LINE_AA
            )
        return out


def sharpness(grey: np.ndarray, corners: np.ndarray) -> float:
    """Steepest slope inside the board's bounding box over its contrast, 1/px: about 0.5 when sharp, 0.1 with a blur of
    3 px."""
    low, high = np.maximum(corners.min(0).astype(int), 0), corners.max(0).astype(int) + 1
    part = grey[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    if part.size < 64:
        return 0.0
    smooth = cv2.GaussianBlur(part, (0, 0), 0.7)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) / 8
    contrast = float(np.quantile(part, 0.95) - np.quantile(part, 0.05))
    return float(np.quantile(slope, 0.98)) / max(contrast, 1.0)


def _moved(a: Detection, b: Detection) -> float:
    """Median distance of common corners, px; infinite without enough of them."""
    common, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
    if len(common) < 4:
        return float("inf")
    return float(np.median(np.linalg.norm(a.pixels[i] - b.pixels[j], axis=1)))


def _tilt(view: View, width: int, height: int) -> tuple[float, float]:
    """The board's tilt (deg) about the picture's x and y axes, with an assumed focal length of 0.8 picture widths."""
    f = 0.8 * width
    K = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])
    ok, rvec, _ = cv2.solvePnP(view.points, view.pixels, K, None, flags=cv2.SOLVEPNP_IPPE)
    if not ok:
        return 0.0, 0.0
    normal = cv2.Rodrigues(rvec)[0][:, 2]
    return float(np.degrees(np.arctan2(normal[1], normal[2]))), float(np.degrees(np.arctan2(normal[0], normal[2])))
