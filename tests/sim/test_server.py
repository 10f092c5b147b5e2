"""The simulated robot's processes, as the runtime sees them: pictures at even intervals, a transfer's time old."""

import time

import numpy as np
import pytest

from common.slots import SlotReader
from runtime.cameras.sources import FRAME_HEAD, slot_path
from sim import server


@pytest.mark.wall_clock
def test_pictures_are_handed_over_at_even_intervals_a_transfer_after_their_exposure(tmp_path):
    process, _ = server.start(tmp_path, 3, None, 50.0)
    try:
        slot = SlotReader(slot_path(tmp_path, "front"))
        arrived: list[int] = []
        age: list[int] = []
        seq = slot.newest
        while len(arrived) < 60:
            if slot.wait(seq, 1_000_000_000) and (got := slot.read()) is not None:
                now, seq = time.monotonic_ns(), got[1]
                arrived.append(now)
                age.append(now - FRAME_HEAD.unpack_from(got[0])[0])
        judged = server.judged(tmp_path, 0)
    finally:
        process.terminate()
        process.communicate()
    assert not judged["success"] and judged["failure"].startswith("never got to the ")  # nobody has armed it
    assert np.median(np.abs(np.diff(arrived) - 20_000_000)) < 1_000_000
    assert server.TRANSFER_NS <= np.median(age) < server.TRANSFER_NS + 6_000_000  # physics ticks every 4 ms
