"""One owner of the serial port. pyserial opens it, `select` waits, deadlines are monotonic."""

from __future__ import annotations

import errno
import os
import select
import time
from typing import Protocol

from firmware_bridge.virtual_bus import VirtualBus


class PortError(Exception):
    """A port that cannot be used; one sentence and the next step."""


class Transport(Protocol):
    """What a bus master needs of a port. `now_ns` is the clock that its deadlines are read by."""

    def now_ns(self) -> int: ...

    def write(self, data: bytes) -> None: ...

    def read(self, deadline_ns: int) -> bytes:
        """At least one byte, or nothing once the deadline has passed."""

    def drain(self) -> int:
        """Throw away what has arrived unasked; returns how many bytes."""


class Port:
    """A serial port by file descriptor: opened here, or inherited from the guard that locked it."""

    def __init__(self, fd: int, path: str):
        self.fd, self.path = fd, path
        self._serial: object | None = None  # keeps pyserial's object, and with it the lock, alive

    @classmethod
    def open(cls, path: str, baud: int = 1_000_000) -> Port:
        """Exclusive open. Raises PortError when the port is missing, busy or not permitted."""
        import serial

        try:
            s = serial.Serial(path, baud, timeout=0, exclusive=True)
        except serial.SerialException as e:
            code = getattr(e, "errno", None)
            if code == errno.ENOENT:
                raise PortError(
                    f"serial port {path} does not exist: plug the adapter in, or name the port with --port (see `ls /dev/serial/by-id`)."
                ) from e
            if code == errno.EACCES:
                raise PortError(
                    f"serial port {path} may not be opened by this user: run `sudo usermod -aG dialout $USER` and log in again."
                ) from e
            if code in (errno.EBUSY, errno.EAGAIN) or "lock" in str(e).lower():
                raise PortError(
                    f"serial port {path} is in use by another process: stop it (`fuser {path}` shows which) and try again."
                ) from e
            raise PortError(f"serial port {path} cannot be opened ({e}): check the path and the adapter.") from e
        os.set_blocking(s.fd, False)
        port = cls(s.fd, path)
        port._serial = s
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
        wait = (deadline_ns - time.monotonic_ns()) * 1e-9
        ready, _, _ = select.select([self.fd], [], [], max(wait, 0.0))
        if not ready:
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

    def drain(self) -> int:
        n = 0
        while select.select([self.fd], [], [], 0)[0]:
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                return n
            if not data:
                return n
            n += len(data)
        return n

    def close(self) -> None:
        if self._serial is not None:
            self._serial.close()  # type: ignore[attr-defined]
        else:
            os.close(self.fd)


class MemoryPort:
    """The virtual bus without a pseudo-terminal: the same bytes, no waiting. Whoever drives virtual time sets `time_ns`."""

    def __init__(self, bus: VirtualBus):
        self.bus, self.time_ns, self._arrived = bus, 0, b""

    def now_ns(self) -> int:
        return self.time_ns

    def write(self, data: bytes) -> None:
        self._arrived += self.bus.handle(data, self.time_ns)

    def read(self, deadline_ns: int) -> bytes:
        data, self._arrived = self._arrived, b""
        return data

    def drain(self) -> int:
        n, self._arrived = len(self._arrived), b""
        return n
