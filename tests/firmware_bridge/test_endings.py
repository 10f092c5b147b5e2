"""What the arm is doing when a session of it has ended, from what can be known of guard and motor process."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.slots import SlotWriter
from firmware_bridge.motion import endings
from firmware_bridge.motion.endings import ABOVE, QUIET, WORDS, Ending, Exit, Facts, ending, exit_code
from firmware_bridge.motion.messages import JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import MOTOR_CODE_SLOT, REQUEST_SLOT, exit_of
from firmware_bridge.motion.session import ArmSession, Interrupts, exit_left
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import SO101, Rig
from firmware_bridge.virtual.campaign_live import LiveRig
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from tests.firmware_bridge.so101 import CONFIG, bus

ROOT = Path(__file__).parents[2]
CAREFUL = dataclasses.replace(CONFIG, lower_speed=0.5)  # a lowering of more than a second


def test_the_table_in_the_docs_is_the_one_in_the_code():
    text = (ROOT / "docs/arm.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert {int(code): (does, then) for code, does, then in rows} == {int(c): w for c, w in WORDS.items()}
    assert set(Exit) - set(WORDS) == {Exit.PORT_LOST}  # it never leaves the guard


ARMED = Facts(guard=0, motor=0, armed=True)
DIED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (ARMED, Exit.REST),
        (dataclasses.replace(ARMED, held="the model gave a number that is not finite"), Exit.HELD),
        (dataclasses.replace(ARMED, interrupted=True), Exit.INTERRUPTED),
        (dataclasses.replace(ARMED, interrupted=True, held="no command yet"), Exit.INTERRUPTED),
        *((dataclasses.replace(ARMED, guard=int(code)), code) for code in ABOVE if code != Exit.GUARD_LOST),
        (dataclasses.replace(ARMED, guard=Exit.FAULT, interrupted=True), Exit.FAULT),
        (dataclasses.replace(ARMED, guard=Exit.GUARD, held="no command yet"), Exit.GUARD),
        (Facts(DIED, 0, armed=True), Exit.GUARD_LOST),
        (Facts(DIED, Exit.FAULT, armed=True), Exit.FAULT),
        (Facts(DIED, Exit.DROPPED, armed=True), Exit.DROPPED),
        (Facts(DIED, None, armed=True), Exit.ADRIFT),
        (Facts(DIED, Exit.PORT_LOST, armed=True), Exit.ADRIFT),
        (Facts(DIED, Exit.REFUSED, armed=True), Exit.ADRIFT),
        (Facts(1, None, armed=True), Exit.ADRIFT),  # the guard failed with a traceback
        (Facts(None, None, armed=True), Exit.ADRIFT),  # it waits for an adapter that does not come back
        (Facts(DIED, None, armed=False), Exit.REFUSED),
        (Facts(DIED, 0, armed=False), Exit.REST),
        (Facts(Exit.REFUSED, None, armed=False), Exit.REFUSED),
    ],
)
def test_what_is_known_makes_the_code(facts, code):
    found = ending(facts)
    assert found.code == code and bool(found.said) == (code not in QUIET)
    assert found.said.startswith(f"the arm {WORDS[code][0]}") or code in QUIET


def test_the_sentence_says_what_the_motor_process_stopped_for():
    facts = dataclasses.replace(ARMED, guard=Exit.FAULT, reason="wrist_flex does not follow its goal")
    assert "sank (wrist_flex does not follow its goal): check" in ending(facts).said
    down = dataclasses.replace(facts, lowering=True)
    assert "sank (while lowering: wrist_flex does not follow its goal): check" in ending(down).said
    assert "(lowering on request)" not in ending(dataclasses.replace(facts, guard=0, reason="lowering on request")).said


@pytest.mark.parametrize(
    ("own", "left", "code"),
    [
        (0, Exit.REST, 0),
        (1, Exit.REST, 1),
        (2, Exit.REST, 2),
        (0, Exit.INTERRUPTED, 130),
        (1, Exit.HELD, 10),
        (2, Exit.HELD, 2),
        (130, Exit.REFUSED, 130),
        (0, Exit.REFUSED, 0),
        *((own, code, int(code)) for own in (0, 1, 2, 130) for code in ABOVE),
    ],
)
def test_what_the_arm_does_stands_above_a_programs_own_exit_code(monkeypatch, own, left, code):
    monkeypatch.setattr(endings, "ENDED", [Ending(left)])
    assert exit_code(own) == code


def test_without_an_arm_a_program_keeps_its_own_exit_code(monkeypatch):
    monkeypatch.setattr(endings, "ENDED", [])
    assert [exit_code(own) for own in (0, 1, 2, 130)] == [0, 1, 2, 130]


class Stuck(KinematicPlant):
    """Its second joint stands still at 0.1 rad before the rest pose: too little for a fault."""

    def present(self, now_ns):
        position, velocity, load = super().present(now_ns)
        end = (SO101.rest[1] + 0.1) * 4096 / (2 * np.pi) + 2048
        self.position[1] = max(position[1], end)
        return self.position, velocity, load


@pytest.mark.parametrize(("plant", "code"), [(KinematicPlant, Exit.REST), (Stuck, Exit.DROPPED)])
def test_an_arm_that_did_not_get_to_its_rest_pose_was_dropped(plant, code):
    rig = Rig(SO101)
    rig.plant = rig.bus.plant = plant(rig.plant.position)
    rig.run(0.5)
    rig.request = RequestKind.LOWER
    rig.run(10)
    assert rig.loop.finished and rig.torque() == [0] * 6
    assert rig.loop.safety.state == SafetyState.SAFE_STOP and exit_of(rig.loop, asked=True) == code


class Held(ArmSession):
    """A virtual arm that a session has armed."""

    def __init__(self, folder, config=CAREFUL):
        self.servos, _ = bus((0.0, -0.7, 0.7, 0.5, 0.0, 0.5))
        self.server = PtyBus(self.servos, link=folder / "arm")
        super().__init__(self.server.path, config, folder)
        self.slot = self.wait_for_state()
        self.requests = SlotWriter(folder / REQUEST_SLOT, 16)
        self.armed = True
        self.requests.write(bytes([RequestKind.ARM]))
        self.wait_for(SafetyState.HOLD)

    def wait_for(self, until):
        deadline = time.monotonic() + 6
        while JointState.unpack(self.slot.read()[0]).safety != until:
            assert time.monotonic() < deadline, until
            time.sleep(0.002)

    def close_and(self, act):
        """Close the session, and `act` once the arm is on its way down."""

        def wait():
            while JointState.unpack(self.slot.read()[0]).safety != SafetyState.SAFE_STOP:
                time.sleep(0.002)
            act()

        acting = threading.Thread(target=wait, daemon=True)
        acting.start()
        found = self.close()
        acting.join(5)
        return found

    def motor_pid(self):
        return int(Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0])

    def torque(self):
        return [self.servos.get(i, "torque_enable") for i in CONFIG.ids]


@pytest.fixture
def held(tmp_path, monkeypatch):
    monkeypatch.setattr(endings, "ENDED", [])
    session = Held(tmp_path)
    yield session
    session.close()
    session.server.close()


@pytest.mark.wall_clock
class TestSessions:
    def test_one_that_is_lowered_is_at_rest_and_says_nothing(self, held, capfd):
        found = held.close()
        assert found == Ending(Exit.REST) and held.torque() == [0] * 6 and exit_code(0) == 0
        assert not capfd.readouterr().err and held.close() is found and len(endings.ENDED) == 1

    def test_a_fault_while_lowering(self, held, capfd):
        found = held.close_and(lambda: held.servos.faults.inject("bit-encoder", servo=3))
        assert found.code == Exit.FAULT and held.torque() == [0] * 6
        assert "(while lowering: elbow_flex reports an encoder fault)" in capfd.readouterr().err
        assert exit_code(0) == exit_code(130) == Exit.FAULT

    def test_a_motor_process_that_is_killed_while_lowering(self, held, capfd):
        motor = held.motor_pid()
        found = held.close_and(lambda: os.kill(motor, signal.SIGKILL))
        assert found.code == Exit.GUARD and held.torque() == [0] * 6
        assert "error: the arm lost its motor process" in capfd.readouterr().err

    def test_a_guard_that_is_killed_leaves_the_lowering_to_the_motor_process(self, held):
        held.keeper.kill()
        assert held.close().code == Exit.GUARD_LOST and held.torque() == [0] * 6
        assert exit_left(held.slots / MOTOR_CODE_SLOT) == Exit.REST

    def test_guard_and_motor_process_that_are_killed_leave_an_arm_that_nobody_drives(self, held, capfd):
        motor = held.motor_pid()
        held.keeper.kill()
        os.kill(motor, signal.SIGKILL)
        assert held.close().code == Exit.ADRIFT and held.torque() == [1] * 6
        assert "the arm has its torque on and no program controls it: switch it off." in capfd.readouterr().err

    def test_a_motor_process_that_stands_still_without_a_guard_drives_nobody(self, held):
        motor = held.motor_pid()
        os.kill(motor, signal.SIGSTOP)
        held.keeper.kill()
        try:
            assert held.close().code == Exit.ADRIFT and held.torque() == [1] * 6
        finally:
            os.kill(motor, signal.SIGKILL)

    def test_a_servo_that_does_not_let_go(self, held):
        held.servos.faults.inject("torque-off-refused", servo=3)
        assert held.close().code == Exit.HOLDING and held.torque() == [0, 0, 1, 0, 0, 0]

    def test_an_arm_that_stopped_by_itself_before_it_was_to_be_lowered(self, held):
        held.servos.faults.inject("bit-temperature", servo=3)
        held.wait_for(SafetyState.SAFE_STOP)
        found = held.close()
        assert found.code == Exit.SAFE_STOP and "released (elbow_flex reports overheating)" in found.said


@pytest.mark.wall_clock
def test_an_armed_arm_whose_port_does_not_come_back_is_driven_by_nobody(tmp_path):
    rig = LiveRig(tmp_path)
    rig.arm()
    other = VirtualBus(rig.config.ids, KinematicPlant(np.full(6, 2048.0)))
    other.put(1, "p_gain", 17)
    rig.replug(other)
    assert rig.keeper.wait(15) == Exit.ADRIFT and rig.torque() == [1] * 6
    rig.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_is_raised_handed_on_or_only_noted(number):
    before, asked = signal.getsignal(number), []
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        interrupts.ignored = True
        signal.raise_signal(number)
        interrupts.stop = lambda: asked.append(1)
        signal.raise_signal(number)
    assert interrupts.caught == [number] * 3 and asked == [1]
    assert signal.getsignal(number) is before


def test_the_words_need_no_numbers_in_memory():
    """The front door imports them for `--help`."""
    look = "import sys, firmware_bridge.motion.endings; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
