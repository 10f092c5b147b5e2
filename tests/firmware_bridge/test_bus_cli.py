"""`harmowam bus` as a user meets it: real ports, one sentence for what the user can mend."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from serial.tools.list_ports_common import ListPortInfo

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.service import look_at_all
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual import campaign
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import MemoryPort, PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from harmowam.bus import SCANNED, WATCHED, choice, monitor_rows, scan_row
from harmowam.cli import main
from runtime.robot import SHIPPED
from tests.firmware_bridge.so101 import CONFIG, bus


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


@pytest.mark.wall_clock
def test_scan_takes_port_rate_and_make_from_a_robot_file_where_none_are_given(served, tmp_path):
    shipped = (SHIPPED / "so101.toml").read_text()
    mine = tmp_path / "robot.toml"
    mine.write_text(shipped.replace("/dev/ttyACM0", served[1].path))
    result = harmowam("scan", "--robot", mine, "--ids", "1-6")
    assert result.exit_code == 0 and result.stdout.count("STS3215") == 6, result.output
    assert result.stderr == "  feetech at 1000000 baud\n"
    given = harmowam("scan", "--robot", mine, "--ids", "1-6", "--protocol", "dynamixel", "--baud", 57_600)
    assert given.exit_code == 2 and given.stderr.startswith("  dynamixel at 57600 baud\nerror: no servo answers on ")
    mine.write_text(shipped)
    assert harmowam("scan", "--robot", mine, "--port", served[1].path, "--ids", "1-6").stdout == result.stdout


@pytest.mark.wall_clock
@pytest.mark.parametrize(
    ("model", "baud"), [("STS3215", 250_000), ("STS3215", 76_800), ("XL430-W250", 9_600), ("XL430-W250", 4_500_000)]
)
def test_scan_finds_a_servo_at_every_rate_that_it_can_be_set_to(tmp_path, model, baud):
    server = PtyBus(VirtualBus([1], KinematicPlant(np.full(1, 2048.0)), [MODELS[model]]), baud, link=tmp_path / "arm")
    result = harmowam("scan", "--port", server.path, "--ids", "1", "--protocol", MODELS[model].protocol)
    server.close()
    assert result.exit_code == 0 and f"{model}  {baud}" in result.output, result.output


def test_help_and_refusal_list_the_rates_that_are_tried(served):
    said = " ".join(harmowam("scan", "--help").output.split())
    listed = "Feetech 1000000, 500000, 250000, 128000, 115200, 76800, 57600, 38400, 19200"
    assert listed in said and "Dynamixel 9600, 57600, 115200, 1000000, 2000000, 3000000, 4000000, 4500000" in said
    nobody = harmowam("scan", "--port", served[1].path, "--ids", "9", "--protocol", "feetech")
    assert nobody.exit_code == 2 and f"no servo answers on {served[1].path} as 9 (tried: {listed}" in nobody.stderr


def scanned(servos, protocol="feetech"):
    """The rows of a scan, in virtual time."""
    master = Bus(MemoryPort(servos, 1_000_000, 300_000), 1_000_000, protocol=protocol)
    return [dict(zip(SCANNED, scan_row(f), strict=True)) for f in look_at_all(master, range(1, 8))]


def test_scan_makes_nothing_up_about_a_servo_that_it_does_not_know():
    servos, _ = bus()
    servos.put(5, "model", 2825)
    servos.put(5, "torque_enable", 1)
    row = scanned(servos)[4]
    assert (row["id"], row["model"]) == (5, "model 2825")
    assert [row[k] for k in ("fw", "torque", "position", "V", "C", "offset", "limits")] == ["?"] * 6 + ["?..?"]


def test_scan_says_in_words_what_a_servo_reports():
    servos, _ = bus()
    servos.servos[2].forced_bits = 0b100101
    assert [r["reports"] for r in scanned(servos)][:3] == ["nothing", "voltage, temperature, overload", "nothing"]
    small = VirtualBus([1], KinematicPlant(np.full(1, 2048.0)), [MODELS["XL330-M288"]])
    small.put(1, "hardware_error", 4)
    assert [r["reports"] for r in scanned(small, "dynamixel")] == ["temperature"]


def test_monitor_shows_nothing_that_a_servo_has_not_told():
    servos, _ = bus()
    servos.put(3, "torque_enable", 1)
    servos.faults.inject("silent-servo", servo=3)
    arm = Arm(Bus(MemoryPort(servos)), CONFIG)

    def rows():
        return [dict(zip(WATCHED, r, strict=True)) for r in monitor_rows(arm, arm.read())]

    values = ("rad", "deg", "rad/s", "A", "V", "C", "torque")
    row = rows()
    assert [row[2][k] for k in values] == ["?"] * 7 and row[2]["state"] == "no reply"
    assert [row[1][k] for k in values] == ["-0.500", " -28.7", "+0.00", "?", "?", "?", "off"]  # no telemetry yet
    servos.faults.clear()
    for _ in range(6):
        arm.read_telemetry()
    row = rows()
    assert [row[1][k] for k in values][3:] == ["+0.00", "7.4", "30", "off"]
    assert [row[2][k] for k in values] == ["+0.500", " +28.7", "+0.00", "+0.00", "7.4", "30", "on"]


def test_a_lost_ping_is_no_proof_that_nobody_is_there():
    servos, _ = bus()
    servos.faults.inject("drop", servo=3, count=1)
    assert Bus(MemoryPort(servos)).ping(3)


def test_without_a_port_the_adapters_are_listed():
    result = harmowam("scan")
    assert result.exit_code == 2 and "name the servo adapter's port with --port; " in result.stderr
    assert choice([]) == "none is plugged in: plug the adapter in, and look again"
    adapter, onboard = ListPortInfo("/dev/ttyACM0"), ListPortInfo("/dev/ttyS0")
    adapter.vid, adapter.description = 0x1A86, "USB Single Serial"
    assert choice([onboard, adapter]) == "plugged in: /dev/ttyACM0 (USB Single Serial)"


@pytest.mark.wall_clock
def test_twins_are_said_and_not_renamed(tmp_path):
    twins = VirtualBus([1, 1], KinematicPlant(np.array([2048.0, 1000.0])))
    server = PtyBus(twins, link=tmp_path / "arm")
    asked = ("--port", server.path, "--protocol", "feetech", "--baud", 1_000_000)
    seen = harmowam("scan", *asked)
    assert seen.exit_code == 0 and seen.stdout.rstrip().endswith("two servos answer as 1"), seen.output
    assert "connect one servo at a time" in seen.stderr
    refused = harmowam("set-id", *asked, "--to", 4, "--yes")
    server.close()
    assert refused.exit_code == 2 and "two servos answer as 1" in refused.stderr and twins.ids == [1, 1]
    assert "connect one servo at a time; nothing was written" in refused.stderr


@pytest.mark.wall_clock
def test_an_adapter_that_echoes_is_told_of_once(served):
    servos, server = served
    servos.faults.inject("echo-late")
    for verb in (("scan", "--protocol", "feetech", "--ids", "1-6"), ("check", "--robot", "so101")):
        result = harmowam(*verb, "--port", server.path)
        assert result.exit_code == 0 and result.stderr.count("sends back what it is given") == 1, result.output


def test_a_rate_that_the_adapter_does_not_know_is_said_and_passed_over(served):
    asked = (
        "--port",
        served[1].path,
        "--protocol",
        "feetech",
        "--ids",
        "9",
        "--baud",
        3_000_000_000,
        "--baud",
        500_000,
    )
    result = harmowam("scan", *asked)
    assert result.exit_code == 2 and "does not know 3000000000 baud" in result.stderr, result.output
    assert "feetech at 500000 baud" in result.stderr and "no servo answers" in result.stderr


def test_another_baud_rate_finds_nobody_and_is_said(served):
    result = harmowam("scan", "--port", served[1].path, "--protocol", "feetech", "--baud", 115_200, "--ids", "1-3")
    assert result.exit_code == 2 and "no servo answers" in result.output
    assert harmowam("scan", "--port", served[1].path, "--ids", "x").exit_code == 2
    assert harmowam("scan", "--port", served[1].path, "--ids", "0-300").exit_code == 2


@pytest.mark.wall_clock
def test_monitor_shows_every_joint_and_in_a_file_no_row_twice(served):
    result = harmowam("monitor", "--robot", "so101", "--port", served[1].path, "--seconds", 1)
    assert result.exit_code == 0, result.output
    assert result.output.count("readings a second") == 1
    rows = result.output.splitlines()
    assert len(rows) == len(set(rows))
    assert (
        "shoulder_lift" in result.output
        and "-0.500" in result.output
        and "7.4" in result.output
        and "off" in result.output
    )


@pytest.mark.parametrize("verb", [["monitor"], ["check"], ["scan", "--robot", "sim_so101"]], ids=" ".join)
def test_the_simulated_robot_has_no_port(verb):
    result = harmowam(*verb)
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
    lone.faults.inject("drop", servo=1, count=1)  # one lost answer is asked for again
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
