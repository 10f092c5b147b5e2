"""`harmowam setup`: write the robot file of an arm from what is plugged in, options, and answers."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.errors import Mendable
from harmowam.options import UserError, errors, json_option, refuse_unused, say, write_json

if TYPE_CHECKING:
    from firmware_bridge.service import Found
    from harmowam.camera_page import Card
    from runtime.robot import CameraConfig, RobotFile

NAMES = ("front", "wrist")  # what the shipped checkpoint calls its cameras
SKIP = "-"  # the answer that leaves a camera out
IDS = range(1, 10)  # in which an arm of an unknown family is looked for


@click.command(short_help="Write a robot file: port, cameras, arm, LeRobot calibration.")
@click.option("--family", help="Kind of arm (default: what its servos look like, and a question).")
@click.option("--port", help="Serial port of the servo adapter (default: what is plugged in, and a question).")
@click.option(
    "--camera",
    "named",
    multiple=True,
    metavar="NAME=SOURCE",
    help="A camera, as front=/dev/video0 (repeatable; default: what is plugged in, and a question each).",
)
@click.option(
    "--lerobot",
    type=click.Path(readable=False, path_type=Path),
    help="Take the joint calibration from LeRobot's JSON.",
)
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path, file_okay=False),
    default=Path("my_arm"),
    show_default=True,
    help="Folder of the robot file, its calibrations and the page of its cameras.",
)
@click.option("--yes", is_flag=True, help="Ask nothing: take what was found.")
@click.option("--look", "only_look", is_flag=True, help="Only write the page of the cameras anew.")
@json_option
@errors
def setup(
    family: str | None,
    port: str | None,
    named: tuple[str, ...],
    lerobot: Path | None,
    out: Path,
    yes: bool,
    only_look: bool,
    json_path: Path | None,
) -> None:
    """Write OUT/robot.toml with every key that a robot file can have, and its meaning. Servos are only read. A robot
    file that exists is never replaced. OUT/cameras.html shows what each camera sees."""
    from runtime.cameras.v4l2 import plugged_in
    from runtime.robot import robot_of
    from runtime.robot_file import answering, filled, servos, shipped, text

    file = out / "robot.toml"
    if only_look:
        refuse_unused("with --look", "family", "port", "named", "lerobot", "yes", "json_path")
        look_again(plugged_in(), file, out)
        return
    _refuse_existing(file)
    pairs = [_pair(item, named) for item in named]
    known = None if family is None else shipped(_family(family))
    port = port or _ask_port(yes)
    found = _look_for_servos(port, known)
    known = known or shipped(_ask_family(found, yes))
    answer = answering(known, found)
    say(f"{len(answer)} of the {len(servos(known))} servos of a {known.family} answer on {port}")
    wanted = filled(known, port, ())
    if lerobot is not None:
        _check_lerobot(lerobot, wanted)
    looks = _named_cameras(pairs, known, out) if pairs else ask_cameras(plugged_in(), known, out, yes)
    wanted = filled(wanted, port, looks, "calibration/joints" if lerobot else "")
    if lerobot is not None:
        from calibration.store import Store
        from harmowam.calibration_joints import import_lerobot

        robot = robot_of(wanted, file, calibrated=False)
        said = import_lerobot(robot, Store(out / "calibration"), lerobot, out / "joints.html")["said"]
        click.echo(said.rpartition("\nnext: ")[0])
    _refuse_existing(file)
    _write(file, text(wanted))
    click.echo(f"robot file: {file}")
    click.echo(f"next: {_next_step(file, port, len(answer) == len(servos(known)), lerobot is not None)} (docs/arm.md)")
    numbers = {"robot": str(file), "family": known.family, "port": port, "servos": answer}
    write_json(json_path, {**numbers, "cameras": {c.name: c.source for c in looks}})


def _refuse_existing(file: Path) -> None:
    if os.path.lexists(file):
        raise UserError(
            f"{file} exists and is not replaced: edit it, or name another folder with --out; --look shows its cameras."
        )


def _next_step(file: Path, port: str, all_answer: bool, calibrated: bool) -> str:
    """The command of docs/arm.md that follows. What LeRobot calibrated has not had its directions checked."""
    robot = f"--robot {shlex.quote(str(file))}"
    if not all_answer:
        return (
            f"number the servos with `harmowam bus set-id --port {shlex.quote(port)} --to 1`, one connected at a time"
        )
    look = f"look at the joints with `harmowam bus monitor {robot}`"
    signs = f", then check their directions with `harmowam calibrate joints --signs {robot}`"
    return look + signs if calibrated else look


def _answer(yes: bool, option: str, question: str, default: str | None, check: Callable[[str], str]) -> str:
    """What the user answers to `question`, asked again until `check` takes it; with `yes` the default. Raises UserError
    where there is none, or no input."""
    if yes:
        if default is None:
            raise UserError(f"{question} is not known: give it with {option}.")
        return check(default)

    def checked(text: str) -> str:
        try:
            return check(text)
        except (UserError, Mendable) as e:
            raise click.BadParameter(str(e)) from e

    try:
        return str(click.prompt(question, default=default, value_proc=checked, err=True))
    except click.Abort as e:
        click.echo(err=True)  # ends the line of the question
        if isinstance(e.__context__, EOFError):
            raise UserError(f"{question} was asked, and no answer came: give {option}, or --yes.") from e
        raise KeyboardInterrupt from e


def _family(name: str) -> str:
    from firmware_bridge.arms import UNUSABLE
    from runtime.robot_file import families

    if name in UNUSABLE:
        raise UserError(f"arm family '{name}' is not usable: {UNUSABLE[name]}")
    if name not in families():
        raise UserError(f"arm family '{name}' is not known: name one of {', '.join(families())} with --family.")
    return name


def _ask_family(found: list[Found], yes: bool) -> str:
    from runtime.robot_file import families, recognised

    question = f"Kind of arm ({', '.join(families())})"
    return _answer(yes, "--family", question, recognised(found), _family)


def _ask_port(yes: bool) -> str:
    """The port that the user chooses among the serial adapters, by number or name."""
    from serial.tools.list_ports import comports

    from harmowam.bus import adapters, choice

    found = adapters(sorted(comports()))
    if not found:
        raise UserError(f"a serial adapter is needed, and {choice([])}, or name its port with --port.")
    names = list(found)
    for k, name in enumerate(names, 1):
        say(f"{k}  {name}  ({found[name]})")

    def chosen(text: str) -> str:
        return names[int(text) - 1] if text.isdecimal() and 1 <= int(text) <= len(names) else text

    return _answer(yes, "--port", "Port of the servo adapter", names[0] if len(names) == 1 else None, chosen)


def _look_for_servos(port: str, known: RobotFile | None) -> list[Found]:
    """The servos on `port`, read at the baud rate of a robot file. Raises PortError."""
    from firmware_bridge.service import scan
    from firmware_bridge.servos.models import MODELS
    from runtime.robot_file import servos

    if known is None:
        return scan(port, IDS, bauds=(1_000_000,))
    protocol = MODELS[known.arm.joint[0].model].protocol
    return scan(port, [i for i, _ in servos(known)], (protocol,), (known.bus.baud,))


def _check_lerobot(path: Path, wanted: RobotFile) -> None:
    """Raises CalibrationError for a file that cannot be this arm's calibration, before anything is written."""
    from calibration.joints_lerobot import from_lerobot
    from runtime.robot import arm_config

    config = arm_config(wanted)
    from_lerobot(path, config)[0].apply(config)


def _pair(item: str, every: tuple[str, ...]) -> tuple[str, str]:
    """Name and source of a --camera."""
    name, _, source = item.partition("=")
    if not name or not source:
        raise UserError(f"--camera {item}: write a name and a source, as --camera front=/dev/video0.")
    if sum(other.partition("=")[0] == name for other in every) > 1:
        raise UserError(f"--camera {name} is given twice: give each camera a name of its own.")
    return name, source


def _config(known: RobotFile, name: str, source: str) -> CameraConfig:
    """A camera with the size and rate of the family's shipped robot file."""
    from runtime.robot import CameraConfig

    like = known.camera.get(name) or next(iter(known.camera.values()))
    return CameraConfig(name, source, like.width, like.height, like.fps, f"calibration/{name}")


def _named_cameras(pairs: list[tuple[str, str]], known: RobotFile, out: Path) -> list[CameraConfig]:
    """The cameras of --camera with the size and rate that they give; the page in `out` shows them. Raises UserError for
    one that does not open."""
    from harmowam.camera_page import Card
    from runtime.cameras.preview import look
    from runtime.cameras.sources import is_real
    from runtime.robot_file import filled

    configs = [_config(known, name, source) for name, source in pairs]
    filled(known, known.bus.port, configs)  # names and sources that a robot file cannot hold are refused first
    cards: list[Card] = []
    for config in configs:
        seen = look(config) if is_real(config) else None
        if seen is None and not config.source.startswith("slot:"):
            raise UserError(
                f"camera '{config.name}' gives no picture ({config.source}): plug it in, end the program that uses it, "
                "or correct --camera."
            )
        cards.append(Card(config.source, config.name, seen))
    say(f"what the cameras show: {_write_page(out, cards)}")
    return [config if c.look is None else c.look.config for config, c in zip(configs, cards, strict=True)]


def ask_cameras(sources: list[str], known: RobotFile, out: Path, yes: bool) -> list[CameraConfig]:
    """The cameras `sources` by the names that the user gives them while a page in `out` shows them all."""
    from harmowam.camera_page import Card, show
    from runtime.cameras.preview import look

    cards = [Card(source, "", look(_config(known, Path(source).resolve().name, source))) for source in sources]
    if cards:
        page = _write_page(out, cards, asking=not yes)
        say(f"what the cameras show: {page}")
        if not yes:
            show(page)
    try:
        chosen = _choose(cards, known, out, yes)
    finally:  # the page stops loading itself again, after Ctrl-C as well
        if cards:
            _write_page(out, cards)
    if not chosen:
        kept = " and ".join(c.source for c in known.camera.values())
        say(f"no camera was chosen: the robot file names {kept}, to be corrected")
    return chosen


def _choose(cards: list[Card], known: RobotFile, out: Path, yes: bool) -> list[CameraConfig]:
    """The cameras of `cards` that the user names; the names are put on the cards and on the page."""
    from harmowam.camera_page import Card

    chosen: list[CameraConfig] = []
    for k, card in enumerate(cards):
        if card.look is None:
            say(f"{card.source} gives no picture, and is left out")
            continue
        config = card.look.config
        say(f"{card.source}: {config.width}x{config.height} at {config.fps:g} a second")
        name = _ask_name(card.source, [c.name for c in chosen], known, yes)
        if name != SKIP:
            chosen.append(dataclasses.replace(config, name=name, calibration=f"calibration/{name}"))
        cards[k] = Card(card.source, "" if name == SKIP else name, card.look, "is left out")
        _write_page(out, cards, asking=not yes)
    return chosen


def _ask_name(source: str, taken: list[str], known: RobotFile, yes: bool) -> str:
    """The name that the user gives the camera `source`; SKIP leaves it out."""
    from runtime.robot_file import filled

    def unused(text: str) -> str:
        if text in taken:
            raise UserError(f"a camera is called {text} already: give another name.")
        if text != SKIP:
            filled(known, known.bus.port, [_config(known, text, source)])
        return text

    free = next((n for n in NAMES if n not in taken), SKIP)
    return _answer(yes, "--camera", f"Name of the camera {source} ({SKIP} leaves it out)", free, unused)


def look_again(sources: list[str], file: Path, out: Path) -> None:
    """Show what the cameras of the robot file see, or those that are plugged in, `sources`, where there is no file yet.
    Raises UserError where there is neither, and RobotError."""
    from harmowam.camera_page import Card, show
    from runtime.cameras.preview import look
    from runtime.cameras.sources import is_real
    from runtime.robot import load_robot
    from runtime.robot_file import families, shipped

    if file.exists():
        configs = list(load_robot(str(file), calibrated=False).cameras.values())
    else:
        anything = shipped(families()[0])  # the size that is asked for is the same in every shipped file
        configs = [_config(anything, Path(source).resolve().name, source) for source in sources]
    if not configs:
        raise UserError("no camera is plugged in: plug one in, and look again.")
    cards = [Card(c.source, c.name if file.exists() else "", look(c) if is_real(c) else None) for c in configs]
    page = _write_page(out, cards)
    click.echo(f"what the cameras show: {page}")
    show(page)


def _write_page(out: Path, cards: list[Card], *, asking: bool = False) -> Path:
    """Write the page of the cameras; returns its path. Raises UserError."""
    from harmowam import camera_page

    try:
        return camera_page.write(out, cards, asking=asking)
    except OSError as e:
        raise UserError(
            f"{out / camera_page.NAME} cannot be written ({e.strerror}): name another folder with --out."
        ) from e


def _write(path: Path, content: str) -> None:
    """Write the whole file or nothing; raises UserError."""
    from common.files import write_whole

    try:
        write_whole(path, content)
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror}): name another folder with --out.") from e
