"""`harmowam bus` as a user meets it: real ports, one sentence for what the user can mend."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from firmware_bridge.virtual import campaign
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from harmowam.cli import main
from tests.firmware_bridge.so101 import bus


def harmowam(*args):
    return CliRunner().invoke(main, ["bus", *map(str, args)])


@pytest.fixture
def served(tmp_path):
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    yield servos, server
    server.close()


@pytest.mark.wall_clock
def test_scan_lists_every_servo_and_touches_none(served, tmp_path):
    servos, server = served
    servos.faults.inject("wrong-model", servo=5)
    before = [bytes(s.memory[:56]) for s in servos.servos.values()]
    out = tmp_path / "scan.json"
    result = harmowam(
        "scan", "--port", server.path, "--protocol", "feetech", "--baud", 1_000_000, "--ids", "1-8", "--json", out
    )
    assert result.exit_code == 0 and result.output.count("STS3215") == 5 and "model 778" in result.output, result.output
    found = json.loads(out.read_text())["servos"]
    assert [s["id"] for s in found] == [1, 2, 3, 4, 5, 6] and found[0]["present_voltage"] == 74
    assert [bytes(s.memory[:56]) for s in servos.servos.values()][:4] == before[:4]


def test_another_baud_rate_finds_nobody_and_is_said(served):
    result = harmowam("scan", "--port", served[1].path, "--protocol", "feetech", "--baud", 115_200, "--ids", "1-3")
    assert result.exit_code == 2 and "no servo answers" in result.output
    assert harmowam("scan", "--port", served[1].path, "--ids", "x").exit_code == 2
    assert harmowam("scan", "--port", served[1].path, "--ids", "0-300").exit_code == 2


@pytest.mark.wall_clock
def test_monitor_shows_every_joint(served):
    result = harmowam("monitor", "--robot", "so101", "--port", served[1].path, "--seconds", 1)
    assert result.exit_code == 0, result.output
    assert (
        "shoulder_lift" in result.output
        and "-0.500" in result.output
        and "7.4" in result.output
        and "off" in result.output
    )


@pytest.mark.parametrize("verb", ["monitor", "check"])
def test_the_simulated_robot_has_no_port(verb):
    result = harmowam(verb)
    assert result.exit_code == 2 and "the simulated robot has no serial port: name your arm's file" in result.stderr


@pytest.mark.wall_clock
def test_check_names_what_would_change_a_motion_and_sets_it_right_on_request(served, tmp_path):
    servos, server = served
    asked = ("check", "--robot", "so101", "--port", server.path)
    assert harmowam(*asked).output == "6 servos hold what they must, and stand where they can be held\n"
    servos.put(2, "mode", 1)
    servos.put(4, "phase", 0x1C)
    held, out = [s.stored for s in servos.servos.values()], tmp_path / "check.json"
    found = harmowam(*asked, "--json", out)
    assert found.exit_code == 2 and "2 settings would change the arm's motion: `harmowam bus check" in found.stderr
    assert "bit 4 clear  with it the servo counts turns" in found.stdout
    rows = json.loads(out.read_text())["wrong"]
    assert [(r["joint"], r["register"], r["holds"]) for r in rows] == [
        ("shoulder_lift", "mode", 1),
        ("wrist_flex", "phase", 28),
    ]
    servos.put(1, "torque_enable", 1)
    stiff = harmowam(*asked, "--fix")
    assert stiff.exit_code == 2 and "servo 1 (shoulder_pan) has its torque on" in stiff.stderr
    assert [s.stored for s in servos.servos.values()] == held
    servos.put(1, "torque_enable", 0)
    done = harmowam(*asked, "--fix")
    assert done.exit_code == 0 and "calibrate the joints again" in done.output and "6 servos hold" in done.output, (
        done.output
    )
    for i in (2, 4):
        servos.power_cycle(i, 0)
    assert harmowam(*asked).exit_code == 0


@pytest.mark.wall_clock
def test_check_says_where_a_joint_stands_that_cannot_be_held(served):
    servos, server = served
    servos.plant.position[2] = 6400.0
    result = harmowam("check", "--robot", "so101", "--port", server.path)
    assert result.exit_code == 2 and "servo 3 (elbow_flex) reads step 6400" in result.stderr


@pytest.mark.wall_clock
def test_set_id_takes_one_servo_at_a_time(served, tmp_path):
    several = harmowam(
        "set-id", "--port", served[1].path, "--protocol", "feetech", "--baud", 1_000_000, "--to", 9, "--yes"
    )
    assert (
        several.exit_code == 2
        and "more than one servo answers" in several.output
        and served[0].ids == [1, 2, 3, 4, 5, 6]
    )
    lone = VirtualBus([1], KinematicPlant(np.full(1, 2048.0)))
    server = PtyBus(lone, link=tmp_path / "lone")
    done = harmowam("set-id", "--port", server.path, "--protocol", "feetech", "--baud", 1_000_000, "--to", 4, "--yes")
    assert done.exit_code == 0 and "id 1 is now 4" in done.output, done.output
    assert lone.ids == [4]
    server.close()


def test_campaign_tabulates_every_fault(tmp_path):
    out, table = tmp_path / "c.json", tmp_path / "c.md"
    result = harmowam("campaign", "--virtual", "--only", "flip-id", "--json", out, "--markdown", table)
    assert result.exit_code == 0 and "2 faults in 1 groups, 0 not safe" in result.output, result.output
    row = json.loads(out.read_text())["faults"][0]
    shape = {"group", "name", "detected_as", "time_to_safe_ms", "limit_ms", "final_state", "torque", "recovery", "safe"}
    assert shape <= set(row) and table.read_text().startswith("| group | fault |")
    assert harmowam("campaign", "--only", "gremlin").exit_code == 2
    refused = harmowam(
        "campaign", "--virtual", "--only", "gremlin", "--markdown", out / "t.md"
    )  # before anything is played
    assert refused.exit_code == 2 and f"{out} is a file): name another file with --markdown" in refused.stderr


def test_campaign_fails_and_says_so_when_a_fault_is_not_safe(monkeypatch):
    one_of_two = iter([True, False])
    play = campaign.play
    judged = lambda case: {**play(case), "safe": next(one_of_two)}  # noqa: E731
    monkeypatch.setattr("firmware_bridge.virtual.campaign_dead.play", judged)
    result = harmowam("campaign", "--virtual", "--only", "flip-id")
    assert result.exit_code == 1 and "2 faults in 1 groups, 1 not safe" in result.output, result.output
    assert result.output.count("NOT SAFE") == 1
