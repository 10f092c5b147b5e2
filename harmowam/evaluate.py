"""`harmowam evaluate`: the paper's table of success, in simulation and virtual time."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harmowam.options import (
    UserError,
    bundle_option,
    engine_of,
    errors,
    json_option,
    resumable,
    say,
    to_be_written,
    workers_option,
    write_json,
)

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.compute import Engine
    from sim.virtual_time import Schedule


ENGINES = ("world_model", "predictive", "fast")


def _chosen(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The comma-separated names in `text`; "all" is all of them."""
    names = known if text == "all" else tuple(text.split(","))
    unknown = [n for n in names if n not in known]
    if unknown:
        raise UserError(f"--{option} '{unknown[0]}' does not exist: use {', '.join(known)} or all.")
    return tuple(dict.fromkeys(names))


@click.command(short_help="Count successes in simulation, by policy and environment.")
@bundle_option
@click.option(
    "--policy",
    help="For a bundle of kind harmowam: gated (the default), reactive, predictive, average, oracle, true_future; "
    "several with commas, or all. Other bundles: chunk, or diffusion.",
)
@click.option(
    "--environment",
    default="seen",
    show_default=True,
    help="seen, background, position, object, disturbed (as seen, but a thing is moved once); several with commas, or "
    "all. docs/tasks.md describes them.",
)
@click.option("--task", default="all", show_default=True, help="Names of tasks with commas, or one instruction.")
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Episodes of each task, in each environment, with each policy.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the first episode; the others count up from it.",
)
@click.option(
    "--split",
    type=click.Choice(["development", "test"]),
    default="development",
    show_default=True,
    help="Seeds to draw starts from; keep `test` for published results.",
)
@click.option(
    "--start",
    type=click.Choice(["home", "near", "both"]),
    default="home",
    show_default=True,
    help="Where the arm starts; near is at hover above the first subgoal.",
)
@click.option(
    "--latency",
    multiple=True,
    metavar="ENGINE=MS|BOARD",
    help="Virtual latency of the engine world_model, predictive or fast; or a board and its power mode "
    "(orin-nano-8gb-25w), for what the roofline predicts there.",
)
@click.option(
    "--camera-fps", type=click.FloatRange(min=1), default=25.0, show_default=True, help="Frame rate of both cameras."
)
@click.option(
    "--rows",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    callback=to_be_written,
    help="Append each episode to this file as a JSON line; episodes in the file are not run again.",
)
@click.option(
    "--shard",
    default="1/1",
    show_default=True,
    metavar="I/N",
    help="Run only every N-th episode, beginning with the I-th.",
)
@engine_of("")
@workers_option
@json_option
@errors
def evaluate(
    bundle: Path,
    policy: str | None,
    environment: str,
    task: str,
    episodes: int,
    seed: int,
    split: str,
    start: str,
    latency: tuple[str, ...],
    camera_fps: float,
    rows: Path | None,
    shard: str,
    engine: Engine | None,
    workers: int | None,
    json_path: Path | None,
) -> None:
    """Success over seeded starts in virtual time, by policy and environment; all policies get the same starts."""
    from common.words import counted
    from runtime.bundle import Bundle
    from runtime.compute import REPORTED, Compute, choose
    from runtime.policies import kind_of
    from sim.evaluate import OURS, STARTS, digest, jobs_for, read_rows, run_jobs
    from sim.results import COLUMNS, LEGEND, cells, sentences, summary, table
    from sim.tasks import DISTURBED, ENVIRONMENTS, INSTRUCTIONS, TASKS

    this_shard, opened = _shard(shard), Bundle.load(bundle)
    schedule = _schedule(camera_fps, latency, opened)
    chosen, modes = choose(opened, Compute(engine or "auto")), kind_of(opened).modes
    ways = OURS if opened.manifest.policy.kind == "harmowam" else modes
    single = task in INSTRUCTIONS or " " in task
    jobs = jobs_for(
        bundle,
        _chosen("policy", policy or modes[0], ways),
        _chosen("environment", environment, (*ENVIRONMENTS, DISTURBED)),
        (task,) if single else _chosen("task", task, tuple(TASKS)),
        range(seed, seed + episodes),
        split=split,
        starts=STARTS if start == "both" else (start,),
        schedule=schedule,
        engine=chosen.engine,
    )[this_shard]
    if chosen.note:
        say(chosen.note)
    kept = {row["key"] for row in read_rows(rows)} if rows else set()
    began = time.monotonic()
    with resumable(f"the same command goes on, {rows} keeps what was played" if rows else "with --rows it could go on"):
        found = run_jobs(jobs, rows, workers)
    wall = time.monotonic() - began
    print_table([list(COLUMNS), *table(found)])
    for line in (LEGEND, *sentences(found)):
        click.echo(line)
    if failed := bool(opened.manifest.quantization.get("failed")):
        click.echo(f"{bundle} FAILED the gates of its export: these figures say nothing about its checkpoint")
    played = [row["seconds"] for row in found if row["key"] not in kept]
    about = {"bundle": bundle.name, "hash": digest(bundle), "seed": seed, "split": split, "failed_gates": failed}
    told = {"schedule": dataclasses.asdict(schedule), "engine": REPORTED[chosen.engine]}
    pace = {"played": len(played), "simulated_s": round(sum(played), 2), "wall_s": round(wall, 2)}
    write_json(json_path, {**about, "cells": cells(found), "summary": summary(found), **told, **pace})
    click.echo(f"{counted(len(found), 'episode')} of the {split} seeds; {_pace(played, wall)}")


def _pace(played: list[float], wall_s: float) -> str:
    """How fast the episodes of this run were played; `played`: their simulated seconds."""
    if not played:
        return "all of them were played by an earlier run"
    rate = f"{sum(played) / wall_s:.1f} simulated seconds a second"
    return f"{len(played)} played now in {wall_s:.0f} s ({rate})"


def _shard(text: str) -> slice:
    """The episodes of shard I/N: every N-th one from the I-th on. Raises UserError."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard {text} is not understood: write for example 1/4 for the first of four parts.")
    return slice(int(part) - 1, None, int(parts))


def _on_board(name: str, bundle: Bundle) -> dict[str, float]:
    """Engine -> predicted milliseconds on a board, from the plans of the bundle where it has some. Raises UserError for
    an unknown board."""
    from export.roofline import BOARDS, described, predicted, spelt
    from export.tensorrt.stored import read_plan
    from runtime.engines.plan import PLAN

    known = [spelt(board) for board in BOARDS]
    if name not in known:
        raise UserError(
            f"--latency {name} is not understood: write world_model=MS, predictive=MS or fast=MS, or one of "
            f"{', '.join(known)}."
        )
    plans = read_plan(bundle.path).plans if (bundle.path / "reports" / PLAN).is_file() else {}
    files = {n: bundle.path / e.file for n, e in bundle.manifest.engines.items() if n in ENGINES}
    row = predicted(files, plans)[known.index(name)]
    told = {engine: float(row[engine]) for engine in files}
    say(f"{name}, {described(plans)}: " + ", ".join(f"{engine} {ms:.2f} ms" for engine, ms in told.items()))
    return told


def _schedule(camera_fps: float, latency: tuple[str, ...], bundle: Bundle) -> Schedule:
    """Rates and latencies of the virtual robot, from the options; raises UserError."""
    from sim.virtual_time import Schedule

    if not math.isfinite(camera_fps):
        raise UserError("--camera-fps must be a number: correct it.")
    schedule = Schedule(camera_hz=camera_fps)
    for item in latency:
        name, equals, ms = item.partition("=")
        if not equals:
            told = _on_board(name, bundle)
            schedule = dataclasses.replace(schedule, **{f"{engine}_ms": late for engine, late in told.items()})
            continue
        try:
            late = float(ms)
        except ValueError:
            late = -1.0
        if name not in ENGINES or not 0 <= late < math.inf:
            raise UserError(f"--latency {item} is not understood: write world_model=MS, predictive=MS or fast=MS.")
        schedule = dataclasses.replace(schedule, **{f"{name}_ms": late})
    return schedule


def print_table(lines: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for k, line in enumerate(lines):
        click.echo(
            "  ".join(
                c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
        )
        if k == 0:
            click.echo("  ".join("-" * w for w in widths))
