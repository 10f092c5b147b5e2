"""An adapter that sends back what it is given: its echoes are told apart from answers, however late they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.bus.master import Bus
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.motion.arm import Arm
from firmware_bridge.virtual.campaign import KOCH, MIDDLE, SO101
from firmware_bridge.virtual.line import MemoryPort
from tests.firmware_bridge.virtual_arm import virtual

ECHOES = ("echo", "echo-late", "echo-past-timeout", "echo-split")


def echoing(fault, config=SO101):
    """A master on a paced line whose adapter echoes, and the servos behind it."""
    servos = virtual(config)[1]
    servos.faults.inject(fault)
    return Bus(MemoryPort(servos, config.baud, 300_000), protocol=config.protocol), servos


@pytest.mark.parametrize("until_ns", [None, 10**12], ids=["patient", "in a tick"])
@pytest.mark.parametrize("fault", ECHOES)
def test_where_no_servo_is_an_echo_answers_nothing(fault, until_ns):
    master, servos = echoing(fault)
    servos.faults.inject("silent-all")
    master.until_ns = until_ns
    assert master.read(3, 56, 2, retries=2) is None
    assert not master.write(3, 40, b"\0", retries=2)
    assert not master.ping(3) and master.count(3, 3, 2) == 0
    assert master.sync_read(SO101.ids, 56, 2, retries=2) == {}
    assert master.echoing


@pytest.mark.parametrize("config", [SO101, KOCH], ids=["feetech", "dynamixel"])
@pytest.mark.parametrize("fault", ECHOES)
def test_behind_an_echo_the_servos_are_heard(fault, config):
    master, servos = echoing(fault, config)
    arm = Arm(master, config)
    arm.check()
    assert arm.read().q == pytest.approx(MIDDLE, abs=0.002)
    assert master.ping(3) and master.write(3, servos.servos[3].model.registers["torque_enable"].address, b"\1")
    assert servos.get(3, "torque_enable") == 1 and not master.ping(9)
    assert master.echoing


@pytest.mark.parametrize("fault", ["echo", "echo-late", "echo-split"])
def test_a_tick_hears_the_servos_behind_an_echo(fault):
    master, _ = echoing(fault)
    goals = fs.sync_write(42, dict.fromkeys(SO101.ids, b"\x00\x08"))
    for _ in range(3):
        master.until_ns = master.port.now_ns() + 10_000_000
        assert list(master.exchange(goals, SO101.ids, 56, 4)) == list(SO101.ids)
    assert set(master.errors) == {(-1, "echo")}


def test_an_answer_that_equals_its_question_is_asked_for_at_another_length():
    servos = virtual(SO101)[1]
    master = Bus(MemoryPort(servos))
    servos.servos[3].forced_bits = 1 << 1  # "encoder" stands where a request has the instruction "read"
    servos.servos[3].sensor = lambda actual, now: 0x0238  # and the position where it has address and size
    assert servos.handle(fs.read(3, 56, 2), 0) == fs.read(3, 56, 2)
    assert master.read(3, 56, 2).data == b"\x38\x02"
    assert master.sync_read(SO101.ids, 56, 2)[3].data == b"\x38\x02"
    servos.servos[4].forced_bits = 1  # "voltage": a ping's answer equals the ping
    assert servos.handle(fs.ping(4), 0) == fs.ping(4)
    assert master.ping(4)


class Loose(MemoryPort):
    """A line on which echoes and answers arrive when `drawn` says, each kind in its order; nothing can be drained."""

    def __init__(self, servos, drawn):
        super().__init__(servos)
        self.servos, self.drawn, self.echoes, self.answers = servos, drawn, b"", b""

    def write(self, data):
        self.echoes += data
        self.answers += self.servos.handle(data, 0)

    def read(self, deadline_ns):
        n, packets = self.drawn(len(self.echoes)), fs.Parser().feed(self.answers)
        m = self.drawn(len(packets))
        out = self.echoes[:n] + b"".join(fs.packet(*p) for p in packets[:m])
        self.echoes, self.answers = self.echoes[n:], b"".join(fs.packet(*p) for p in packets[m:])
        return out

    def drain(self):
        return b""


@given(st.lists(st.sampled_from([(56, 2), (62, 2), (62, 1), (63, 1), "write"]), min_size=1, max_size=12), st.data())
def test_neither_an_echo_nor_a_reply_of_any_lateness_is_taken_for_anothers(questions, data):
    """Echoes arrive byte by byte at will, also behind the answers, also those of earlier attempts."""
    servos = virtual(SO101)[1]
    servos.refresh(0)
    truth = bytes(servos.servos[1].memory)
    master = Bus(Loose(servos, lambda most: data.draw(st.integers(0, most))))
    for asked in questions:
        if asked == "write":
            sent = data.draw(st.integers(0, 200))
            if master.write(1, 41, bytes([sent]), retries=1):
                assert servos.get(1, "acceleration") == sent
        else:
            address, size = asked
            reply = master.read(1, address, size, retries=1)
            assert reply is None or reply.data == truth[address : address + size]
