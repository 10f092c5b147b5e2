"""What to mend where an arm stopped or fell silent, by how busy the machine is: a late process looks like a bad cable.

Servos on a pseudo-terminal are virtual: a process plays them, and it answers late beside other work.
"""

from __future__ import annotations

import os


def is_virtual(port: str) -> bool:
    """Whether the serial port is a pseudo-terminal, or a link to one."""
    return os.path.realpath(port).startswith("/dev/pts/")


def load() -> tuple[float, int]:
    """Mean number of processes that wanted a processor in the last minute, and the number of processors."""
    return os.getloadavg()[0], os.cpu_count() or 1


def told(now: tuple[float, int]) -> str:
    """`load` in words."""
    return f"load {now[0]:.1f} on {now[1]} processor{'s' * (now[1] > 1)}"


def mend(port: str, hardware: str, now: tuple[float, int]) -> str:
    """The next step, without a full stop. `hardware`: what to do about a real arm on `port`; `now` as `load`
    returns it."""
    if is_virtual(port):
        return f"end other work on this machine ({told(now)}), beside which virtual servos answer late"
    return f"{hardware} (this machine is busy as well, {told(now)})" if now[0] > now[1] else hardware
