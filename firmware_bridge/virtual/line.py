"""The wire and the USB adapter between a host and virtual servos, and the ports that a host opens: in memory, a
pseudo-terminal, a socket."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

from firmware_bridge.bus.port import PortError
from firmware_bridge.virtual.bus import VirtualBus

# a sleep may end that much late, the line must not: it polls the clock that long before a due time
SPIN_NS = 80_000


class Line:
    """The wire and the USB adapter between host and servos: when bytes arrive. `baud`: the rate that host and servos
    are set to at first; 0: at once, and every servo hears.

    Answers to one request reach the host together, when the last of them has crossed the wire, as through a USB
    adapter.
    """

    def __init__(self, bus: VirtualBus, baud: int = 0, latency_ns: int = 0):
        self.bus, self.baud, self.latency_ns = bus, baud, latency_ns
        if baud:
            bus.set_baud(baud)
        self._out: list[tuple[int, bytes, int]] = []  # on their way to the servos: when, what, at which rate
        self._in: list[tuple[int, bytes]] = []  # and to the host
        self._free_ns = 0  # the wire is busy until then
        self.wire_ns = 0  # time that the wire was busy, all in all

    def send(self, data: bytes, now_ns: int, baud: int | None = None) -> None:
        """`baud`: the host's rate now, where it has changed it."""
        rate = self.baud if baud is None or not self.baud else baud
        self._out.append((self.bus.faults.stalled_until(now_ns), data, rate))
        self._pass(now_ns)

    def _pass(self, now_ns: int) -> None:
        while self._out and self._out[0][0] <= now_ns:
            _, data, baud = self._out.pop(0)
            replies = self.bus.serve(data, now_ns, baud)
            length = sum(len(raw) for _, raw in replies)
            wire = (len(data) + length) * 10_000_000_000 // baud if baud else 0
            wire, self.bus.delay_ns = wire + self.bus.delay_ns if baud else 0, 0
            self._free_ns = max(now_ns, self._free_ns) + wire
            self.wire_ns += wire
            latency = self.latency_ns + self.bus.faults.latency_ns
            joined: list[tuple[int, bytes]] = []
            for late, raw in replies:
                at = self._free_ns + latency + late
                at = max(at, self._in[-1][0]) if self._in else at  # a line keeps the order
                if joined and joined[-1][0] == at:
                    joined[-1] = (at, joined[-1][1] + raw)
                else:
                    joined.append((at, raw))
            self._in += joined

    def receive(self, now_ns: int) -> bytes:
        """What has arrived at the host by `now_ns`."""
        self._pass(now_ns)
        if now_ns < self.bus.faults.stalled_until(now_ns):
            return b""
        data = b""
        while self._in and self._in[0][0] <= now_ns:
            data += self._in.pop(0)[1]
        return data + self.bus.faults.babble(now_ns)

    def next_ns(self) -> int | None:
        """When something will happen next."""
        return self.bus.faults.next_ns([q[0][0] for q in (self._out, self._in) if q])


TCGETS2 = 0x802C542A


class MemoryPort:
    """The virtual bus without a pseudo-terminal: the same bytes, no waiting. Whoever drives virtual time sets
    `time_ns`; while the master waits for an answer, virtual time passes as far as the line's pace (none by default)
    demands."""

    def __init__(self, bus: VirtualBus, baud: int = 0, latency_ns: int = 0):
        self.line, self.time_ns, self._arrived = Line(bus, baud, latency_ns), 0, b""
        self.path = "the virtual bus"
        self.lost = False  # unplugged

    def now_ns(self) -> int:
        return self.time_ns

    def write(self, data: bytes) -> None:
        if self.lost:
            raise PortError("the virtual bus was unplugged: plug it in, then start again.")
        self.line.send(data, self.time_ns)

    def read(self, deadline_ns: int) -> bytes:
        if self.lost:
            raise PortError("the virtual bus was unplugged: plug it in, then start again.")
        while True:
            data = self._arrived + self.line.receive(self.time_ns)
            self._arrived = b""
            due = self.line.next_ns()
            if data or due is None or due > deadline_ns:
                if not data and self.line.baud:
                    self.time_ns = max(self.time_ns, deadline_ns)
                return data
            self.time_ns = max(self.time_ns, due)

    def drain(self) -> bytes:
        data, self._arrived = self._arrived + self.line.receive(self.time_ns), b""
        return data


def host_baud(fd: int) -> int:
    """Baud rate that was set on a terminal, also one that has no constant (struct termios2, asm-generic)."""
    raw = bytearray(44)
    fcntl.ioctl(fd, TCGETS2, raw)
    return int(struct.unpack_from("I", raw, 40)[0])


def answer(line: Line, host: int, stop: threading.Event, rate: Callable[[], int | None] = lambda: None) -> None:
    """Carry bytes between descriptor `host` and the bus at the pace of the wire, until `stop` or the host hangs up.
    `rate`: bits per second that the host has set, None for the line's own."""
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: sleeps end when they should
    while not stop.is_set():
        due = line.next_ns()
        wait = 0.1 if due is None else (due - SPIN_NS - time.monotonic_ns()) * 1e-9
        ready, _, _ = select.select([host], [], [], min(max(wait, 0.0), 0.1))
        while not ready and due is not None and time.monotonic_ns() < due < time.monotonic_ns() + SPIN_NS:
            pass
        try:
            if ready:
                data = os.read(host, 4096)
                if not data:
                    return
                line.send(data, time.monotonic_ns(), rate())
            arrived = line.receive(time.monotonic_ns())
            if arrived:
                os.write(host, arrived)
        except OSError:
            return


class PtyBus:
    """Serves a VirtualBus on a pseudo-terminal from a thread, at the pace of the wire; `path` is the port to open.

    A servo whose baud rate is not the host's hears nothing, as on a wire; all have `baud` at first (0: all hear, at
    once).

    `link`: a symbolic link to the terminal, as udev makes under /dev/serial/by-id.
    """

    def __init__(self, bus: VirtualBus, baud: int = 1_000_000, latency_s: float = 0.0002, link: Path | None = None):
        self.bus = bus
        self.line = Line(bus, baud, int(latency_s * 1e9))
        self._master, self._slave = os.openpty()
        tty.setraw(self._master)
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self.link = link
        if link is not None:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.path)
            self.path = str(link)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=answer, args=(self.line, self._master, self._stop, self._rate), name="virtual-bus", daemon=True
        )
        self._thread.start()

    def _rate(self) -> int:
        return host_baud(self._slave)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        os.close(self._master)
        os.close(self._slave)
        if self.link is not None:
            self.link.unlink(missing_ok=True)


class SocketBus:
    """The same behind a Unix socket at `path`, one host at a time; `Port.open` finds the way.

    Bytes in a pseudo-terminal are handed on by a kernel worker of ordinary priority, twice an exchange: beside loops
    with SCHED_FIFO on all cores it comes too late, and it is not the servos that are measured then. A socket hands over
    in the writer's own time.
    """

    def __init__(self, bus: VirtualBus, path: Path, baud: int = 1_000_000, latency_s: float = 0.0002):
        self.bus, self.path = bus, str(path)
        self.line = Line(bus, baud, int(latency_s * 1e9))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="virtual-bus", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                host, _ = self._listener.accept()
            except TimeoutError:
                continue
            with host:
                answer(self.line, host.fileno(), self._stop)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)
