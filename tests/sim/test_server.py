"""The simulated robot's processes, as the runtime sees them: pictures at even intervals, each one transfer time old."""

import time

import numpy as np
import pytest

from runtime.cameras.frames import FrameReader, frames_path
from sim import server
from sim.expert import Follower, joints_for, plan
from sim.tasks import ARM
from sim.trace import seeded_start
from sim.world import World


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


def test_a_displaced_thing_is_a_fault_that_happens_once_while_the_arm_is_on_its_way():
    """The scripted expert drives in place of a policy. On an empty table there is nothing to move."""
    world = World(layout=seeded_start(3, ARM, "put the red cube on the plate"), family=ARM)
    layout, judge = world.layout, server._Judge(world)
    disturb = server._disturber(world, judge, 3, wanted=True)
    assert disturb is not None
    follower, places = Follower(world, plan(world, np.random.default_rng(1)), np.random.default_rng(0), 0.0), []
    for tick in range(750):
        judge.look(tick * 4_000_000)
        disturb(tick * 4_000_000)
        if tick % 5 == 0:
            world.set_goals(joints_for(follower.step(0.02)[0]))
            places.append([world.position(name)[:2] for name in layout.roles])
        world.advance(0.004)
        if disturb.happened is not None and world.holds("red_cube"):
            break
    moved = np.linalg.norm(np.diff(places, axis=0), axis=-1) > 0.02
    assert moved.sum() == 1 and disturb.happened is not None and disturb.happened.moved_m <= 0.08
    empty = World(layout=seeded_start(3, ARM, "trace a circle clockwise"), family=ARM)
    assert server._disturber(empty, server._Judge(empty), 3, wanted=True) is None
