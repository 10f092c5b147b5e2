"""`harmowam calibrate hand-eye`: with the live arm, or from pictures and a table of arm poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harmowam.calibrate_store import camera_option, open_store, report_option, store_option
from harmowam.hints import as_given
from harmowam.options import UserError, errors, json_option, refuse_unused, robot_option, say, write_json

if TYPE_CHECKING:
    from calibration.store import Store
    from calibration.views import ArmNoise
    from runtime.robot import Robot


@dataclass(frozen=True)
class _Asked:
    """What to calibrate, of live pictures and of files alike. `board` is the text of --board."""

    robot: Robot
    store: Store
    camera: str
    board: str
    mount: str
    noise: ArmNoise
    page: Path
    dry_run: bool


@click.command(name="hand-eye")
@robot_option
@camera_option
@click.option(
    "--board",
    "text",
    default="charuco:7x5:0.020:0.015:4x4_50",
    show_default=True,
    help="On the table, or in the gripper.",
)
@click.option(
    "--mount", type=click.Choice(["base", "arm"]), default="base", show_default=True, help="Where the camera sits."
)
@click.option(
    "--images",
    type=click.Path(readable=False, path_type=Path),
    help="Folder of pictures, in place of the live camera and arm; --poses says where the arm was.",
)
@click.option(
    "--poses",
    default="15",
    show_default=True,
    help="How many the arm visits; with --images: CSV or JSON with a row for each picture.",
)
@click.option("--precision", default="0.5,2", show_default=True, help="The arm's own precision: degrees, mm.")
@click.option("--offsets", default=0.5, show_default=True, help="Joint zero errors to estimate, degrees; 0: none.")
@click.option("--port", help="Serial port (default: the robot file's).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the poses.")
@click.option("--dry-run", is_flag=True, help="Compute and report, store nothing.")
@store_option
@report_option
@json_option
@errors
def hand_eye(
    robot: str,
    camera: str,
    text: str,
    mount: str,
    images: Path | None,
    poses: str,
    precision: str,
    offsets: float,
    port: str | None,
    seed: int,
    dry_run: bool,
    store: Path | None,
    report: Path | None,
    json_path: Path | None,
) -> None:
    """Where the camera is: the arm drives through safe poses while the camera watches a board; or from files."""
    from calibration.views import ArmNoise
    from runtime.robot import load_robot

    degrees, mm = _precision(precision)
    if degrees <= 0 or mm <= 0 or offsets < 0:
        raise UserError("--precision must be above zero and --offsets not negative: correct them.")
    noise, page = ArmNoise(degrees, mm / 1000, offsets), report or Path(f"out/calibrate/{camera}-hand-eye.html")
    if images is not None:
        refuse_unused("with --images", "port", "seed")
        loaded = load_robot(robot, calibrated=False)
    else:
        loaded = load_robot(robot)
        if loaded.simulated:
            refuse_unused("with a simulated robot, which brings its own bus and board", "port", "text")
    count = _count(poses) if images is None else 0
    asked = _Asked(loaded, open_store(store, robot), camera, text, mount, noise, page, dry_run)
    result = _live(asked, count, port, seed) if images is None else _from_files(asked, images, Path(poses))
    for line in result.pop("said"):
        click.echo(as_given(line, "store"))
    if result["hash"]:
        click.echo(as_given(next_of(loaded, camera, mount), "store"))
    write_json(json_path, result)


def next_of(robot: Robot, camera: str, mount: str) -> str:
    """What to do with the stored pose of `camera`. A marker is looked at by a camera that is fixed to the base."""
    if robot.simulated:
        return (
            "the simulated robot's own runs do not use this calibration: their cameras stand where the simulator puts "
            'them (calibration = "sim" in its robot file)'
        )
    if mount == "arm":
        return f"next: `harmowam doctor`, which says whether camera '{camera}' and all else is ready"
    learn = f"`harmowam calibrate check --camera {camera} --learn"
    if camera in robot.cameras and robot.cameras[camera].marker:
        return f"next: {learn}`"
    marker = "chessboard:6x5:0.015"
    return (
        f"next, to notice a bumped camera: `harmowam calibrate board marker.pdf --board {marker}`, fix the print to "
        f"the table, and {learn} --marker {marker}`"
    )


def _precision(text: str) -> tuple[float, float]:
    try:
        degrees, mm = (float(v) for v in text.split(","))
    except ValueError as e:
        raise UserError(f"--precision {text} is not two numbers: write DEGREES,MM, for example 0.5,2.") from e
    return degrees, mm


def _count(poses: str) -> int:
    """How many poses a live arm visits."""
    if not (poses.isascii() and poses.isdecimal() and int(poses) >= 8):
        raise UserError(
            f"--poses {poses} is not a number of 8 or more: correct it, or add --images FOLDER for a file of poses."
        )
    return int(poses)


def _live(asked: _Asked, count: int, port: str | None, seed: int) -> dict[str, Any]:
    from calibration.board import Board
    from harmowam.live_hand_eye import run_hand_eye

    a, board = asked, Board.parse(asked.board).for_poses()
    return run_hand_eye(a.robot, a.store, a.camera, board, a.mount, count, a.noise, port, seed, a.page, a.dry_run, say)


def _from_files(asked: _Asked, images: Path, poses: Path) -> dict[str, Any]:
    from calibration.board import Board
    from calibration.hand_eye_files import hand_eye_from_files
    from calibration.pose_file import read_poses

    a, board = asked, Board.parse(asked.board).for_poses()
    joints, tool = a.robot.arm.joints, a.robot.family.tool
    table = read_poses(poses, joints)
    if table.of_tool:
        refuse_unused("with poses of the tool, which tell no joint angles", "offsets")
    return hand_eye_from_files(
        a.store, a.camera, images, table, board, a.mount, a.noise, a.page, a.dry_run, tool, joints, say
    )
