"""LeRobot's own buses and robots drive our virtual servos: they number them, calibrate them, move them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

PEERS = Path(__file__).parents[2] / ".venv-peers/bin/python"
pytestmark = [
    pytest.mark.wall_clock,
    pytest.mark.skipif(not PEERS.exists(), reason="no lerobot: ./build.sh peers"),
]
START = [2048.0, 1800.0, 2300.0, 2048.0, 2000.0, 2100.0]
MAKES = {
    "feetech": ("STS3215", "from lerobot.motors.feetech import FeetechMotorsBus as Bus", "sts3215"),
    "dynamixel": ("XL330-M288", "from lerobot.motors.dynamixel import DynamixelMotorsBus as Bus", "xl330-m288"),
}
ROBOTS = {
    "feetech": "from lerobot.robots.so_follower import SO101Follower as Robot, SO101FollowerConfig as Config",
    "dynamixel": "from lerobot.robots.koch_follower import KochFollower as Robot, KochFollowerConfig as Config",
}

NUMBER = """
from lerobot.motors import Motor, MotorNormMode
bus = Bus(PORT, {"elbow": Motor(3, MODEL, MotorNormMode.DEGREES)})
bus.setup_motor("elbow")
assert bus.ping("elbow") is not None
"""
CALIBRATE = """
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
bus = Bus(PORT, {f"m{i}": Motor(i, MODEL, MotorNormMode.DEGREES) for i in range(1, 7)})
bus.connect()
assert sorted(bus.broadcast_ping()) == [1, 2, 3, 4, 5, 6]
bus.disable_torque()
raw = bus.sync_read("Present_Position", normalize=False)
assert raw == dict(zip(bus.motors, START)), raw
offsets = bus.set_half_turn_homings()
assert set(bus.sync_read("Present_Position", normalize=False).values()) == {2047}
limits = {n: MotorCalibration(m.id, 0, offsets[n], 1000, 3000) for n, m in bus.motors.items()}
bus.write_calibration(limits)
assert bus.is_calibrated and bus.read_calibration() == limits
bus.enable_torque()
bus.sync_write("Goal_Position", dict.fromkeys(bus.motors, 2300), normalize=False)
import time
for _ in range(100):
    time.sleep(0.02)
    now = bus.sync_read("Present_Position", normalize=False)
    if all(abs(v - 2300) < 12 for v in now.values()):
        break
else:
    raise AssertionError(now)
bus.disconnect()
"""
ROBOT = """
import time
robot = Robot(Config(port=PORT, id="virtual", cameras={}))
robot.connect(calibrate=False)
names = list(robot.bus.motors)
from lerobot.motors import MotorCalibration
robot.bus.disable_torque()
robot.calibration = {n: MotorCalibration(m.id, 0, 0, 1000, 3000) for n, m in robot.bus.motors.items()}
robot.bus.write_calibration(robot.calibration)
robot.bus.enable_torque()
seen = robot.get_observation()
assert set(seen) == {f"{n}.pos" for n in names}
wanted = {f"{n}.pos": 10.0 for n in names}
for _ in range(150):
    robot.send_action(wanted)
    time.sleep(0.01)
    now = robot.get_observation()
    if all(abs(now[k] - v) < 2 for k, v in wanted.items()):
        break
else:
    raise AssertionError(now)
robot.disconnect()
"""


def run(script, server, model, home):
    begin = f"PORT, MODEL, START = {server.path!r}, {model!r}, {[int(s) for s in START]!r}\n"
    env = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "HOME": str(home),
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin",
    }
    command = [str(PEERS), "-W", "ignore", "-c", begin + script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def served(ids, *models):
    servos = VirtualBus(ids, KinematicPlant(np.array(START[: len(ids)])), [MODELS[m] for m in models])
    return servos, PtyBus(servos, 1_000_000)


@pytest.mark.parametrize("make", MAKES)
def test_lerobots_set_up_numbers_a_servo_as_it_is_delivered(make, tmp_path):
    ours, bus, theirs = MAKES[make]
    servos, server = served([1], ours)
    run(f"{bus}\n{NUMBER}", server, theirs, tmp_path)
    server.close()
    assert servos.ids == [3]
    servos.power_cycle(3, 0)
    assert servos.ids == [3]  # it was unlocked


@pytest.mark.parametrize("make", MAKES)
def test_lerobots_bus_calibrates_and_moves_an_arm(make, tmp_path):
    ours, bus, theirs = MAKES[make]
    servos, server = served(range(1, 7), *[ours] * 6)
    run(f"{bus}\n{CALIBRATE}", server, theirs, tmp_path)
    server.close()
    assert [servos.get(i, "min_position") for i in servos.ids] == [1000] * 6


@pytest.mark.parametrize("make", ROBOTS)
def test_lerobots_robot_observes_and_follows_actions(make, tmp_path):
    ours, _, theirs = MAKES[make]
    shoulder = "XL430-W250" if make == "dynamixel" else ours  # as a Koch has them
    _, server = served(range(1, 7), shoulder, shoulder, *[ours] * 4)
    run(f"{ROBOTS[make]}\n{ROBOT}", server, theirs, tmp_path)
    server.close()
