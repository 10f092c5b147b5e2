"""The folder that holds the slots of one run: made, kept as long as one of its processes lives, then removed.

Every process that uses it holds a shared lock on the file `in-use` in it. A lock ends with its process, whatever ends
the process, and is seen across PID namespaces, where a process id means nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.slots import memory_folder

LOCK = "in-use"
YOUNG_S = 60.0  # a folder without a lock that is younger may be about to get one
_NAME = re.compile(r"harmowam-\d{1,10}-[a-z0-9_]+")


def hold(folder: Path) -> int:
    """Keep `folder` from being removed as long as this process lives; returns the lock's file descriptor."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def parent() -> Path:
    """Where run folders lie."""
    return Path(memory_folder() or tempfile.gettempdir())


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder of this run. Folders of runs that are over are removed first; this one is removed at the end, unless
    another process (a guard that still lowers the arm) uses it: then a later run removes it."""
    sweep(parent())
    folder = Path(tempfile.mkdtemp(prefix=f"harmowam-{os.getpid()}-", dir=parent()))
    held = hold(folder)
    try:
        yield folder
    finally:
        os.close(held)
        remove_if_free(folder)


def sweep(where: Path) -> None:
    """Remove the run folders of this user in `where` that no process uses. Never raises."""
    with contextlib.suppress(OSError), os.scandir(where) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                        remove_if_free(Path(entry.path))


def remove_if_free(folder: Path) -> bool:
    """Remove `folder` unless a process uses it or it was only just made; whether it is gone. Never raises."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        with contextlib.suppress(OSError):
            if time.time_ns() * 1e-9 - folder.stat().st_mtime < YOUNG_S:
                return False
        fd = -1
    try:
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except (OSError, RecursionError):  # in use, or nested deeper than rmtree goes
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return not folder.exists()
