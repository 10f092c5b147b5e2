"""One session of an arm: from the start of its guard and motor process to their end. `endings` describes the state of
the arm afterwards."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from common.slots import SlotError, SlotReader
from common.timing import MOTOR_SILENT_S
from firmware_bridge.motion import endings, guard
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.motion.endings import Ending, Facts
from firmware_bridge.motion.messages import JointState, SafetyState
from firmware_bridge.motion.motor import MOTOR_CODE_SLOT, STATE_SLOT, tell
from firmware_bridge.motion.safety import lowering_s


class Interrupts:
    """Context that handles SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed).

    A signal calls `stop`; where `stop` is None it raises KeyboardInterrupt, unless `ignored` is True.
    """

    def __init__(self) -> None:
        self.caught: list[int] = []  # signal numbers
        self.ignored = False
        self.stop: Callable[[], None] | None = None

    def __enter__(self) -> Interrupts:
        self._old = {s: signal.signal(s, self._take) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: object) -> None:
        self.caught.append(number)
        if self.stop is not None:
            self.stop()
        elif not self.ignored:
            raise KeyboardInterrupt


def _slot(path: Path) -> bytes | None:
    """The newest value of the slot; None where there is none."""
    try:
        got = SlotReader(path).read()
    except SlotError:
        return None
    return got[0] if got is not None else None


def exit_left(path: Path) -> int | None:
    """The exit code that a process wrote to its slot; None where it wrote none."""
    raw = _slot(path)
    return raw[0] if raw else None


def newest_state(slots: Path) -> JointState | None:
    """The newest state of the motor process; None where it has written none."""
    raw = _slot(slots / STATE_SLOT)
    return JointState.unpack(raw) if raw is not None else None


def driven_until(slots: Path, timeout_s: float) -> None:
    """Wait until the motor process has ended or has been silent for MOTOR_SILENT_S, `timeout_s` at most."""
    seen, began = -1, time.monotonic()
    seen_at = began
    while time.monotonic() - seen_at < MOTOR_SILENT_S and time.monotonic() - began < timeout_s:
        if exit_left(slots / MOTOR_CODE_SLOT) is not None:
            return
        state = newest_state(slots)
        if state is not None and state.tick != seen:
            seen, seen_at = state.tick, time.monotonic()
        time.sleep(0.02)


def settle(
    slots: Path, guarded: int | None, *, armed: bool, lowering: bool = False, held: str = "", interrupted: bool = False
) -> Ending:
    """Record how the session on `slots` has ended, and tell the user where something went wrong.

    `guarded`: exit code of the guard, None while it runs; the other arguments are those of `Facts`.
    """
    state = newest_state(slots)
    reason = state.reason if state is not None else ""
    left = exit_left(slots / MOTOR_CODE_SLOT)
    ending = endings.ending(Facts(guarded, left, armed, reason, lowering, held, interrupted))
    endings.ENDED.append(ending)
    if ending.said:
        tell(ending.said, "error: ")
    return ending


def stopped(state: JointState | None) -> bool:
    """Whether the state is SAFE_STOP or FAULT."""
    return state is not None and state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT)


class ArmSession:
    """A guard and its motor process. Use it as a context: at its end the arm is lowered and released, also after an
    exception, and the outcome is told to the user and enters the exit code (`endings.exit_code`)."""

    def __init__(self, port: str, config: ArmConfig, slots: Path, priority: int = 0):
        self.config, self.slots = config, slots
        self.armed = False  # the caller sets it before it requests torque
        self.interrupted = False  # the caller sets it when the user ended the run
        self.held = ""  # why a run that finished sent no command to the servos
        self._lowering: bool | None = None
        self._ending: Ending | None = None
        self.keeper: subprocess.Popen[bytes] = guard.start(port, config, slots, priority)

    def __enter__(self) -> ArmSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._ending is not None

    def wait_for_state(self) -> SlotReader:
        """Wait for the first state; raises ArmError, with the guard's own message, when the guard ends before it."""
        return guard.wait_for_state(self.keeper, self.slots)

    def lower_arm(self) -> JointState | None:
        """Lower the arm and wait until guard and motor process have ended; returns the last state.

        If the guard has died the motor process lowers the arm alone, so it is waited for too.
        """
        if self._lowering is None:
            self._lowering = not stopped(newest_state(self.slots))
        longest_s = lowering_s(self.config) + 1.0
        guard.end(self.keeper, self.slots, longest_s)
        if self.keeper.returncode not in endings.BY_GUARD:
            driven_until(self.slots, longest_s)
        return newest_state(self.slots)

    def close(self) -> Ending:
        """Lower the arm unless that was done, show the guard's messages, and return how the session ended. May be
        called twice."""
        if self._ending is None:
            self.lower_arm()
            guard.tell_log(self.slots)
            self._ending = settle(
                self.slots,
                self.keeper.returncode,
                armed=self.armed,
                lowering=bool(self._lowering),
                held=self.held,
                interrupted=self.interrupted,
            )
        return self._ending
