"""Calibration boards, from one line of text; detection, and true-size PDF and PNG.

    charuco:11x8:0.030:0.022:4x4_50          squares, square and marker edge (m), dictionary (append ":legacy" for
                                             boards printed with OpenCV before 4.6)
    chessboard:9x6:0.025                     inner corners, square edge
    aprilgrid:6x6:0.030:0.3                  tags, tag edge, space between tags over tag edge: Kalibr's grid (append
                                             ":tag36h11b1" for tags with a border of one bit)
    apriltag:0.050:0                         tag edge and id of a single tag36h11 (append ":tag25h9" for another family)

A lens can be calibrated with lengths in any unit and with a chessboard that looks the same upside down; a pose cannot.

Board frame: x along the columns, y down the rows, z away from the viewer, origin at the first square's outer corner
(charuco), the first inner corner (chessboard), the lower left corner of the lower left tag (aprilgrid) or the tag's
middle (apriltag).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from calibration.april import Tags, family
from calibration.camera import CalibrationError

SHAPES = (
    "charuco:COLUMNSxROWS:SQUARE:MARKER:DICTIONARY, chessboard:COLUMNSxROWS:SQUARE, aprilgrid:COLUMNSxROWS:TAG:SPACING "
    "or apriltag:TAG:ID (metres; SPACING over TAG)"
)
SPACINGS = (0.1, 1.0)  # of an aprilgrid, over the edge of a tag
LENGTHS = (1e-4, 1e6)  # edge of a square, in any unit: from 0.1 mm in metres to 1 m in micrometres
PRINTED = (0.002, 0.5)  # m: edge of a square
FAST_CHECKED, SEARCHED = (
    640,
    1280,
)  # px of width: wider pictures are checked quickly first, and searched at most at this
ALTERNATING = 0.8  # share of neighbouring squares along each edge of a chessboard of which one is dark, one light
NARROW = 0.005  # m: margin that every printer leaves white


def dictionary(name: str) -> cv2.aruco.Dictionary:
    """OpenCV's markers of a name in capitals, for example 4X4_50."""
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{name}"))


@dataclass(frozen=True)
class Detection:
    """Corner ids int64[n] and pixels float64[n,2] of one picture."""

    ids: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Board:
    """One board; lengths in metres, where `in_metres` does not refuse it. `text` is the line that it was made from;
    `square` is the edge of a tag on a board of `tags`."""

    text: str
    kind: str
    columns: int
    rows: int
    square: float
    marker: float = 0.0
    dictionary: str = ""
    legacy: bool = False
    tags: Tags | None = None

    @classmethod
    def parse(cls, text: str) -> Board:
        """Raises CalibrationError for a line that names no board. Lengths may be in any unit: see `in_metres`."""
        parts = text.split(":")
        try:
            board = cls._tagged(text, parts) if parts[0].startswith("april") else cls._squared(text, parts)
        except (ValueError, IndexError) as e:
            raise CalibrationError(f"board '{text}' is not understood: write {SHAPES}.") from e
        fewest = {"aprilgrid": 2, "apriltag": 1}.get(board.kind, 3)
        fits = all(fewest <= n <= 40 for n in (board.columns, board.rows))
        if not (fits and LENGTHS[0] <= board.square <= LENGTHS[1]):
            raise CalibrationError(
                f"board '{text}' is impossible: give {fewest} to 40 squares or tags a side, and their edge in metres."
            )
        if not hasattr(cv2.aruco, f"DICT_{board.dictionary}") and board.kind == "charuco":
            raise CalibrationError(f"board '{text}': no dictionary {parts[4]}: use for example 4x4_50 or 5x5_100.")
        if board.kind == "charuco" and not 0.3 * board.square < board.marker < 0.95 * board.square:
            raise CalibrationError(f"board '{text}': markers must be 0.3 to 0.95 of a square: correct their size.")
        board._refuse_too_few_markers()
        return board

    @classmethod
    def _squared(cls, text: str, parts: list[str]) -> Board:
        """Raises ValueError or IndexError for a line that names no such board."""
        columns, rows = (int(v) for v in parts[1].split("x"))
        square = float(parts[2])
        if parts[0] == "chessboard" and len(parts) == 3:
            return cls(text, "chessboard", columns, rows, square)
        if parts[0] == "charuco" and len(parts) in (5, 6) and parts[5:] in ([], ["legacy"]):
            return cls(text, "charuco", columns, rows, square, float(parts[3]), parts[4].upper(), len(parts) == 6)
        raise ValueError(text)

    @classmethod
    def _tagged(cls, text: str, parts: list[str]) -> Board:
        """Raises ValueError or IndexError for a line that names no such board, CalibrationError for an odd spacing."""
        first, spacing = 0, 0.0
        if parts[0] == "aprilgrid" and len(parts) in (4, 5):
            columns, rows = (int(v) for v in parts[1].split("x"))
            edge, spacing, of = float(parts[2]), float(parts[3]), family((parts[4:] or ["tag36h11"])[0], 2)
            if not SPACINGS[0] <= spacing <= SPACINGS[1]:
                raise CalibrationError(
                    f"board '{text}': the space between tags is {SPACINGS[0]:g} to {SPACINGS[1]:g} of a tag's edge: "
                    "give it as that share, as Kalibr does."
                )
        elif parts[0] == "apriltag" and len(parts) in (2, 3, 4):
            columns = rows = 1
            edge, first, of = float(parts[1]), int((parts[2:] or ["0"])[0]), family((parts[3:] or ["tag36h11"])[0], 1)
        else:
            raise ValueError(text)
        if of is None or first < 0:
            raise ValueError(text)
        tags = Tags(*of, first, columns, rows, edge, spacing * edge)
        return cls(text, parts[0], columns, rows, edge, dictionary=of[0], tags=tags)

    def _refuse_too_few_markers(self) -> None:
        """Raises CalibrationError where the dictionary has fewer markers than the board."""
        if self.kind == "chessboard":
            return
        needed = self.columns * self.rows // 2 if self.tags is None else self.tags.first + self.columns * self.rows
        if needed > (has := len(self._dictionary().bytesList)):
            raise CalibrationError(f"board '{self.text}' needs {needed} markers, {self.dictionary.lower()} has {has}.")

    def in_metres(self) -> Board:
        """This board; raises CalibrationError where its lengths cannot be metres."""
        if not PRINTED[0] <= self.square <= PRINTED[1]:
            raise CalibrationError(
                f"board '{self.text}' has squares of {self.square:g} m: measure their edge, and give it in metres "
                f"({PRINTED[0]:g} to {PRINTED[1]:g})."
            )
        return self

    def for_poses(self) -> Board:
        """This board; raises CalibrationError where a view of it does not tell where it is: its lengths are not metres,
        or it looks the same upside down."""
        if self._symmetric:
            raise CalibrationError(
                f"chessboard '{self.text}' looks the same upside down: use one with an odd and an even number of inner "
                "corners, or a charuco board."
            )
        return self.in_metres()

    def for_lens(self) -> Board:
        """This board; raises CalibrationError where its corners are too few to tell a lens."""
        if self.kind == "apriltag":
            raise CalibrationError(
                f"board '{self.text}' has four corners, too few to tell a lens: use a chessboard, a charuco board or "
                "an aprilgrid, which `harmowam calibrate board` prints."
            )
        return self

    @property
    def enough(self) -> int:
        """How many corners tell roughly where the board is."""
        return min(6, len(self.points()))

    @property
    def _symmetric(self) -> bool:
        return self.kind == "chessboard" and self.columns % 2 == self.rows % 2

    def _dictionary(self) -> cv2.aruco.Dictionary:
        return dictionary(self.dictionary)

    def _charuco(self, legacy: bool | None = None) -> cv2.aruco.CharucoBoard:
        made = cv2.aruco.CharucoBoard((self.columns, self.rows), self.square, self.marker, self._dictionary())
        made.setLegacyPattern(self.legacy if legacy is None else legacy)
        return made

    def points(self) -> np.ndarray:
        """Corners in the board frame, float64[n,3] (m), by id."""
        if self.tags is not None:
            return self.tags.points()
        if self.kind == "charuco":
            return np.asarray(self._charuco().getChessboardCorners(), float)
        x, y = np.meshgrid(np.arange(self.columns), np.arange(self.rows))
        return np.stack([x, y, 0 * x], -1).reshape(-1, 3) * self.square

    def size(self) -> tuple[float, float]:
        """Width and height of the pattern, m, without its white border."""
        if self.tags is not None:
            edge, gap = self.tags.edge, self.tags.gap
            return self.columns * (edge + gap) + gap, self.rows * (edge + gap) + gap
        extra = 0 if self.kind == "charuco" else 1
        return (self.columns + extra) * self.square, (self.rows + extra) * self.square

    def origin(self) -> tuple[float, float]:
        """Position of the pattern's top-left corner in the board frame, m."""
        if self.tags is not None:
            left, top = self.tags.points()[:, :2].min(0) - self.tags.gap
            return float(left), float(top)
        return (0.0, 0.0) if self.kind == "charuco" else (-self.square, -self.square)

    def detect(self, grey: np.ndarray) -> Detection:
        """Corners of one picture uint8[H,W]; empty where the board is not seen."""
        if self.tags is not None:
            return Detection(*self.tags.detect(grey))
        none = Detection(np.zeros(0, int), np.zeros((0, 2)))
        if self.kind == "chessboard":
            p = self._chessboard(grey)
            if p is None:
                return none
            corners = np.ascontiguousarray(p.reshape(-1, 1, 2))
            gap = min(np.linalg.norm(np.diff(p, axis=a), axis=-1).min() for a in (0, 1))
            half = int(np.clip(gap / 3, 2, 9))  # a window that holds one corner and no neighbour
            criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 50, 0.002)
            refined = cv2.cornerSubPix(grey, corners, (half, half), (-1, -1), criteria)
            return Detection(np.arange(self.columns * self.rows), refined.reshape(-1, 2).astype(float))
        corners, ids = self._detector(self.legacy).detectBoard(grey)[:2]
        if ids is None or len(ids) < 4:
            return none
        return Detection(ids.ravel().astype(int), corners.reshape(-1, 2).astype(float))

    def _chessboard(self, grey: np.ndarray) -> np.ndarray | None:
        """Corners float32[rows,columns,2] (px) of a chessboard, to a pixel or two; None where it is not seen."""
        size, shape = (self.columns, self.rows), (self.rows, self.columns, 2)
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
        large = grey.shape[1] > FAST_CHECKED
        # Without the fast check a large picture that shows no board takes seconds.
        found, corners = cv2.findChessboardCorners(grey, size, flags=flags | (cv2.CALIB_CB_FAST_CHECK if large else 0))
        if found:
            return _upright(corners.reshape(shape)) if self._symmetric else corners.reshape(shape)
        if not large:
            return None
        # The fast check misses small squares; the detector by sectors finds them, in a fraction of a second.
        scale = min(1.0, SEARCHED / grey.shape[1])
        small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey
        found, corners = cv2.findChessboardCornersSB(small, size, flags=cv2.CALIB_CB_EXHAUSTIVE)
        if not found:
            return None
        p = ((corners.reshape(shape) + 0.5) / scale - 0.5).astype(np.float32)
        return _sorted(p, grey, self._symmetric)

    def _detector(self, legacy: bool) -> Any:  # OpenCV's types do not say that results may be None
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        return cv2.aruco.CharucoDetector(self._charuco(legacy), cv2.aruco.CharucoParameters(), parameters)

    def why_unseen(self, grey: np.ndarray) -> str:
        """The most probable reason why `detect` found nothing."""
        if self.tags is not None:
            return self.tags.why_unseen(grey)
        if self.kind == "chessboard":
            return "board not found or partly hidden"
        detector: Any = cv2.aruco.ArucoDetector(self._dictionary())
        _, ids = detector.detectMarkers(grey)[:2]
        count = 0 if ids is None else len(ids)
        _, mirrored = detector.detectMarkers(np.ascontiguousarray(grey[:, ::-1]))[:2]
        if mirrored is not None and len(mirrored) > 2 * count + 2:
            return "mirrored picture"
        if ids is None or not count:
            return "board not found"
        other = self._detector(not self.legacy).detectBoard(grey)[1]
        if self.rows % 2 == 0 and other is not None and len(other) > len(self.detect(grey).ids):
            return (
                "legacy board layout (append ':legacy')"
                if not self.legacy
                else "board is not legacy (remove ':legacy')"
            )
        if ids.max() >= self.columns * self.rows // 2:
            return "markers of another board"
        return "too few corners (partly hidden or blurred)"

    def rectangles(self) -> list[tuple[float, float, float, float]]:
        """All black rectangles of the pattern: x, y (from its top-left corner), width, height, m."""
        if self.tags is not None:
            return self.tags.rectangles()
        width, height = self.size()
        s, out = self.square, []
        dark = 0
        if self.kind == "charuco":
            # Markers stand in white squares: the first one's place says which squares are white.
            first = np.asarray(self._charuco().getObjPoints()[0]).min(0)[:2]
            dark = (
                round((first[0] - (s - self.marker) / 2) / s) + round((first[1] - (s - self.marker) / 2) / s) + 1
            ) % 2
        for r in range(round(height / s)):
            for c in range(round(width / s)):
                if (r + c) % 2 == dark:
                    out.append((c * s, r * s, s, s))
        if self.kind == "charuco":
            board = self._charuco()
            for marker, corners in zip(np.asarray(board.getIds()).ravel(), board.getObjPoints(), strict=True):
                x0, y0 = np.asarray(corners).min(0)[:2]
                cells = self._dictionary().markerSize + 2
                bits = cv2.aruco.generateImageMarker(self._dictionary(), int(marker), cells)
                step = self.marker / cells
                for r, c in zip(*np.nonzero(bits == 0), strict=True):
                    out.append((x0 + c * step, y0 + r * step, step, step))
        return out

    def texture(self, pixels_per_metre: float, border: float | None = None) -> np.ndarray:
        """uint8[h,w] picture of the board with a white border (m, default half a square)."""
        border = self.square / 2 if border is None else border
        width, height = self.size()
        shape = (round((height + 2 * border) * pixels_per_metre), round((width + 2 * border) * pixels_per_metre))
        image = np.full(shape, 255, np.uint8)
        for x, y, w, h in self.rectangles():
            # Half a pixel is rounded the same way for both of two neighbours: no white line stays between them.
            edges = np.rint((np.array([x, y, x + w, y + h]) + border) * pixels_per_metre - 1e-6).astype(int)
            image[edges[1] : edges[3], edges[0] : edges[2]] = 0
        return image

    def png(self, dpi: int = 600) -> bytes:
        """A PNG that carries its resolution (pHYs), so that it prints at true size."""
        per_metre = dpi / 0.0254
        data = cv2.imencode(".png", self.texture(per_metre))[1].tobytes()
        body = b"pHYs" + struct.pack(">IIB", round(per_metre), round(per_metre), 1)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return data[:33] + chunk + data[33:]  # after IHDR

    def pdf(self, margin: float = 0.012) -> bytes:
        """A one-page vector PDF in true size. Below the pattern is a 100 mm line to check with a ruler; the margin
        above is NARROW, so that the usual board fits on A4 in landscape."""
        point = 72 / 0.0254
        width, height = self.size()
        page = (max(width, 0.1) + 2 * margin, height + margin + NARROW)
        top = page[1] - NARROW
        draw = ["0 g"]
        for x, y, w, h in self.rectangles():
            draw.append(f"{(margin + x) * point:.4f} {(top - y - h) * point:.4f} {w * point:.4f} {h * point:.4f} re f")
        y0 = NARROW * point
        draw.append(f"0.5 w {margin * point:.4f} {y0:.4f} m {(margin + 0.1) * point:.4f} {y0:.4f} l S")
        text = f"{self.text}   the line is 100 mm: print at 100 %".replace("(", "").replace(")", "")
        draw.append(f"BT /F 7 Tf {margin * point:.4f} {y0 + 4:.4f} Td ({text}) Tj ET")
        stream = "\n".join(draw).encode()
        box = f"[0 0 {page[0] * point:.4f} {page[1] * point:.4f}]"
        objects = [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            f"<</Type/Page/Parent 2 0 R/MediaBox{box}/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>".encode(),
            b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        ]
        out, offsets = bytearray(b"%PDF-1.4\n"), []
        for k, item in enumerate(objects):
            offsets.append(len(out))
            out += b"%d 0 obj\n%s\nendobj\n" % (k + 1, item)
        table = len(out)
        out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
        out += b"".join(b"%010d 00000 n \n" % o for o in offsets)
        out += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
        return bytes(out)


def _sorted(p: np.ndarray, grey: np.ndarray, symmetric: bool) -> np.ndarray | None:
    """Corners float32[rows,columns,2] (px) of a chessboard in the order of `Board.points`: not mirrored, and from the
    end where the outer square is dark. None where the squares around them do not alternate: of a board that is cut off,
    OpenCV's detector by sectors takes the pattern's edge for a row of inner corners."""
    right, down = (p[:, -1] - p[:, 0]).sum(0), (p[-1] - p[0]).sum(0)
    if right[0] * down[1] < right[1] * down[0]:
        p = p[:, ::-1]
    out = p
    for axis in (0, 1):  # three fifths of a square outwards, so that the middles lie in the outer squares
        first, second, last, before = (np.take(out, [k], axis) for k in (0, 1, -1, -2))
        out = np.concatenate([1.6 * first - 0.6 * second, out, 1.6 * last - 0.6 * before], axis)
    middles = ((out[:-1, :-1] + out[1:, 1:]) / 2).astype(np.float32)
    light = cv2.remap(grey, middles[..., 0], middles[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    even = np.add.outer(np.arange(light.shape[0]), np.arange(light.shape[1])) % 2 == 0
    signed = np.where(even, -1.0, 1.0) * light.astype(
        float
    )  # of neighbours the sum is positive: the first square is dark
    across, along = signed[:, 1:] + signed[:, :-1], signed[1:] + signed[:-1]
    dark = float(np.sign(np.median(across)))
    edges = (across[0], across[-1], along[:, 0], along[:, -1])
    if min(float((dark * e > 0).mean()) for e in edges) < ALTERNATING:
        return None
    return _upright(p) if symmetric else p if dark > 0 else p[::-1, ::-1]


def _upright(p: np.ndarray) -> np.ndarray:
    """Corners float32[rows,columns,2] (px) of a chessboard that looks the same from two or four sides, in the order in
    which columns run to the right of the picture and rows down: each view then counts from the same corner."""
    turned = [p, p[::-1, ::-1]]
    if p.shape[0] == p.shape[1]:
        turned += [q[:, ::-1] for q in (p.swapaxes(0, 1), p.swapaxes(0, 1)[::-1, ::-1])]
        turned += [q.swapaxes(0, 1) for q in turned]  # a square one is also found as its mirror image

    def right_and_down(q: np.ndarray) -> float:
        return float((q[:, -1] - q[:, 0])[:, 0].sum() + (q[-1] - q[0])[:, 1].sum())

    return max(turned, key=right_and_down)
