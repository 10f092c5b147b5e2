"""Which board do pictures show in which the described one is not found?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from calibration.board import Board, dictionary

PICTURES = 8  # that are searched, spread over those that were given
MARKED = 4  # of them that are searched for markers
FEWEST = 6  # markers that tell a board's layout
OFF = 0.15  # squares: largest median distance of markers from the places that a layout gives them
WIDTH = 960  # px: wider pictures are searched at a fraction of their size
SIZES = (50, 100, 250, 1000)  # of OpenCV's dictionaries; the smaller ones are the beginning of the larger
FAMILIES = {
    **{f"{n}X{n}": tuple(f"{n}X{n}_{size}" for size in SIZES) for n in (4, 5, 6, 7)},
    **{n: (n,) for n in ("ARUCO_ORIGINAL", "ARUCO_MIP_36H12", "APRILTAG_25H9", "APRILTAG_36H10", "APRILTAG_36H11")},
}

Markers = tuple[np.ndarray, np.ndarray]  # of one picture: ids int64[n], centres float64[n,2] px


def what_fits(board: Board, pictures: Sequence[np.ndarray]) -> str:
    """What the pictures uint8[H,W] show in the place of `board`, and the option that fits; empty where that cannot be
    told."""
    greys = [_small(p) for p in pictures[:: -(-len(pictures) // PICTURES)]]
    family, seen = _family(greys[:MARKED], board)
    mirrored = _family([np.ascontiguousarray(g[:, ::-1]) for g in greys[:MARKED]], board)[1]
    if _count(mirrored) > 2 * _count(seen) + 2 * len(greys):
        return "the pictures are mirrored: switch that off in the camera's settings, or flip them back"
    if whole := [m for m in seen if len(m[0]) >= FEWEST]:
        return _charuco(board, family, whole)
    # The squares of a board whose markers are mostly hidden would pass for a small chessboard.
    return "" if _count(seen) >= len(greys[:MARKED]) else _chessboard(board, greys)


def _small(grey: np.ndarray) -> np.ndarray:
    scale = WIDTH / grey.shape[1]
    return grey if scale >= 1 else cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _count(seen: Sequence[Markers]) -> int:
    return sum(len(ids) for ids, _ in seen)


def _family(greys: list[np.ndarray], board: Board) -> tuple[str, list[Markers]]:
    """The family of markers of which most are seen (of equals the board's), and these, by picture."""
    own = next((f for f, names in FAMILIES.items() if board.dictionary in names), "")
    best: tuple[str, list[Markers]] = ("", [])
    for family in sorted(FAMILIES, key=lambda f: f != own):
        detector: Any = cv2.aruco.ArucoDetector(dictionary(FAMILIES[family][-1]))
        seen = []
        for grey in greys:
            corners, ids = detector.detectMarkers(grey)[:2]
            if ids is not None:
                seen.append((np.ravel(ids), np.array(corners).reshape(-1, 4, 2).mean(1)))
        if _count(seen) > _count(best[1]):
            best = family, seen
    return best


def _charuco(board: Board, family: str, seen: list[Markers]) -> str:
    found = _layout(seen)
    if found is None:
        return ""
    columns, rows, legacy = found
    highest = _highest(seen)
    names = [n for n in FAMILIES[family] if len(dictionary(n).bytesList) > highest]
    name = board.dictionary if board.dictionary in names else names[0]
    known = board.kind == "charuco"
    # The last rows may be hidden in all pictures, and only boards with an even number of rows have two layouts.
    same = columns == board.columns and rows <= board.rows and (legacy == board.legacy or rows % 2 == 1)
    if known and name == board.dictionary and same:
        return ""
    lengths = f"{board.square:g}:{board.marker:g}" if known else "SQUARE:MARKER"
    text = f"charuco:{columns}x{rows}:{lengths}:{name.lower()}{':legacy' if legacy else ''}"
    return f"these are pictures of a board of {columns}x{rows} squares with markers of {name.lower()}: --board {text}"


def _layout(seen: list[Markers]) -> tuple[int, int, bool] | None:
    """Columns, rows and whether legacy: the layout whose markers' places fit all pictures best, with no more rows than
    the highest id needs; None where none fits."""
    highest = _highest(seen)
    best, found = OFF, None
    for columns in range(3, 41):
        rows = next(r for r in range(3, 2 * highest + 5) if columns * r // 2 > highest)
        for legacy in (False, True):
            board = cv2.aruco.CharucoBoard((columns, rows), 1.0, 0.5, dictionary("4X4_1000"))
            board.setLegacyPattern(legacy)
            places = np.array(board.getObjPoints())[..., :2].mean(1)
            off = max(_off(places[ids[ids <= highest]], centres[ids <= highest]) for ids, centres in seen)
            if off < best:
                best, found = off, (columns, rows, legacy)
    return found


def _highest(seen: list[Markers]) -> int:
    """The highest id; in several pictures one that two of them show, since a smudge can look like any marker."""
    ids, count = np.unique(np.concatenate([ids for ids, _ in seen]), return_counts=True)
    return int(ids[count >= min(2, len(seen), count.max())].max())


def _off(places: np.ndarray, centres: np.ndarray) -> float:
    """Median distance (squares) of markers from their places float64[n,2] under the best view of a plane."""
    H = cv2.findHomography(centres, places)[0] if len(places) >= FEWEST else None
    if H is None:
        return float("inf")
    there = cv2.perspectiveTransform(centres[:, None], H)[:, 0]
    return float(np.median(np.linalg.norm(there - places, axis=1)))


def _chessboard(board: Board, greys: list[np.ndarray]) -> str:
    """The chessboard that is seen most often; a part of one that is cut off or hidden looks like a smaller one."""
    flags = cv2.CALIB_CB_LARGER | cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_NORMALIZE_IMAGE
    votes: Counter[tuple[int, int]] = Counter()
    for grey in greys:
        found, _, meta = cv2.findChessboardCornersSBWithMeta(grey, (3, 3), flags)
        if found:
            votes[max(meta.shape), min(meta.shape)] += 1
    if not votes:
        return ""
    (longer, shorter), count = max(votes.items(), key=lambda v: (v[1], v[0][0] * v[0][1]))
    if count < max(2, len(greys) / 3) or {longer, shorter} == {board.columns, board.rows}:
        return ""
    text = f"{longer}x{shorter}" if board.columns >= board.rows else f"{shorter}x{longer}"
    square = f"{board.square:g}" if board.kind == "chessboard" else "SQUARE"
    return (
        f"these are pictures of a chessboard with {text} inner corners (one fewer than squares, each way): "
        f"--board chessboard:{text}:{square}"
    )
