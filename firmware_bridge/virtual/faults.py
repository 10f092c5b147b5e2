"""Every fault that a servo bus is known to have, by name: injected into the virtual bus at a chosen time.

`FAULTS` is the list (group numbers as in docs/firmware_bridge.md). Faults of replies rewrite bytes, faults of servos
bend registers or the encoder, faults of the line delay it. Faults of the host (group 21) and of cables (19) are acted
out by `campaign.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import Mendable
from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.virtual.servo import VirtualServo

MS = 1_000_000
FOREVER = 1 << 62
BABBLE_NS = 300_000
Chunks = list[tuple[int, bytes]]  # (nanoseconds late, bytes)


class FaultError(Mendable):
    """A fault that does not exist."""


def _flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


def _late(ms: float) -> Callable[[bytes], Chunks]:
    return lambda raw: [(int(ms * MS), raw)]


def _resum(raw: bytes) -> bytes:
    """A Feetech packet with its checksum set right."""
    return raw[:-1] + bytes([~sum(raw[2:-1]) & 0xFF])


def _length(value: int) -> Callable[[bytes], Chunks]:
    return lambda raw: [(0, _resum(raw[:3] + bytes([value]) + raw[4:]))]


def _dxl_again(raw: bytes, data: bytes | None = None, error: int | None = None) -> bytes:
    (p,) = dxl.Parser().feed(raw)
    return dxl.status(p.servo, p.params[0] if error is None else error, p.params[1:] if data is None else data)


def _payload(change: Callable[[bytes], bytes]) -> Callable[[bytes], Chunks]:
    """A whole packet, checksum and all, around another payload."""

    def act(raw: bytes) -> Chunks:
        if raw[2] == 0xFD:
            (p,) = dxl.Parser().feed(raw)
            return [(0, _dxl_again(raw, change(p.params[1:])))]
        data = change(raw[5:-1])
        return [(0, _resum(raw[:3] + bytes([len(data) + 2, raw[4]]) + data + b"\0"))]

    return act


def _wrong_id(raw: bytes) -> Chunks:
    if raw[2] == 0xFD:
        (p,) = dxl.Parser().feed(raw)
        return [(0, dxl.status(p.servo + 1, p.params[0], p.params[1:]))]
    return [(0, _resum(raw[:2] + bytes([raw[2] + 1]) + raw[3:]))]


def _spread(raw: bytes) -> Chunks:
    return [(k * 20_000, raw[k : k + 1]) for k in range(len(raw))]


def _flipped(at: int) -> Callable[[bytes], Chunks]:
    return lambda raw: [(0, _flip(raw, at % len(raw)))]


def _dxl_error(number: int) -> Callable[[bytes], Chunks]:
    return lambda raw: [(0, _dxl_again(raw, b"", number))]


_AT = {"header": 1, "id": 2, "length": 3, "data": 5, "checksum": -1}

# name -> what becomes of one servo's status packet
REPLY: dict[str, Callable[[bytes], Chunks]] = {
    "silent-servo": lambda raw: [],
    "silent-all": lambda raw: [],
    "late-reply": _late(2),
    "late-past-timeout": _late(9),
    "wrong-id": _wrong_id,
    "duplicate-id": lambda raw: [(0, raw), (0, _payload(lambda d: bytes([d[0] ^ 1]) + d[1:] if d else d)(raw)[0][1])],
    **{f"flip-{what}": _flipped(at) for what, at in _AT.items()},
    "truncated": lambda raw: [(0, raw[: len(raw) // 2])],
    "split": _spread,
    "merged": lambda raw: [(0, raw + raw[: len(raw) // 2])],
    "noise-before": lambda raw: [(0, b"\x00\x5a\xfe" + raw)],
    "noise-after": lambda raw: [(0, raw + b"\x00\x5a\xfe")],
    "extra-ff": lambda raw: [(0, b"\xff" + raw)],
    "ff-in-data": _payload(lambda d: d[:4] + b"\xff\xff" + d[6:] if len(d) >= 30 else d),  # headers inside telemetry
    # Current -1, velocity -3.
    "stuffing": _payload(lambda d: b"\xff\xff\xfd\xff\xff\xff" + d[6:] if len(d) == 21 else d),
    "short-payload": _payload(lambda d: d[:-1]),
    "long-payload": _payload(lambda d: d + b"\x07"),
    "len-0": _length(0),
    "len-1": _length(1),
    "len-255": _length(255),
    "drop": lambda raw: [],
    **{f"dxl-error-{n}": _dxl_error(n) for n in dxl.ERRORS},
}


def _frozen() -> Callable[[float, int], float]:
    held: list[float] = []

    def sensor(actual: float, now_ns: int) -> float:
        held.append(actual) if not held else None
        return held[0]

    return sensor


# name -> what the encoder says instead of the truth (steps; a new function for each injection)
SENSOR: dict[str, Callable[[], Callable[[float, int], float]]] = {
    "jump": lambda: lambda actual, now: actual + 700,
    "glitch": lambda: lambda actual, now: actual + (700 if now // (10 * MS) % 20 == 0 else 0),
    "sign-bit": lambda: lambda actual, now: -actual,
    "wrap": lambda: lambda actual, now: actual - 4095,
    "multi-turn": lambda: lambda actual, now: actual + 4096,
    "frozen": _frozen,
}


def _error(bit: int) -> Callable[[VirtualServo, bool], None]:
    def act(s: VirtualServo, on: bool) -> None:
        s.forced_bits = s.forced_bits | 1 << bit if on else s.forced_bits & ~(1 << bit)

    return act


def _dxl_shutdown(s: VirtualServo, on: bool) -> None:
    if on:
        s.put("hardware_error", 32)
        s.put("torque_enable", 0)


def _set(**values: object) -> Callable[[VirtualServo, bool], None]:
    def act(s: VirtualServo, on: bool) -> None:
        for name, value in values.items():
            setattr(s, name, value if on else (None if name in ("temperature", "supply_v") else False))

    return act


def _register(name: str, change: Callable[[int], int]) -> Callable[[VirtualServo, bool], None]:
    def act(s: VirtualServo, on: bool) -> None:
        if on:
            s.put(name, change(s.get(name)))

    return act


# name -> what the fault does to one servo when it begins (True) and ends (False)
SERVO: dict[str, Callable[[VirtualServo, bool], None]] = {
    "bit-voltage": _error(0),
    "bit-encoder": _error(1),
    "bit-temperature": _error(2),
    "bit-current": _error(3),
    "bit-overload": _error(5),
    "dxl-alert": _register("hardware_error", lambda v: 4),
    "dxl-shutdown": _dxl_shutdown,
    "overload-latch": _set(latched=True),
    "torque-off-refused": _set(keeps_torque=True),
    "no-motion": _set(jammed=True),
    "hot": _set(temperature=62.0),
    "overheat": _set(temperature=68.0),
    "voltage-sag": _set(supply_v=4.9),
    "wrong-model": _register("model", lambda v: v + 1),
    "wrong-firmware": _register("firmware_major", lambda v: v + 1),
    "limits-differ": _register("max_position", lambda v: v - 500),
    "offset-differs": _register("homing_offset", lambda v: v + 85),
    "lock-open": _register("lock", lambda v: 0),
    "watchdog-trip": _register("watchdog", lambda v: -1),
}

LINE = {
    "babble": "a node that talks without being asked",
    "echo": "the adapter sends back what it is given",
    "echo-late": "the same, 2 ms late; the answers come behind it",
    "echo-past-timeout": "the same, 6 ms late",
    "echo-split": "the same, in three parts",
    "usb-latency-1": "1 ms more each way",
    "usb-latency-16": "FTDI's default latency timer",
    "usb-stall-100ms": "nothing passes for 100 ms",
    "usb-stall-2s": "nothing passes for 2 s",
    "partial-read": "the host gets a reply in two parts",
    "brown-out": "the servo loses power for a moment and starts anew",
    "brown-out-torque-on": "the same, and it wakes with its torque on",
    "goal-enables-torque": "a goal write switches the torque on",
    "fast-sync-silent": "one silent servo breaks the joint answer",
}
STALL_MS = {"usb-stall-100ms": 100, "usb-stall-2s": 2000}
ECHO_MS = {"echo-late": 2, "echo-past-timeout": 6}
LATENCY_MS = {"usb-latency-1": 1, "usb-latency-16": 16}
ALL = {"silent-all", "late-past-timeout", "partial-read", "split", "hot", "voltage-sag"}  # hit every servo
NAMES = sorted({*REPLY, *SENSOR, *SERVO, *LINE})


def parse(text: str, more: tuple[str, ...] = ()) -> tuple[str, float]:
    """Name and seconds of "NAME@SECONDS"; `more`: names beside those of the bus's faults. Raises FaultError."""
    name, _, seconds = text.partition("@")
    if name not in (*NAMES, *more):
        raise FaultError(f"fault '{name}' does not exist: use one of {', '.join((*NAMES, *more))}.")
    try:
        at = float(seconds or 0)
    except ValueError as e:
        raise FaultError(f"fault '{text}' has no time: write for example {name}@2.5.") from e
    if not (math.isfinite(at) and at >= 0):
        raise FaultError(f"fault '{text}' never begins: write seconds from 0 on, for example {name}@2.5.")
    return name, at


@dataclass
class Active:
    """A fault that was injected: from `begin_ns` until `end_ns`, on `servos`."""

    name: str
    begin_ns: int
    end_ns: int
    servos: set[int]
    running: bool = False
    left: int = FOREVER  # replies that it still damages


class Line(Protocol):
    """What faults act on; `firmware_bridge.virtual.bus.VirtualBus` is one."""

    servos: dict[int, VirtualServo]

    @property
    def ids(self) -> list[int]: ...

    def power_cycle(self, servo: int, now_ns: int) -> None: ...

    def drive(self, force: bool) -> None: ...


@dataclass
class Faults:
    """The faults of one virtual bus. Free of cost while there are none."""

    bus: Line
    plan: list[Active] = field(default_factory=list)
    now: list[Active] = field(default_factory=list)
    latency_ns: int = 0
    goal_enables_torque: bool = False
    babbled_ns: int = 0
    hit_ns: int | None = None  # when the first fault began to act

    def inject(
        self, name: str, at_ns: int = 0, for_ms: float | None = None, servo: int | None = None, count: int | None = None
    ) -> None:
        """Let fault `name` begin at `at_ns` on the bus's clock, for `for_ms` (default: to the end) or for `count`
        replies, on `servo` (default: the third, or all where the fault is the bus's). Raises FaultError."""
        if name not in NAMES:
            raise FaultError(f"fault '{name}' does not exist: use one of {', '.join(NAMES)}.")
        ids = self.bus.ids
        servos = {servo} if servo is not None else set(ids) if name in ALL else {ids[min(2, len(ids) - 1)]}
        length = STALL_MS.get(name, for_ms)
        end = at_ns + int(length * MS) if length is not None else FOREVER
        self.plan.append(Active(name, at_ns, end, servos, left=count if count is not None else FOREVER))

    def clear(self) -> None:
        """Take all faults away."""
        for a in [*self.now]:
            self._act(a, False)
        self.plan, self.now = [], []

    def update(self, now_ns: int) -> None:
        """Begin and end what is due."""
        if not self.plan:
            return
        for a in [*self.plan]:
            if not a.running and a.begin_ns <= now_ns:
                self.hit_ns = self.hit_ns or max(now_ns, 1)
                self._act(a, True, now_ns)
            if a.end_ns <= now_ns or a.left <= 0:
                self._act(a, False, now_ns)
                self.plan.remove(a)

    def _act(self, a: Active, on: bool, now_ns: int = 0) -> None:
        a.running = on
        self.now.append(a) if on else (self.now.remove(a) if a in self.now else None)
        for i in a.servos:
            s = self.bus.servos[i]
            if a.name in SERVO:
                SERVO[a.name](s, on)
            if a.name in SENSOR:
                s.sensor = SENSOR[a.name]() if on else None
            if a.name.startswith("brown-out") and on:
                s.torque_at_power_on = int(a.name == "brown-out-torque-on")
                self.bus.power_cycle(i, now_ns)
        self.latency_ns = sum(LATENCY_MS.get(x.name, 0) for x in self.now) * MS
        self.goal_enables_torque = any(x.name == "goal-enables-torque" for x in self.now)
        self.bus.drive(True)

    def mute(self, servo: int) -> bool:
        """Whether `servo` says nothing at present."""
        return any(a.name in ("silent-servo", "silent-all", "fast-sync-silent") and servo in a.servos for a in self.now)

    def damage(self, replies: Chunks) -> Chunks:
        """What arrives of (servo, status packet) each: (nanoseconds late, bytes), none or several for one packet."""
        if not self.now:
            return [(0, raw) for _, raw in replies]
        out: Chunks = []
        for servo, raw in replies:
            parts: Chunks = [(0, raw)]
            for a in self.now:
                hit = servo in a.servos or (servo == dxl.BROADCAST and a.name.startswith("flip"))
                if hit and a.left > 0 and a.name in REPLY:
                    a.left -= 1
                    parts = [(late + more, piece) for late, part in parts for more, piece in REPLY[a.name](part)]
                elif hit and a.name == "partial-read":
                    parts = [
                        (late + k * 300_000, p) for late, part in parts for k, p in enumerate((part[:4], part[4:]))
                    ]
            out += parts
        return out

    def around(self, request: bytes, replies: Chunks) -> Chunks:
        """What the adapter adds to the replies."""
        for name in (a.name for a in self.now if a.name.startswith("echo")):
            late = ECHO_MS.get(name, 0) * MS
            parts = [request[:3], request[3:6], request[6:]] if name == "echo-split" else [request]
            replies = [(late + k * 300_000, part) for k, part in enumerate(parts)] + replies
        return replies

    def stalled_until(self, now_ns: int) -> int:
        """When the line passes bytes again."""
        self.update(now_ns)
        return max([now_ns, *(a.end_ns for a in self.now if a.name in STALL_MS)]) if self.now else now_ns

    def babble(self, now_ns: int) -> bytes:
        """What a babbling node has sent meanwhile: a valid packet of another id every 0.3 ms."""
        if not any(a.name == "babble" for a in self.now):
            return b""
        begun = self.babbled_ns or now_ns
        n = (now_ns - begun) // BABBLE_NS
        self.babbled_ns = begun + n * BABBLE_NS
        return b"\xff\xff\x09\x04\x00\x00\x08\xea" * min(n, 50)

    def next_ns(self, due: list[int]) -> int | None:
        """When the line will have something to do, given what it holds itself."""
        if any(a.name == "babble" for a in self.now):
            due = [*due, self.babbled_ns + BABBLE_NS]
        return self.stalled_until(min(due)) if due else None
