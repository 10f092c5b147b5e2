"""`harmowam profile`: where each millisecond goes, as table, JSON, page and Perfetto trace; compared with another
run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.files import write_whole
from harmowam.hints import as_given
from harmowam.options import (
    UserError,
    bundle_option,
    engine_option,
    errors,
    fps_option,
    json_option,
    robot_option,
    say,
    seed_option,
    with_engine,
    with_fps,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np

    from harmowam.live import LiveRun
    from runtime.observe.advice import Advice, Facts
    from runtime.robot import Robot

FLOWS = {"slow.world_model": "world", "slow.predictive": "action"}  # stage -> its steps in `runtime.bundle.flow_steps`


def print_timing(report: dict[str, Any]) -> None:
    """The profile table, and whether the task was done where somebody judged it."""
    from common.words import counted
    from runtime.observe.profile import MEANING, SERIES, label
    from runtime.observe.verdict import verdict

    click.echo(
        f"fast loop {report['fast_hz']:.1f} Hz on new frames (+{report['repeat_hz']:.2f} Hz on repeated ones), slow "
        f"loop {report['slow_hz']:.1f} Hz; {report['deadline_misses']} of {counted(report['ticks'], 'fast step')} were "
        f"late, the motor process left out {counted(report['motor_missed_ticks'], 'step')}"
    )
    click.echo(f"{'':26}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'max':>9}{'budget':>9}  ms")
    for name in SERIES:
        row = report[name]
        cells = "".join(f"{row[p]:9.2f}" for p in ("p50", "p90", "p99", "p999", "max"))
        click.echo(f"{label(name):26}{cells}")
    for name, row in report["stages"].items():
        cells = "".join(f"{row[p + '_ms']:9.2f}" for p in ("p50", "p90", "p99", "p999", "max"))
        click.echo(f"{name:26}{cells}{row['budget_ms']:9.1f}")
    for name, meaning in MEANING.items():
        click.echo(f"{label(name)}: {meaning}")
    health = report["health"]
    click.echo(
        f"state at the end: {health['state']}, after {counted(len(health['changes']), 'change')} of state; jerk of the "
        f"joint goals {report['goal_jerk_rad_s3']['rms']:.0f} rad/s^3 (root mean square; less is smoother)"
    )
    click.echo(f"first command after {report['time_to_first_command_s']} s, runtime processes {report['rss_mb']} MB")
    log = report.get("log", {})
    if log.get("fault") or log.get("dropped"):
        click.echo(f"log: {log.get('fault') or 'written'}; {log['dropped']} records were dropped")
    processors = report["processors"]
    click.echo(
        f"processors {processors['busy']:.0%} busy, {processors['stolen']:.1%} taken by the host for other machines"
    )
    if "success" in report:
        click.echo(f"task: {report['task']}: {verdict(report)}")


def _print_comparison(compared: dict[str, Any]) -> None:
    click.echo(f"{'':34}{'before':>10}{'now':>10}{'ratio':>8}")
    for row in compared["rows"]:
        if row["verdict"] != "same":
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            click.echo(f"{row['name']:34}{row['before']:10.3f}{row['now']:10.3f}{ratio:>8}  {row['verdict']}")
    click.echo(f"verdict: {compared['verdict']}")


def _facts(bundle: Path, robot: str, described: Robot, done: LiveRun) -> Facts:
    """What the advice needs beside the report: of the bundle, the robot (as the command line names both) and this
    machine."""
    from runtime.bundle import flow_steps
    from runtime.doctor.finding import Machine
    from runtime.doctor.timing import clocks, realtime
    from runtime.observe.advice import Facts

    steps = flow_steps(done.bundle.path)
    stages = {stage: steps[k] for stage, k in FLOWS.items() if k in steps}
    findings = [*realtime(Machine()), *clocks(Machine())]
    return Facts(
        bundle=str(bundle),
        robot=robot,
        camera_hz=min(c.fps for c in described.cameras.values()),
        simulated=described.simulated,
        quantization=done.bundle.manifest.quantization,
        steps=stages,
        note=done.driver.compute.note,
        mends={f.name: as_given(f.mend) for f in findings if f.state != "ok" and f.mend},
    )


def _print_advice(found: list[Advice]) -> None:
    for k, a in enumerate(found, 1):
        click.echo(f"{k}. {a.binds}\n   gain: {a.gain}\n   next: {a.command}")


def _tell(
    report: dict[str, Any], found: list[Advice], other: dict[str, Any] | None, against: Path | None
) -> dict[str, Any] | None:
    """Print the profile and the advice; compare it with the profile `other` of the file `against`, where there is one,
    and note both in `report`."""
    from runtime.observe.profile import compare

    report["advice"] = [dataclasses.asdict(a) for a in found]
    print_timing(report)
    _print_advice(found)
    if other is None:
        return None
    compared = compare(report, other)
    _print_comparison(compared)
    report["against"] = {"file": str(against), "verdict": compared["verdict"], "worse": compared["worse"]}
    return compared


def _read(path: Path) -> dict[str, Any]:
    """An earlier profile; raises UserError. Call it before the arm moves."""
    from common.schema import Malformed
    from runtime.observe.profile import read_report

    try:
        return read_report(path)
    except (OSError, ValueError, Malformed) as e:  # ValueError: a path that can be none
        why = e.strerror if isinstance(e, OSError) else e
        raise UserError(f"{path} is no profile ({why}): give a file that `harmowam profile --json` wrote.") from e


def _injected(items: tuple[str, ...], stages: tuple[str, ...]) -> dict[str, float]:
    known = ["fast.take", *(s for s in stages if s.startswith(("fast.", "slow."))), "fast.slot"]
    out = {}
    for item in items:
        stage, _, ms = item.partition("=")
        if stage not in known or not ms.replace(".", "", 1).isdigit():
            raise UserError(f"--inject {item} is not understood: write STAGE=MS with one of {', '.join(known)}.")
        out[stage] = float(ms)
    return out


def _write_folder(
    out: Path,
    report: dict[str, Any],
    tracks: dict[str, dict[str, np.ndarray]],
    compared: dict[str, Any] | None,
) -> None:
    """profile.html, profile.json and trace.json; `tracks` as from `runtime.loop.timing.tracks`."""
    from runtime.observe.profile_page import page
    from runtime.observe.trace import write_perfetto

    write_perfetto(out / "trace.json", tracks)
    write_whole(out / "profile.html", page(report, tracks, compared))
    write_json(out / "profile.json", report)
    click.echo(f"page: {out / 'profile.html'}, trace for ui.perfetto.dev: {out / 'trace.json'}\nrecorded: {out}")


@click.command(short_help="Where each millisecond goes.")
@bundle_option
@robot_option
@click.option("--seconds", default=60.0, show_default=True, help="How long to drive.")
@click.option("--task", help="Instruction; a simulated robot draws one from --seed.")
@click.option("--port", help="Serial port (default: the robot file's).")
@seed_option
@engine_option
@fps_option
@click.option("--camera-fps", type=click.FloatRange(1, 1000), help="Rate of a simulated robot's cameras alone.")
@click.option(
    "--inject", multiple=True, metavar="STAGE=MS", help="What if this stage took so much longer? Really waits."
)
@click.option("--no-compensate", is_flag=True, help="Without delay compensation, for comparison.")
@click.option(
    "--log",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    help="Also record an MCAP log (what recording costs shows up here).",
)
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path),
    help="Folder for profile.html, profile.json, trace.json (Perfetto), config and report (default: runs/DATE-TASK).",
)
@click.option(
    "--against",
    type=click.Path(readable=False, path_type=Path),
    help="An earlier profile's JSON; exit code 1 when this run is worse.",
)
@json_option
@errors
def profile(
    bundle: Path,
    robot: str,
    seconds: float,
    task: str | None,
    port: str | None,
    seed: int,
    engine: str | None,
    fps: float | None,
    camera_fps: float | None,
    inject: tuple[str, ...],
    no_compensate: bool,
    log: Path | None,
    out: Path | None,
    against: Path | None,
    json_path: Path | None,
) -> None:
    """Where each millisecond goes: the same loop as `run`, with every stage stamped by one clock."""
    from harmowam.folders import left_in, make_folder
    from harmowam.live import live
    from harmowam.page import reported
    from harmowam.processes import process_began_s
    from runtime.bundle import Bundle
    from runtime.loop.timing import tracks
    from runtime.observe.advice import advice
    from runtime.observe.profile import board
    from runtime.policies import kind_of
    from runtime.robot import load_robot

    other = None if against is None else _read(against)
    described = with_fps(with_engine(load_robot(robot), engine), fps, camera_fps)
    injected = _injected(inject, kind_of(Bundle.load(bundle, described.trust)).stages) if inject else {}
    if out is not None:
        make_folder(out, "--out")
    before = board()
    with left_in(out, task or described.name, "--out", say) as folder, reported(bundle, folder, say):
        done = live(
            bundle,
            described,
            task,
            seconds,
            port=port,
            seed=seed,
            say=say,
            began_s=process_began_s(),
            inject=injected,
            compensate=not no_compensate,
            record=folder,
            log=log,
            to_the_end=True,
        )
    report = {**done.report, "board": {**board(), "temperature_before_c": before.get("temperature_c", {})}}
    report |= {"injected": list(inject)} if inject else {}
    found = advice(report, _facts(bundle, robot, described, done))
    compared = _tell(report, found, other, against)
    write_json(json_path, report)
    if folder is not None:
        _write_folder(folder, report, tracks(done.driver), compared)
    if compared is not None and compared["verdict"] == "worse":
        sys.exit(1)
