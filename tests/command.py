"""The `harmowam` command as tests call it: in this process, with its output and exit code."""

import json

from click.testing import CliRunner

from harmowam.cli import main
from tests.tiny import TASK


def harmowam(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def refusal(*args):
    """The sentence of a refused command: exit code 2, no other output, no traceback."""
    result = harmowam(*args)
    assert result.exit_code == 2, result.output or result.exception
    sentence = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentence) == 1 and "Traceback" not in result.output and not result.stdout
    return sentence[0]


def drive(bench, bundle, *more):
    return ("run", "--bundle", bundle, "--robot", bench.robot_file, "--task", TASK, "--seconds", 1.5, *more)


def told(folder):
    """The page and the numbers of a report."""
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())
