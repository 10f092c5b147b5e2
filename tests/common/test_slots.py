"""Slots: the newest whole value, whatever happens to its writer."""

import multiprocessing as mp
import threading
import time

import numpy as np
import pytest

from common.slots import SlotError, SlotReader, SlotWriter, _offset


def _write_for_ever(path):
    writer = SlotWriter(path, 4096)
    k = 0
    while True:
        k += 1
        writer.write(bytes([k % 251]) * 4096)


@pytest.mark.wall_clock
def test_a_slot_never_gives_a_torn_value(tmp_path):
    path = tmp_path / "s.slot"
    process = mp.get_context("spawn").Process(target=_write_for_ever, args=(path,), daemon=True)
    process.start()
    deadline = time.monotonic() + 15
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    reader, last, n = SlotReader(path), 0, 0
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        got = reader.read()
        if got is None:
            continue
        assert len(set(got[0])) == 1 and got[1] >= last
        n += got[1] > last
        last = got[1]
    process.kill()
    assert n > 10
    assert reader.read()[1] >= last  # the last value stays readable when the writer is dead


def test_slot_errors(tmp_path):
    with pytest.raises(SlotError, match="cannot be opened"):
        SlotReader(tmp_path / "none")
    writer = SlotWriter(tmp_path / "s", 8)
    assert SlotReader(tmp_path / "s").read() is None
    with pytest.raises(SlotError, match="does not fit"):
        writer.write(bytes(9))
    frame = np.arange(8, dtype=np.uint8)
    writer.write(frame)
    assert SlotReader(tmp_path / "s").read() == (frame.tobytes(), 1)


@pytest.mark.parametrize("what", ["empty", "four bytes", "another file", "a header alone", "cut", "longer", "a folder"])
def test_what_is_no_slot_is_refused_when_it_is_opened(tmp_path, what):
    SlotWriter(tmp_path / "s", 8).write(b"value")
    slot, path = (tmp_path / "s").read_bytes(), tmp_path / "other"
    assert len(slot) == 64
    if what == "a folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "four bytes": slot[:4],
                "another file": bytes(64),
                "a header alone": slot[:16],
                "cut": slot[:-1],
                "longer": slot + b"\0",
            }[what]
        )
    with pytest.raises(SlotError, match=r"is (not )?a slot"):
        SlotReader(path)


def damaged(slot, version, at, value=None):
    """Change one byte of the cell of this version (16 bytes of version, length and CRC, then the payload): flip a bit
    of it, or set it."""
    where = _offset(slot._capacity, version) + at
    slot._map[where] = slot._map[where] ^ 0x10 if value is None else value


@pytest.mark.parametrize(
    ("at", "value"), [(17, None), (12, None), (8, None), (0, 9)], ids=["payload", "crc", "length", "version"]
)
def test_a_value_that_is_not_whole_is_not_given_but_the_earlier_one_again(tmp_path, at, value):
    writer = SlotWriter(tmp_path / "s", 8)
    early, late = SlotReader(tmp_path / "s"), SlotReader(tmp_path / "s")
    writer.write(b"earlier")
    assert early.read() == (b"earlier", 1)
    writer.write(b"newest")
    damaged(writer, 2, at, value)
    assert early.read() == (b"earlier", 1)
    assert late.read() is None
    writer.write(b"whole")
    assert early.read() == late.read() == (b"whole", 3)


@pytest.mark.wall_clock
def test_a_sleeping_reader_is_woken_by_the_writer_and_by_the_clock(tmp_path):
    writer = SlotWriter(tmp_path / "s", 8)
    reader = SlotReader(tmp_path / "s")
    assert not reader.wait(0, 2_000_000)  # nothing came
    writer.write(b"a")
    assert reader.wait(reader.given_version, 10**9) and reader.read() == (b"a", 1) and reader.given_version == 1
    later = threading.Timer(0.05, writer.write, [b"b"])
    later.start()
    began = time.monotonic()
    while not reader.wait(reader.given_version, 10 * 10**9):
        pass
    assert time.monotonic() - began < 5 and reader.read() == (b"b", 2)
    later.join()
