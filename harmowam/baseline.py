"""`harmowam train --baseline act`: behaviour cloning on the same data, to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def baseline_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Of `harmowam train`: a baseline instead of our model."""
    for option in (
        click.option(
            "--steps", type=click.IntRange(min=1), help="So many steps, instead of --minutes: other work beside it costs it nothing then."
        ),
        click.option(
            "--minutes", type=click.FloatRange(min=0.01), default=60.0, show_default=True, help="Wall time of a baseline's training."
        ),
        click.option("--play/--no-play", default=False, show_default=True, help="Train a baseline on play, too."),
        click.option(
            "--baseline", type=click.Choice(["act"]), help="Train this instead of our model, for --minutes; --out is then a bundle."
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def train_baseline(
    data: Any, run: Path, out: Path, seed: int, baseline: str, play: bool, minutes: float, steps: int | None
) -> dict[str, Any]:
    """Train it and write its bundle to `out` (in the run's folder unless a bundle was named); returns what was done."""
    from export.act import ActConfig, train_act

    out = run / f"{baseline}.bundle" if out.suffix == ".safetensors" else out
    report = train_act(data, run, out, play, math.inf if steps else minutes, steps, cfg=ActConfig(seed=seed))
    click.echo(f"{out}: {report['steps']} steps in {report['train_minutes']} min on {report['rows']} rows")
    return report
