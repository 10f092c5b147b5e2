"""Which corner is which, by the `aprilgrid` package of the Python Package Index, which reads Kalibr's boards.

Prints, for each tag of a board as this project draws it, the numbers of the corners in the order in which the package
gives them. `tests/calibration/test_april.py` holds the list.

    python -m venv V && V/bin/pip install aprilgrid
    python -m benchmarks.aprilgrid_witness draw board.png
    V/bin/python benchmarks/aprilgrid_witness.py read board.png
"""

from __future__ import annotations

import sys

TEXT, PIXELS_PER_METRE, COLUMNS, ROWS, TAG, GAP = "aprilgrid:6x5:0.03:0.3", 2000, 6, 5, 0.03, 0.009


def draw(path: str) -> None:
    """The board with a white border of half a tag."""
    import cv2

    from calibration.board import Board

    cv2.imwrite(path, Board.parse(TEXT).texture(PIXELS_PER_METRE))


def read(path: str) -> None:
    """By the package alone: Kalibr's number of each corner follows from its place in the picture."""
    import cv2
    from aprilgrid import Detector  # type: ignore[import-not-found]

    picture = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    assert picture is not None, path
    left, bottom = TAG / 2 + GAP, picture.shape[0] / PIXELS_PER_METRE - TAG / 2 - GAP
    for found in sorted(Detector("t36h11").detect(picture), key=lambda d: d.tag_id):
        numbers = []
        for x, y in (found.corners.reshape(-1, 2) + 0.5) / PIXELS_PER_METRE:
            right, up = (x - left) / (TAG + GAP), (bottom - y) / (TAG + GAP)
            column, row = (2 * int(v + 0.1) + int(v % 1 > 0.5 and v % 1 < 0.9) for v in (right, up))
            numbers.append(row * 2 * COLUMNS + column)
        print(f"{found.tag_id}: {numbers}")


if __name__ == "__main__":
    {"draw": draw, "read": read}[sys.argv[1]](sys.argv[2])
