"""`harmowam tasks`: the instructions that a bundle knows."""

from __future__ import annotations

from pathlib import Path

import click

from harmowam.options import errors, json_option, printable, write_json


@click.command(short_help="The instructions that a bundle knows, one a line.")
@click.argument("bundle", type=click.Path(readable=False, path_type=Path), default=Path("out/so101.bundle"))
@json_option
@errors
def tasks(bundle: Path, json_path: Path | None) -> None:
    """The instructions that BUNDLE was exported with, one a line with its number: what `--task` takes."""
    from runtime import describe
    from runtime.bundle import Bundle

    rows = describe.tasks(Bundle.load(bundle))
    for row in rows:
        click.echo(f"{row['number']:3}  {printable(row['task'])}")
    write_json(json_path, {"tasks": rows})
