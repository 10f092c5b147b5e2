"""One owner of the port: whoever else has it open is named before anything is written, and nobody opens it after us."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import tty

import pytest

from common.python import module_command
from firmware_bridge.bus.holders import holders
from firmware_bridge.bus.port import Port, PortError

HOLD = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY); print('held', flush=True); sys.stdin.read()"
# What LeRobot opens a Feetech bus with.
LEROBOTS = """import sys, scservo_sdk as sdk
port = sdk.PortHandler(sys.argv[1])
assert port.openPort() and port.setBaudRate(1_000_000)
print("held", flush=True)
sys.stdin.read()
"""
NOBODY = 65534
TIOCGEXCL = 0x80045440


@pytest.fixture
def terminal():
    """A pseudo-terminal's two ends, of which another process may have either."""
    servos, host = pty.openpty()
    tty.setraw(host)
    yield servos, os.ttyname(host)
    for fd in (servos, host):
        with contextlib.suppress(OSError):
            os.close(fd)


@contextlib.contextmanager
def another(path, program=HOLD):
    """A process that has `path` open and asks for no lock."""
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


@pytest.mark.parametrize(
    ("by_link", "program"), [(False, HOLD), (True, HOLD), (False, LEROBOTS)], ids=["path", "link", "scservo_sdk"]
)
def test_who_has_the_port_open_is_named_and_nothing_is_written(terminal, tmp_path, by_link, program):
    servos, path = terminal
    asked = path
    if by_link:
        asked = str(tmp_path / "usb-adapter")
        os.symlink(path, asked)
    with another(path, program) as process:
        with pytest.raises(PortError, match=rf"{asked} is in use by process {process.pid} \(.*import"):
            Port.open(asked)
        os.set_blocking(servos, False)
        with pytest.raises(BlockingIOError):
            os.read(servos, 1)
    Port.open(asked).close()


def test_who_serves_a_pseudo_terminal_is_no_holder(terminal):
    servos, path = terminal
    code = "import os, pty; s, h = pty.openpty(); print(os.ttyname(h), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        served = p.stdout.readline().strip()
        assert holders(served) == []
        with another(served) as process:
            assert [h.pid for h in holders(served)] == [process.pid]
        p.stdin.close()


def test_nobody_opens_the_port_after_us_until_we_close_it(terminal):
    _, path = terminal
    os.chmod(path, 0o666)
    user = NOBODY if os.geteuid() == 0 else None  # root is not kept out: `holders` is for that

    def said():
        command = ["/bin/sh", "-c", 'exec 3<>"$0"', path]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={"LC_ALL": "C"}, user=user)
        return done.returncode, done.stderr

    port = Port.open(path)
    code, why = said()
    assert code != 0 and "Device or resource busy" in why
    port.close()
    assert said() == (0, "")


def test_a_process_that_ends_without_closing_the_port_leaves_it_to_others():
    """The pseudo-terminal's server keeps it open, so that what TIOCEXCL set would outlive the process."""
    servos, host = pty.openpty()
    path, opens = (
        os.ttyname(host),
        "import sys; from firmware_bridge.bus.port import Port; port = Port.open(sys.argv[1])",
    )

    def exclusive():
        return struct.unpack("i", fcntl.ioctl(host, TIOCGEXCL, bytes(4)))[0]

    port = Port.open(path)
    assert exclusive() == 1
    port.close()
    subprocess.run([sys.executable, "-c", opens, path], check=True)
    assert exclusive() == 0
    os.close(servos)
    os.close(host)


def test_a_port_that_is_refused_is_not_kept_from_others(terminal):
    _, path = terminal
    first = Port.open(path)
    with pytest.raises(PortError, match="in use"):
        Port.open(path)
    first.close()
    Port.open(path).close()


def test_a_part_of_this_project_is_named_by_its_module(terminal):
    _, path = terminal
    held = os.open(path, os.O_RDWR | os.O_NOCTTY)
    command = module_command("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)")
    with subprocess.Popen(command, pass_fds=[held], stdout=subprocess.DEVNULL) as process:
        os.close(held)
        (holder,) = holders(path)
        process.kill()
    assert str(holder).startswith(f"process {process.pid} ({sys.executable} -m timeit -n 1 -r 1 import time")


@pytest.mark.parametrize("path", ["/dev/none", "/etc/passwd"])
def test_what_is_no_device_has_no_holders(path):
    assert holders(path) == []
