"""`harmowam replay`: the engines once more on the recorded inputs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from harmowam.cli import UserError, errors, json_option, write_json


@click.command(short_help="Run a log's inputs through the same engines again.")
@click.argument("log", type=click.Path(path_type=Path))
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Another bundle than the run's: where do its actions differ?"
)
@click.option("--view", is_flag=True, help="Open the log in Rerun instead (needs the package rerun-sdk).")
@json_option
@errors
def replay(log: Path, bundle: Path | None, view: bool, json_path: Path | None) -> None:
    """Run a log's inputs through the same engines: identical actions bit for bit, or the first difference and exit code 1."""
    partial = log.with_name(log.name + ".partial")
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

    result = run_again(log, bundle)
    write_json(json_path, {**dataclasses.asdict(result), "identical": result.identical})
    click.echo(f"{result.steps} fast steps and {result.priors} Priors were replayed")
    if result.gap:
        click.echo(f"stopped early: {result.gap}")
    if result.difference is not None:
        d = result.difference
        click.echo(f"first difference: {d.what} number {d.number}, {d.t_s} s into the run")
        click.echo(f"  recorded {[round(v, 6) for v in d.recorded]}\n  replayed {[round(v, 6) for v in d.replayed]}")
    elif result.damaged:
        raise UserError(
            f"{log} is damaged: {result.steps} fast steps before that are the same, what follows cannot be compared; "
            "replay another copy of it."
        )
    elif result.identical:
        click.echo("identical, bit for bit" + (", up to there" if result.gap else ""))
    if not result.identical:
        sys.exit(1)
