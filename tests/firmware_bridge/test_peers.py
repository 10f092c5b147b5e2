"""Other people's masters on our virtual servos: what they do right must work."""

import subprocess
import sys

import fastcrc
import numpy as np
import pytest

from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import KOCH
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

RUSTYPOT_STS = """
import rustypot
c = rustypot.Sts3215PyController(serial_port=PORT, baudrate=1_000_000, timeout=0.2)
assert list(c.sync_read_raw_present_position([1, 2, 3])) == [2048, 2049, 2050]
c.sync_write_torque_enable([1, 2, 3], [True] * 3)
c.sync_write_raw_goal_position([1, 2, 3], [2148, 2149, 2150])
"""
SCSERVO = """
import scservo_sdk as sdk
port, packet = sdk.PortHandler(PORT), sdk.PacketHandler(0)
assert port.openPort() and port.setBaudRate(1_000_000)
assert packet.ping(port, 1)[0] == 777
assert packet.read2ByteTxRx(port, 2, 56)[:2] == (2049, 0)
for i, goal in ((1, 2148), (2, 2149), (3, 2150)):
    assert packet.write1ByteTxRx(port, i, 40, 1)[0] == 0
    assert packet.write2ByteTxRx(port, i, 42, goal)[0] == 0
"""
RUSTYPOT_DXL = """
import rustypot
c = rustypot.Xl330PyController(serial_port=PORT, baudrate=1_000_000, timeout=0.2)
assert list(c.sync_read_raw_present_position([1, 2, 3])) == [2048, 2049, 2050]
c.sync_write_torque_enable([1, 2, 3], [True] * 3)
c.sync_write_raw_goal_position([1, 2, 3], [2148, 2149, 2150])
"""
DYNAMIXEL = """
import dynamixel_sdk as sdk
port, packet = sdk.PortHandler(PORT), sdk.PacketHandler(2.0)
assert port.openPort() and port.setBaudRate(1_000_000)
assert packet.ping(port, 3)[:2] == (1200, 0)
found, result = packet.broadcastPing(port)
assert sorted(found) == [1, 2, 3, 4, 5, 6]
for make in (sdk.GroupSyncRead,):
    group = make(port, packet, 132, 4)
    [group.addParam(i) for i in (1, 2, 3)]
    assert group.txRxPacket() == 0 and [group.getData(i, 132, 4) for i in (1, 2, 3)] == [2048, 2049, 2050]
    assert group.fastSyncRead() == 0 and [group.getData(i, 132, 4) for i in (1, 2, 3)] == [2048, 2049, 2050]
for i, goal in ((1, 2148), (2, 2149), (3, 2150)):
    assert packet.write1ByteTxRx(port, i, 64, 1) == (0, 0)
    assert packet.write4ByteTxRx(port, i, 116, goal) == (0, 0)
assert packet.write1ByteTxRx(port, 1, 11, 4)[1] & 0x7F == 7  # EEPROM with torque on: access error
"""


@pytest.mark.wall_clock
@pytest.mark.parametrize(
    ("protocol", "script"),
    [("feetech", RUSTYPOT_STS), ("feetech", SCSERVO), ("dynamixel", RUSTYPOT_DXL), ("dynamixel", DYNAMIXEL)],
    ids=["rustypot sts", "scservo_sdk", "rustypot dynamixel", "dynamixel_sdk"],
)
def test_other_masters_read_and_move_our_virtual_servos(protocol, script):
    models = [MODELS[m] for m in (KOCH.model_names if protocol == "dynamixel" else ("STS3215",) * 6)]
    plant = KinematicPlant(2048.0 + np.arange(6))
    servos = VirtualBus(range(1, 7), plant, models)
    server = PtyBus(servos)
    done = subprocess.run(
        [sys.executable, "-c", f"PORT = {server.path!r}\n{script}"], capture_output=True, text=True, timeout=30
    )
    server.close()
    assert done.returncode == 0, done.stderr
    assert [servos.get(i, "goal_position") for i in (1, 2, 3)] == [2148, 2149, 2150]
    assert [servos.get(i, "torque_enable") for i in range(1, 7)] == [1, 1, 1, 0, 0, 0]


def test_the_crc_agrees_with_an_independent_one():
    rng = np.random.default_rng(3)
    for sample in (rng.bytes(int(n)) for n in rng.integers(0, 300, 200)):
        assert dxl.crc16(sample) == fastcrc.crc16.umts(sample)
