"""Register tables of the Feetech STS3215 and of the big-endian SCS0009: one entry per register.

Sources: LeRobot's tables; ftservo wiki (memory-sms-sts); Feetech's STS and SCS memory tables.
"""

from __future__ import annotations

import math

from firmware_bridge.servos.registers import Model, Register

NUMBER = 777
STEPS = 4096
RAD_PER_STEP = 2 * math.pi / STEPS
# What the register "baud" stands for, from 0 on. Sources differ from 5 on (LeRobot: 57600, 38400, 19200).
BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400, 19_200)

_TABLE = {
    r.name: r
    for r in (
        Register("firmware_major", 0, 1, 3, False, True),
        Register("firmware_minor", 1, 1, 10, False, True),
        Register("model", 3, 2, NUMBER, False, True),
        Register("id", 5, 1, 1, True, True),
        Register("baud", 6, 1, 0, True, True),
        Register("return_delay", 7, 1, 0, True, True),
        Register("response_level", 8, 1, 1, True, True),
        Register("min_position", 9, 2, 0, True, True),
        Register("max_position", 11, 2, 4095, True, True),
        Register("max_temperature", 13, 1, 70, True, True),
        Register("max_voltage", 14, 1, 80, True, True),
        Register("min_voltage", 15, 1, 40, True, True),
        Register("max_torque", 16, 2, 1000, True, True),
        Register("phase", 18, 1, 12, True, True),
        Register("unload_condition", 19, 1, 44, True, True),
        Register("p_gain", 21, 1, 32, True, True),
        Register("d_gain", 22, 1, 32, True, True),
        Register("i_gain", 23, 1, 0, True, True),
        Register("protection_current", 28, 2, 310, True, True),
        Register("homing_offset", 31, 2, 0, True, True, 11),
        Register("mode", 33, 1, 0, True, True),
        Register("overload_torque", 34, 1, 20, True, True),
        Register("overload_time", 35, 1, 200, True, True),
        Register("overload_threshold", 36, 1, 80, True, True),
        Register("torque_enable", 40, 1),
        Register("acceleration", 41, 1),
        Register("goal_position", 42, 2, 0, sign=15),
        Register("goal_time", 44, 2, 0, sign=10),
        Register("goal_speed", 46, 2, 0, sign=15),
        Register("torque_limit", 48, 2, 1000),
        Register("lock", 55, 1, 1),
        Register("present_position", 56, 2, 0, False, sign=15),
        Register("present_speed", 58, 2, 0, False, sign=15),
        Register("present_load", 60, 2, 0, False, sign=10),
        Register("present_voltage", 62, 1, 74, False),
        Register("present_temperature", 63, 1, 30, False),
        Register("status", 65, 1, 0, False),
        Register("moving", 66, 1, 0, False),
        Register("present_current", 69, 2, 0, False, sign=15),
    )
}

STS3215 = Model("STS3215", NUMBER, "feetech", _TABLE)
decode = STS3215.decode

_SCS = {
    r.name: r
    for r in (
        Register("firmware_major", 0, 1, 3, False, True),
        Register("firmware_minor", 1, 1, 10, False, True),
        Register("model", 3, 2, 1284, False, True),
        Register("id", 5, 1, 1, True, True),
        Register("baud", 6, 1, 0, True, True),
        Register("return_delay", 7, 1, 0, True, True),
        Register("response_level", 8, 1, 1, True, True),
        Register("min_position", 9, 2, 0, True, True),
        Register("max_position", 11, 2, 1023, True, True),
        Register("max_temperature", 13, 1, 70, True, True),
        Register("max_voltage", 14, 1, 80, True, True),
        Register("min_voltage", 15, 1, 40, True, True),
        Register("max_torque", 16, 2, 1000, True, True),
        Register("torque_enable", 40, 1),
        Register("goal_position", 42, 2, 0, sign=15),
        Register("goal_time", 44, 2),
        Register("goal_speed", 46, 2, 0, sign=15),
        Register("lock", 48, 1, 1),
        Register("present_position", 56, 2, 0, False, sign=15),
        Register("present_speed", 58, 2, 0, False, sign=15),
        Register("present_load", 60, 2, 0, False, sign=10),
        Register("present_voltage", 62, 1, 74, False),
        Register("present_temperature", 63, 1, 30, False),
        Register("status", 65, 1, 0, False),
        Register("moving", 66, 1, 0, False),
    )
}

SCS0009 = Model("SCS0009", 1284, "feetech", _SCS, steps=1024, current_a=0.0, byteorder="big", sync_read=False)

CONDITIONS = {0: "voltage", 1: "encoder", 2: "temperature", 3: "current", 5: "overload"}


def conditions(bits: int) -> list[str]:
    """Names of the condition bits that are set."""
    return [n for b, n in CONDITIONS.items() if bits >> b & 1]
