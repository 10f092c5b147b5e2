"""What a process with deadlines asks of the system."""

import subprocess
import sys

LOOP = """
import resource, tempfile, threading
from pathlib import Path
from common.clock import real_time
from runtime.cameras.frames import FrameReader, FrameWriter

def loop():
    kept = []
    for turn in range(30):
        for writer in writers:
            writer.publish(turn, 1280, 720)
        if turn == 20:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        kept = [*kept[-2:], [reader.newest() for reader in readers]]  # as a log holds them for a while
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

with tempfile.TemporaryDirectory() as folder:
    paths = [Path(folder, name) for name in ("front", "wrist")]
    writers = [FrameWriter(path, 1280, 720) for path in paths]
    for writer in writers:
        for _ in range(5):
            writer.write(0, writer.buffer(1280, 720).copy())
    readers = [FrameReader(path) for path in paths]
    real_time()
    WHERE
"""


def faults(where):
    """Page faults of ten turns that take two pictures of 1280x720 each, 55 MB."""
    told = subprocess.run(
        [sys.executable, "-c", LOOP.replace("WHERE", where)], capture_output=True, text=True, check=True, timeout=30
    )
    return int(told.stdout)


def test_new_pictures_cost_a_loop_no_page_faults():
    """2,600 without `keep_memory`."""
    assert faults("loop()") < 50
    assert faults("t = threading.Thread(target=loop); t.start(); t.join()") < 50
