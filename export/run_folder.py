"""The run folder of a training: made once, used by one training at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.checkpoint import CheckpointError


def make_run_folder(run: Path) -> None:
    """Create the folder; raises CheckpointError where that fails."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(f"{run} cannot be made ({e.strerror}): choose another --run folder.") from e


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Lock the run folder: two trainings in one folder would overwrite each other's state. Raises CheckpointError."""
    with open(run / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise CheckpointError(
                f"another process trains in {run}: wait for it, or choose another --run folder."
            ) from e
        yield
