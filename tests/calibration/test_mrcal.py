"""mrcal (Debian package python3-mrcal) as an independent peer, where the system has it."""

from pathlib import Path

import pytest

from benchmarks.calibration import part_mrcal


@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/mrcal").exists(), reason="apt install python3-mrcal brings the peer"
)
def test_we_and_mrcal_find_the_same_lens():
    found = part_mrcal(2)
    assert found["median_apart_px"] < 0.05
    assert found["ours"]["error_median_px"] <= 1.1 * found["mrcal"]["error_median_px"]
