"""How an arm session ended: what the arm is doing then, as an exit code and as words.

Guard, motor process and every verb that moves an arm use these codes, so that a script can tell them apart. docs/arm.md
has the same table.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Exit(enum.IntEnum):
    """Exit codes. 0 means that the arm is at rest and released, or that nobody had armed it."""

    REST = 0
    VERDICT = 1
    REFUSED = 2
    SAFE_STOP = 3
    FAULT = 4
    GUARD = 5
    PORT_LOST = 6  # of the motor process only: its guard then waits for the adapter
    HOLDING = 7
    ADRIFT = 8
    DROPPED = 9
    HELD = 10
    GUARD_LOST = 11
    INTERRUPTED = 130


# Code -> what the arm does ("the arm ..."), and what to do next.
WORDS = {
    Exit.REST: ("is at rest, its torque off, or was never armed", "nothing"),
    Exit.VERDICT: (
        "is as after 0; the verb's own answer is no (a moved camera, a worse profile) or the program failed",
        "read what it says",
    ),
    Exit.REFUSED: ("is as after 0; something had to be refused or ended", "mend what the sentence names"),
    Exit.SAFE_STOP: (
        "stopped by itself, was lowered to rest and released",
        "mend what it stopped for, then start again",
    ),
    Exit.FAULT: (
        "had a fault: it braked and was let go where it was, so that it sank",
        "see how it lies, mend the fault, then start again",
    ),
    Exit.GUARD: (
        "lost its motor process: the guard let the torque down where the arm was, so that it sank",
        "see how it lies, then start again",
    ),
    Exit.HOLDING: ("has a servo that does not let go or does not answer", "switch it off"),
    Exit.ADRIFT: ("is energised and nobody drives it", "switch it off"),
    Exit.DROPPED: (
        "was let go before it had reached its rest pose, so that it sank",
        "see how it lies, clear its way to rest, then start again",
    ),
    Exit.HELD: (
        "is at rest, its torque off, but all the run did was hold it",
        "mend what held it, then start again",
    ),
    Exit.GUARD_LOST: (
        "is at rest, its torque off, but its guard died: the motor process lowered it alone",
        "find out who ended the guard, then start again",
    ),
    Exit.INTERRUPTED: ("is as after 0; the run was interrupted", "nothing"),
}

# With these an arm is not as the program's own result would have it: they stand above every other exit code.
ABOVE = (
    Exit.SAFE_STOP,
    Exit.FAULT,
    Exit.GUARD,
    Exit.HOLDING,
    Exit.ADRIFT,
    Exit.DROPPED,
    Exit.GUARD_LOST,
)
QUIET = (Exit.REST, Exit.REFUSED, Exit.INTERRUPTED)  # nothing is said: what there is to say has been said already
BY_GUARD = (Exit.REST, Exit.SAFE_STOP, Exit.FAULT, Exit.GUARD, Exit.HOLDING, Exit.ADRIFT, Exit.DROPPED)
BY_MOTOR = (Exit.REST, Exit.SAFE_STOP, Exit.FAULT, Exit.HOLDING, Exit.DROPPED)  # it has released what it could


@dataclass(frozen=True)
class Facts:
    """What can be known of an arm whose session has ended."""

    guard: int | None  # its exit code, negative where a signal ended it; None: it has not ended
    motor: int | None  # the exit code that the motor process left behind; None: it did not come to its end
    armed: bool  # torque was asked for
    reason: str = ""  # the motor process's last word: why the arm is not driven
    lowering: bool = False  # whatever happened came after the arm was told to go to rest
    held: str = ""  # why a run that came to its end gave the servos no target; empty: it gave some
    interrupted: bool = False


@dataclass(frozen=True)
class Ending:
    """An exit code and its sentence, which is empty where there is nothing to say."""

    code: Exit
    said: str = ""


def _arm(facts: Facts) -> Exit:
    """What the arm does, whatever was asked of it."""
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
    code = _arm(facts)
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


ENDED: list[Ending] = []  # the arm sessions of this process, in their order


def exit_code(own: int) -> int:
    """The exit code of a program whose own would be `own`: what the arm does stands above it."""
    codes = [e.code for e in ENDED]
    above = [c for c in codes if c in ABOVE]
    if above:
        return above[-1]
    told = [c for c in codes if c not in (Exit.REST, Exit.REFUSED)]
    return told[-1] if told and own in (Exit.REST, Exit.VERDICT) else own
