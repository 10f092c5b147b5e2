"""The motor process's log: what changed between two ticks, and nothing else."""

import dataclasses
import json
import logging
import time
from typing import Any

import numpy as np
import pytest

from common.logger import Logger
from common.slots import SlotWriter
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import COMMAND_SLOT
from firmware_bridge.motion.narrator import LOG_FILE, LOOK_EVERY, Narrator
from tests.firmware_bridge.so101 import CONFIG
from tests.firmware_bridge.test_processes import Rig

ZERO = np.zeros(6, np.float32)
STATE = JointState(0, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, np.zeros(6, np.uint8), tick=1)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(tmp_path, *ticks):
    """Events of a log that was given these: state, commands rejected, the bus's errors and what was cut off."""
    with Logger(tmp_path / "motor.log", logging.DEBUG, console=False) as log:
        narrator = Narrator(log, CONFIG.joints)
        for tick in ticks:
            narrator.tick(*tick)
    path = tmp_path / "motor.log"
    return [(r["event"], r) for r in rows(path)] if path.exists() else []


def test_a_tick_like_the_one_before_says_nothing(tmp_path):
    assert told(tmp_path, (STATE, 0, {}), (dataclasses.replace(STATE, tick=2), 0, {})) == []


def test_a_change_of_state_is_told_with_its_reason(tmp_path):
    fault = dataclasses.replace(STATE, safety=SafetyState.FAULT, reason="elbow_flex is blocked", tick=7)
    [(event, row)] = told(tmp_path, (STATE, 0, {}), (fault, 0, {}), (fault, 0, {}))
    assert event == "state" and row["was"] == "DISARMED" and row["now"] == "FAULT" and row["level"] == "info"
    assert row["reason"] == "elbow_flex is blocked" and row["tick"] == 7


def test_rejected_commands_shifts_and_missed_ticks_are_told_at_debug_level(tmp_path):
    later = dataclasses.replace(STATE, shifted_ns=500_000, missed_ticks=2)
    found = dict(told(tmp_path, (STATE, 0, {}), (later, 3, {})))
    assert found["command rejected"]["count"] == 3 and found["clock shifted"]["ms"] == 0.5
    assert found["ticks missed"]["count"] == 2 and {row["level"] for row in found.values()} == {"debug"}


def test_the_buss_counters_are_told_when_they_have_grown(tmp_path):
    looked = dataclasses.replace(STATE, tick=LOOK_EVERY)
    [(event, row)] = told(
        tmp_path,
        (STATE, 0, {(3, "late reply"): 1}),
        (looked, 0, {(3, "late reply"): 2}),
        (looked, 0, {(3, "late reply"): 2}),
    )
    assert event == "bus" and row["late reply (3)"] == 2


def test_what_the_limiter_cut_off_is_counted_and_told_once_in_a_while(tmp_path):
    """By limit and joint, the ticks in which it did."""
    cut = np.zeros((4, 6), bool)
    cut[0, 1] = cut[2, 1] = cut[2, 5] = True
    ticks: list[Any] = [
        (dataclasses.replace(STATE, tick=k), 0, {}, cut if k > 40 else None) for k in range(1, 2 * LOOK_EVERY)
    ]
    [(event, row)] = told(tmp_path, *ticks)
    assert event == "limiter" and row["level"] == "debug" and row["ticks"] == LOOK_EVERY
    assert row["range"] == {"shoulder_lift": 60} and row["speed"] == {"shoulder_lift": 60, "gripper": 60}
    assert "lead" not in row and "acceleration" not in row


@pytest.mark.wall_clock
def test_a_real_motor_process_tells_what_it_cut_off_a_command_and_what_the_bus_lost(tmp_path):
    rig = Rig(tmp_path)
    rig.ask(RequestKind.ARM)
    far = rig.wait_for(SafetyState.HOLD).q_rad + np.float32(3.0)
    commands, began = SlotWriter(tmp_path / COMMAND_SLOT, COMMAND_BYTES), rig.state().tick
    deadline = time.monotonic() + 10
    while rig.state().tick < began + 3 * LOOK_EVERY and time.monotonic() < deadline:
        now = time.monotonic_ns()
        commands.write(Command(now, now + 75_000_000, far, 0 * far).pack())
        if began + 50 < rig.state().tick < began + 60:  # shorter than what counts as a servo that is silent
            rig.servos.faults.inject("flip-data", servo=3)
        else:
            rig.servos.faults.clear()
        time.sleep(0.02)
    rig.close()
    found = rows(tmp_path / LOG_FILE)
    limited = next(r for r in found if r["event"] == "limiter")
    assert limited["level"] == "debug" and {"range", "lead"} <= set(limited) and "shoulder_pan" in limited["lead"]
    lost = next(r for r in found if r["event"] == "bus")
    assert lost["level"] == "debug" and lost["bytes of damaged packets (-1)"] > 0 and lost["no reply (3)"] > 0


@pytest.mark.wall_clock
def test_a_real_motor_process_leaves_its_states_in_the_log(tmp_path):
    rig = Rig(tmp_path)
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    rig.ask(RequestKind.LOWER)
    assert rig.keeper.wait(20) == 0
    rig.server.close()
    states = [r["now"] for r in rows(tmp_path / LOG_FILE) if r["event"] == "state"]
    assert states[:2] == ["DISARMED", "ARMING"] and states[-1] == "SAFE_STOP" and "HOLD" in states
