"""What the guard asks of its motor process."""

from common.slots import SlotReader, SlotWriter
from firmware_bridge.motion.guard import ask_to_lower
from firmware_bridge.motion.messages import RequestKind
from firmware_bridge.motion.motor import REQUEST_SLOT

LOWER, ARM = bytes([RequestKind.LOWER]), bytes([RequestKind.ARM])


def test_the_request_to_lower_is_written_once_and_again_where_another_process_overwrote_it(tmp_path):
    path = tmp_path / REQUEST_SLOT
    SlotWriter(path, 16).write(LOWER)  # of an earlier run, which the motor process ignores
    earlier = path.stat().st_ino
    request = ask_to_lower(tmp_path)
    written = path.stat().st_ino
    for _ in range(5):
        request = ask_to_lower(tmp_path, request)
    assert earlier != path.stat().st_ino == written and SlotReader(path).read() == (LOWER, 1)
    SlotWriter(path, 16).write(ARM)
    request = ask_to_lower(tmp_path, request)
    again = path.stat().st_ino
    assert ask_to_lower(tmp_path, request) is request
    assert path.stat().st_ino == again and SlotReader(path).read() == (LOWER, 1)
