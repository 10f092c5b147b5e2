"""`harmowam train --baseline act`: behaviour cloning on the same data, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from export.act import ActPlan


def baseline_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `harmowam train` for a baseline instead of our model."""
    for option in (
        click.option("--play/--no-play", default=False, show_default=True, help="Train a baseline on play, too."),
        click.option(
            "--baseline",
            type=click.Choice(["act", "act-small"]),
            help="Train this instead of our model, for whatever arm the dataset is of; --out is then a bundle.",
        ),
    ):
        command = option(command)
    return command


def train_baseline(data: Any, run: Path, out: Path, plan: ActPlan, baseline: str, play: bool) -> dict[str, Any]:
    """Train the baseline and write its bundle to `out` (in the run's folder unless a bundle was named); returns the
    report."""
    from export.act import SIZES, train_act
    from export.loop import leads

    out = run / f"{baseline}.bundle" if out.suffix == ".safetensors" else out
    report = train_act(data, run, out, play, plan, SIZES[baseline])
    if leads():
        click.echo(f"{out}: {report['steps']} steps in {report['train_minutes']} min on {report['rows']} rows")
    return report
