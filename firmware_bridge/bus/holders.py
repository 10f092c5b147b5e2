"""Who has a serial port open. A lock stops only programs that ask for it, and TIOCEXCL nobody who has opened the port
already, and no program of root's: so whoever holds the port is looked for."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

PTY_MAJORS = range(136, 144)
MULTIPLEXERS = ("/dev/ptmx", "/dev/pts/ptmx")
SHOWN = 100  # characters of a command


class Holder(NamedTuple):
    """A process that has the port open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def holders(path: str) -> list[Holder]:
    """Other processes that have the device `path` (or what it links to) open, as far as /proc tells this user. Not
    among them is who serves a pseudo-terminal: it stands for the servos."""
    try:
        device = os.stat(path)
    except OSError:
        return []
    if not stat.S_ISCHR(device.st_mode):
        return []
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())
    return [Holder(pid, _command(pid)) for pid in pids if _holds(pid, device.st_rdev)]


def _holds(pid: int, device: int) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:  # another user's, or it has just ended
        return False
    found = False
    for name in descriptors:
        try:
            target = os.readlink(f"{folder}/{name}")
            if target in MULTIPLEXERS and os.major(device) in PTY_MAJORS and _serves(pid, name, os.minor(device)):
                return False
            found = found or (target.startswith("/dev/") and os.stat(f"{folder}/{name}").st_rdev == device)
        except OSError:
            continue
    return found


def _serves(pid: int, descriptor: str, terminal: int) -> bool:
    """Whether a multiplexer's descriptor is the other end of this pseudo-terminal."""
    with open(f"/proc/{pid}/fdinfo/{descriptor}") as lines:
        return any(line.split() == ["tty-index:", str(terminal)] for line in lines)


def _command(pid: int) -> str:
    """The process's command line, shortened; one of `common.python.module_command` as what it stands for."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = " ".join(file.read().decode(errors="replace").split("\0")).strip()
    except OSError:
        line = ""
    line = re.sub(r"-c .*run_module\('([\w.]+)'.*?\)", r"-m \1", line)
    return (line if len(line) <= SHOWN else line[: SHOWN - 3] + "...") or "whose command is not known"
