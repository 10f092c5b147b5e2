"""`harmowam doctor`: what is not as it should be on this machine, and the command that mends it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from harmowam.hints import as_given
from harmowam.options import errors, json_option, robot_option, write_json

MARKS = {"ok": "  ok  ", "warn": " warn ", "bad": " BAD  "}


@click.command(short_help="Check what this machine needs to drive an arm.")
@robot_option
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings, too.")
@json_option
@errors
def doctor(robot: str, strict: bool, json_path: Path | None) -> None:
    """Check engines, servo port, cameras, real-time rights, clocks, storage and servos (which are only read). Exit code
    1 when something will not work."""
    from runtime.doctor.examine import examine
    from runtime.doctor.servos import servos
    from runtime.robot import load_robot

    described = load_robot(robot)
    findings = [*examine(described), *servos(described)]
    for f in findings:
        click.echo(f"{MARKS[f.state]}{f.name}: {as_given(f.found)}")
        if f.mend and f.state != "ok":
            click.echo(f"        mend: {as_given(f.mend)}")
    bad, warn = (sum(f.state == s for f in findings) for s in ("bad", "warn"))
    click.echo(f"{bad} that will not work, {warn} that could be better, {len(findings) - bad - warn} well")
    write_json(json_path, {"findings": [dataclasses.asdict(f) for f in findings], "bad": bad, "warn": warn})
    if bad or (strict and warn):
        sys.exit(1)
