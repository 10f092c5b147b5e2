"""The training log, for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from export.checkpoint import CheckpointError


def wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file would sort behind the existing ones. Readers sort by file name, which holds whole
    seconds and then the process id.

    Without the wait, a process that starts in the same second as the one it replaces could be read first, and its purge
    would hide the wrong rows.
    """
    stamps = [int(p.name.split(".")[3]) for p in folder.glob("events.out.tfevents.*")]
    for _ in range(40):  # bounded, because the clock may have been set back
        if not stamps or int(time.time()) > max(stamps):  # noqa: TID251  (what the names hold)
            return
        time.sleep(0.05)


class Log:
    """TensorBoard scalars `STAGE/NAME` over the steps of the whole run; rows that an earlier process wrote beyond
    `step` are hidden."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and only training needs it

        wait_for_a_later_name(run / "tensorboard")
        try:
            # Flushed when the state is written, so that a full disk is reported for the state, whose message is
            # clearer.
            self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1, max_queue=1000, flush_secs=3600)
        except OSError as e:
            raise CheckpointError(f"{run} cannot be written ({e.strerror}): choose another --run folder.") from e

    def scalars(self, stage: str, row: Mapping[str, float], step: int) -> None:
        def write() -> None:
            for k, v in row.items():
                self.writer.add_scalar(f"{stage}/{k}", v, step)

        self._try(write)

    def flush(self) -> None:
        self._try(self.writer.flush)

    def close(self) -> None:
        self._try(self.writer.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as e:
            raise CheckpointError(
                f"the TensorBoard log cannot be written ({e.strerror}), the state saved before is untouched: make "
                "room and run the same command again."
            ) from e
