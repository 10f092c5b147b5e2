"""Pictures of a sheet through the simulated webcam, made once a run of the tests."""

import cv2
import numpy as np
import pytest

from sim.boards import look_at_board, render
from sim.calibration_rig import webcam
from tests.calibration.verbs import SHEET
from tests.once import once


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder of 14 of them: 00.png to 13.png."""

    def make(folder):
        rng = np.random.default_rng(1)
        for k in range(14):
            picture = render(webcam(None), look_at_board(rng, SHEET, webcam(None)), SHEET, rng)
            cv2.imwrite(str(folder / f"{k:02d}.png"), picture)

    return once(tmp_path_factory, "sheet", make)
