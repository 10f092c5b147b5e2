"""The schedule of a training: steps, batch and learning rate of every stage."""

from __future__ import annotations

import math
from collections.abc import Mapping

from export.checkpoint import CheckpointError

Stage = tuple[int, int, float]  # steps, batch, peak learning rate


def check_schedule(schedule: Mapping[str, Stage], shards: int, processes: int) -> None:
    """Raises CheckpointError for shards that the processes cannot share evenly and for a stage that cannot train."""
    if shards < 1 or shards % processes:
        raise CheckpointError(
            f"{shards} shards of a batch cannot be shared out evenly to {processes} processes: add --shards "
            f"{processes * max(1, shards // processes)}."
        )
    for name, (steps, batch, rate) in schedule.items():
        if steps < 0 or batch < 2 * shards or batch % shards or not 0 < rate < 1:
            raise CheckpointError(
                f"stage {name} of {steps} steps of batch {batch} at rate {rate:g} makes no sense: give no or some "
                f"steps, a batch of at least {2 * shards} that {shards} divides (--shards), and a rate between 0 and 1."
            )


def learning_rate(step: int, total: int, peak: float, end: float | None = None) -> float:
    """The learning rate at `step`: 100 steps of linear warm-up, then half a cosine down to 3 % of the peak, or with
    `end` a straight line down to `end` times the peak.

    A straight line can be cut and continued: the rest is again a straight line.
    """
    warm = min(1.0, (step + 1) / 100)
    if end is not None:
        return peak * warm * (1 + (end - 1) * step / total)
    return peak * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / total)))
