"""OpenCV's public sample images (Debian package opencv-doc), where the system has them."""

from pathlib import Path

import pytest

from benchmarks.calibration import part_samples

FOLDER = Path("/usr/share/doc/opencv-doc/examples/data")


@pytest.mark.skipif(not (FOLDER / "left01.jpg").exists(), reason="apt install opencv-doc brings the sample images")
def test_real_pictures_are_explained_no_worse_than_by_opencv():
    rows = part_samples(str(FOLDER))
    for side in ("left", "right"):
        assert rows[f"{side}, ours"]["heldout_px"] <= rows[f"{side}, opencv recipe"]["heldout_px"]
    assert rows["left, ours"]["crossval_median_px"] <= 0.5 * rows["left, opencv recipe"]["crossval_median_px"]
