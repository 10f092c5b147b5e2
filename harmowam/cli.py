"""The `harmowam` command. Each verb imports its package when it runs, so that `--help` is quick."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click

import harmowam

if TYPE_CHECKING:
    pass
from harmowam.options import (
    UserError,
    bundle_option,
    engine_option,
    errors,
    fps_option,
    json_option,
    refuse_unused,
    resumable,
    robot_option,
    say,
    seed_option,
    with_engine,
    with_fps,
    workers_option,
    write_json,
)


class Verbs(click.Group):
    """Commands, and verb groups in modules of their own that are imported when they are used."""

    groups: ClassVar = {
        "average": "harmowam.train",
        "build": "harmowam.build",
        "bundle": "harmowam.bundle",
        "bus": "harmowam.bus",
        "calibrate": "harmowam.calibrate",
        "certify": "harmowam.export",
        "data": "harmowam.data",
        "distill": "harmowam.distill",
        "doctor": "harmowam.doctor",
        "evaluate": "harmowam.evaluate",
        "export": "harmowam.export",
        "profile": "harmowam.profile",
        "rehearse": "harmowam.rehearse",
        "replay": "harmowam.replay",
        "report": "harmowam.report",
        "search-recipe": "harmowam.export",
        "setup": "harmowam.setup",
        "tasks": "harmowam.tasks",
        "train": "harmowam.train",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.groups])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.groups:
            group: click.Command = getattr(importlib.import_module(self.groups[cmd_name]), cmd_name.replace("-", "_"))
            return group
        return super().get_command(ctx, cmd_name)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(harmowam.__version__)
def main() -> None:
    """Take a HarmoWAM world-action model from the workstation to a Jetson Orin arm."""


@main.command(short_help="Record the scripted expert in simulation as a dataset.")
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path, file_okay=False),
    default=Path("data/table_top"),
    show_default=True,
    help="Folder of the dataset; existing parts are kept.",
)
@click.option(
    "--episodes", type=click.IntRange(min=0), default=100, show_default=True, help="Demonstrations of each task."
)
@robot_option
@click.option("--play", type=click.IntRange(min=0), default=1000, show_default=True, help="Task-agnostic episodes.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all starts and disturbances."
)
@click.option(
    "--environment",
    type=click.Choice(["seen", "background", "position", "object"]),
    default="seen",
    show_default=True,
    help="Environment of the tasks. Training uses 'seen' only; the others are for measuring.",
)
@workers_option
@click.option(
    "--more",
    multiple=True,
    metavar="TASK=N",
    help="N additional demonstrations of one task, and N episodes of play with its things (repeatable).",
)
@click.option(
    "--rate",
    type=click.Choice(["20", "25"]),
    default="20",
    show_default=True,
    help="Rows a second that the dataset says: as many as the model takes (25: recipes/so101.toml; 20: the default).",
)
@json_option
@errors
def collect(
    out: Path,
    episodes: int,
    robot: str,
    play: int,
    seed: int,
    environment: str,
    workers: int | None,
    more: tuple[str, ...],
    rate: str,
    json_path: Path | None,
) -> None:
    """Record the scripted expert in simulation as a LeRobotDataset: demonstrations of the six tasks, and play. For an
    arm that the tasks are not laid out for, it traces circles in the air, clockwise and counter-clockwise."""
    from export.data import collect
    from export.trace import collect_traces
    from runtime.robot import load_robot
    from sim.tasks import ARM, TASKS

    described = load_robot(robot)
    if not described.simulated:
        raise UserError(f"the scripted expert drives simulated robots only: use --robot sim_{described.family.NAME}.")
    if described.family.NAME != ARM.NAME:
        refuse_unused(f"with a {described.family.NAME}, which traces circles", "play", "environment", "more", "rate")
        result = collect_traces(out, described, episodes, seed, workers=workers)
        click.echo(f"kept {result['kept']} of {result['tried']} episodes in {out}")
        write_json(json_path, result)
        return
    on_top: dict[str, int] = {}
    for item in more:
        task, _, count = item.partition("=")
        if task not in TASKS or not count.isdecimal() or task in on_top:
            raise UserError(
                f"--more {item}: write a task ({', '.join(TASKS)}) and a number once each, as --more ring=100."
            )
        on_top[task] = int(count)
    with resumable(f"the same command goes on; {out} keeps the parts that are whole"):
        result = collect(out, episodes, play, seed, workers, float(rate), environment, on_top)
    click.echo(f"kept {result['kept']} of {result['tried']} episodes in {out}")
    write_json(json_path, result)


def check_faults(faults: tuple[str, ...], robot: str) -> None:
    """Raises UserError for faults of a robot that has no virtual servos, or that are not understood."""
    from firmware_bridge.virtual.faults import parse
    from runtime.robot import load_robot
    from sim.tasks import DISPLACED

    if faults and not load_robot(robot).simulated:
        raise UserError("--fault acts on a simulated robot only: use --robot sim_so101.")
    for fault in faults:
        parse(fault, (DISPLACED,))


@main.command()
@bundle_option
@robot_option
@click.option("--task", help="Instruction; a simulated robot draws one from --seed.")
@click.option(
    "--then",
    multiple=True,
    metavar="INSTRUCTION",
    help="Next instruction, begun when the policy says that the one before is done (repeatable).",
)
@click.option(
    "--seconds",
    default=20.0,
    show_default=True,
    help="Longest duration, s; a policy that says that it is done ends the run.",
)
@click.option("--port", help="Serial port (default: the robot file's).")
@seed_option
@click.option(
    "--policy",
    help="How the policy drives. For kind harmowam: gated (both experts and the gate, the default), reactive or "
    "predictive (this expert throughout).",
)
@engine_option
@fps_option
@click.option(
    "--record",
    type=click.Path(readable=False, path_type=Path),
    help="Folder for the run's log (run.mcap), config, report, film (default: runs/DATE-TASK, without log and film).",
)
@click.option(
    "--fault",
    multiple=True,
    metavar="NAME@SECONDS",
    help="Inject a fault into the virtual bus (see bus campaign), or displaced: then the item or the goal moves once "
    "while the arm is on its way (docs/evaluation.md).",
)
@click.option(
    "--log",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    help="Write the log to this file (`harmowam replay`, Foxglove): every frame, input and command.",
)
@json_option
@errors
def run(
    bundle: Path,
    robot: str,
    task: str | None,
    then: tuple[str, ...],
    seconds: float,
    port: str | None,
    seed: int,
    policy: str | None,
    engine: str | None,
    fps: float | None,
    record: Path | None,
    fault: tuple[str, ...],
    log: Path | None,
    json_path: Path | None,
) -> None:
    """Drive an arm in real time. Ctrl-C lowers it to rest and releases the torque in a ramp.

    What was run and how it ended (config.json, report.json, report.html, motor.log) is left in runs/DATE-TASK, whose
    path comes last. Pictures, inputs and commands are kept with --record or --log only: at 100 Hz they are up to 2.8 GB
    a minute.
    """
    from harmowam.folders import left_in
    from harmowam.live import live
    from harmowam.page import paged, reported
    from harmowam.processes import process_began_s
    from harmowam.profile import print_timing
    from runtime.observe.episode import LOG
    from runtime.robot import load_robot

    check_faults(fault, robot)
    described = with_fps(with_engine(load_robot(robot), engine), fps)
    if record is not None and log is not None:
        raise UserError(f"--record writes a log, too ({record / LOG}): leave --log out.")
    with left_in(record, task or described.name, "--record", say) as folder:
        with reported(bundle, folder, say):
            done = live(
                bundle,
                described,
                task,
                seconds,
                port=port,
                seed=seed,
                policy=policy,
                record=folder,
                log=log if record is None else record / LOG,
                say=say,
                began_s=process_began_s(),
                faults=fault,
                then=then,
            )
        print_timing(done.report)
        write_json(json_path, done.report)
        if folder is not None:
            click.echo(paged(done.bundle, folder, done.report))


@main.command(short_help="Export, drive the simulated arm, write a report and a film.")
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path, file_okay=False),
    help="Folder of log, report and film (default: runs/DATE-TASK).",
)
@click.option(
    "--bundle",
    type=click.Path(readable=False, path_type=Path),
    default=Path("out/so101.bundle"),
    show_default=True,
    help="Where the shipped checkpoint's bundle is, or is exported to; another bundle there stays as it is.",
)
@click.option("--task", default="put the red cube on the plate", show_default=True, help="Instruction (docs/tasks.md).")
@seed_option
@click.option("--seconds", default=20.0, show_default=True, help="Longest duration, s; the run ends at success.")
@engine_option
@json_option
@errors
def demo(
    out: Path | None, bundle: Path, task: str, seed: int, seconds: float, engine: str | None, json_path: Path | None
) -> None:
    """Export the shipped checkpoint to INT8, let it drive the simulated arm in real time, and report."""
    from harmowam.demo import demo
    from harmowam.folders import left_in
    from harmowam.profile import print_timing

    with left_in(out, task, "--out", say) as folder:
        if folder is None:
            raise UserError("a demo needs a folder: name one with --out.")
        result = demo(bundle, folder, task, seed, seconds, say, engine)
    print_timing(result)
    write_json(json_path, result)
    click.echo(f"report: {folder / 'report.html'}\nvideo:  {folder / 'episode.mp4'}\nrecorded: {folder}")


if __name__ == "__main__":
    main()
