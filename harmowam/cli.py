"""The `harmowam` command. Each verb imports its room when it is asked for, so that `--help` stays quick."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

import harmowam
from common.errors import Mendable
from common.files import write_whole
from firmware_bridge.motion import endings

if TYPE_CHECKING:
    from runtime.robot import Robot


class UserError(click.ClickException):
    """What the user can mend: one sentence and the next step, exit code 2."""

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
}


def errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the rooms' own exceptions into a sentence; anything else is a defect and keeps its traceback. What became of an arm stands
    above every exit code of the command's own."""

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
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(endings.Exit.INTERRUPTED)
    except ModuleNotFoundError as e:
        if e.name not in EXTRAS:
            raise
        raise UserError(f"{e.name} is not installed: run `pip install 'harmowam-edge[{EXTRAS[e.name]}]'`.") from e
    except Mendable as e:
        raise UserError(str(e)) from e


def write_text(path: Path, text: str) -> None:
    """Whole or not at all; raises UserError."""
    try:
        write_whole(path, text)
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror}): name another file.") from e


def write_json(path: Path | None, data: Any) -> None:
    if path is not None:
        write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


def to_be_written(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """The file of an option, whose folder is made at once: what cannot be written is better known before the work than after."""
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
    type=click.Path(path_type=Path, dir_okay=False),
    callback=to_be_written,
    help="Also write the numbers to this file.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Start of the simulated robot."
)
workers_option = click.option("--workers", type=click.IntRange(min=1), help="Processes (default: one a core).")
bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    default=Path("out/so101.bundle"),
    show_default=True,
    help="What `harmowam export` wrote.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "cuda", "cpu"]),
    help="What networks run on (default: the robot file's [compute], else auto: TensorRT if built for this board, else the CPU).",
)
robot_option = click.option("--robot", default="sim_so101", show_default=True, help="A shipped robot or a robot file.")


class Verbs(click.Group):
    """Commands, and the verb groups that live in modules of their own, imported when asked for."""

    groups: ClassVar = {
        "average": "harmowam.train",
        "build": "harmowam.build",
        "bus": "harmowam.bus",
        "calibrate": "harmowam.calibrate",
        "distill": "harmowam.distill",
        "doctor": "harmowam.doctor",
        "evaluate": "harmowam.evaluate",
        "export": "harmowam.export",
        "profile": "harmowam.profile",
        "replay": "harmowam.replay",
        "report": "harmowam.report",
        "train": "harmowam.train",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.groups])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.groups:
            group: click.Command = getattr(importlib.import_module(self.groups[cmd_name]), cmd_name)
            return group
        return super().get_command(ctx, cmd_name)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(harmowam.__version__)
def main() -> None:
    """Take a HarmoWAM world-action model from the workstation to a Jetson Orin arm."""


def refuse_unused(mode: str, *names: str) -> None:
    """Raises UserError for an option, given by its parameter's name, that was given although it means nothing with `mode`."""
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
    """Tell the user; a terminal that is gone must not keep an arm from being lowered."""
    with contextlib.suppress(OSError):
        click.echo(f"  {line}", err=True)


@main.command(short_help="Record the scripted expert in simulation as a dataset.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/table_top"),
    show_default=True,
    help="Folder of the dataset; parts that are there are kept.",
)
@click.option(
    "--episodes", type=click.IntRange(min=0), default=100, show_default=True, help="Demonstrations of each task."
)
@click.option("--play", type=click.IntRange(min=0), default=1000, show_default=True, help="Task-agnostic episodes.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all starts and disturbances."
)
@click.option(
    "--environment",
    type=click.Choice(["seen", "background", "position", "object"]),
    default="seen",
    show_default=True,
    help="Where tasks are shown. Training sees 'seen' only; the others are for measuring.",
)
@workers_option
@click.option(
    "--more",
    multiple=True,
    metavar="TASK=N",
    help="So many demonstrations of one task, and as much play with its things, on top (repeat for other tasks).",
)
@json_option
@errors
def collect(
    out: Path, episodes: int, play: int, seed: int, environment: str, workers: int | None, more: tuple[str, ...],
    json_path: Path | None,
) -> None:  # fmt: skip
    """Record the scripted expert in simulation as a LeRobotDataset: demonstrations of the six tasks, and play."""
    from export.data import collect
    from sim.tasks import TASKS

    on_top: dict[str, int] = {}
    for item in more:
        task, _, count = item.partition("=")
        if task not in TASKS or not count.isdecimal() or task in on_top:
            raise UserError(
                f"--more {item}: write a task ({', '.join(TASKS)}) and a number once each, as --more ring=100."
            )
        on_top[task] = int(count)
    result = collect(out, episodes, play, seed, workers=workers, environment=environment, more=on_top)
    click.echo(f"kept {result['kept']} of {result['tried']} episodes in {out}")
    write_json(json_path, result)


@main.command()
@bundle_option
@robot_option
@click.option("--task", help="Instruction; a simulated robot draws one from --seed.")
@click.option("--seconds", default=20.0, show_default=True, help="How long to drive.")
@click.option("--port", help="Serial port (default: the robot file's).")
@seed_option
@click.option(
    "--policy",
    help="How it drives: of kind harmowam gated (both experts and the gate, the default), or reactive or predictive throughout.",
)
@engine_option
@click.option(
    "--record", type=click.Path(path_type=Path), help="Folder for the run's log (run.mcap), config, report and film."
)
@click.option(
    "--fault", multiple=True, metavar="NAME@SECONDS", help="Inject a fault into the virtual bus (see bus campaign)."
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the log alone, to this file (`harmowam replay`, Foxglove): every frame, input and command.",
)
@json_option
@errors
def run(
    bundle: Path,
    robot: str,
    task: str | None,
    seconds: float,
    port: str | None,
    seed: int,
    policy: str | None,
    engine: str | None,
    record: Path | None,
    fault: tuple[str, ...],
    log: Path | None,
    json_path: Path | None,
) -> None:
    """Drive an arm in real time. Ctrl-C lowers it to rest and releases the torque in a ramp."""
    from firmware_bridge.virtual.faults import parse
    from harmowam.failed import lean, reported
    from harmowam.live import live, process_began_s
    from harmowam.profile import print_timing
    from runtime.observe.verdict import verdict
    from runtime.robot import load_robot

    if fault and not load_robot(robot).simulated:
        raise UserError("--fault acts on the virtual servo bus only: use --robot sim_so101.")
    for f in fault:
        parse(f)
    described = with_engine(load_robot(robot), engine)
    with contextlib.nullcontext() if record is None else reported(bundle, record, say):
        done = live(
            bundle, described, task, seconds, port=port, seed=seed, policy=policy, record=record, log=log, say=say,
            began_s=process_began_s(), faults=fault,
        )  # fmt: skip
    print_timing(done.report)
    if "success" in done.report:
        click.echo(f"task: {done.report['task']}: {verdict(done.report)}")
    write_json(json_path, done.report)
    if record is not None:
        from runtime.observe.report import lacking, write_report

        if missing := lacking():  # a robot's installation is lean
            click.echo(lean(record, missing))
        else:
            write_report(bundle, record, done.report)
            click.echo(f"recorded: {record}, report: {record / 'report.html'}")


@main.command(short_help="Export, drive the simulated arm, write a report and a film.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/demo"),
    show_default=True,
    help="Folder of report and film.",
)
@click.option("--task", default="put the red cube on the plate", show_default=True, help="Instruction (docs/tasks.md).")
@seed_option
@click.option("--seconds", default=20.0, show_default=True, help="At most; the run ends with success.")
@engine_option
@json_option
@errors
def demo(out: Path, task: str, seed: int, seconds: float, engine: str | None, json_path: Path | None) -> None:
    """Export the shipped checkpoint to INT8, let it drive the simulated arm in real time, and report."""
    from harmowam.demo import demo
    from harmowam.profile import print_timing
    from runtime.observe.verdict import verdict

    result = demo(out, task, seed, seconds, say, engine)
    print_timing(result)
    click.echo(f"task: {result['task']}: {verdict(result)}")
    click.echo(f"report: {out / 'report.html'}\nvideo:  {out / 'episode.mp4'}")
    write_json(json_path, result)


if __name__ == "__main__":
    main()
