"""How an arm session ended: the state of the arm afterwards, as an exit code and as a sentence.

The guard, the motor process and every `harmowam` command that moves an arm use these codes. docs/arm.md has the same
table.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Exit(enum.IntEnum):
    """Exit codes; `WORDS` gives the meaning of each. 0: the arm is at rest with its torque off, or was never armed."""

    REST = 0
    VERDICT = 1
    REFUSED = 2
    SAFE_STOP = 3
    FAULT = 4
    GUARD = 5
    PORT_LOST = 6  # used by the motor process only: its guard then waits for the adapter
    HOLDING = 7
    ADRIFT = 8
    DROPPED = 9
    HELD = 10
    GUARD_LOST = 11
    INTERRUPTED = 130


# Code -> the state of the arm ("the arm ..."), and the next step for the user.
WORDS = {
    Exit.REST: ("is at rest, its torque off, or was never armed", "nothing"),
    Exit.VERDICT: (
        "is as with code 0; the command's own answer is no (a moved camera, a worse profile), or the program failed",
        "read what it says",
    ),
    Exit.REFUSED: ("is as with code 0; something was refused or ended", "mend what the sentence names"),
    Exit.SAFE_STOP: (
        "stopped by itself, was lowered to rest and released",
        "mend what it stopped for, then start again",
    ),
    Exit.FAULT: (
        "had a fault: it braked and was let go where it was, so that it sank",
        "check how it lies, mend the fault, then start again",
    ),
    Exit.GUARD: (
        "lost its motor process: the guard let the torque down where the arm was, so that it sank",
        "check how it lies, then start again",
    ),
    Exit.HOLDING: ("has a servo that does not let go or does not answer", "switch it off"),
    Exit.ADRIFT: ("has its torque on and no program controls it", "switch it off"),
    Exit.DROPPED: (
        "was let go before it had reached its rest pose, so that it sank",
        "check how it lies, clear its way to rest, then start again",
    ),
    Exit.HELD: (
        "is at rest, its torque off, but the run only held it",
        "mend what held it, then start again",
    ),
    Exit.GUARD_LOST: (
        "is at rest, its torque off, but its guard died: the motor process lowered it alone",
        "find out who ended the guard, then start again",
    ),
    Exit.INTERRUPTED: ("is as with code 0; the run was interrupted", "nothing"),
}

# These codes replace the program's own exit code: the user must look at the arm first.
ABOVE = (
    Exit.SAFE_STOP,
    Exit.FAULT,
    Exit.GUARD,
    Exit.HOLDING,
    Exit.ADRIFT,
    Exit.DROPPED,
    Exit.GUARD_LOST,
)
QUIET = (Exit.REST, Exit.REFUSED, Exit.INTERRUPTED)  # no sentence: the user has seen the reason already
BY_GUARD = (Exit.REST, Exit.SAFE_STOP, Exit.FAULT, Exit.GUARD, Exit.HOLDING, Exit.ADRIFT, Exit.DROPPED)
BY_MOTOR = (Exit.REST, Exit.SAFE_STOP, Exit.FAULT, Exit.HOLDING, Exit.DROPPED)  # the motor process did the release


@dataclass(frozen=True)
class Facts:
    """What is known about an arm session that has ended."""

    guard: int | None  # exit code of the guard, negative for a signal; None: still running
    motor: int | None  # exit code that the motor process wrote to its slot; None: it wrote none
    armed: bool  # arming was requested
    reason: str = ""  # the reason in the last JointState
    lowering: bool = False  # the arm was told to go to rest before it stopped
    held: str = ""  # why a run that finished sent no command to the servos; empty: it sent some
    interrupted: bool = False


@dataclass(frozen=True)
class Ending:
    """An exit code and its sentence for the user; empty for the codes in `QUIET`."""

    code: Exit
    said: str = ""


def _arm_code(facts: Facts) -> Exit:
    """The exit code for the state of the arm, whatever the program wanted."""
    if facts.guard in BY_GUARD:
        return Exit(facts.guard)
    if facts.guard == Exit.REFUSED:
        return Exit.REFUSED
    # The guard was killed, and the motor process went on without it.
    if facts.guard is not None and facts.motor in BY_MOTOR:
        return Exit(facts.motor) or (Exit.GUARD_LOST if facts.armed else Exit.REST)
    return Exit.ADRIFT if facts.armed else Exit.REFUSED


def ending(facts: Facts) -> Ending:
    """The exit code of a session, and what to tell the user about it."""
    code = _arm_code(facts)
    if code == Exit.REST and facts.interrupted:
        code = Exit.INTERRUPTED
    elif code == Exit.REST and facts.held:
        code = Exit.HELD
    if code in QUIET:
        return Ending(code)
    does, then = WORDS[code]
    why = facts.held if code == Exit.HELD else facts.reason if code in (Exit.SAFE_STOP, Exit.FAULT) else ""
    if why:
        does += f" ({'while lowering: ' if facts.lowering and code == Exit.FAULT else ''}{why})"
    return Ending(code, f"the arm {does}: {then}.")


ENDED: list[Ending] = []  # the arm sessions of this process, oldest first


def exit_code(own: int) -> int:
    """The exit code of a program whose own result is `own`: a code in `ABOVE` replaces it."""
    codes = [e.code for e in ENDED]
    above = [c for c in codes if c in ABOVE]
    if above:
        return above[-1]
    told = [c for c in codes if c not in (Exit.REST, Exit.REFUSED)]
    return told[-1] if told and own in (Exit.REST, Exit.VERDICT) else own
