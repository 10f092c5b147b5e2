"""Has the camera moved? A marker fixed to the table answers in a second; one on the arm tells "camera moved" from "arm
off".

`learn` looks at the marker while all is well, and keeps the pixels of its corners and their noise. `check` compares the
median shift of the corners with limits that are multiples of that noise. Corner noise has a part that all corners share
(the camera shakes, light changes); it is included, because medians of whole pictures are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from msgspec import Meta

from calibration.board import Board
from calibration.camera import CalibrationError, Pixels
from common.schema import Malformed, Shape, Text, shaped

FRAMES = 10  # pictures whose median is judged
LEARN_FRAMES = 40
MIN_SHARE = 0.5  # of the reference's corners that must be seen
WARN_FLOOR_PX = 0.10  # least limit of a warning, whatever the noise: 0.05 mm at arm's length; at 1280 columns
WARN_SIGMA, BLOCK_PX = 6.0, 3.0  # BLOCK_PX at 1280 columns; scaled with the picture
ARM_SIGMA = 3.5
DARKER = "lower the exposure or the light, then check again"
WHITE, BURNT = 250, 0.15  # grey level of a burnt-out pixel, and the share of the marker from which exposure is named

OK, WARN, BLOCK = "ok", "warn", "block"


CornerId = Annotated[int, Meta(ge=0, le=100_000)]
Corner = Annotated[
    list[Annotated[float, Meta(ge=-16384, le=32768)]], Meta(min_length=2, max_length=2)
]  # px; may lie outside
Noise = Annotated[float, Meta(ge=0, le=1000)]  # px


class ReferenceFile(Shape, frozen=True):
    """What `Reference.to_json` gives; the fields of the arm's marker are all there or all absent."""

    board: Text
    width: Pixels
    height: Pixels
    ids: list[CornerId]
    corners: list[Corner]
    noise: Noise
    arm_board: Text = ""
    arm_ids: list[CornerId] | None = None
    arm_corners: list[Corner] | None = None
    arm_noise: Noise = 0.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.corners):
            raise ValueError("'ids' and 'corners' must be equally many")
        if (self.arm_ids is None) != (self.arm_corners is None) or len(self.arm_ids or ()) != len(
            self.arm_corners or ()
        ):
            raise ValueError("'arm_ids' and 'arm_corners' must be equally many")


@dataclass(frozen=True)
class Reference:
    """Median corners float64[n,2] (px) of a marker by id. `noise` (px): RMS, over medians of FRAMES pictures, of the
    corners' median shift. `arm_*`: the same of a marker on the arm at the rest pose; its noise includes the arm's
    repeatability."""

    board: str
    width: int
    height: int
    ids: np.ndarray
    corners: np.ndarray
    noise: float
    arm_board: str = ""
    arm_ids: np.ndarray | None = None
    arm_corners: np.ndarray | None = None
    arm_noise: float = 0.0

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "board": self.board,
            "width": self.width,
            "height": self.height,
            "ids": self.ids.tolist(),
            "corners": self.corners.tolist(),
            "noise": self.noise,
        }
        if self.arm_ids is not None and self.arm_corners is not None:
            out.update(
                arm_board=self.arm_board,
                arm_ids=self.arm_ids.tolist(),
                arm_corners=self.arm_corners.tolist(),
                arm_noise=self.arm_noise,
            )
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Reference:
        """Raises CalibrationError when `data` is no reference."""
        try:
            f = shaped(data, ReferenceFile)
        except Malformed as e:
            raise CalibrationError(
                f"the drift reference is damaged ({e}): run `harmowam calibrate check --learn`."
            ) from e
        arm: tuple[Any, ...] = ()
        if f.arm_ids is not None and f.arm_corners is not None:
            arm = (f.arm_board, np.array(f.arm_ids, int), np.array(f.arm_corners, float).reshape(-1, 2), f.arm_noise)
        corners = np.array(f.corners, float).reshape(-1, 2)
        return cls(f.board, f.width, f.height, np.array(f.ids, int), corners, f.noise, *arm)


@dataclass(frozen=True)
class Verdict:
    """`level` ok, warn or block; what happened; median shift of the base marker (px) and its limits."""

    level: str
    reason: str
    shift_px: float
    warn_px: float
    block_px: float
    arm_shift_px: float | None = None
    shift: np.ndarray | None = None  # float64[n,2] px of each corner that was seen, for the report
    corners: np.ndarray | None = None  # float64[n,2] px: those corners in the reference


def median_corners(frames: list[np.ndarray], board: Board) -> tuple[np.ndarray, np.ndarray]:
    """Corner ids int64[n] and median pixels float64[n,2] of the corners seen in most of the pictures (grey or RGB)."""
    seen: dict[int, list[np.ndarray]] = {}
    for frame in frames:
        found = board.detect(frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        for i, p in zip(found.ids, found.pixels, strict=True):
            seen.setdefault(int(i), []).append(p)
    ids = sorted(i for i, ps in seen.items() if len(ps) > len(frames) / 2)
    return np.array(ids, int), np.array([np.median(seen[i], axis=0) for i in ids]).reshape(-1, 2)


def learn(
    frames: list[np.ndarray],
    board: Board,
    arm_frames: list[list[np.ndarray]] | None = None,
    arm_board: Board | None = None,
) -> Reference:
    """A reference from at least 2 * FRAMES pictures of a camera that does not move. `arm_frames`: pictures of the arm's
    marker after each of several returns to the rest pose, so that its noise includes the arm's repeatability. Raises
    CalibrationError."""
    if len(frames) < 2 * FRAMES:
        raise CalibrationError(f"{len(frames)} pictures are too few to learn the camera's noise: take {LEARN_FRAMES}.")
    ids, corners = median_corners(frames, board)
    if len(ids) < board.enough:
        raise CalibrationError(
            f"the marker {board.text} is not seen ({len(ids)} corners): aim the camera at it, or correct the board."
        )
    height, width = frames[0].shape[:2]
    shifts = []
    for start in range(0, len(frames) - FRAMES + 1, FRAMES // 2):
        part_ids, part = median_corners(frames[start : start + FRAMES], board)
        common = np.isin(ids, part_ids)
        d = part[np.isin(part_ids, ids)] - corners[common]
        shifts.append(float(np.median(np.linalg.norm(d, axis=1))))  # what `check` compares with its limits
    noise = float(np.sqrt(np.mean(np.square(shifts))))
    if noise > 0.02 * width / 10:
        raise CalibrationError(
            f"the marker does not stand still ({noise:.1f} px): fix camera and marker, then learn again."
        )
    arm: tuple[Any, ...] = ()
    if arm_frames and arm_board:
        each = [median_corners(f, arm_board) for f in arm_frames]
        common_ids = np.array(sorted(set.intersection(*(set(i.tolist()) for i, _ in each))), int)
        if len(common_ids) < arm_board.enough:
            raise CalibrationError(
                f"the arm's marker {arm_board.text} is not seen at the rest pose: turn it to the camera."
            )
        stack = np.array([c[np.isin(i, common_ids)] for i, c in each])
        middle = np.median(stack, axis=0)
        arm = (arm_board.text, common_ids, middle, float(np.sqrt(((stack - middle) ** 2).sum(-1).mean())))
    return Reference(board.text, width, height, ids, corners, noise, *arm)


def check(reference: Reference, frames: list[np.ndarray], arm_frames: list[np.ndarray] | None = None) -> Verdict:
    """Compare at least one picture (FRAMES are good) with the reference. Raises CalibrationError for pictures that
    cannot be compared.

    ok: shift within WARN_SIGMA of the camera's own noise. block: more than BLOCK_PX (at 1280 columns), or another shift
    together with the arm's marker. Marker on the arm only: "arm off".
    """
    if not frames:
        raise CalibrationError(f"there is no picture to judge: give {FRAMES} of them, as PNG or JPEG.")
    height, width = frames[0].shape[:2]
    if (width, height) != (reference.width, reference.height):
        raise CalibrationError(
            f"the camera gives {width}x{height}, the drift reference is for {reference.width}x{reference.height}: "
            "set the resolution back, or calibrate the camera again."
        )
    warn_px = max(WARN_FLOOR_PX * width / 1280, WARN_SIGMA * reference.noise)
    block_px = max(BLOCK_PX * width / 1280, 2 * warn_px)
    ids, corners = median_corners(frames, Board.parse(reference.board))
    common, burnt = np.isin(reference.ids, ids), _burnt(frames[-1], reference.corners)
    if common.sum() < MIN_SHARE * len(reference.ids):
        seen_of = f"({common.sum()} of {len(reference.ids)} corners)"
        return Verdict(
            BLOCK,
            f"the picture is over-exposed, so that the base marker is not seen {seen_of}: {DARKER}"
            if burnt > BURNT
            else f"the base marker is hidden or out of sight {seen_of}: clear the view, then check again",
            float("nan"),
            warn_px,
            block_px,
        )
    shift = corners[np.isin(ids, reference.ids)] - reference.corners[common]
    size = float(np.median(np.linalg.norm(shift, axis=1)))
    moved = size > warn_px
    arm_size = _arm_shift(reference, arm_frames)
    arm_off = arm_size is not None and arm_size > max(ARM_SIGMA * reference.arm_noise, warn_px)
    level = BLOCK if size > block_px else WARN if moved else OK
    if moved and arm_size is not None and not arm_off and size > ARM_SIGMA * reference.arm_noise:
        reason = (
            f"the base marker is {size:.2f} px off, the arm's is not: the marker was moved; fix it and run "
            "`harmowam calibrate check --learn`"
        )
    elif moved and level == WARN and burnt > BURNT:
        reason = (
            f"the picture is over-exposed ({100 * burnt:.0f} % of the marker is burnt out), which alone can put the "
            f"base marker {size:.2f} px off (limit {warn_px:.2f}): {DARKER}"
        )
    elif moved:
        reason = (
            f"the camera has moved: the base marker is {size:.2f} px off (limit {warn_px:.2f}); run `harmowam "
            "calibrate hand-eye`"
        )
    elif arm_off:
        level = BLOCK
        reason = (
            f"the arm is off, the camera is not: its marker is {arm_size:.1f} px off at rest; run `harmowam "
            "calibrate joints`"
        )
    else:
        reason = f"the camera stands where it was calibrated ({size:.3f} px, limit {warn_px:.2f})"
    return Verdict(level, reason, size, warn_px, block_px, arm_size, shift, reference.corners[common])


def _arm_shift(reference: Reference, frames: list[np.ndarray] | None) -> float | None:
    """Median shift (px) of the arm's marker; None where it was not learnt or is not seen."""
    if not frames or reference.arm_corners is None or reference.arm_ids is None:
        return None
    ids, corners = median_corners(frames, Board.parse(reference.arm_board))
    seen = np.isin(reference.arm_ids, ids)
    if seen.sum() < 4:
        return None
    shift = corners[np.isin(ids, reference.arm_ids)] - reference.arm_corners[seen]
    return float(np.median(np.linalg.norm(shift, axis=1)))


def _burnt(frame: np.ndarray, corners: np.ndarray) -> float:
    """Share of burnt-out pixels of a picture uint8[H,W] or uint8[H,W,3] between the corners float64[n,2] (px). Light
    that clips makes white squares grow, and the corners move with them."""
    low, high = np.maximum(corners.min(0).astype(int), 0), corners.max(0).astype(int) + 1
    part = frame[low[1] : high[1], low[0] : high[0]]
    grey = part if part.ndim == 2 else cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
    return float((grey >= WHITE).mean()) if grey.size else 0.0
