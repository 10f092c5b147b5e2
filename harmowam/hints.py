"""The commands that messages name as the next step, completed with the options that this command was given."""

from __future__ import annotations

import re
import shlex

import click

VERBS = ("bus", "calibrate", "doctor")  # whose commands act on one robot
GIVEN = ("robot", "port", "camera")
HINT = re.compile(r"harmowam((?: [a-z][a-z-]*)+)([^`\n]*)")


def as_given(text: str, *more: str) -> str:
    """`text`, in which each command of `VERBS` (such as `harmowam calibrate joints`) names the robot file, port and
    camera, and the parameters `more`, as they were given to the command that runs: pasted, it acts on the same arm. An
    option that the command does not have, or that the text names, is left as it is."""
    context = click.get_current_context(silent=True)
    if context is None:
        return text
    told = click.core.ParameterSource.COMMANDLINE
    given = {n: str(context.params[n]) for n in (*GIVEN, *more) if context.get_parameter_source(n) == told}
    main = context.find_root().command
    return HINT.sub(lambda found: _completed(main, found, given), text) if given else text


def _completed(command: click.Command, found: re.Match[str], given: dict[str, str]) -> str:
    """The command under `command` that was `found`, with those of `given` that it has and does not name."""
    said, words = ["harmowam"], found[1].split()
    while words and isinstance(command, click.Group):
        under = command.get_command(click.Context(command), words[0])
        if under is None:
            break
        command = under
        said.append(words.pop(0))
    options = {p.name: p.opts[0] for p in command.params if isinstance(p, click.Option)}
    rest = "".join(f" {word}" for word in words) + found[2]
    if len(said) == 1 or said[1] not in VERBS:
        return found[0]
    if "robot" in given:
        rest = rest.replace("--robot FILE", f"--robot {shlex.quote(given['robot'])}")
    named = [(options[n], value) for n, value in given.items() if n in options and options[n] not in rest]
    return " ".join([*said, *(f"{option} {shlex.quote(value)}" for option, value in named)]) + rest
