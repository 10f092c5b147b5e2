"""Parts of the two-rate loop that need neither clock nor engines: what it takes from cameras, and how it stays where it
is."""

import time

import numpy as np
import pytest

from common.slots import SlotReader, SlotWriter
from common.timing import COMMAND_LIFE_S
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, Expert, JointState
from firmware_bridge.motion.motor import COMMAND_SLOT
from runtime.cameras.frames import FrameWriter, frames_path
from runtime.cameras.sources import CameraSource
from runtime.loop.errors import RunError
from runtime.loop.eyes import Eyes
from runtime.loop.motor_link import MotorLink
from runtime.loop.record import RunRecord
from runtime.robot import CameraConfig


@pytest.fixture
def writers(tmp_path):
    return {name: FrameWriter(frames_path(tmp_path, name), 96, 96) for name in ("front", "wrist")}


@pytest.fixture
def eyes(writers, tmp_path):
    configs = (CameraConfig(name, "sim", 96, 96, 50.0, "sim") for name in writers)
    return Eyes({c.name: CameraSource(c, frames_path(tmp_path, c.name)) for c in configs}, 50.0)


def test_a_resolution_that_changes_while_driving_ends_the_run(eyes, writers):
    for writer in writers.values():
        writer.write(1, np.zeros((64, 96, 3), np.uint8))
    assert set(eyes.frames()) == {"front", "wrist"} == set(eyes.frames())
    writers["wrist"].write(2, np.zeros((96, 64, 3), np.uint8))
    with pytest.raises(RunError, match=r"camera 'wrist' changed from 96x64 to 64x96 .*stop the program that did it"):
        eyes.frames()


def test_a_camera_without_a_picture_is_named(eyes):
    with pytest.raises(RunError, match="camera 'front' stopped giving frames: check its cable"):
        eyes.frames()


class SeizedAtOnce(SlotWriter):
    """A slot whose reader has put the command on the wire when `write` returns, as a motor process that the
    write wakes does."""

    def write(self, *parts):
        number = super().write(*parts)
        self.wire_ns = time.monotonic_ns()
        return number


def test_a_command_takes_no_less_than_nothing_from_its_slot_to_the_wire(tmp_path):
    link = MotorLink(tmp_path, RunRecord())
    link._commands = SeizedAtOnce(tmp_path / COMMAND_SLOT, COMMAND_BYTES)
    z = np.zeros(6, np.float32)
    for number in range(1, 9):
        began = time.monotonic_ns()
        link.send(Command(1, 2, z, z, number=number), began, 0)
        wire = link._commands.wire_ns
        link.book(JointState(7, z, z, z, z, z, z, np.zeros(6, np.uint8), t_wire_ns=wire, command_number=number))
        start, lasted = link.record.fast_trace.spans()["wire"][:, -1]
        assert began <= start and lasted > 0 and start + lasted == wire


def test_staying_keeps_the_goal_and_not_the_sagging_arm_and_expires_like_any_command(tmp_path):
    """Told to stay where it is measured, an arm that sags under its weight would sink a little with every command."""
    link = MotorLink(tmp_path, RunRecord())
    z = np.zeros(6, np.float32)
    link.send(Command(1, 2, z, z, number=1), 0, 0)
    goal = np.array([0.1, -0.2, 0.3, 0.4, 0.0, 0.5], np.float32)
    state = JointState(7, goal - np.float32(0.03), z + 1, goal, z, z, z, np.zeros(6, np.uint8))
    link.stay(state, 1_000)
    stay = Command.unpack(SlotReader(tmp_path / COMMAND_SLOT).read()[0])
    assert (stay.q_rad == goal).all() and not stay.qd_rad_s.any() and stay.expert == Expert.NONE
    assert (stay.t_apply_ns, stay.t_stale_ns) == (1_000, 1_000 + round(COMMAND_LIFE_S * 1e9))
    assert link.sent is None, "joints are not rolled forward by a command that is over"
