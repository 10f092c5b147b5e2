"""How often the jaw's goal turns back in an event."""

import numpy as np
import pytest

from sim.jaw import reversals
from sim.tasks import CLOSED, OPEN

FRAME_NS = 40_000_000


def goals(text):
    """One command a frame: "o" open, "c" closed, "-" half way."""
    value = {"o": OPEN, "c": CLOSED, "-": 0.5 * (OPEN + CLOSED)}
    return np.arange(len(text)) * FRAME_NS, np.array([value[c] for c in text])


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        ("", []),
        ("oooooo", []),
        ("ooocccc" + 20 * "c" + "oooo", [0, 0]),  # a grasp and a release
        ("oococc", [2]),
        ("oocococococ", [8]),  # flips open and shut four times within 0.4 s
        ("oo--cc", [0]),  # half way is neither
        ("oo--oo", []),
        ("ooccoo" + 20 * "o" + "ccc", [1, 0]),  # a try that is given up, then a grasp
        (12 * "o" + 12 * "c" + 13 * "o" + "c", [1, 0]),  # 0.48 s apart is one event, 0.52 s apart two
    ],
)
def test_changes_close_together_are_one_event_and_all_but_the_first_turn_back(sent, wanted):
    assert reversals(*goals(sent)) == wanted
