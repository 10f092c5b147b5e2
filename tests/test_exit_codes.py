"""How `harmowam run` ends when a process dies or something fails: the exit code says what the arm is doing
(docs/arm.md)."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from common.clock import prefer
from common.errors import Mendable
from common.slots import SlotError, SlotReader, memory_folder
from firmware_bridge.motion.endings import ENDED, Ending, Exit
from firmware_bridge.motion.messages import JointState, SafetyState
from firmware_bridge.motion.motor import STATE_SLOT
from harmowam.cli import main
from harmowam.options import errors, resumable
from tests.rig import Bench, undo_real_time
from tests.tiny import TASK, tiny_bundle

pytestmark = pytest.mark.wall_clock
LONG = 60.0
ROOT = Path(__file__).parent.parent


def leaves(command):
    """Every verb below `command`."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name))
    else:
        yield command


def test_every_verb_ends_where_exit_codes_are_made():
    verbs = list(leaves(main))
    assert len(verbs) > 20
    assert {v.callback.__qualname__ for v in verbs if not hasattr(v.callback, "__wrapped__")} == set()
    assert {v.callback.__code__ for v in verbs} == {errors(print).__code__}


def test_only_a_session_starts_a_guard():
    """No verb may move an arm without reporting how it ended. (The campaign's arms are virtual.)"""
    packages = ("firmware_bridge", "calibration", "runtime", "sim", "harmowam")
    starts = {p.name for room in packages for p in (ROOT / room).rglob("*.py") if "guard.start(" in p.read_text()}
    assert starts == {"session.py", "campaign_live.py"}


OWN = {
    "success": (lambda: None, 0, ""),
    "verdict": (lambda: sys.exit(1), 1, ""),
    "refusal": (lambda: (_ for _ in ()).throw(Mendable("no: do that.")).__next__(), 2, "error: no: do that."),
    "interrupt of what can go on": (
        resumable("the same command goes on")(lambda: (_ for _ in ()).throw(KeyboardInterrupt).__next__()),
        130,
        "stopped: the same command goes on",
    ),
    "interrupt": (lambda: (_ for _ in ()).throw(KeyboardInterrupt).__next__(), 130, "stopped"),
    "defect": (lambda: {}["missing"], 1, "KeyError"),
}


@pytest.mark.parametrize("left", [None, Exit.REST, Exit.ADRIFT])
@pytest.mark.parametrize("own", OWN)
def test_how_the_arm_ended_decides_the_exit_code_and_hides_no_error(own, left):
    act, code, said = OWN[own]

    @click.command()
    @errors
    def verb():
        if left is not None:
            ENDED.append(Ending(left))
        act()

    result = CliRunner().invoke(verb, [])
    assert result.exit_code == (Exit.ADRIFT if left == Exit.ADRIFT else code)
    shown = result.stderr + "".join(traceback.format_exception(result.exception))
    assert said in shown


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def broken_bundle(tmp_path_factory):
    """A bundle whose fast engine gives NaN only."""
    return tiny_bundle(tmp_path_factory.mktemp("broken"), gate=float("nan"))


@pytest.fixture
def bench(tmp_path):
    b = Bench(tmp_path)
    text = b.robot_file.read_text()
    # slower: lowering takes about a second
    b.robot_file.write_text(text.replace("lower_speed = 2.0", "lower_speed = 0.3"))
    yield b
    b.close()
    undo_real_time()


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Run:
    """`harmowam run` on the bench, in a process of its own."""

    def __init__(self, bench, bundle, seconds):
        command = [sys.executable, "-m", "harmowam.cli", "run", "--bundle", str(bundle), "--task", TASK]
        command += ["--robot", str(bench.robot_file), "--seconds", str(seconds)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def state(self):
        newest = self.newest()
        return newest and newest.safety

    def newest(self):
        """The motor process's newest state; None before the first."""
        for folder in Path(memory_folder() or tempfile.gettempdir()).glob(f"harmowam-{self.process.pid}-*"):
            try:
                got = SlotReader(folder / STATE_SLOT).read()
            except SlotError:
                continue
            if got is not None:
                return JointState.unpack(got[0])
        return None

    def wait_for(self, safety):
        deadline = time.monotonic() + 20
        while self.state() != safety:
            assert self.process.poll() is None and time.monotonic() < deadline, safety
            time.sleep(0.002)

    def guard(self):
        (pid,) = children(self.process.pid)
        return pid

    def motor(self):
        (pid,) = children(self.guard())
        return pid

    def end(self):
        """Exit code and output."""
        try:
            _, said = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        assert "Traceback" not in said
        return self.process.returncode, said


def test_a_motor_process_that_is_killed_while_lowering(bench, bundle):
    run = Run(bench, bundle, 0.5)
    run.wait_for(SafetyState.SAFE_STOP)
    os.kill(run.motor(), signal.SIGKILL)
    code, said = run.end()
    assert code == 5 and bench.torque() == [0] * 6
    assert "error: the arm lost its motor process: the guard let the torque down where the arm was" in said


def test_guard_and_motor_process_that_are_killed_while_the_policy_lives(bench, bundle):
    run = Run(bench, bundle, LONG)
    run.wait_for(SafetyState.ACTIVE)
    guard, motor = run.guard(), run.motor()
    os.kill(guard, signal.SIGKILL)
    os.kill(motor, signal.SIGKILL)
    code, said = run.end()
    assert code == 8 and bench.torque() == [1] * 6
    assert "error: the arm has its torque on and no program controls it: switch it off." in said
    assert "the guard took the arm over" not in said


def test_a_run_that_is_killed_in_flight_leaves_an_arm_that_is_held_within_a_tenth_of_a_second_and_then_lowered(
    bench, bundle
):
    run = Run(bench, bundle, LONG)
    run.wait_for(SafetyState.ACTIVE)
    prefer(3)  # look in time
    run.process.kill()
    killed_ns = time.monotonic_ns()
    while (held := run.newest()).safety != SafetyState.HOLD:
        assert time.monotonic_ns() - killed_ns < 5e9, held.safety
        time.sleep(0.002)
    prefer(0)
    assert (held.t_ns - killed_ns) * 1e-9 <= 0.1 and bench.torque() == [1] * 6
    run.process.communicate()
    deadline = time.monotonic() + 15
    while bench.torque() != [0] * 6:
        assert time.monotonic() < deadline, run.newest()
        time.sleep(0.02)
    assert run.state() == SafetyState.SAFE_STOP


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_fault_while_lowering(bench, bundle, interrupted):
    """Also after Ctrl-C: the state of the arm matters more than what ended the run."""
    run = Run(bench, bundle, LONG if interrupted else 0.5)
    if interrupted:
        run.wait_for(SafetyState.ACTIVE)
        run.process.send_signal(signal.SIGINT)
    run.wait_for(SafetyState.SAFE_STOP)
    bench.servos.faults.inject("bit-encoder", servo=3)
    code, said = run.end()
    assert code == 4 and bench.torque() == [0] * 6
    assert "so that it sank (while lowering: elbow_flex reports an encoder fault): check how it lies" in said


def test_a_run_that_only_ever_held(bench, broken_bundle):
    code, said = Run(bench, broken_bundle, 2).end()
    assert code == 10 and bench.torque() == [0] * 6
    assert "the run only held it (the model gave a gate that is no probability): mend what held it" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_whose_engine_never_returns_while_it_warms_up(bench, tmp_path, number):
    run = Run(bench, tiny_bundle(tmp_path / "endless", endless="fast"), LONG)
    run.wait_for(SafetyState.DISARMED)
    time.sleep(1.0)  # in the engine by now
    began = time.monotonic()
    run.process.send_signal(number)
    code, said = run.end()
    assert code == 130 and time.monotonic() - began < 10, said
    assert bench.torque() == [0] * 6
