"""What a message names as the next step acts, pasted, on the arm that the command was given."""

import click
import pytest

from harmowam.cli import main
from harmowam.hints import as_given
from runtime.robot import SHIPPED
from tests.command import refusal


def said(text, *words, more=()):
    """`text` as a command with these words says it."""
    context = click.Context(main)
    for k, word in enumerate(words):
        if not isinstance(context.command, click.Group):
            break
        command = context.command.get_command(context, word)
        assert command is not None
        group = isinstance(command, click.Group)
        context = click.Context(command, context) if group else command.make_context(word, [*words[k + 1 :]], context)
    with context:
        return as_given(text, *more)


ROBOT = ("--robot", "my arm/robot.toml")
CHECK = ("calibrate", "check", *ROBOT)


@pytest.mark.parametrize(
    ("command", "hint", "completed"),
    [
        (CHECK, "run `harmowam calibrate joints`.", "run `harmowam calibrate joints --robot 'my arm/robot.toml'`."),
        (
            CHECK,
            "next: harmowam calibrate check --learn",
            "next: harmowam calibrate check --robot 'my arm/robot.toml' --learn",
        ),
        (CHECK, "see `harmowam bus check --robot FILE`", "see `harmowam bus check --robot 'my arm/robot.toml'`"),
        (CHECK, "`harmowam doctor` and `harmowam bus scan`", "`harmowam doctor {r}` and `harmowam bus scan {r}`"),
        ((*CHECK, "--camera", "wrist"), "`harmowam calibrate joints`", "`harmowam calibrate joints {r}`"),
        (
            (*CHECK, "--camera", "wrist"),
            "`harmowam calibrate hand-eye`",
            "`harmowam calibrate hand-eye {r} --camera wrist`",
        ),
        (
            (*CHECK, "--camera", "wrist"),
            "`harmowam calibrate hand-eye --camera front`",
            "`harmowam calibrate hand-eye {r} --camera front`",
        ),
        (
            ("bus", "check", *ROBOT, "--port", "/dev/arm"),
            "give each an id with `harmowam bus set-id`",
            "give each an id with `harmowam bus set-id --port /dev/arm`",
        ),
    ],
)
def test_a_hint_carries_what_was_given_where_the_command_has_it(command, hint, completed):
    assert said(hint, *command) == completed.replace("{r}", "--robot 'my arm/robot.toml'")


def test_a_store_is_named_where_the_result_lies_in_it():
    """An error may be about the store that the robot file names instead."""
    hint, store = "next: harmowam calibrate hand-eye", ("calibrate", "check", "--store", "s")
    assert said(hint, *store, more=("store",)) == f"{hint} --store s"
    assert said(hint, *store) == hint


@pytest.mark.parametrize(
    "text",
    [
        "`harmowam calibrate joints --robot other.toml`",
        "`harmowam calibrate board`",
        "`harmowam export` and `harmowam rehearse`",
        "a harmowam of many words",
    ],
)
def test_what_names_its_own_robot_or_has_none_stays(text):
    assert said(text, *CHECK) == text


def test_without_options_a_hint_stays_for_it_has_the_same_defaults():
    assert said("`harmowam calibrate check --learn`", "calibrate", "check") == "`harmowam calibrate check --learn`"
    assert as_given("`harmowam calibrate joints`") == "`harmowam calibrate joints`"


def test_a_refusal_names_the_robot_file(tmp_path):
    file = tmp_path / "robot.toml"
    file.write_bytes((SHIPPED / "so101.toml").read_bytes())
    said = refusal("calibrate", "joints", "--check", "--robot", file)
    assert said.endswith(f"run `harmowam calibrate joints --robot {file}`.")
    assert f"run `harmowam calibrate intrinsics --robot {file}`" in refusal("calibrate", "history", "--robot", file)
