"""One arm, driven from start to end by a guard and its motor process. However it ends, `endings` says what the arm is
doing then."""

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
    """Ctrl-C, SIGTERM and a closed terminal, as a context: `stop` is called, and without one KeyboardInterrupt raised,
    unless `deaf`."""

    def __init__(self) -> None:
        self.caught: list[int] = []
        self.deaf = False
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
        elif not self.deaf:
            raise KeyboardInterrupt


def _slot(path: Path) -> bytes | None:
    """What lies in the slot; None where there is none."""
    try:
        got = SlotReader(path).read()
    except SlotError:
        return None
    return got[0] if got is not None else None


def exit_left(path: Path) -> int | None:
    """The exit code that a process left in its slot at its end; None where it left none."""
    raw = _slot(path)
    return raw[0] if raw else None


def newest_state(slots: Path) -> JointState | None:
    """The motor process's last word; None where it has said nothing."""
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
    """Book how the session on `slots` has ended, and tell the user unless all is well. `guarded`: the guard's exit
    code; for the rest see Facts."""
    state = newest_state(slots)
    reason = state.reason if state is not None else ""
    left = exit_left(slots / MOTOR_CODE_SLOT)
    ending = endings.ending(Facts(guarded, left, armed, reason, lowering, held, interrupted))
    endings.ENDED.append(ending)
    if ending.said:
        tell(ending.said, "error: ")
    return ending


def stopped(state: JointState | None) -> bool:
    """Whether the motor process has stopped the arm, for whatever reason."""
    return state is not None and state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT)


class ArmSession:
    """Guard and motor process from start to end. Use as a context: the arm is lowered and released whatever happens,
    and what it does then is told and goes into the exit code (`endings.exit_code`)."""

    def __init__(self, port: str, config: ArmConfig, slots: Path, priority: int = 0):
        self.config, self.slots = config, slots
        self.armed = False  # to be set before torque is asked for
        self.interrupted = False
        self.held = ""  # why a run that came to its end gave the servos no target
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
        """Wait for the motor process; raises ArmError with the guard's own sentence when it gives up."""
        return guard.wait_for_state(self.keeper, self.slots)

    def lower(self) -> JointState | None:
        """Have the arm lowered, and wait until nobody drives it any more; returns the last state that was shown.

        Without its guard the motor process lowers the arm by itself: it is waited for as well."""
        if self._lowering is None:
            self._lowering = not stopped(newest_state(self.slots))
        longest_s = lowering_s(self.config) + 1.0
        guard.end(self.keeper, self.slots, longest_s)
        if self.keeper.returncode not in endings.BY_GUARD:
            driven_until(self.slots, longest_s)
        return newest_state(self.slots)

    def close(self) -> Ending:
        """Lower the arm if nobody has yet, show what the guard said, and say how it ended. Closing twice is allowed."""
        if self._ending is None:
            self.lower()
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
