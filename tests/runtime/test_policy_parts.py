"""Parts of the two-rate loop that need neither clock nor engines: what it takes from cameras, and how it stays where it is."""

import types
from typing import Any

import numpy as np
import pytest

from firmware_bridge.motion.messages import Command, Expert, JointState
from runtime.cameras.sources import Frame
from runtime.loop.two_rate import STALE_NS, Policy, RunError


class Camera:
    image: Any

    def __init__(self, width, height):
        self.image = np.zeros((height, width, 3), np.uint8)

    def newest(self):
        return None if self.image is None else Frame(1, self.image, 1)


@pytest.fixture
def policy():
    """Nothing but what these parts look at."""
    made: Any = Policy.__new__(Policy)
    made.cameras, made._shapes = {"front": Camera(96, 96), "wrist": Camera(96, 64)}, {}
    return made


def test_a_resolution_that_changes_while_driving_ends_the_run(policy):
    assert set(policy._frames()) == {"front", "wrist"} == set(policy._frames())
    policy.cameras["wrist"] = Camera(64, 96)
    with pytest.raises(RunError, match=r"camera 'wrist' changed from 96x64 to 64x96 .*stop the program that did it"):
        policy._frames()


def test_a_camera_without_a_picture_is_named(policy):
    policy.cameras["front"].image = None
    with pytest.raises(RunError, match="camera 'front' stopped giving frames: check its cable"):
        policy._frames()


def test_staying_keeps_the_goal_and_not_the_sagging_arm_and_expires_like_any_command(policy):
    """Told to stay where it is measured, an arm that sags under its weight would sink a little with every command."""
    written: list[bytes] = []
    policy._commands = types.SimpleNamespace(write=written.append)
    policy._sent = "the last one"
    z = np.zeros(6, np.float32)
    goal = np.array([0.1, -0.2, 0.3, 0.4, 0.0, 0.5], np.float32)
    state = JointState(7, goal - np.float32(0.03), z + 1, goal, z, z, z, np.zeros(6, np.uint8))
    policy._stay(state, 1_000)
    (packed,) = written
    stay = Command.unpack(packed)
    assert (stay.q_rad == goal).all() and not stay.qd_rad_s.any() and stay.expert == Expert.NONE
    assert (stay.t_apply_ns, stay.t_stale_ns) == (1_000, 1_000 + STALE_NS)
    assert policy._sent is None, "joints are not rolled forward by a command that is over"
