"""What the verbs share: options, errors as sentences and exit codes, whole-file writes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.errors import Mendable, unreadable
from common.files import write_whole
from firmware_bridge.motion import endings
from harmowam.hints import as_given

if TYPE_CHECKING:
    from runtime.robot import Robot


class UserError(click.ClickException):
    """An error that the user can mend: one sentence and the next step, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


EXTRAS = {
    "mujoco": "sim",
    "tqdm": "sim",
    "jinja2": "sim",
    "matplotlib": "sim",
    "imageio_ffmpeg": "sim",
    "torch": "export",
    "safetensors": "export",
    "onnxscript": "export",
    "sympy": "export",
    "onnx": "export",
    "pyarrow": "export",
    "av": "export",
    "tensorboard": "export",
    "transformers": "text",
    "rerun": "view",
}


def errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the packages' exceptions into a sentence; any other exception is a defect and keeps its traceback. Where an
    arm was driven, its end decides the exit code before the command's own."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        endings.ENDED.clear()
        try:
            result = told(command, *args, **kwargs)
        except click.ClickException as e:
            if (code := endings.exit_code(e.exit_code)) == e.exit_code:
                raise
            e.show()
            sys.exit(code)
        except SystemExit as e:
            e.code = endings.exit_code(e.code) if isinstance(e.code, int) else e.code
            raise
        except Exception:
            if not endings.ENDED:
                raise
            traceback.print_exc()
            sys.exit(endings.exit_code(endings.Exit.VERDICT))
        if code := endings.exit_code(endings.Exit.REST):
            sys.exit(code)
        return result

    return wrapped


def told(command: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`command`, whose Mendable errors become UserErrors and whose interruption ends with a word."""
    try:
        return command(*args, **kwargs)
    except KeyboardInterrupt as e:
        click.echo(": ".join(("stopped", *map(str, e.args))), err=True)
        sys.exit(endings.Exit.INTERRUPTED)
    except ModuleNotFoundError as e:
        if e.name not in EXTRAS:
            raise
        raise UserError(f"{e.name} is not installed: run `pip install 'harmowam-edge[{EXTRAS[e.name]}]'`.") from e
    except Mendable as e:
        raise UserError(as_given(str(e))) from e
    except (UserError, PermissionError) as e:
        if said := unreadable(e):
            raise UserError(said) from e
        if isinstance(e, UserError):
            raise UserError(as_given(e.message)) from e
        raise


@contextlib.contextmanager
def resumable(how: str) -> Iterator[None]:
    """Context for long work: after Ctrl-C the user is told `how` to go on."""
    try:
        yield
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(how) from e


def printable(text: str) -> str:
    """Text of a file from outside, without what would move a terminal's cursor or change its colours."""
    return text if text.isprintable() else ascii(text)[1:-1]


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing; raises UserError."""
    try:
        write_whole(path, text)
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror}): name another file.") from e


def write_json(path: Path | None, data: Any) -> None:
    if path is not None:
        write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def to_be_written(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """The file of an option, whose folder is made at once: what cannot be written is better known before the work than
    after."""
    if path is not None:
        wrong = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            wrong = f"{path.parent} is a file" if isinstance(e, FileExistsError) else str(e.strerror)
        if wrong or not os.access(path.parent, os.W_OK):
            raise UserError(
                f"{path} cannot be written ({wrong or 'no permission'}): name another file with {param.opts[0]}."
            )
    return path


json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    callback=to_be_written,
    help="Also write the numbers to this file.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the simulated robot's start."
)
workers_option = click.option("--workers", type=click.IntRange(min=1), help="Processes (default: one per core).")
bundle_option = click.option(
    "--bundle",
    type=click.Path(readable=False, path_type=Path),
    default=Path("out/so101.bundle"),
    show_default=True,
    help="A bundle that `harmowam export` wrote.",
)


def engine_of(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --engine of a command; `default`: what it takes without the option, in words."""
    return click.option(
        "--engine",
        type=click.Choice(["auto", "tensorrt", "cuda", "cpu"]),
        help=f"What networks run on (default: {default}auto, which is TensorRT if built for this board, else the CPU).",
    )


engine_option = engine_of("the robot file's [compute], else ")
ROBOT = "sim_so101"  # the robot when --robot is not given
robot_option = click.option("--robot", default=ROBOT, show_default=True, help="A shipped robot or a robot file.")


fps_option = click.option(
    "--fps",
    type=click.FloatRange(1, 1000),
    help="Rate of a simulated robot's cameras and of the fast loop (default: the robot file's).",
)


def with_fps(robot: Robot, fps: float | None, camera_fps: float | None = None) -> Robot:
    """The simulated `robot` with the rates from the command line, where any are given; raises UserError."""
    if fps is None and camera_fps is None:
        return robot
    if not robot.simulated:
        raise UserError("--fps and --camera-fps are for a simulated robot: set the rates in the robot file.")
    if math.isnan((fps or 0.0) + (camera_fps or 0.0)):  # NaN passes a range of click
        raise UserError("--fps and --camera-fps must be numbers: correct them.")
    cameras = {k: dataclasses.replace(c, fps=camera_fps or fps or c.fps) for k, c in robot.cameras.items()}
    return dataclasses.replace(robot, fast_hz=fps or robot.fast_hz, cameras=cameras)


def refuse_unused(mode: str, *names: str) -> None:
    """Raises UserError for an option, given by its parameter's name, that was set although it has no meaning with
    `mode`."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = next(p for p in context.command.params if p.name == name)
            raise UserError(f"{option.opts[0]} means nothing {mode}: leave it out.")


def with_engine(robot: Robot, engine: str | None) -> Robot:
    """`robot`, whose networks run on what the command line names, where it names anything."""
    if engine is None:
        return robot
    import msgspec

    return dataclasses.replace(robot, compute=msgspec.structs.replace(robot.compute, engine=engine))


def say(line: str) -> None:
    """Print to the user; a closed terminal must not keep an arm from being lowered."""
    with contextlib.suppress(OSError):
        click.echo(f"  {as_given(line)}", err=True)
