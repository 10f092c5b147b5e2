"""One owner of the serial port. pyserial opens it, `select` waits, deadlines are monotonic. A simulated bus may stand
behind a socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import select
import socket
import termios
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from common.errors import Mendable
from firmware_bridge.bus.holders import holders


class PortError(Mendable):
    """A port that cannot be used; one sentence and the next step."""


class RateError(PortError):
    """A baud rate that the adapter does not know."""


class Transport(Protocol):
    """What a bus master needs of a port. `now_ns` is the clock that its deadlines are read by."""

    def now_ns(self) -> int: ...

    def write(self, data: bytes) -> None: ...

    def read(self, deadline_ns: int) -> bytes:
        """At least one byte, or nothing once the deadline has passed."""

    def drain(self) -> bytes:
        """Take out of the line what has arrived unasked."""


MS = 1_000_000
BY_ID = Path("/dev/serial/by-id")


def lasting_name(path: str, by_id: Path = BY_ID) -> str:
    """The name of a port that survives unplugging: the link with the adapter's serial number, or `path` where there is
    none."""
    try:
        device = Path(path).resolve(strict=True)
        return next((str(link) for link in sorted(by_id.iterdir()) if link.resolve() == device), path)
    except OSError:
        return path


def owner(path: str) -> str:
    """Group that a device belongs to."""
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return "dialout"


def _connect(path: str) -> int:
    """Descriptor of the socket of a simulated bus (`virtual_bus.SocketBus`), not blocking; raises PortError."""
    host = socket.socket(socket.AF_UNIX)
    try:
        host.connect(path)
    except OSError as e:
        host.close()
        raise PortError(
            f"the simulated bus {path} does not answer ({e.strerror}): start the simulated robot again."
        ) from e
    host.setblocking(False)
    return host.detach()


def _no_port(path: str) -> PortError | None:
    """What to say of something that can be opened and is no serial port. Call it where the port cannot be taken anyway:
    opening one moves its control lines."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    serial = os.isatty(fd)  # asks tcgetattr
    os.close(fd)
    if serial:
        return None
    return PortError(f"{path} is not a serial port: name the adapter's (see `ls /dev/serial/by-id`) with --port.")


def free(path: str) -> None:
    """Raises PortError when another process has the port open, with a lock or without, and for what is none."""
    if found := holders(path):
        who = ", ".join(map(str, found[:3]))
        raise _no_port(path) or PortError(f"serial port {path} is in use by {who}: stop it and try again.")


def _release(opened: Any) -> None:
    """Close a port of pyserial's, and let others open it again: while anybody else has it open, what TIOCEXCL set
    outlives this close."""
    if opened.is_open:
        with contextlib.suppress(OSError):
            fcntl.ioctl(opened.fd, termios.TIOCNXCL)
        opened.close()


def _refusal(path: str, e: OSError) -> PortError:
    """What keeps a port from being opened, and the next step."""
    code = e.errno
    if code == errno.ENOENT:
        return PortError(
            f"serial port {path} does not exist: plug the adapter in, or name the port with --port (see `ls "
            "/dev/serial/by-id`)."
        )
    if code == errno.EACCES:
        group = owner(path)
        return PortError(
            f"serial port {path} may be opened by the group {group} only: run `sudo usermod -aG {group} "
            "$USER` and log in again."
        )
    if code in (errno.EBUSY, errno.EAGAIN) or "lock" in str(e).lower():
        return PortError(
            f"serial port {path} is in use by another process: stop it (`sudo fuser {path}` shows which) and try again."
        )
    return _no_port(path) or PortError(f"serial port {path} cannot be opened ({e}): check the path and the adapter.")


class Port:
    """A serial port by file descriptor: opened here, or inherited from the guard that locked it."""

    def __init__(self, fd: int, path: str):
        self.fd, self.path = fd, path
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._end: Callable[[], object] = partial(os.close, fd)

    @classmethod
    def open(cls, path: str, baud: int = 1_000_000) -> Port:
        """Exclusive open of a serial port, or the way to a `SocketBus`. Raises PortError when it is missing, busy or
        not permitted, and RateError; nothing has been written then."""
        if Path(path).is_socket():
            return cls(_connect(path), path)
        import serial

        free(path)
        try:
            s = serial.Serial(path, baud, timeout=0, exclusive=True)
        except serial.SerialException as e:
            raise _refusal(path, e) from e
        except (ValueError, OverflowError, termios.error) as e:
            raise RateError(f"the adapter on {path} does not know {baud} baud: choose another rate.") from e
        try:
            fcntl.ioctl(s.fd, termios.TIOCEXCL)
            free(path)  # nobody came in between
        except BaseException:
            _release(s)
            raise
        os.set_blocking(s.fd, False)
        port = cls(s.fd, path)
        port._end = weakref.finalize(port, _release, s)  # also where the process ends without `close`
        return port

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def write(self, data: bytes) -> None:
        try:
            while data:
                try:
                    data = data[os.write(self.fd, data) :]
                except BlockingIOError:
                    select.select([], [self.fd], [], 0.01)
        except OSError as e:
            raise PortError(
                f"serial port {self.path} was lost while writing ({e.strerror}): check the USB cable, then start again."
            ) from e

    def read(self, deadline_ns: int) -> bytes:
        wait = deadline_ns - time.monotonic_ns()
        # `poll` is the cheaper call but counts in milliseconds: `select` waits for what is left.
        if (wait < MS or not self._poll.poll(wait // MS)) and not select.select(
            [self.fd], [], [], max(deadline_ns - time.monotonic_ns(), 0) * 1e-9
        )[0]:
            return b""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return b""
        except OSError as e:
            raise PortError(
                f"serial port {self.path} was lost while reading ({e.strerror}): check the USB cable, then start again."
            ) from e
        if not data:
            raise PortError(
                f"serial port {self.path} was closed by the other end: check the USB cable, then start again."
            )
        return data

    def drain(self) -> bytes:
        late = b""
        while self._poll.poll(0):
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                break
            if not data:
                break
            late += data
        return late

    def close(self) -> None:
        self._end()
