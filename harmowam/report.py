"""`harmowam report`: page and film of a recorded run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harmowam.options import UserError, errors


@click.command(short_help="Make page and film of a recorded run.")
@click.argument("folder", type=click.Path(readable=False, path_type=Path, file_okay=False))
@click.option(
    "--bundle",
    type=click.Path(readable=False, path_type=Path),
    help="The run's bundle, if it lies elsewhere on this machine.",
)
@errors
def report(folder: Path, bundle: Path | None) -> None:
    """Make report.html and episode.mp4 in FOLDER, which `run --record FOLDER` wrote, perhaps on a robot without the
    packages for it."""
    from harmowam.page import write_page
    from runtime.observe.episode import CONFIG, REPORT

    try:
        config, numbers = (json.loads((folder / name).read_text()) for name in (CONFIG, REPORT))
        recorded = Path(config["bundle"])
        numbers["ticks"], numbers["stages"], numbers["health"]["changes"]  # what every report has
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder} holds no recorded run ({e!r}): name a folder that `run --record` wrote.") from e
    write_page(bundle or recorded, folder, numbers)
    click.echo(f"report: {folder / 'report.html'}")
