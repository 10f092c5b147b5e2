"""`harmowam calibrate`: boards, intrinsics, hand-eye, drift check, joints, and the store's history."""

from __future__ import annotations

import contextlib
import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from common.files import barred
from harmowam.calibrate_hand_eye import hand_eye
from harmowam.calibrate_recording import from_recording
from harmowam.calibrate_store import (
    camera_option,
    diff,
    export,
    history,
    open_store,
    report_option,
    rollback,
    store_option,
)
from harmowam.hints import as_given
from harmowam.options import UserError, errors, json_option, refuse_unused, robot_option, say, write_json

BOARD = "charuco:11x8:0.024:0.018:4x4_50"  # fills an A4 sheet

images_option = click.option("--images", help="Pictures in a folder, as a quoted pattern, in place of the live camera.")


@click.group()
def calibrate() -> None:
    """Recalibrate cameras and joints, and know when it is needed."""


for verb in (hand_eye, from_recording, history, rollback, diff, export):
    calibrate.add_command(verb)


@contextlib.contextmanager
def _camera(robot: Any, name: str) -> Iterator[Any]:
    """An open live camera of the robot file."""
    from runtime.cameras.process import looking_at

    _refuse_simulated(robot, name)
    with looking_at(robot, name) as source:
        yield source


def _refuse_simulated(robot: Any, name: str) -> None:
    from harmowam.calibration_rig import camera_config

    if camera_config(robot, name).source == "sim":
        raise UserError(
            "the simulated robot's cameras show no board: `harmowam rehearse` calibrates virtual cameras that do; for "
            "others give --images, or a robot file with --robot."
        )


def _pictures(pattern: str) -> list[tuple[str, Any]]:
    """(name, uint8[H,W]) of every picture that fits the pattern."""
    import cv2

    out = []
    for path in sorted(glob.glob(pattern)):
        if said := barred(path):  # OpenCV tells no reason
            raise UserError(said)
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        out.append((Path(path).name, image))
    if not out:
        if said := barred(Path(pattern).parent):
            raise UserError(said)
        raise UserError(f"no picture fits '{pattern}': check the folder, and quote the pattern.")
    return out


def _readable(pattern: str) -> list[Any]:
    """uint8[H,W] of every picture that fits the pattern and can be read; at least one."""
    images = [i for _, i in _pictures(pattern) if i is not None]
    if not images:
        raise UserError(f"no picture that fits '{pattern}' can be read: give PNG or JPEG files.")
    return images


@calibrate.command()
@click.argument("out", type=click.Path(readable=False, path_type=Path), default=Path("board.pdf"))
@click.option(
    "--board",
    "text",
    default=BOARD,
    show_default=True,
    help="charuco, chessboard, aprilgrid or apriltag with its sizes in metres (docs/calibration.md).",
)
@json_option
@errors
def board(out: Path, text: str, json_path: Path | None) -> None:
    """Write a board in true size, as .pdf or .png. Print at 100 %, glue it to something flat, measure the line."""
    from calibration.board import Board
    from calibration.store import write_result

    made = Board.parse(text).in_metres()
    if out.suffix not in (".pdf", ".png"):
        raise UserError(f"{out} is neither .pdf nor .png: give one of these endings.")
    write_result(out, made.pdf() if out.suffix == ".pdf" else made.png())
    width, height = made.size()
    click.echo(f"{out}: {1000 * width:.0f} x {1000 * height:.0f} mm. For OpenCV: --board {text}")
    write_json(json_path, {"board": text, "width_m": width, "height_m": height})


@calibrate.command()
@robot_option
@camera_option
@images_option
@click.option(
    "--board",
    "text",
    default=BOARD,
    show_default=True,
    help="charuco, chessboard, aprilgrid or apriltag with its sizes in metres (docs/calibration.md).",
)
@click.option(
    "--model",
    type=click.Choice(["pinhole", "rational", "fisheye"]),
    default="rational",
    show_default=True,
    help="Of the lens.",
)
@click.option(
    "--mount",
    type=click.Choice(["base", "arm"]),
    help="Fixed to the base, or riding on the arm (default: as stored, or base).",
)
@click.option("--views", default=30, show_default=True, help="Views that the guided capture collects.")
@click.option(
    "--page",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port of the capture's page, on this machine only; 0 for none.",
)
@click.option("--dry-run", is_flag=True, help="Compute and report, store nothing.")
@store_option
@report_option
@json_option
@errors
def intrinsics(
    robot: str,
    camera: str,
    images: str | None,
    text: str,
    model: str,
    mount: str | None,
    views: int,
    page: int,
    dry_run: bool,
    store: Path | None,
    report: Path | None,
    json_path: Path | None,
) -> None:
    """Focal length, centre and distortion, from views of a board."""
    from calibration.board import Board
    from calibration.intrinsics_job import find_views, run_intrinsics
    from harmowam.calibration_rig import live_identity
    from runtime.robot import load_robot

    if images is not None:
        refuse_unused("with --images", "views", "page")
    made, loaded = Board.parse(text).for_lens(), load_robot(robot, calibrated=False)
    where = open_store(store, robot)
    identity: dict[str, Any] = {}
    if images is not None:
        shots = _pictures(images)
        seen, size, rejected = find_views(shots, made)
        shown = {name: image for name, image in shots if image is not None}
    else:
        from harmowam.capture_page import capture

        live_identity(loaded, camera)  # refuses an autofocus before the capture; the focus that counts is read after it
        with _camera(loaded, camera) as source:
            seen, size, shown = capture(source, made, views, page, say)
        rejected = []
        identity = live_identity(loaded, camera)
    result = run_intrinsics(
        where,
        camera,
        seen,
        size,
        rejected,
        model,
        mount,
        text,
        identity,
        report or Path(f"out/calibrate/{camera}-intrinsics.html"),
        dry_run,
        shown,
    )
    for line in result.pop("said"):
        click.echo(as_given(line, "store"))
    write_json(json_path, result)
    if not result["accepted"]:
        sys.exit(1)


@calibrate.command()
@robot_option
@camera_option
@images_option
@click.option("--marker", help="Board fixed to the table or base (default: the robot file's).")
@click.option("--learn", is_flag=True, help="Remember how the marker looks now, while all is well.")
@click.option("--arm-marker", help="Board on the arm; tells 'camera moved' from 'arm off'.")
@click.option("--arm-images", help="Pictures of the arm's marker at rest (with --learn: after each return to rest).")
@store_option
@report_option
@json_option
@errors
def check(
    robot: str,
    camera: str,
    images: str | None,
    marker: str | None,
    learn: bool,
    arm_marker: str | None,
    arm_images: str | None,
    store: Path | None,
    report: Path | None,
    json_path: Path | None,
) -> None:
    """Has the camera moved? It takes a few seconds.

    The answer is ok, warn, or block (exit code 1).
    """
    from calibration.board import Board
    from calibration.check import FRAMES, LEARN_FRAMES
    from calibration.drift_job import run_check, run_learn
    from harmowam.calibration_rig import marker_board, take
    from runtime.robot import load_robot

    loaded, where = load_robot(robot, calibrated=False), open_store(store, robot)
    if not learn and (marker or arm_marker):
        raise UserError(
            "--marker and --arm-marker are learnt: add --learn; a check goes by the markers that were learnt."
        )
    if learn:
        refuse_unused("with --learn", "report")
        if bool(arm_marker) != bool(arm_images):
            raise UserError("--arm-marker and --arm-images are learnt together: give both, or none.")
    if images is None and marker is None:
        _refuse_simulated(loaded, camera)
    base = marker_board(loaded, camera, marker) if learn else None
    if images is not None:
        frames = _readable(images)
    else:
        with _camera(loaded, camera) as source:
            frames = take(source, LEARN_FRAMES if learn else FRAMES)
    arm = _readable(arm_images) if arm_images else None
    if learn:
        assert base is not None
        result = run_learn(
            where, camera, frames, base, arm, Board.parse(arm_marker).for_poses() if arm_marker else None
        )
    else:
        result = run_check(where, camera, frames, arm, report or Path(f"out/calibrate/{camera}-check.html"))
    click.echo(as_given(result["said"], "store"))
    write_json(json_path, result)
    if result.get("level") == "block":
        sys.exit(1)


@calibrate.command()
@robot_option
@click.option("--port", help="Serial port (default: the robot file's).")
@click.option(
    "--import-lerobot",
    "imported",
    type=click.Path(readable=False, path_type=Path),
    help="Take LeRobot's calibration JSON.",
)
@click.option(
    "--export-lerobot",
    "exported",
    type=click.Path(readable=False, path_type=Path),
    help="Write the stored calibration in LeRobot's form.",
)
@click.option("--check", "compare_only", is_flag=True, help="Compare the stored calibration with the servos' EEPROM.")
@click.option("--signs", is_flag=True, help="Move each joint by 5 degrees and ask whether it turned the right way.")
@store_option
@report_option
@json_option
@errors
def joints(
    robot: str,
    port: str | None,
    imported: Path | None,
    exported: Path | None,
    compare_only: bool,
    signs: bool,
    store: Path | None,
    report: Path | None,
    json_path: Path | None,
) -> None:
    """Zeros and ranges of the joints, by moving the limp arm by hand; or from and to LeRobot's file."""
    from harmowam import calibration_joints as work
    from runtime.robot import load_robot

    loaded, where = load_robot(robot, calibrated=False), open_store(store, robot)
    if exported is not None:
        refuse_unused("with --export-lerobot", "imported", "compare_only", "signs", "port", "report")
    elif imported is not None:
        refuse_unused("with --import-lerobot", "compare_only", "signs", "port")
    elif compare_only:
        refuse_unused("with --check", "signs", "report")
    elif signs:
        refuse_unused("with --signs", "report")

    def ask(text: str) -> str:
        return str(click.prompt(text, default="", show_default=False))

    page = report or Path("out/calibrate/joints.html")
    if exported is not None:
        result = work.export_lerobot(where, exported)
    elif imported is not None:
        result = work.import_lerobot(loaded, where, imported, page)
    elif compare_only:
        result = work.compare_eeprom(loaded, where, port or loaded.port)
    elif signs:
        result = work.stored_signs(loaded, where, port or loaded.port, ask, say)
    else:
        result = work.guided(loaded, where, port or loaded.port, page, ask, say)
    click.echo(as_given(result["said"], "store"))
    write_json(json_path, result)
    if result.get("differs"):
        sys.exit(1)
