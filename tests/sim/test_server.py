"""The simulated robot's processes, as the runtime sees them: pictures at even intervals, each one transfer time old."""

import time

import numpy as np
import pytest

from runtime.cameras.frames import FrameReader, frames_path
from sim import server


@pytest.mark.wall_clock
def test_pictures_are_handed_over_at_even_intervals_a_transfer_after_their_exposure(tmp_path):
    process, _ = server.start(tmp_path, 3, None, 50.0)
    try:
        front = FrameReader(frames_path(tmp_path, "front"))
        before = server.clocks(tmp_path)
        arrived: list[int] = []
        age: list[int] = []
        frame_number = front.frame_number
        while len(arrived) < 60:
            if front.wait(frame_number, time.monotonic_ns() + 1_000_000_000) and (frame := front.newest()) is not None:
                now, frame_number = time.monotonic_ns(), frame.frame_number
                arrived.append(now)
                age.append(now - frame.t_capture_ns)
        judged = server.judged(tmp_path, 0)
        passed = server.passed(before, server.clocks(tmp_path))
    finally:
        process.terminate()
        process.communicate()
    assert not judged["success"] and judged["failure"].startswith("never got to the ")  # the arm is not armed
    assert np.median(np.abs(np.diff(arrived) - 20_000_000)) < 1_000_000
    assert server.TRANSFER_NS <= np.median(age) < server.TRANSFER_NS + 6_000_000  # physics ticks every 4 ms
    assert passed["wall_s"] > 1 and passed["simulated_s"] == pytest.approx(passed["wall_s"], abs=0.1)
    assert 0 <= passed["late_s"] < passed["wall_s"]
