"""Bus master, arm and slots against virtual servos: real bytes, on a pseudo-terminal where timing matters."""

import dataclasses
import errno
import grp
import socket
import time

import numpy as np
import pytest
import serial

from common.timing import GUARD_STALL_S
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port, PortError
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.motion.measurement import NO_REPLY
from firmware_bridge.motion.messages import Command, Expert, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.virtual.line import MemoryPort, PtyBus, SocketBus
from tests.firmware_bridge.so101 import CONFIG, bus
from tests.firmware_bridge.virtual_arm import VIPERX, virtual


@pytest.fixture
def pty(tmp_path):
    servos, plant = bus()
    server = PtyBus(servos, link=tmp_path / "arm")
    port = Port.open(server.path)
    yield servos, plant, Bus(port, margin_s=0.1), server  # patient: a loaded test machine is no fault of the bus
    port.close()
    server.close()


@pytest.mark.wall_clock
def test_sync_read_and_write_over_a_real_port(pty):
    servos, plant, master, _ = pty
    arm = Arm(master, CONFIG)
    arm.check()
    assert np.allclose(arm.read().q, (0.0, -0.5, 0.5, 0.5, 0.0, 0.5), atol=0.002)
    arm.torque_on()
    arm.write_goals(np.full(6, 0.3))
    deadline = time.monotonic() + 3
    while np.abs(arm.read().q - 0.3).max() > 0.002 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert np.allclose(arm.read().q, 0.3, atol=0.002)
    arm.read_telemetry()
    assert arm.voltage[0] == pytest.approx(7.4) and arm.temperature[0] == 30
    assert arm.torque_off() == [] and not arm.energised()
    assert not master.errors


@pytest.mark.wall_clock
def test_one_silent_servo_costs_only_its_own_value(pty):
    servos, _, master, _ = pty
    servos.faults.inject("silent-servo", servo=3)
    m = Arm(master, CONFIG).read()
    assert (m.bits & NO_REPLY).astype(bool).tolist() == [False, False, True, False, False, False]
    assert master.errors[3, "no reply"] == 1


@pytest.mark.wall_clock
def test_a_lost_and_a_damaged_reply_are_asked_for_again(pty):
    servos, _, master, _ = pty
    servos.faults.inject("drop", count=1)
    assert len(master.sync_read(CONFIG.ids, 56, 2)) == 6
    servos.faults.inject("flip-checksum", count=1)
    assert len(master.sync_read(CONFIG.ids, 56, 2)) == 6
    assert not [k for k in master.errors if k[1] == "no reply"]


def test_a_late_reply_is_never_taken_for_the_next_answer():
    servos, _ = bus()
    port = MemoryPort(servos)
    master = Bus(port)
    port._arrived = servos.handle(
        bytes.fromhex("FFFF010402380 2BE".replace(" ", "")), 0
    )  # a position nobody waits for any more
    voltage = master.read(1, 62, 1)
    assert voltage.data == bytes([74])
    assert master.errors[-1, "late or unasked bytes"] > 0


def test_torque_on_starts_at_the_measured_pose_and_an_energised_arm_is_not_dropped():
    servos, plant = bus()
    servos.put(2, "torque_enable", 1)
    arm = Arm(Bus(MemoryPort(servos)), CONFIG)
    assert arm.energised()
    arm.torque_on()
    assert servos.get(2, "torque_enable") == 1
    for i in CONFIG.ids:
        assert abs(servos.get(i, "goal_position") - servos.get(i, "present_position")) <= 1


def test_torque_off_is_tried_on_every_servo_even_if_one_refuses():
    servos, _ = bus()
    arm = Arm(Bus(MemoryPort(servos)), CONFIG)
    arm.torque_on()
    servos.faults.inject("silent-servo", servo=2)
    assert arm.torque_off() == [2]
    assert all(servos.get(i, "torque_enable") == 0 for i in CONFIG.ids)


@pytest.mark.parametrize("config", [CONFIG, VIPERX], ids=["so101", "viperx"])
def test_a_release_that_nobody_hears_is_no_stall(config):
    rig = Ticks(config, virtual(config)[1])
    for _ in range(20):
        rig.tick()
    rig.servos.faults.inject("silent-all")
    longest = 0
    while not rig.loop.finished:
        rig.tick()
        longest = max(longest, rig.port.time_ns - rig.now)
    assert rig.loop.safety.state == SafetyState.FAULT and rig.loop.holding == list(rig.loop.arm._ids)
    assert longest < 0.6 * GUARD_STALL_S * 1e9


def test_a_write_is_not_tried_again_when_the_time_is_up():
    servos, _ = bus()
    port = Tapped(servos, 1_000_000)
    master = Bus(port)
    servos.faults.inject("silent-all")
    master.until_ns = 0
    assert not master.write(1, 40, b"\x00")
    assert [fs.Parser().feed(raw)[0].code for raw in port.written] == [fs.WRITE, fs.READ]  # written and read back, once


def test_missing_servos_are_named():
    servos, _ = bus()
    servos.faults.inject("silent-servo", servo=3)
    servos.faults.inject("silent-servo", servo=5)
    arm = Arm(Bus(MemoryPort(servos)), CONFIG)
    with pytest.raises(ArmError, match=r"3 \(elbow_flex\), 5 \(wrist_roll\)"):
        arm.check()
    servos.faults.inject("silent-all")
    with pytest.raises(ArmError, match="power supply"):
        arm.check()


def test_ports_that_are_missing_or_busy(pty, tmp_path):
    with pytest.raises(PortError, match="does not exist"):
        Port.open(str(tmp_path / "nothing"))
    with pytest.raises(PortError, match="in use"):
        Port.open(pty[3].path)


def test_what_is_no_serial_port_is_said_to_be_none(tmp_path):
    """Half the processes of a machine have /dev/null open, and nobody a file of one's own."""
    (tmp_path / "file").touch()
    for path in ("/dev/null", str(tmp_path / "file")):
        with pytest.raises(PortError, match=f"^{path} is not a serial port: name the adapter's"):
            Port.open(path)


def test_a_port_without_permission_names_the_group_that_has_it(tmp_path, monkeypatch):
    path = tmp_path / "port"
    path.touch()

    def denied(*args, **kwargs):
        raise serial.SerialException(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serial, "Serial", denied)
    group = grp.getgrgid(path.stat().st_gid).gr_name
    with pytest.raises(PortError, match=rf"group {group} only: run `sudo usermod -aG {group} \$USER`"):
        Port.open(str(path))


def test_a_port_that_goes_away_is_said(tmp_path):
    servos, _ = bus()
    server = PtyBus(servos)
    port = Port.open(server.path)
    server.close()
    with pytest.raises(PortError, match=r"lost|closed"):
        for _ in range(50):
            Bus(port).sync_read(CONFIG.ids, 56, 2)


def test_a_virtual_servo_behaves_like_one():
    servos, plant = bus()
    port = MemoryPort(servos)
    master = Bus(port)
    assert master.ping(1) and not master.ping(9)
    assert master.write(1, 56, b"\x00\x00")  # read-only: acknowledged, without effect
    assert master.read(1, 56, 2).data != b"\x00\x00"
    master.write(1, 42, (3000).to_bytes(2, "little"))
    port.time_ns += 10**9
    assert master.read(1, 56, 2).data == (2048).to_bytes(2, "little")  # goal without torque: it stays
    master.write(1, 40, b"\x01")
    master.read(1, 56, 2)
    port.time_ns += 10**9
    assert abs(int.from_bytes(master.read(1, 56, 2).data, "little") - 3000) <= 1
    assert master.write(1, 40, b"\x80")  # take the present position as the middle
    assert abs(int.from_bytes(master.read(1, 56, 2).data, "little") - 2048) <= 1


def test_messages_round_trip():
    q = np.arange(6, dtype=np.float32)
    c = Command(5, 9, q, -q, Expert.REACTIVE, 0.25, 3, 77)
    d = Command.unpack(c.pack())
    assert (d.t_apply_ns, d.t_stale_ns, d.expert, d.gate, d.t_capture_ns, d.number) == (
        5,
        9,
        Expert.REACTIVE,
        0.25,
        3,
        77,
    )
    assert np.array_equal(d.q_rad, q) and np.array_equal(d.qd_rad_s, -q)
    s = JointState(
        1, q, q + 1, q + 2, q + 3, q + 4, q + 5, np.arange(6, dtype=np.uint8), SafetyState.HOLD, "why", 2, 3, 4, 5, 6, 7
    )
    t = JointState.unpack(s.pack())
    assert (
        t.reason == "why"
        and t.safety == SafetyState.HOLD
        and (t.t_wire_ns, t.tick, t.missed_ticks, t.shifted_ns) == (2, 5, 6, 7)
    )
    assert np.array_equal(t.voltage_v, q + 5) and np.array_equal(t.status_bits, s.status_bits)


class Tapped(MemoryPort):
    """Keeps what each write said."""

    def __init__(self, *args):
        super().__init__(*args)
        self.written: list[bytes] = []

    def write(self, data):
        self.written.append(data)
        super().write(data)


class Ticks:
    """A motor loop on a paced virtual bus, tick by tick; `written` holds what each write to the port said."""

    def __init__(self, config=CONFIG, servos=None, baud=1_000_000):
        self.servos = servos or bus()[0]
        self.port = Tapped(self.servos, baud)
        self.written = self.port.written
        self.loop = MotorLoop(Arm(Bus(self.port, protocol=config.protocol), config))
        self.now = 1_000_000_000

    def tick(self, command=None):
        self.written.clear()
        self.now = self.port.time_ns = max(self.now + 10_000_000, self.port.time_ns)
        return self.loop.tick(self.now, command, RequestKind.ARM)

    def command(self, q, number):
        return Command(
            self.now, self.now + 75_000_000, np.asarray(q, np.float32), np.zeros(len(q), np.float32), number=number
        )

    def moving(self):
        for _ in range(80):
            state = self.tick()
        start = state.q_rad.astype(float)
        for k in range(10):
            state = self.tick(self.command(start + 0.02 * k, k + 1))
        assert state.safety == SafetyState.ACTIVE
        return state


def test_goals_and_the_request_leave_in_one_write_goals_first():
    rig = Ticks()
    state = rig.moving()
    assert (state.command_number, state.t_wire_ns) == (10, rig.now)
    exchange, telemetry = rig.written
    goals, request = fs.Parser().feed(exchange)
    assert (goals.code, goals.params[0], len(goals.params)) == (fs.SYNC_WRITE, 42, 2 + 6 * 3)
    assert exchange.endswith(fs.sync_read(CONFIG.ids, 56, 4)) and request.code == fs.SYNC_READ
    assert fs.Parser().feed(telemetry)[0].code == fs.READ
    assert not rig.loop.arm.bus.errors


def test_a_command_between_two_ticks_is_on_the_wire_before_the_next():
    rig = Ticks()
    state = rig.moving()
    goal = rig.loop.safety.goal.copy()
    late = rig.command(state.q_rad + 0.2, 11)
    at = rig.port.time_ns = rig.now + 4_000_000
    rig.loop.revise(late)
    assert not np.array_equal(rig.loop.safety.goal, goal)
    state = rig.tick(late)
    assert (state.command_number, state.t_wire_ns) == (11, at)


def test_a_command_that_comes_while_the_tick_decides_goes_out_with_it():
    rig = Ticks()
    state = rig.moving()
    on_time, late = rig.command(state.q_rad + 0.2, 11), rig.command(state.q_rad - 0.2, 12)
    other = Ticks()
    other.moving()
    other.tick(late)
    rig.loop._late = lambda: late
    state = rig.tick(on_time)
    assert len(rig.written) == 1  # and telemetry is the caller's
    assert (state.command_number, state.t_wire_ns) == (12, rig.now)
    assert np.array_equal(rig.loop.safety.goal, other.loop.safety.goal)  # as if it had come in time
    rig.loop._late = lambda: dataclasses.replace(late, q_rad=np.full(6, np.nan, np.float32), number=13)
    assert rig.tick(late).command_number == 12  # one that is refused changes nothing


@pytest.mark.wall_clock
def test_the_bus_on_a_socket_answers_as_on_a_terminal(tmp_path):
    servos, _ = bus()
    server = SocketBus(servos, tmp_path / "arm")
    try:
        for _ in range(2):  # one host after another
            port = Port.open(server.path)
            assert not (Arm(Bus(port), CONFIG).read().bits & NO_REPLY).any()
            port.close()
    finally:
        server.close()
    with pytest.raises(PortError, match="does not exist"):
        Port.open(server.path)


def test_a_simulated_bus_that_nobody_serves_is_said_in_one_sentence(tmp_path):
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "arm"))
    with pytest.raises(PortError, match="start the simulated robot again"):
        Port.open(str(tmp_path / "arm"))


def test_when_nobody_answers_the_arm_brakes_in_the_same_tick():
    rig = Ticks()
    state = rig.moving()
    rig.servos.faults.inject("silent-all")
    state = rig.tick(rig.command(state.q_rad + 0.2, 11))
    assert (state.safety, state.reason) == (SafetyState.HOLD, "no servo answers")
    ahead, brake = (p for raw in rig.written for p in fs.Parser().feed(raw) if p.code == fs.SYNC_WRITE)
    assert ahead != brake and rig.port.time_ns < rig.now + 10_000_000  # and no telemetry: the next tick is in time
    rig.servos.faults.clear()
    state = rig.tick(rig.command(state.q_rad + 0.2, 12))
    request, goals = (p for raw in rig.written[:2] for p in fs.Parser().feed(raw))
    assert (request.code, goals.code) == (fs.SYNC_READ, fs.SYNC_WRITE)  # it looks before it goes on
    assert (state.safety, state.command_number) == (SafetyState.ACTIVE, 12)


def test_goals_go_out_even_when_nobody_may_be_asked():
    rig = Ticks()
    rig.moving()
    master = rig.loop.arm.bus
    master._owed = {i: [(n, rig.now) for n in range(100, 130)] for i in CONFIG.ids}  # answers that everybody owes
    rig.loop.arm.exchange(np.zeros(6))
    assert [p.code for p in fs.Parser().feed(rig.written[-1])] == [fs.SYNC_WRITE]
    assert rig.servos.get(3, "goal_position") == 2048 and master.told_ns == rig.port.time_ns


def test_telemetry_waits_for_room_but_not_for_ever():
    slow = dataclasses.replace(
        VIPERX, shadows=(*VIPERX.shadows, (7, 3, 1, 2048))
    )  # nine servos with 0.5 ms of delay each
    _, servos = virtual(slow)
    rig = Ticks(slow, servos)
    for _ in range(140):
        rig.tick()
    assert rig.port.time_ns - rig.now < 10_000_000
    assert np.allclose(rig.loop.arm.temperature, 30) and not rig.loop.arm.bus.errors


def test_an_answer_in_parts_is_put_together():
    servos, _ = bus()
    port = MemoryPort(servos, 1_000_000)
    servos.faults.inject("split")
    answer = Bus(port).exchange(b"", CONFIG.ids, 56, 4)
    assert isinstance(answer, bytes) and fs.whole(answer, CONFIG.ids, 4)
