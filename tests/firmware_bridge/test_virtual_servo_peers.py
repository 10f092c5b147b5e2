"""Other people's masters set virtual servos up: they find them, give one a new id and baud rate, and read where nothing
is."""

import subprocess
import sys

import numpy as np
import pytest

from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

SCSERVO = """
import scservo_sdk as sdk
port, packet = sdk.PortHandler(PORT), sdk.PacketHandler(0)
assert port.openPort() and port.setBaudRate(BAUD)
assert packet.ping(port, 7) == (777, sdk.COMM_SUCCESS, 0)
assert packet.ping(port, 3)[1] == sdk.COMM_RX_TIMEOUT

# broadcast ping, as LeRobot asks: six bytes of each
assert packet.txPacket(port, [0, 0, 254, 2, sdk.INST_PING, 0]) == sdk.COMM_SUCCESS
port.is_using = False
port.setPacketTimeoutMillis(500)
heard = []
while len(heard) < 18 and not port.isPacketTimeout():
    heard += port.readPort(18 - len(heard))
assert heard[2::6] == [1, 2, 7], heard

# set-up, as LeRobot does it: torque off, unlock, id to the old id, baud rate to the new one
for servo, address, value in ((1, 40, 0), (1, 55, 0), (1, 5, 9), (9, 6, 1)):
    assert packet.write1ByteTxRx(port, servo, address, value) == (sdk.COMM_SUCCESS, 0), (servo, address)
assert packet.ping(port, 9)[1] == sdk.COMM_RX_TIMEOUT
assert port.setBaudRate(500_000) and packet.ping(port, 9) == (777, sdk.COMM_SUCCESS, 0)
assert packet.ping(port, 2)[1] == sdk.COMM_RX_TIMEOUT
assert port.setBaudRate(BAUD)

assert packet.readTxRx(port, 2, 200, 4) == ([0, 0, 0, 0], sdk.COMM_SUCCESS, 0)
assert packet.readTxRx(port, 2, 0, 245)[1] == sdk.COMM_RX_TIMEOUT
assert packet.write1ByteTxRx(port, 2, 5, 255) == (sdk.COMM_SUCCESS, 0)
assert packet.ping(port, 2) == (777, sdk.COMM_SUCCESS, 0)
"""
DYNAMIXEL = """
import dynamixel_sdk as sdk
port, packet = sdk.PortHandler(PORT), sdk.PacketHandler(2.0)
assert port.openPort() and port.setBaudRate(BAUD)
assert packet.ping(port, 7) == (1200, sdk.COMM_SUCCESS, 0)
found, result = packet.broadcastPing(port)
assert result == sdk.COMM_SUCCESS and found == {1: [1200, 52], 2: [1200, 52], 7: [1200, 52]}, found

assert packet.write1ByteTxRx(port, 1, 64, 0) == (sdk.COMM_SUCCESS, 0)
assert packet.write1ByteTxRx(port, 1, 7, 9) == (sdk.COMM_SUCCESS, 0)
assert packet.write1ByteTxRx(port, 9, 8, 2) == (sdk.COMM_SUCCESS, 0)
assert packet.ping(port, 9)[1] == sdk.COMM_RX_TIMEOUT
assert port.setBaudRate(115_200) and packet.ping(port, 9) == (1200, sdk.COMM_SUCCESS, 0)
assert packet.ping(port, 2)[1] == sdk.COMM_RX_TIMEOUT
assert port.setBaudRate(BAUD)

assert packet.readTxRx(port, 2, 300, 4)[1:] == (sdk.COMM_SUCCESS, sdk.ERRNUM_ACCESS)
assert packet.readTxRx(port, 2, 0, 1020)[1:] == (sdk.COMM_SUCCESS, sdk.ERRNUM_ACCESS)
assert packet.write1ByteTxRx(port, 2, 300, 1) == (sdk.COMM_SUCCESS, sdk.ERRNUM_ACCESS)
assert packet.write1ByteTxRx(port, 2, 7, 253) == (sdk.COMM_SUCCESS, sdk.ERRNUM_DATA_RANGE)
assert packet.write4ByteTxRx(port, 2, 116, 5000) == (sdk.COMM_SUCCESS, sdk.ERRNUM_DATA_LIMIT)
assert packet.write2ByteTxRx(port, 2, 116, 100) == (sdk.COMM_SUCCESS, sdk.ERRNUM_DATA_LENGTH)
assert packet.ping(port, 2) == (1200, sdk.COMM_SUCCESS, 0)
"""
RUSTYPOT = """
import rustypot
c = rustypot.CLASS(serial_port=PORT, baudrate=BAUD, timeout=0.3)
assert c.ping(7) and not c.ping(3)
assert c.broadcast_scan() == dict.fromkeys((1, 2, 7), MODEL)
c.write_id(1, 9)
assert c.ping(9) and c.read_id(9) == [9] and not c.ping(1)
c.write_baud_rate(9, RATE)
assert not c.ping(9) and c.ping(2)
assert c.read_raw_data_with_error(2, 226, 4) == BEYOND
assert c.ping(2)
"""
RUSTYPOT_STS = (
    RUSTYPOT.replace("c.write_id", "c.write_lock(1, False); c.write_id", 1)
    .replace("CLASS", "Sts3215PyController")
    .replace("MODEL", "777")
    .replace("RATE", "1")
    .replace("BEYOND", "([0, 0, 0, 0], 0)")
)
RUSTYPOT_DYNAMIXEL = (
    RUSTYPOT.replace("CLASS", "Xl330PyController")
    .replace("MODEL", "1200")
    .replace("RATE", "2")
    .replace("BEYOND", "([], 7)")
)


@pytest.mark.wall_clock
@pytest.mark.parametrize(
    ("model", "code", "script"),
    [
        ("STS3215", 1, SCSERVO),
        ("XL330-M288", 2, DYNAMIXEL),
        ("STS3215", 1, RUSTYPOT_STS),
        ("XL330-M288", 2, RUSTYPOT_DYNAMIXEL),
    ],
    ids=["scservo_sdk", "dynamixel_sdk", "rustypot sts", "rustypot dynamixel"],
)
def test_other_masters_set_our_virtual_servos_up(model, code, script):
    servos = VirtualBus((1, 2, 7), KinematicPlant(np.full(3, 2048.0)), [MODELS[model]] * 3)
    server = PtyBus(servos, 1_000_000)
    begin = f"PORT, BAUD = {server.path!r}, 1_000_000\n"
    done = subprocess.run([sys.executable, "-c", begin + script], capture_output=True, text=True, timeout=30)
    server.close()
    assert done.returncode == 0, done.stderr
    assert servos.ids == [9, 2, 7] and servos.get(9, "baud") == code
    servos.power_cycle(9, 0)
    assert servos.ids == [9, 2, 7] and servos.get(9, "baud") == code  # it was unlocked
