"""The doctor asks the servos: what keeps the arm from being armed is one finding with its next step, and nothing is
written."""

import dataclasses

import pytest

from firmware_bridge.virtual.campaign import SO101
from firmware_bridge.virtual.line import PtyBus
from runtime.doctor.servos import asked, servos
from runtime.robot import load_robot
from tests.firmware_bridge.so101 import bus
from tests.firmware_bridge.virtual_arm import virtual


def found(act):
    """Findings after `act` on the virtual servos, which keep every register."""
    arm, line = virtual(SO101)
    act(line)
    held = [bytes(s.memory[:56]) for s in line.servos.values()]
    out = [(f.name, f.state, f.found, f.mend) for f in asked(arm)]
    assert [bytes(s.memory[:56]) for s in line.servos.values()] == held
    return out


def test_servos_that_are_as_they_must_be_are_one_good_finding():
    assert found(lambda line: None) == [("servos", "ok", "1, 2, 3, 4, 5, 6 answer, and hold what they must", "")]


def test_a_silent_port_is_one_finding_with_its_next_step():
    ((name, state, what, mend),) = found(lambda line: line.faults.inject("silent-all"))
    assert (name, state, what) == ("servos", "bad", "no servo answers on the virtual bus")
    assert mend.startswith("check the arm's power supply and the baud rate (1000000)")


def test_a_wrong_setting_is_named():
    ((_, state, what, mend),) = found(lambda line: line.put(3, "mode", 1))
    assert state == "bad" and "servo 3 (elbow_flex) holds mode 1" in what and "harmowam bus check" in mend


def test_what_a_servo_reports_is_said_in_words():
    ok, (_, state, what, _) = found(lambda line: setattr(line.servos[2], "forced_bits", 1))
    assert ok[1] == "ok" and (state, what) == ("warn", "servo 2 (shoulder_lift) reports: voltage")


def test_an_adapter_that_echoes_is_told_of():
    assert found(lambda line: line.faults.inject("echo"))[-1][:2] == ("echo", "ok")


def test_a_simulated_robot_and_a_port_that_has_its_own_finding_are_not_asked(tmp_path):
    so101 = load_robot("so101")
    assert list(servos(dataclasses.replace(so101, port=str(tmp_path / "none")))) == []
    assert list(servos(load_robot("sim_so101"))) == []


@pytest.mark.wall_clock
def test_the_servos_behind_a_real_port_are_asked(tmp_path):
    server = PtyBus(bus()[0], link=tmp_path / "arm")
    try:
        (finding,) = servos(dataclasses.replace(load_robot("so101"), port=server.path))
    finally:
        server.close()
    assert finding.state == "ok" and finding.found.startswith("1, 2, 3, 4, 5, 6 answer")
