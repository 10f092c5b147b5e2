"""The sequence number of a slot is one word: no reader ever sees half of it."""

import subprocess
import sys
import time

import pytest

from common.clock import prefer
from common.slots import SlotReader, SlotWriter

WRITER = """
import sys, time
from pathlib import Path
from common.clock import prefer
from common.slots import SlotWriter
prefer(3)
slot = SlotWriter(Path(sys.argv[1]), 64)
slot.version = (1 << 48) - 2  # many bytes change at once
slot.write(b"begin")
print("ready", flush=True)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    slot.write(b"more")
"""


@pytest.mark.wall_clock
def test_a_reader_never_loses_a_value_while_the_writer_writes(tmp_path):
    path = tmp_path / "slot"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"ready\n"
    reader = SlotReader(path)
    prefer(3)  # both at the same time, on a busy machine too
    seen, count = 0, 0
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        for _ in range(200):
            newest = reader.newest_version
            assert newest >= max(seen, (1 << 48) - 1)
            seen, count = newest, count + 1
        assert reader.read() is not None
    prefer(0)
    writer.communicate()
    assert count > 1000
    reader.close()


def test_a_slot_that_was_read_once_keeps_its_value(tmp_path):
    writer = SlotWriter(tmp_path / "slot", 8)
    writer.write(b"value")
    reader = SlotReader(tmp_path / "slot")
    assert reader.read() == (b"value", 1)
    writer._newest.set(0)
    assert reader.read() == (b"value", 1)
    writer.close()
    reader.close()
