"""Guard and motor process for real, on a pseudo-terminal: what happens when somebody dies.

One file, longer than others: all tests share the rig, and together they are the table of who dies and what follows.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.clock import Ticker
from common.slots import SlotWriter
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port
from firmware_bridge.motion import guard, motor
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.motion.endings import Exit
from firmware_bridge.motion.estop import _EVENT, EStop
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import COMMAND_SLOT, REQUEST_SLOT
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.virtual.campaign_live import LiveRig, campaign_live
from firmware_bridge.virtual.line import PtyBus
from tests.firmware_bridge.so101 import CONFIG, bus

pytestmark = pytest.mark.wall_clock

# A policy in a process of its own, so that it can be killed: it sends the same pose fifty times a second.
POLICY = """
import sys, time
from pathlib import Path
import numpy as np
from firmware_bridge.motion.messages import COMMAND_BYTES, Command
from common.slots import SlotWriter
slot = SlotWriter(Path(sys.argv[1]), COMMAND_BYTES)
q = np.array([0.4, -0.5, 0.5, 0.5, 0.0, 0.5], np.float32)
while True:
    now = time.monotonic_ns()
    slot.write(Command(now, now + 75_000_000, q, 0 * q).pack())
    time.sleep(0.02)
"""


class Rig:
    def lets_go(self, within_s=8.0):
        deadline = time.monotonic() + within_s
        while self.torque() != [0] * 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.torque() == [0] * 6

    def __init__(self, folder, config=CONFIG, energised=False):
        self.folder = folder
        self.servos, self.plant = bus()
        for i in CONFIG.ids:
            self.servos.put(i, "torque_enable", int(energised))
        self.server = PtyBus(self.servos, link=folder / "arm")
        self.keeper = guard.start(self.server.path, config, folder)
        self.requests = SlotWriter(folder / REQUEST_SLOT, 16)
        self.slot = guard.wait_for_state(self.keeper, folder)

    def state(self):
        return JointState.unpack(self.slot.read()[0])

    def ask(self, kind):
        self.requests.write(bytes([kind]))

    def wait_for(self, *states, timeout=6.0):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            s = self.state()
            if s.safety in states:
                return s
            time.sleep(0.002)
        raise AssertionError(f"still {self.state().safety.name} ({self.state().reason}) after {timeout} s")

    def motor_pid(self):
        return int(Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0])

    def torque(self):
        return [self.servos.get(i, "torque_enable") for i in CONFIG.ids]

    def close(self):
        if self.keeper.poll() is None:
            self.ask(RequestKind.LOWER)
            try:
                self.keeper.wait(10)
            except subprocess.TimeoutExpired:
                self.keeper.kill()
        self.server.close()


@pytest.fixture
def rig(tmp_path):
    r = Rig(tmp_path)
    yield r
    r.close()


@pytest.fixture
def other_rig(tmp_path):
    """Makes one that differs from `rig`, and closes it."""
    made = []

    def make(**differences):
        made.append(Rig(tmp_path, **differences))
        return made[-1]

    yield make
    for r in made:
        r.close()


@pytest.fixture
def armed(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    return rig


def test_a_policy_that_is_killed_leaves_a_held_and_then_lowered_arm(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    policy = subprocess.Popen([sys.executable, "-c", POLICY, str(rig.folder / COMMAND_SLOT)])
    rig.wait_for(SafetyState.ACTIVE)
    deadline = time.monotonic() + 4
    while abs(rig.state().q_rad[0] - 0.4) > 0.01 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rig.state().q_rad[0] == pytest.approx(0.4, abs=0.01)
    policy.send_signal(signal.SIGKILL)
    killed = time.monotonic_ns()
    policy.wait()
    held = rig.wait_for(SafetyState.HOLD)
    assert (held.t_ns - killed) * 1e-9 <= 0.1
    rig.wait_for(SafetyState.SAFE_STOP)
    assert rig.torque() == [1] * 6
    assert rig.keeper.wait(10) == Exit.SAFE_STOP
    assert rig.torque() == [0] * 6
    assert np.allclose(rig.state().q_rad[:5], CONFIG.rest[:5], atol=0.08)


@pytest.mark.parametrize("after_s", [0.0, 1.5], ids=["while it starts", "while it waits to be armed"])
def test_a_guard_whose_starter_is_gone_before_the_arm_is_armed_ends_and_frees_the_port(tmp_path, after_s):
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    program = (
        "import json, sys, time; from pathlib import Path; from firmware_bridge.motion import guard\n"
        "from firmware_bridge.motion.config import ArmConfig\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "config = ArmConfig.from_dict(json.loads((folder / 'config.json').read_text()))\n"
        f"keeper = guard.start({server.path!r}, config, folder)\n"
        f"(folder / 'pid').write_text(str(keeper.pid)); time.sleep({after_s})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    Port.open(server.path, CONFIG.baud).close()
    server.close()


def test_lowering_on_request_ends_at_rest_without_torque(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    assert rig.torque() == [1] * 6
    rig.ask(RequestKind.LOWER)
    limits = []
    while rig.keeper.poll() is None:
        limits.append(rig.servos.get(1, "torque_limit"))
        time.sleep(0.02)
    assert rig.keeper.returncode == 0 and rig.torque() == [0] * 6
    ramp = sorted(set(limits), reverse=True)
    assert len(ramp) > 5  # let down, not dropped
    assert [rig.servos.get(i, "torque_limit") for i in CONFIG.ids] == [1000] * 6


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_motor_process_that_stalls_or_dies_is_replaced_by_the_guard(rig, how):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    os.kill(rig.motor_pid(), how)
    assert rig.keeper.wait(10) == Exit.GUARD
    assert rig.torque() == [0] * 6
    assert "motor process" in (rig.folder / guard.LOG).read_text()


def test_the_guard_acts_on_a_stall_before_the_arm_has_stood_stiff_for_long(armed):
    os.kill(armed.motor_pid(), signal.SIGSTOP)
    stopped = time.monotonic()
    while armed.servos.get(1, "torque_limit") == 1000 and time.monotonic() - stopped < 5:
        time.sleep(0.005)
    assert time.monotonic() - stopped < 0.6


def test_the_guard_lets_the_torque_down_and_does_not_drop_the_arm(armed):
    os.kill(armed.motor_pid(), signal.SIGKILL)
    limits, began = [1000], None
    while any(armed.torque()):
        limits.append(armed.servos.get(1, "torque_limit"))
        began = began or (time.monotonic() if limits[-1] < 1000 else None)
        time.sleep(0.005)
    assert len(set(limits)) > 5
    assert began is not None and time.monotonic() - began > 0.8 * CONFIG.release_s
    assert limits[:-1] == sorted(limits[:-1], reverse=True)  # the last may be what the next user is given back


@pytest.fixture
def mute_rig(tmp_path):
    """One whose log cannot be written: the disk of the slots is full."""
    (tmp_path / guard.LOG).symlink_to("/dev/full")
    r = Rig(tmp_path)
    yield r
    r.close()


def test_a_guard_that_cannot_write_its_log_releases_the_arm_nevertheless(mute_rig):
    mute_rig.ask(RequestKind.ARM)
    mute_rig.wait_for(SafetyState.HOLD)
    os.kill(mute_rig.motor_pid(), signal.SIGKILL)
    assert mute_rig.keeper.wait(10) == Exit.GUARD
    assert mute_rig.torque() == [0] * 6


def test_a_motor_process_that_cannot_write_that_its_guard_is_gone_lowers_the_arm_nevertheless(mute_rig):
    mute_rig.ask(RequestKind.ARM)
    mute_rig.wait_for(SafetyState.HOLD)
    mute_rig.keeper.kill()
    mute_rig.keeper.wait()
    assert "lowering" in mute_rig.wait_for(SafetyState.SAFE_STOP, timeout=1).reason
    assert mute_rig.lets_go()


def shown(folder):
    """What the front door prints of the log at the end of a run."""
    return [line for line in (folder / guard.LOG).read_text().splitlines() if line.startswith("guard: ")]


@pytest.mark.parametrize("who", ["motor process", "guard"])
def test_a_servo_that_does_not_let_go_is_said_to_the_user_and_in_the_exit_code(rig, who):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    rig.servos.faults.inject("torque-off-refused", servo=3)
    if who == "guard":
        os.kill(rig.motor_pid(), signal.SIGKILL)
    else:
        rig.ask(RequestKind.LOWER)
    assert rig.keeper.wait(15) == Exit.HOLDING
    assert shown(rig.folder)[-1] == "guard: servo 3 still holds: switch the arm's power off."
    assert rig.torque() == [0, 0, 1, 0, 0, 0]


def test_why_the_motor_process_could_not_arm_is_said_to_the_user(rig):
    write = rig.servos.servos[3].write
    rig.servos.servos[3].write = lambda address, data: 0 if address == 40 else write(address, data)
    rig.ask(RequestKind.ARM)
    assert rig.keeper.wait(10) == Exit.REFUSED
    assert "guard: servo 3 did not switch its torque on: power the arm off and on, then try again." in shown(rig.folder)
    assert rig.torque() == [0] * 6  # those that did are let go again


def test_what_keeps_a_motor_process_from_starting_is_raised_as_a_sentence_of_its_own(tmp_path):
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    keeper = guard.start(server.path, dataclasses.replace(CONFIG, estop="gpio:/dev/gpiochip99:4"), tmp_path)
    with pytest.raises(ArmError, match=r"^(?!guard: )[^\n]*gpiochip99"):
        guard.wait_for_state(keeper, tmp_path)
    assert keeper.wait(5) == Exit.REFUSED
    server.close()


def test_the_motor_process_ignores_ctrl_c(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    os.kill(rig.motor_pid(), signal.SIGINT)
    os.kill(rig.keeper.pid, signal.SIGINT)
    tick = rig.state().tick
    time.sleep(0.2)
    assert rig.state().tick > tick and rig.torque() == [1] * 6


def test_an_energised_arm_is_held_when_the_motor_process_takes_over(tmp_path):
    servos, plant = bus((0.3, -0.5, 0.5, 0.5, 0.0, 0.5))
    for i in CONFIG.ids:
        servos.put(i, "torque_enable", 1)
    server = PtyBus(servos, link=tmp_path / "arm")
    keeper = guard.start(server.path, CONFIG, tmp_path)
    slot = guard.wait_for_state(keeper, tmp_path)
    SlotWriter(tmp_path / REQUEST_SLOT, 16).write(bytes([RequestKind.ARM]))
    time.sleep(0.3)
    assert [servos.get(i, "torque_enable") for i in CONFIG.ids] == [1] * 6
    assert JointState.unpack(slot.read()[0]).q_rad[0] == pytest.approx(0.3, abs=0.01)
    SlotWriter(tmp_path / REQUEST_SLOT, 16).write(bytes([RequestKind.LOWER]))
    keeper.wait(10)
    server.close()


def refusal(port, folder):
    keeper = guard.start(str(port), CONFIG, folder)
    with pytest.raises(ArmError) as e:
        guard.wait_for_state(keeper, folder)
    assert keeper.wait(5) == 2
    return str(e.value)


def test_missing_busy_and_silent_ports_and_missing_servos_are_refused_with_the_next_step(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none", tmp_path)
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    servos.faults.inject("silent-servo", servo=4)
    assert "servo 4 (wrist_flex) does not answer" in refusal(server.path, tmp_path)
    servos.faults.inject("silent-all")
    assert "no servo answers" in refusal(server.path, tmp_path)
    servos.faults.clear()
    first = guard.start(server.path, CONFIG, tmp_path / "a")
    guard.wait_for_state(first, tmp_path / "a")
    assert f"in use by process {first.pid} (" in refusal(server.path, tmp_path)
    SlotWriter(tmp_path / "a" / REQUEST_SLOT, 16).write(bytes([RequestKind.LOWER]))
    first.wait(5)
    server.close()


def test_a_command_that_is_no_number_never_reaches_a_servo(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    before = [rig.servos.get(i, "goal_position") for i in CONFIG.ids]
    slot = SlotWriter(rig.folder / COMMAND_SLOT, COMMAND_BYTES)
    for _ in range(10):
        now = time.monotonic_ns()
        slot.write(Command(now, now + 75_000_000, np.full(6, np.nan, np.float32), np.zeros(6, np.float32)).pack())
        time.sleep(0.02)
    assert rig.state().safety == SafetyState.HOLD
    assert [rig.servos.get(i, "goal_position") for i in CONFIG.ids] == before


@pytest.mark.parametrize("rubbish", [b"", b"\x01", b"\xff" * 37, b"\xff" * COMMAND_BYTES])
def test_bytes_that_are_no_command_are_rejected_and_the_arm_held(rig, rubbish):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    slot = SlotWriter(rig.folder / COMMAND_SLOT, COMMAND_BYTES)
    for _ in range(10):
        slot.write(rubbish)
        time.sleep(0.02)
    assert rig.state().safety == SafetyState.HOLD and "rejected" in rig.state().reason
    assert rig.keeper.poll() is None and rig.torque() == [1] * 6


def test_an_unknown_request_holds_the_arm(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    rig.ask(200)
    time.sleep(0.1)
    assert rig.state().safety == SafetyState.HOLD and rig.state().reason == "held on request"


def test_without_its_guard_the_motor_process_lowers_the_arm(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    rig.keeper.kill()
    rig.keeper.wait()
    assert "lowering" in rig.wait_for(SafetyState.SAFE_STOP, timeout=1).reason
    assert rig.lets_go()


def test_a_motor_process_that_is_told_to_end_lowers_the_arm(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    os.kill(rig.motor_pid(), signal.SIGTERM)
    assert rig.keeper.wait(10) == 0 and rig.torque() == [0] * 6


def test_what_an_earlier_run_asked_arms_nothing(tmp_path):
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    requests = SlotWriter(tmp_path / REQUEST_SLOT, 16)
    requests.write(bytes([RequestKind.ARM]))
    keeper = guard.start(server.path, CONFIG, tmp_path)
    slot = guard.wait_for_state(keeper, tmp_path)
    time.sleep(0.3)
    assert JointState.unpack(slot.read()[0]).safety == SafetyState.DISARMED
    assert [servos.get(i, "torque_enable") for i in CONFIG.ids] == [0] * 6
    requests.write(bytes([RequestKind.LOWER]))
    assert keeper.wait(5) == 0
    server.close()


def test_the_guard_goes_on_with_a_torque_ramp_where_the_motor_process_left_it(rig):
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    rig.ask(RequestKind.LOWER)
    deadline = time.monotonic() + 8
    while rig.servos.get(1, "torque_limit") > 600 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(rig.motor_pid(), signal.SIGKILL)
    left = rig.servos.get(1, "torque_limit")
    highest = 0
    while rig.keeper.poll() is None:
        limit = rig.servos.get(1, "torque_limit")
        if rig.servos.get(1, "torque_enable"):  # once all are off, the limit is given back for whoever comes next
            highest = max(highest, limit)
        time.sleep(0.002)
    assert left <= 600 and highest <= left
    assert rig.keeper.returncode == Exit.GUARD and rig.torque() == [0] * 6


def test_an_arm_that_stood_energised_is_not_dropped_by_a_motor_process_that_never_armed_it(tmp_path):
    servos, _ = bus((0.3, -0.5, 0.5, 0.5, 0.0, 0.5))
    for i in CONFIG.ids:
        servos.put(i, "torque_enable", 1)
    server = PtyBus(servos, link=tmp_path / "arm")
    keeper = guard.start(server.path, CONFIG, tmp_path)
    guard.wait_for_state(keeper, tmp_path)
    motor = int(Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()[0])
    os.kill(motor, signal.SIGKILL)
    assert keeper.wait(5) == Exit.ADRIFT
    assert [servos.get(i, "torque_enable") for i in CONFIG.ids] == [1] * 6
    assert "energised as it was found" in (tmp_path / guard.LOG).read_text()
    server.close()


def test_an_arm_that_stood_energised_and_was_then_armed_is_released_when_its_motor_process_dies(other_rig):
    rig = other_rig(energised=True)
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    os.kill(rig.motor_pid(), signal.SIGKILL)
    assert rig.keeper.wait(10) == Exit.GUARD
    assert rig.torque() == [0] * 6


def test_an_emergency_stop_that_is_pressed_while_the_arm_is_driven_ends_in_a_fault_without_torque(tmp_path, other_rig):
    key = tmp_path / "key"
    os.mkfifo(key)
    presses = os.open(key, os.O_RDWR)
    rig = other_rig(config=dataclasses.replace(CONFIG, estop=f"key:{key}"))
    rig.ask(RequestKind.ARM)
    rig.wait_for(SafetyState.HOLD)
    os.write(presses, _EVENT.pack(0, 0, 1, 30, 1))
    assert rig.wait_for(SafetyState.FAULT, timeout=1).reason == "emergency stop pressed"
    assert rig.keeper.wait(10) == Exit.FAULT
    assert rig.torque() == [0] * 6
    os.close(presses)


class PressedBetweenTicks:
    """An emergency stop that is up whenever a tick begins to decide, and pressed when a command comes later in that
    tick. At the latest it is pressed after `most` ticks, so that a motor process that does not look ends all the
    same."""

    def __init__(self, most):
        self.most, self.ticks, self.looked, self.down = most, 0, 0, False

    def begin(self):
        self.ticks, self.looked = self.ticks + 1, 0

    def pressed(self):
        self.looked += 1
        self.down = self.down or self.looked > 1 or self.ticks > self.most
        return self.down


def test_a_command_that_comes_with_the_emergency_stop_pressed_does_not_reach_the_wire(tmp_path, monkeypatch):
    stop, revised, revise = PressedBetweenTicks(most=500), [], MotorLoop.revise

    def recorded(loop, command):
        revised.append(stop.down)
        revise(loop, command)

    class BesideTicks(Ticker):
        def wait(self):
            now = super().wait()
            stop.begin()
            return now

    monkeypatch.setattr(EStop, "open", lambda where: stop)
    monkeypatch.setattr(motor, "Ticker", BesideTicks)
    monkeypatch.setattr(MotorLoop, "revise", recorded)
    monkeypatch.setattr(
        signal, "signal", lambda *args: None
    )  # what it sets for its process is not for that of the tests
    monkeypatch.setattr(motor, "real_time", lambda *args: None)
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    port = Port.open(server.path)
    requests, commands = SlotWriter(tmp_path / REQUEST_SLOT, 16), SlotWriter(tmp_path / COMMAND_SLOT, COMMAND_BYTES)
    ended = threading.Event()

    def drive():
        while not ended.wait(0.003):  # several a tick: some come after it has decided
            requests.write(bytes([RequestKind.ARM]))
            now = time.monotonic_ns()
            q = np.array((0.0, -0.5, 0.5, 0.5, 0.0, 0.5), np.float32)
            commands.write(Command(now, now + 75_000_000, q, 0 * q).pack())

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        code = motor.run(port, dataclasses.replace(CONFIG, estop="key:fake"), tmp_path)
    finally:
        ended.set()
        driver.join()
        port.close()
        server.close()
    assert code == Exit.FAULT and stop.ticks <= stop.most
    assert not any(revised)


def test_a_real_clock_moves_later_out_of_the_way_of_commands_and_is_absolute_otherwise(rig):
    """They first come 0.6 ms after each tick's beginning, where a half-duplex bus cannot take them (test_clock.py: in
    virtual time)."""
    rig.ask(RequestKind.ARM)
    first = rig.wait_for(SafetyState.HOLD)
    commands = SlotWriter(rig.folder / COMMAND_SLOT, COMMAND_BYTES)
    states, period = [], round(1e9 / CONFIG.motor_hz)
    for k in range(20, 220):
        due = first.t_ns + k * period + 600_000
        time.sleep(max(due - time.monotonic_ns(), 0) * 1e-9)
        now = time.monotonic_ns()
        commands.write(Command(now, now + 75_000_000, first.goal_rad, 0 * first.goal_rad, number=k).pack())
        states.append(rig.state())
    shifts = np.diff([s.shifted_ns for s in states])
    ticks = np.diff([s.tick + s.missed_ticks for s in states])
    assert (shifts >= 0).all() and (shifts <= motor.PHASE_STEP_NS * ticks).all()
    assert shifts[:100].sum() >= 1_200_000  # out of the way: a command is taken until 0.7 ms before a tick
    begun = [s.t_ns - s.shifted_ns - (s.tick + s.missed_ticks) * period for s in states]
    assert set(begun) == {begun[0]}  # otherwise on the absolute clock


def test_a_command_that_cannot_be_read_does_not_keep_the_motor_process_from_its_ticks(rig):
    rig.ask(RequestKind.ARM)
    first = rig.wait_for(SafetyState.HOLD)
    commands = SlotWriter(rig.folder / COMMAND_SLOT, COMMAND_BYTES)
    deadline = time.monotonic() + 3
    while rig.state().safety != SafetyState.ACTIVE and time.monotonic() < deadline:
        now = time.monotonic_ns()
        commands.write(Command(now, now + 75_000_000, first.goal_rad, 0 * first.goal_rad).pack())
        time.sleep(0.01)
    commands._newest.set(
        commands._newest.get() + 1
    )  # a number without its value, as a writer that is no slot writer could leave it
    held = rig.wait_for(SafetyState.HOLD, timeout=0.5)
    assert held.reason == "command is stale" and rig.torque() == [1] * 6
    time.sleep(0.2)
    assert rig.state().tick - held.tick >= 10


def test_the_arm_is_known_again_after_replugging_on_another_path_and_moves_only_when_armed_again(tmp_path):
    (row,) = campaign_live(tmp_path, "replug on another path")
    assert row["safe"], row
    assert row["time_to_safe_ms"] < 2000


def test_a_servo_that_falls_silent_ends_in_a_fault_that_the_guard_does_not_take_for_a_stall(tmp_path):
    (row,) = campaign_live(tmp_path, "silent-servo")
    assert row["safe"], row


def test_another_arm_on_the_same_adapter_is_refused(tmp_path):
    (row,) = campaign_live(tmp_path, "another arm")
    assert row["safe"], row
    assert row["detected_as"].startswith("another arm answers")  # a line of the guard's, which the front door shows


def test_servos_that_need_a_moment_more_than_their_adapter_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "REPLUG_S", 5.0)
    servos, _ = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    port = Port.open(server.path)
    known = Arm(Bus(port), CONFIG).fingerprint()
    port.close()
    servos.faults.inject("silent-servo", servo=3)
    later = threading.Timer(0.5, servos.faults.clear)
    later.start()
    guard.reopen(server.path, CONFIG, known).close()
    later.join()
    with pytest.raises(ArmError, match="another arm answers") as kept:
        guard.reopen(server.path, CONFIG, "what another arm holds")
    Port.open(server.path).close()  # nobody keeps it locked, though the error is still held
    assert kept.value is not None
    server.close()


def test_an_arm_whose_port_came_back_is_lowered_on_request(tmp_path):
    rig = LiveRig(tmp_path)
    rig.arm()
    rig.replug()
    assert rig.wait_for(lambda: (s := rig.state()) is not None and s.safety == SafetyState.DISARMED, 5) < 5
    assert rig.torque() == [1] * 6
    rig.close()
    assert rig.torque() == [0] * 6 and rig.keeper.returncode == 0
