"""mrcal (Debian package python3-mrcal) as an independent peer, where the system has it."""

import pytest

from benchmarks.calibration_peers import has_mrcal, part_mrcal


def test_we_and_mrcal_find_the_same_lens():
    if not has_mrcal():
        pytest.skip("apt install python3-mrcal brings the peer")
    found = part_mrcal(1)
    assert found["apart"]["median_px"] < 0.05
    assert found["ours"]["median_px"] < max(1.1 * found["mrcal"]["median_px"], 0.04)
