"""`harmowam replay`: the engines once more on the recorded inputs."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harmowam.options import UserError, errors, json_option, write_json

if TYPE_CHECKING:
    from runtime.observe.replay import Replay


@click.command(short_help="Run a log's inputs through the same engines again.")
@click.argument("log", type=click.Path(readable=False, path_type=Path), metavar="LOG")
@click.option(
    "--bundle",
    type=click.Path(readable=False, path_type=Path),
    help="Another bundle than the run's: where do its actions differ?",
)
@click.option(
    "--within",
    type=click.FloatRange(min=0),
    metavar="DEGREES",
    help="Go on after a difference; succeed if no command is farther off. For another kind of processor than the "
    "run's.",
)
@click.option("--view", is_flag=True, help="Open the log in Rerun instead (needs the extra [view]).")
@json_option
@errors
def replay(log: Path, bundle: Path | None, within: float | None, view: bool, json_path: Path | None) -> None:
    """Run a log's inputs through the same engines: identical actions bit for bit, or the first difference and exit code
    1.

    LOG: a file of --log, or a folder of --record.
    """
    if within is not None and not math.isfinite(within):
        raise UserError("--within must be a number of degrees: correct it.")
    folder, log = log, log / "run.mcap" if log.is_dir() else log  # what --record wrote
    partial = log.with_name(log.name + ".partial")
    if folder.is_dir() and not log.exists() and not partial.exists():
        raise UserError(
            f"{folder} holds no log (run.mcap): `run` keeps one with --record FOLDER or --log FILE, `profile` with "
            "--log FILE only; name such a folder or file."
        )
    if log.is_file() and partial.is_file():
        click.echo(
            f"note: {log} is a whole run; {partial} is what another run left that was cut off: name the one you mean",
            err=True,
        )
    if view:
        from runtime.observe.log_view import view as open_view

        open_view(log)
        return
    from runtime.observe.replay import replay as run_again

    result = run_again(log, bundle, within)
    write_json(json_path, {**dataclasses.asdict(result), "identical": result.identical, "passed": result.passed})
    click.echo(f"{result.steps} fast steps and {result.priors} Priors were replayed")
    if result.gap:
        click.echo(f"stopped early: {result.gap}")
    _tell(result)
    if result.damaged and result.difference is None:
        raise UserError(
            f"{log} is damaged: {result.steps} fast steps before that are the same, what follows cannot be compared; "
            "replay another copy of it."
        )
    if not result.passed:
        sys.exit(1)


def _tell(result: Replay) -> None:
    """What came out of the comparison."""
    so_far = ", up to there" if result.gap else ""
    if (d := result.difference) is not None:
        click.echo(f"first difference: {d.what} number {d.number}, {d.t_s} s into the run")
        for what, values in (("recorded", d.recorded), ("replayed", d.replayed)):
            click.echo(f"  {what} [{', '.join(f'{v:.9g}' for v in values)}]")  # 9 digits tell float32 values apart
        if result.within_deg is not None and not result.stopped:
            click.echo(f"{result.differing} steps and Priors differ in some bit")
            far = "no command differs"
            if (worst := result.largest) is not None:
                where = f"{worst.joint}, fast step {worst.number}, {worst.t_s} s into the run"
                far = f"the largest difference of a command is {worst.degrees:.2g} degrees ({where})"
            click.echo(f"{'' if result.passed else 'not '}within {result.within_deg:g} degrees{so_far}: {far}")
    elif result.identical:
        click.echo("identical, bit for bit" + so_far)
