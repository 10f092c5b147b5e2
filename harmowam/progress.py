"""What the user sees of work that takes minutes: each step with elapsed and expected time. What libraries print is in a
file."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Say = Callable[[str], None]


class Chatter(io.TextIOBase):
    """A text file that replaces the one at `path` when something is written for the first time."""

    def __init__(self, path: Path) -> None:
        self.path, self._begun = path, False

    def write(self, text: str) -> int:
        with self.path.open("a" if self._begun else "w") as f:
            f.write(text)
        self._begun = True
        return len(text)


def paced(say: Say, expected_s: float, clock: Callable[[], float] = time.monotonic) -> Say:
    """A `say` whose lines begin with the seconds since this call, and how many are expected in all."""
    began = clock()

    def told(line: str) -> None:
        elapsed = clock() - began
        of = f"of about {expected_s:.0f}" if elapsed < expected_s else f"(about {expected_s:.0f} on two idle cores)"
        say(f"{elapsed:3.0f} s {of}: {line}")

    return told


@contextlib.contextmanager
def behind(out: Path, expected_s: float, say: Say) -> Iterator[Say]:
    """Context for work that writes `out`: gives a paced `say`; what is printed meanwhile goes to `out`'s name with
    .log."""
    with contextlib.redirect_stdout(Chatter(out.with_suffix(".log"))):
        yield paced(say, expected_s)
