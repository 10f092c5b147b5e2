"""`harmowam data`: look at recordings before training, write them out clean, open them in Rerun."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmware_bridge.arms import FAMILIES
from firmware_bridge.motion.endings import Exit
from harmowam.options import UserError, errors, json_option, printable, write_json, write_text

if TYPE_CHECKING:
    from export.recordings import Examined, How
    from export.recordings.page import Checked

PATH = click.Path(readable=False, path_type=Path)
FOLDERS = click.argument("folders", metavar="FOLDER...", type=PATH, nargs=-1, required=True)
MANY = 12  # findings in the terminal
RECORDING = ("units", "joints", "mapped", "cameras", "arm", "recorded_fps", "leave_out")  # parameters of the options


def recording_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What an owner says about a recording; `how_of` takes them."""
    for option in reversed(
        [
            click.option(
                "--units",
                type=click.Choice(["degrees", "rad", "normalised"]),
                help="Units of the joints, where the recording does not show them; normalised is lerobot's -100..100.",
            ),
            click.option(
                "--joints", type=PATH, help="The arm's lerobot_calibration.json, for the ranges of normalised joints."
            ),
            click.option(
                "--camera",
                "mapped",
                multiple=True,
                metavar="VIEW=NAME",
                help="Which camera of the recording is the front view (stands) or wrist view (rides on the gripper).",
            ),
            click.option(
                "--cameras", type=PATH, help="Folder with the calibrations of its cameras: front.json, wrist.json."
            ),
            click.option("--arm", type=click.Choice(sorted(FAMILIES)), help="The arm, where the recording is unclear."),
            click.option(
                "--recorded-fps", type=click.FloatRange(0.1, 1000), help="Rate, where the recording contradicts itself."
            ),
            click.option(
                "--leave-out",
                multiple=True,
                metavar="[FOLDER=]N,N,...",
                help="Episodes that are not to be read.",
            ),
        ]
    ):
        command = option(command)
    return command


def how_of(
    folder: Path,
    *,
    units: str | None,
    joints: Path | None,
    mapped: Sequence[str],
    cameras: Path | None,
    arm: str | None,
    recorded_fps: float | None,
    leave_out: Sequence[str],
    alone: bool = True,
) -> How:
    """The options of `recording_options` for one of the folders (`alone`: it is the only one); raises UserError."""
    from export.lerobot import read_cameras
    from export.recordings import VIEWS, How

    views: dict[str, tuple[str, ...]] = {}
    for item in mapped:
        view, _, name = item.partition("=")
        if view not in VIEWS or not name:
            raise UserError(f"--camera {item}: write {VIEWS[0]}=NAME or {VIEWS[1]}=NAME, with the recording's name.")
        views[view] = (*views.get(view, ()), name)
    left: list[int] = []
    for item in leave_out:
        where, _, numbers = item.rpartition("=")
        if not where and not alone:
            raise UserError(f"--leave-out {item}: with several folders write --leave-out FOLDER={item}.")
        if where and Path(where) != folder:
            continue
        if not all(n.isdecimal() for n in numbers.split(",")):
            raise UserError(f"--leave-out {item}: write numbers of episodes, as --leave-out 3,17.")
        left += [int(n) for n in numbers.split(",")]
    return How(
        units=units,
        joints=joints,
        cameras=views,
        calibration=read_cameras(cameras) if cameras else {},
        arm=FAMILIES[arm] if arm else None,
        recorded_fps=recorded_fps,
        leave_out=tuple(left),
    )


def examined(folders: Sequence[Path], options: dict[str, Any]) -> list[Examined]:
    from export.recordings import examine

    return [examine(f, how_of(f, alone=len(folders) == 1, **options)) for f in folders]


@click.group(short_help="Look at recordings before training, convert them, open them in Rerun.")
def data() -> None:
    """Recordings of LeRobot (v2.0, v2.1, v3) of an SO-100, SO-101, Koch or ViperX, as they lie."""


@data.command(short_help="One page about recordings, to look at before training.")
@FOLDERS
@recording_options
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    default=Path("data_check.html"),
    show_default=True,
    help="The page.",
)
@json_option
@errors
def check(folders: tuple[Path, ...], out: Path, json_path: Path | None, **options: Any) -> None:
    """Examine FOLDERs, look at every picture, and write one HTML page: what stands against training, ranges, rate,
    sync, light, tasks, what training will do, what to record more of. Exit code 1: one cannot be used."""
    from export.config import Config
    from export.recordings.page import checked, page

    looked = [checked(found) for found in examined(folders, options)]
    write_text(out, page(looked, Config.rate_hz))
    told = [_json(c) for c in looked]
    write_json(json_path, told[0] if len(told) == 1 else {"datasets": told})
    for c in looked:
        _print(c)
    click.echo(f"page: {out}")
    if not all(c.found.accepted for c in looked):
        sys.exit(Exit.VERDICT)


def _json(c: Checked) -> dict[str, Any]:
    """What `Examined.to_json` says, with what was measured."""
    from export.recordings.advice import more

    told = c.found.to_json()
    told["problems"] = [{"kind": p.kind, "episode": p.episode, "detail": p.detail, "fix": p.fix} for p in c.problems]
    if c.seen is not None:
        told["sync"] = {
            s.camera: {"delay_ms": s.delay_ms, "sd_ms": s.sd_ms, "correlation": round(s.correlation, 3)}
            for s in c.seen.syncs
        }
        told["more"] = more(c.found, c.seen)
    return told


def _print(c: Checked) -> None:
    found = c.found
    verdict = "can be used" if found.accepted else "CANNOT be used as it is"
    click.echo(f"{found.folder}: {verdict}; {len(found.takes)} of {found.listed} episodes, {found.rows:,} rows")
    click.echo(f"  joints in {found.units.joints or '?'}: {printable(found.units.evidence)}")
    for p in sorted(c.problems, key=lambda p: (not p.fatal, p.episode is not None))[:MANY]:
        click.echo(f"  {'!' if p.fatal else '-'} {p.kind}: {printable(str(p))}")
    if len(c.problems) > MANY:
        click.echo(f"  ... and {len(c.problems) - MANY} more, on the page")


@data.command(short_help="Write recordings out clean, as one LeRobotDataset v3.")
@FOLDERS
@recording_options
@click.option("--out", type=PATH, required=True, help="The new folder.")
@json_option
@errors
def convert(folders: tuple[Path, ...], out: Path, json_path: Path | None, **options: Any) -> None:
    """Write the usable episodes of FOLDERs to a new LeRobotDataset v3: rad, an even clock, names of this project,
    pictures at their size. `harmowam train` needs no such step."""
    from export.recordings.convert import convert

    written, said = convert(examined(folders, options), out)
    for p in said:
        click.echo(f"  ! {printable(str(p))}")
    click.echo(f"{out}: {written} episodes")
    write_json(json_path, {"out": str(out), "episodes": written, "left_out": [p.episode for p in said]})


@data.command(short_help="Open a recording in Rerun.")
@click.argument("folder", type=PATH)
@recording_options
@click.option("--episode", "episodes", type=click.IntRange(min=0), multiple=True, help="Only these (default: all).")
@errors
def view(folder: Path, episodes: tuple[int, ...], **options: Any) -> None:
    """Pictures, positions and goals of FOLDER in Rerun (extra `[view]`)."""
    from export.recordings import refusal
    from export.recordings.view import view

    (found,) = examined((folder,), options)
    if found.arm is None or found.units.joints is None or not found.takes:
        raise refusal(found)
    click.echo(f"{view(found, episodes)} episodes of {folder}")
