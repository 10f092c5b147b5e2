"""The motor process's log: what changed between two ticks, and nothing else."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from common.logger import Logger
from firmware_bridge.motion.messages import JointState, RequestKind, SafetyState
from firmware_bridge.motion.narrator import LOG_FILE, LOOK_EVERY, Narrator
from tests.firmware_bridge.test_processes import Rig

ZERO = np.zeros(6, np.float32)
STATE = JointState(0, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, np.zeros(6, np.uint8), tick=1)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(tmp_path, *ticks):
    """Events of a log that was given these (state, rejected, bus errors), without the first ones of an arm that
    stands."""
    with Logger(tmp_path / "motor.log", logging.DEBUG, console=False) as log:
        narrator = Narrator(log)
        for state, rejected, errors in ticks:
            narrator.tick(state, rejected, errors)
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
