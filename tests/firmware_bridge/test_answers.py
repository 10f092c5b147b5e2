"""Which answer on the bus belongs to which question: late, lost, out of turn, of another servo."""

from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.bus.master import Bus
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.virtual.campaign import SO101
from firmware_bridge.virtual.line import MemoryPort
from tests.firmware_bridge.virtual_arm import virtual


@given(st.lists(st.sampled_from(["position", "voltage", "temperature", "write"]), min_size=1, max_size=12), st.data())
def test_a_reply_of_any_lateness_is_never_taken_for_anothers(questions, data):
    """Each answer is held back or let go at will, in order; whatever is accepted must answer the question that was
    asked."""
    ask_late(
        questions,
        lambda waiting: data.draw(st.integers(0, waiting)),
        lambda: data.draw(st.integers(0, 200)),
        lambda: data.draw(st.booleans()),
    )


def test_an_old_acknowledgement_settles_no_newer_debt():
    """Found by the test above: two writes and what reads them back are all late, and a third write gets the first one's
    word."""
    released = iter([1, 0, 0, 0, 0, 0, 1, 2, 2])
    ask_late(
        ["position", "write", "write", "write", "position"], lambda waiting: min(next(released, 0), waiting), lambda: 0
    )


def test_an_old_acknowledgement_is_not_taken_for_that_of_a_write_that_was_lost():
    lost = iter([False, False, True])  # the first write and what reads it back arrive, the second write does not
    released = iter([0, 0, 0, 1])  # nothing comes until the second write waits for its word
    values = iter([0x11, 0x22])
    ask_late(["write", "write"], lambda waiting: next(released, 0), lambda: next(values), lambda: next(lost, False))


def ask_late(questions, release, value, lost=lambda: False):
    """Ask servo 1 over a line that holds answers back: `release(n)` says how many of the n that wait arrive at a read.
    A request that is `lost` does not reach the servo."""
    _, servos = virtual(SO101)
    servos.refresh(0)
    truth = {56: servos.servos[1].memory[56:58], 62: servos.servos[1].memory[62:63], 63: servos.servos[1].memory[63:64]}

    class Lazy(MemoryPort):
        held = b""

        def write(self, data_):
            self.held += b"" if lost() else servos.handle(data_, 0)

        def read(self, deadline_ns):
            parts = fs.Parser().feed(self.held)
            n = release(len(parts))
            out = b"".join(fs.packet(*p) for p in parts[:n])
            self.held = b"".join(fs.packet(*p) for p in parts[n:])
            return out

        def drain(self):
            return b""  # the worst line: nothing can be thrown away

    bus = Bus(Lazy(servos))
    for q in questions:
        if q == "write":
            sent = value()
            if bus.write(1, 41, bytes([sent]), retries=0):
                assert servos.get(1, "acceleration") == sent
        else:
            address, size = {"position": (56, 2), "voltage": (62, 1), "temperature": (63, 1)}[q]
            r = bus.read(1, address, size, retries=0)
            assert r is None or r.data == bytes(truth[address])


class Answering(MemoryPort):
    """A line that answers every request with the same bytes."""

    def __init__(self, stream):
        super().__init__(virtual(SO101)[1])
        self.stream = stream

    def write(self, data):
        self._arrived = self.stream


def heard(*packets, servos=(1, 2, 3)):
    """What a sync read of two bytes takes from these packets in a row (servo, data), and what it counts."""
    master = Bus(Answering(b"".join(fs.status(i, 0, data) for i, data in packets)))
    got = master.sync_read(servos, 56, 2, retries=0)
    return {i: r.data for i, r in got.items()}, dict(master.errors)


def test_an_answer_out_of_turn_is_not_taken():
    got, errors = heard((2, b"bb"), (1, b"aa"), (3, b"cc"))
    assert got == {2: b"bb", 3: b"cc"}
    assert errors == {(1, "out of turn"): 1, (1, "no reply"): 1}


def test_an_answer_of_a_servo_that_was_not_asked_is_not_taken():
    got, errors = heard((1, b"aa"), (9, b"xx"), (2, b"bb"), (3, b"cc"))
    assert got == {1: b"aa", 2: b"bb", 3: b"cc"}
    assert errors == {(9, "unexpected id"): 1}


def test_data_that_hold_a_header_are_doubted_only_where_the_next_servo_is_missing():
    header = b"\xff\xff"  # the head of the next packet, whose rest was cut
    assert heard((1, b"aa"), (2, header), (3, b"cc")) == ({1: b"aa", 2: header, 3: b"cc"}, {})
    assert heard((1, header), (2, b"bb")) == ({1: header, 2: b"bb"}, {(3, "no reply"): 1})
    got, errors = heard((1, header), (3, b"cc"))
    assert got == {3: b"cc"}
    assert errors == {(1, "overlapping packets"): 1, (1, "no reply"): 1, (2, "no reply"): 1}
