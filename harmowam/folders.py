"""The folder that a run leaves when none is named: `runs/DATE-TASK`."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.loop.errors import RunError

RUNS = "HARMOWAM_RUNS"  # environment variable: where these folders lie
TEXT = 60  # most characters of a task in a folder's name


def folder_name(what: str, now: datetime.datetime) -> str:
    """The name of a run's folder: minute and task, in characters that no shell and no file system minds."""
    text = re.sub(r"[^a-z0-9_]+", "-", what.lower())[:TEXT].strip("-")
    return f"{now:%Y-%m-%dT%H%M}-{text or 'run'}"


def new_folder(what: str, now: datetime.datetime, runs: Path) -> Path:
    """Make a folder of its own for a run in `runs`; the second one of a minute ends with -2. Raises OSError."""
    runs.mkdir(parents=True, exist_ok=True)
    name, number = folder_name(what, now), 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


@contextlib.contextmanager
def left_in(named: Path | None, what: str, option: str, say: Callable[[str], None]) -> Iterator[Path | None]:
    """Context that gives the folder of a run: `named`, else a new one, which goes again where nothing was written to
    it. None, after a word to the user, where it cannot be made: that keeps no arm from moving.

    `what`: the task or, where the simulator draws one, the robot. `option`: by which a folder is named.
    """
    if named is not None:
        yield named
        return
    runs = Path(os.environ.get(RUNS, "runs"))
    try:
        folder = new_folder(what, datetime.datetime.now().astimezone(), runs)
    except OSError as e:
        say(f"{runs} cannot be written ({e.strerror}), so this run leaves nothing: name a folder with {option}")
        yield None
        return
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def make_folder(folder: Path, option: str) -> None:
    """Create a folder and check that it can be written. `option`: the command-line option that named it. Raises
    RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        wrong = "is a file" if isinstance(e, FileExistsError) else f"cannot be made ({e.strerror})"
        raise RunError(f"{folder} {wrong}: name a folder with {option}.") from e
    if not os.access(folder, os.W_OK):
        raise RunError(f"{folder} cannot be written: name a folder with {option}.")
