"""Runs commands as a user without rights: `python -m tests.as_nobody` reads {"warm": [[VERB, ...], ...], "then": the
same} from standard input and writes [exit code, output] of each command of "then" as JSON.

Root may read everything, so a root process gives its rights up for good: after it has played "warm", for which it
imports what the commands need, perhaps from a folder that nobody else may enter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from harmowam.cli import main
from harmowam.options import errors

NOBODY = 65534


@main.command()
@click.argument("folder", type=Path)
@errors
def load_dataset(folder: Path) -> None:
    """What `train` and `export` do first with a dataset, without torch."""
    from export.lerobot import load

    load(folder, workers=1)


@main.command()
@click.argument("kind")
@click.argument("path", type=Path)
@errors
def load_trained(kind: str, path: Path) -> None:
    """What training and export read of their own."""
    import torch

    from export.checkpoint import load_checkpoint
    from export.recipe_file import unpack
    from export.rows import read_blocks
    from export.state import load_state

    readers: dict[str, Callable[[Path], Any]] = {"checkpoint": load_checkpoint, "state": load_state, "stage": unpack}
    if kind == "block":
        read_blocks(path.parent, 1, torch.device("cpu"))
    else:
        readers[kind](path)


def played(args: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(main, args)
    return done.exit_code, done.output if done.exit_code in (0, 1, 2) and not _strange(done) else repr(done.exception)


def _strange(done: object) -> bool:
    return not isinstance(getattr(done, "exception", None), (SystemExit, type(None)))


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    for line in asked["warm"]:
        played(line)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    print(json.dumps([played(line) for line in asked["then"]]))
