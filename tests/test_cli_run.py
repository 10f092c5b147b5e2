"""`harmowam run` from its start to its end: what it records and reports, and how signals and faults end it."""

import configparser
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mcap.reader import make_reader

from firmware_bridge.motion.safety import lowering_s
from harmowam.profile import print_timing
from runtime.observe.episode import load_episode
from runtime.observe.replay import replay
from runtime.robot import load_robot
from tests.command import drive, harmowam, refusal, told
from tests.rig import undo_real_time
from tests.tiny import TASK, tiny_bundle

pytestmark = pytest.mark.wall_clock


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def test_a_run_moves_the_arm_records_it_and_lets_go(bench, bundle, tmp_path):
    result = harmowam(*drive(bench, bundle, "--record", tmp_path / "r", "--json", tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    assert "observation to wire" in result.stdout and bench.torque() == [0] * 6
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["fast_hz"] > 20 and report["slow_hz"] > 2 and report["motor_exit_code"] == 0
    assert report["rss_mb"] > 50 and report["time_to_first_command_s"] > 0 and "success" not in report
    assert json.loads((tmp_path / "r" / "report.json").read_text()) == report
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("data:image/png") > 10 and "http" not in page  # the page loads nothing from elsewhere
    assert (tmp_path / "r" / "episode.mp4").stat().st_size > 2000
    names = {"config.json", "episode.mp4", "motor.log", "report.html", "report.json", "run.mcap"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == names
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["task"] == TASK and config["seconds"] == 1.5 and config["robot_file"] == bench.robot_file.read_text()
    assert replay(tmp_path / "r" / "run.mcap").identical
    assert motor_states(tmp_path / "r")[-1] == ("SAFE_STOP", "lowering on request")


def test_a_run_that_names_no_folder_keeps_report_and_config_but_no_pictures(bench, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("HARMOWAM_RUNS", str(tmp_path / "runs"))
    result = harmowam(*drive(bench, bundle))
    (kept,) = (tmp_path / "runs").iterdir()
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == f"recorded: {kept}"
    assert kept.name.endswith("-put-the-red-cube-on-the-plate")
    assert {p.name for p in kept.iterdir()} == {"config.json", "motor.log", "report.html", "report.json"}
    assert json.loads((kept / "config.json").read_text())["robot_file"] == bench.robot_file.read_text()


def test_a_run_ends_by_itself_when_the_policy_says_that_its_last_task_is_done(bench, tmp_path):
    able = tiny_bundle(tmp_path, done=0.95)
    follows = "put the blue cube on the plate"
    more = ("--then", follows, "--seconds", 20, "--record", tmp_path / "r")
    result = harmowam(*drive(bench, able, *more))
    assert result.exit_code == 0, result.output
    report, config = (json.loads((tmp_path / "r" / f"{name}.json").read_text()) for name in ("report", "config"))
    assert report["said_done"] and 1.2 < report["seconds"] < 8  # 0.6 s a task
    assert config["then"] == [follows] and replay(tmp_path / "r" / "run.mcap").identical
    with open(tmp_path / "r" / "run.mcap", "rb") as f:
        said = [m.data for _, _, m in make_reader(f).iter_messages() if b"the policy said done" in m.data]
    assert len(said) == 2 and follows.encode() in said[0]


def test_a_run_that_is_refused_before_it_arms_leaves_no_folder(bench, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("HARMOWAM_RUNS", str(tmp_path / "runs"))
    refusal(*drive(bench, bundle, "--port", tmp_path / "none"))
    assert not list((tmp_path / "runs").iterdir())


def motor_states(folder):
    """States that the motor process entered, and why, from the log that was kept."""
    rows = [json.loads(line) for line in (folder / "motor.log").read_text().splitlines()]
    return [(r["now"], r["reason"]) for r in rows if r["event"] == "state"]


def test_page_and_film_can_be_made_of_a_recorded_run_later_and_elsewhere(bench, bundle, tmp_path, monkeypatch):
    """A robot may lack the packages for them."""
    with monkeypatch.context() as lean:
        lean.setattr("harmowam.page.lacking", lambda: ["jinja2"])
        said = harmowam(*drive(bench, bundle, "--record", tmp_path / "r"))
    assert (
        said.exit_code == 0
        and f"`pip install jinja2`, here or where you copy the folder, then `harmowam report {tmp_path}" in said.stdout
    )
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"config.json", "motor.log", "report.json", "run.mcap"}
    (tmp_path / "r").rename(tmp_path / "copied")
    assert harmowam("report", tmp_path / "copied", "--bundle", bundle).exit_code == 0
    page, report = told(tmp_path / "copied")
    assert (
        page.count("data:image/png") > 10 and report["ticks"] > 20 and (tmp_path / "copied" / "episode.mp4").is_file()
    )
    assert "holds no recorded run" in refusal("report", tmp_path)
    (tmp_path / "copied" / "report.json").write_text("[]")
    assert "holds no recorded run" in refusal("report", tmp_path / "copied")


def once_armed(bench, seconds, act, *args):
    """Calls `act` that long after the arm was armed, however long the start of the run takes."""

    def wait():
        while bench.torque() != [1] * 6:
            time.sleep(0.01)
        time.sleep(seconds)
        act(*args)

    threading.Thread(target=wait, daemon=True).start()


def test_a_run_that_fails_keeps_its_recording(bench, bundle, tmp_path):
    once_armed(bench, 2.0, bench.cameras.stop.set)
    said = refusal(*drive(bench, bundle, "--seconds", 30, "--record", tmp_path / "r"))
    assert "stopped giving frames" in said and bench.torque() == [0] * 6
    assert len(load_episode(tmp_path / "r" / "run.mcap").t_ns) > 20
    with open(tmp_path / "r" / "run.mcap", "rb") as f:
        said = [json.loads(m.data) for _, _, m in make_reader(f).iter_messages(topics=["log"])]
    assert "stopped giving frames: check its cable" in said[-1]["message"] and said[-1]["level"] == 5  # foxglove: FATAL
    page, report = told(tmp_path / "r")
    assert "How it ended" in page and "stopped giving frames: check its cable" in page
    assert report["ticks"] > 20 and report["stages"]["fast.engine"]["p50_ms"] > 0 and report["interrupted"] is False
    assert (tmp_path / "r" / "episode.mp4").stat().st_size > 2000


def test_a_run_whose_arm_faults_leaves_a_report_that_says_why(bench, bundle, tmp_path):
    once_armed(bench, 1.5, lambda: bench.servos.faults.inject("silent-servo", servo=4))
    done = harmowam(*drive(bench, bundle, "--seconds", 30, "--record", tmp_path / "r"))
    page, report = told(tmp_path / "r")
    # nobody saw the servo release its torque
    assert done.exit_code == report["exit_code"] == 7 and "switch it off" in report["ending"]
    assert (
        "error: the motor process stopped the arm (wrist_flex does not answer)" in done.stderr
        and "wrist_flex does not answer" in report["error"]
    )
    assert "How it ended" in page and "wrist_flex does not answer" in page and report["commanded"]
    assert ("FAULT", "wrist_flex does not answer") in motor_states(tmp_path / "r")


def test_an_arm_that_cannot_be_armed_leaves_a_report_without_pictures(bench, bundle, tmp_path):
    write = bench.servos.servos[3].write
    # the servo stays limp
    bench.servos.servos[3].write = lambda address, data: 0 if address == 40 else write(address, data)
    (tmp_path / "r").mkdir()
    for of_an_earlier_run in ("run.mcap", "episode.mp4", "motor.log", "motor.log.1"):
        (tmp_path / "r" / of_an_earlier_run).touch()
    said = refusal(*drive(bench, bundle, "--record", tmp_path / "r"))
    page, report = told(tmp_path / "r")
    assert "could not be armed" in said and "could not be armed" in page and "No command" in page
    assert report["ticks"] == 0 and not report["commanded"]
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"config.json", "motor.log", "report.html", "report.json"}
    assert motor_states(tmp_path / "r")[0] == ("DISARMED", "not armed")  # the first state of this run


def test_a_run_that_is_refused_before_it_arms_leaves_an_earlier_report_alone(bench, bundle, tmp_path):
    for name in ("report.json", "report.html", "run.mcap", "motor.log"):
        (tmp_path / name).write_text("{}")
    refusal(*drive(bench, bundle, "--port", tmp_path / "none", "--record", tmp_path))
    assert (tmp_path / "report.html").read_text() == (tmp_path / "run.mcap").read_text() == "{}"


def test_ctrl_c_lowers_the_arm_lets_go_in_a_ramp_and_leaves_a_report(bench, bundle, tmp_path):
    command = [sys.executable, "-m", "harmowam.cli", *map(str, drive(bench, bundle, "--seconds", 60))]
    command += ["--record", str(tmp_path / "r")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 10
    while bench.torque() != [1] * 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.7)
    driver.send_signal(signal.SIGINT)
    limits = set()
    while driver.poll() is None:
        limits.add(bench.servos.get(2, "torque_limit"))
        time.sleep(0.01)
    assert driver.returncode == 130 and bench.torque() == [0] * 6
    assert len(limits) > 5  # the torque goes down in a ramp and is not cut
    assert "interrupted: lowering the arm" in driver.stdout.read()
    driver.stdout.close()
    page, report = told(tmp_path / "r")
    assert report["interrupted"] and "The run was interrupted after" in page


def test_a_terminal_that_is_gone_does_not_keep_the_arm_up(bench, bundle, tmp_path):
    """Output to the closed terminal fails: the arm is lowered anyway, and the recording kept."""
    command = [sys.executable, "-m", "harmowam.cli", *map(str, drive(bench, bundle, "--seconds", 60))]
    driver = subprocess.Popen(
        [*command, "--record", str(tmp_path / "kept")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 10
    while bench.torque() != [1] * 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.7)
    driver.stdout.close()
    driver.send_signal(signal.SIGHUP)
    limits = set()
    while driver.poll() is None:
        limits.add(bench.servos.get(2, "torque_limit"))
        time.sleep(0.01)
    assert bench.torque() == [0] * 6 and len(limits) > 5
    assert (tmp_path / "kept" / "run.mcap").is_file() and (tmp_path / "kept" / "report.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_arm_is_armed_ends_the_guard_too(bench, bundle, number):
    """A terminal that closes while engines warm up must not leave a guard that holds the port for ever."""
    command = [sys.executable, "-m", "harmowam.cli", *map(str, drive(bench, bundle, "--seconds", 60))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        children: list[int] = []
        deadline = time.monotonic() + 20
        while not children:
            assert time.monotonic() < deadline
            children = [int(p) for p in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()]
        driver.send_signal(number)
        said, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130 and "Traceback" not in said
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()] and bench.torque() == [0] * 6


def test_ctrl_c_while_the_simulator_starts_ends_quietly_and_leaves_nothing(bundle):
    command = [sys.executable, "-m", "harmowam.cli", "run", "--bundle", str(bundle), "--task", TASK, "--seconds", "60"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as group:
        assert any("starting the simulated robot" in line for line in group.stdout)
        time.sleep(0.3)  # the simulator is still importing
        children = [int(p) for p in Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split()]
        os.killpg(group.pid, signal.SIGINT)  # as a terminal does
        try:
            said, _ = group.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            group.kill()
            raise
    assert children and group.returncode == 130 and "Traceback" not in said
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_the_simulated_robot_is_driven_end_to_end(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HARMOWAM_RUNS", str(tmp_path / "runs"))
    result = harmowam(
        "profile", "--bundle", bundle, "--task", TASK, "--seconds", 5, "--seed", 3, "--json", tmp_path / "p.json"
    )
    undo_real_time()
    assert result.exit_code == 0, result.output
    (kept,) = (tmp_path / "runs").iterdir()
    names = {"config.json", "motor.log", "profile.html", "profile.json", "report.json", "trace.json"}
    assert {p.name for p in kept.iterdir()} == names and result.stdout.splitlines()[-1] == f"recorded: {kept}"
    report = json.loads((tmp_path / "p.json").read_text())
    assert report["fast_hz"] > 25 and report["slow_hz"] > 4 and report["success"] in (True, False)
    print_timing(
        {**report, "log": {"file": "run.mcap", "mb": 2.0, "dropped": 3, "fault": "recording stopped: no space"}}
    )
    assert "log: recording stopped: no space; 3 records were dropped" in capsys.readouterr().out


def test_the_unit_for_systemd_lets_guard_and_motor_process_outlive_the_policy():
    """By default systemd kills the rest of a unit when its main process dies: nobody would lower the arm."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(Path(__file__).parent.parent / "runtime/jetson/harmowam.service")
    assert unit["Service"]["KillMode"] == "process" and unit["Service"]["KillSignal"] == "SIGTERM"
    assert float(unit["Service"]["TimeoutStopSec"]) > lowering_s(load_robot("so101").arm) + 2


def test_the_unit_locks_the_clocks_before_doctor_looks():
    text = (Path(__file__).parent.parent / "runtime/jetson/harmowam.service").read_text()
    before = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStartPre=")]
    assert before[0] == "+-/usr/bin/jetson_clocks" and "harmowam doctor" in before[1]
