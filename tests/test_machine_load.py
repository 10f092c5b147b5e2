"""An arm that stops on a busy machine is not blamed on its cables alone."""

import os
import pty

import pytest

from harmowam.machine_load import load, mend

BUSY, IDLE = (5.25, 2), (0.4, 2)


@pytest.fixture
def virtual(tmp_path):
    ours, theirs = pty.openpty()
    link = tmp_path / "usb-servo-adapter"
    link.symlink_to(os.ttyname(theirs))
    yield str(link)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("now", [BUSY, IDLE])
def test_virtual_servos_have_no_power_to_check_and_need_the_processor(virtual, now):
    said = mend(virtual, "check the arm's power", now)
    assert said.startswith(f"end other work on this machine (load {now[0]:.1f} on 2 processors)")
    assert "power" not in said


def test_a_real_arm_is_looked_at_first_and_the_load_is_told_where_it_is_high():
    assert mend("/dev/ttyACM0", "clear its way", IDLE) == "clear its way"
    assert (
        mend("/dev/ttyACM0", "clear its way", BUSY)
        == "clear its way (this machine is busy as well, load 5.2 on 2 processors)"
    )


def test_the_machine_is_asked():
    wanted, processors = load()
    assert wanted >= 0 and processors == os.cpu_count()
