"""OpenCV's public sample images (Debian package opencv-doc), where the system has them."""

from pathlib import Path

import pytest

from benchmarks.calibration_peers import part_samples

FOLDER = Path("/usr/share/doc/opencv-doc/examples/data")


@pytest.mark.skipif(not (FOLDER / "left01.jpg").exists(), reason="apt install opencv-doc brings the sample images")
def test_on_real_pictures_halves_differ_by_at_most_half_of_what_opencvs_do():
    rows = part_samples(str(FOLDER), halvings=8)
    for side in ("left", "right"):
        assert rows[f"{side}, ours"]["heldout_px"] <= rows[f"{side}, opencv recipe"]["heldout_px"]
        assert rows[f"{side}, ours"]["heldout_px"] <= rows[f"{side}, opencv, our corners"]["heldout_px"]
        assert rows[f"{side}, ours"]["crossval_median_px"] <= 0.5 * rows[f"{side}, opencv recipe"]["crossval_median_px"]
    assert min(rows["board_shape_correlation"]) > 0.8  # both cameras find the same board
