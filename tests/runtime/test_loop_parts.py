"""Parts of the two-rate loop that need neither clock nor engines: what it takes from cameras, and how it stays where it is."""

from typing import Any

import numpy as np
import pytest

from common.slots import SlotReader
from common.timing import COMMAND_LIFE_S
from firmware_bridge.motion.messages import Command, Expert, JointState
from firmware_bridge.motion.motor import COMMAND_SLOT
from runtime.cameras.sources import Frame
from runtime.loop.errors import RunError
from runtime.loop.eyes import Eyes
from runtime.loop.motor_link import MotorLink
from runtime.loop.record import RunRecord


class Camera:
    image: Any

    def __init__(self, width, height):
        self.image = np.zeros((height, width, 3), np.uint8)

    def newest(self):
        return None if self.image is None else Frame(1, self.image, 1)


@pytest.fixture
def eyes():
    cameras: Any = {"front": Camera(96, 96), "wrist": Camera(96, 64)}
    return Eyes(cameras, 50.0)


def test_a_resolution_that_changes_while_driving_ends_the_run(eyes):
    assert set(eyes.frames()) == {"front", "wrist"} == set(eyes.frames())
    eyes.cameras["wrist"] = Camera(64, 96)
    with pytest.raises(RunError, match=r"camera 'wrist' changed from 96x64 to 64x96 .*stop the program that did it"):
        eyes.frames()


def test_a_camera_without_a_picture_is_named(eyes):
    eyes.cameras["front"].image = None
    with pytest.raises(RunError, match="camera 'front' stopped giving frames: check its cable"):
        eyes.frames()


def test_staying_keeps_the_goal_and_not_the_sagging_arm_and_expires_like_any_command(tmp_path):
    """Told to stay where it is measured, an arm that sags under its weight would sink a little with every command."""
    link = MotorLink(tmp_path, RunRecord())
    z = np.zeros(6, np.float32)
    link.send(Command(1, 2, z, z, seq=1), 0, 0)
    goal = np.array([0.1, -0.2, 0.3, 0.4, 0.0, 0.5], np.float32)
    state = JointState(7, goal - np.float32(0.03), z + 1, goal, z, z, z, np.zeros(6, np.uint8))
    link.stay(state, 1_000)
    stay = Command.unpack(SlotReader(tmp_path / COMMAND_SLOT).read()[0])
    assert (stay.q_rad == goal).all() and not stay.qd_rad_s.any() and stay.expert == Expert.NONE
    assert (stay.t_apply_ns, stay.t_stale_ns) == (1_000, 1_000 + round(COMMAND_LIFE_S * 1e9))
    assert link.sent is None, "joints are not rolled forward by a command that is over"
