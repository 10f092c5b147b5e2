"""`harmowam rehearse`: the steps of docs/arm.md on a virtual arm, with the commands that a real one is set up with."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from common.errors import Mendable
from harmowam.options import UserError, bundle_option, errors, write_text

if TYPE_CHECKING:
    from sim.rehearsal import VirtualArm

TASK = "put the red cube on the plate"
MOUNTS = (("front", ()), ("wrist", ("--camera", "wrist", "--mount", "arm")))  # camera, and the options for it
# What the command asks with, and what a person does then: returns what is typed.
Answer = tuple[str, Callable[[], str]]


@dataclass
class Rehearsal:
    """A virtual arm, and the folder with its robot file. `ids` are those that the servos were given."""

    folder: Path
    bundle: Path
    ids: list[int] = field(default_factory=lambda: [*range(1, 7)])

    @property
    def port(self) -> str:
        return str(self.folder.absolute() / "usb-servo-adapter")  # absolute, as /dev/serial/by-id/NAME is

    @property
    def robot(self) -> Path:
        return self.folder / "robot.toml"

    def edit(self, old: str, new: str) -> None:
        """Put `new` for `old` into the robot file, as one would by hand; a file without `old` has it already."""
        write_text(self.robot, self.robot.read_text().replace(old, new))
        click.echo(f"  (by hand, in {self.robot}: {new.strip()})")

    def command(self, *words: object, look: str, answers: Sequence[Answer] = (), code: int = 0) -> None:
        """Run `harmowam` with `words` as a process, and give `answers`, in order, when it asks.

        `look`: what the user is to look for. Raises UserError when the process does not end with exit code `code`.
        """
        from common.python import module_command

        said = [str(w) for w in words]
        click.secho(f"\n$ harmowam {shlex.join(said)}", bold=True)
        click.echo(f"  look: {look}")
        asked = subprocess.PIPE if answers else None
        with subprocess.Popen(
            module_command("harmowam.cli", *said),
            stdin=asked or subprocess.DEVNULL,
            stdout=asked,
            stderr=subprocess.STDOUT if answers else None,
            bufsize=0,
        ) as process:
            if answers:
                _answer(process, list(answers))
        if process.returncode != code:
            raise UserError(
                f"`harmowam {shlex.join(said)}` ended with exit code {process.returncode}, not {code}: read what it "
                "says above"
            )


def _answer(process: subprocess.Popen[bytes], answers: list[Answer]) -> None:
    """Show what the process says, and type the next answer when it has asked for it."""
    assert process.stdin is not None and process.stdout is not None
    heard = ""
    while said := os.read(process.stdout.fileno(), 4096).decode(errors="replace"):
        click.echo(said, nl=False)
        heard += said
        while answers and answers[0][0] in heard:
            question, act = answers.pop(0)
            heard = heard.partition(question)[2]
            typed = act()
            click.echo(typed)
            with contextlib.suppress(BrokenPipeError):  # it has ended: its exit code says why
                process.stdin.write(f"{typed}\n".encode())


def number(r: Rehearsal, arm: VirtualArm) -> None:
    from sim.rehearsal import new_servo, plugged_in

    r.ids = []
    for new in range(1, 7):
        click.echo(f"\n(by hand: only servo {new} of 6 is connected)")
        servo = new_servo()
        with plugged_in(servo, Path(r.port)):
            # every id at every baud rate takes most of a minute for each servo: the two options shorten it
            one = ("bus", "set-id", "--port", r.port, "--protocol", "feetech", "--baud", 1_000_000, "--to", new)
            yes = ("[y/N]", lambda: "y")
            r.command(*one, look=f"one servo is found, and has id {new} at the end", answers=[yes])
        r.ids += servo.ids
    with plugged_in(_arm(r).servos, Path(r.port)):
        r.command("bus", "scan", "--robot", r.robot, look="six rows, ids 1 to 6, each reports nothing wrong")


def watch(r: Rehearsal, arm: VirtualArm) -> None:
    from sim.rehearsal import plugged_in

    with plugged_in(arm.servos, Path(r.port)):
        click.echo("\n(by hand: each joint is moved from stop to stop)")
        arm.carry(*arm.every_joint(), looks=45)
        monitor = ("bus", "monitor", "--robot", r.robot, "--seconds", 3)
        r.command(*monitor, look="the row of the joint that is moved changes, and no other; without --seconds: Ctrl-C")
        arm.servos.put(2, "mode", 1)  # what another program may have left
        check = ("bus", "check", "--robot", r.robot)
        r.command(*check, look="servo 2 still holds another program's mode, and the reason why that matters", code=2)
        r.command(*check, "--fix", look='"6 servos hold what they must" in the last line')


def joints(r: Rehearsal, arm: VirtualArm) -> None:
    from sim.rehearsal import plugged_in

    def ranges() -> str:
        arm.carry(*arm.every_joint())
        arm.wait_for_hand()
        return ""

    def turned(k: int) -> str:
        return "y" if arm.q[k] > arm.zero_pose[k] + 0.05 else "n"

    empty = str  # returns ""
    asked: list[Answer] = [("press Enter", empty), ("press Enter", ranges), ("Press Enter", empty)]
    asked += [("(y/n)", functools.partial(turned, k)) for k in range(6)]
    with plugged_in(arm.servos, Path(r.port)):
        guided = ("calibrate", "joints", "--robot", r.robot, "--report", r.folder / "joints.html")
        r.command(*guided, look="each joint moves by 5 degrees and turns the way the question says", answers=asked)
    r.edit('# calibration = "calibration/joints" ', 'calibration = "calibration/joints" ')


def emergency_stop(r: Rehearsal, arm: VirtualArm) -> None:
    click.echo("\n(by hand: a switch in the arm's supply; a virtual arm has none, and needs none)")


def cameras(r: Rehearsal, arm: VirtualArm) -> None:
    from runtime.cameras.frames import frames_path

    for camera, shipped in (("front", "/dev/video0"), ("wrist", "/dev/video2")):
        r.edit(f'source = "{shipped}"', f'source = "slot:{frames_path(r.folder.absolute(), camera)}"')
    click.echo("  look: size and rate are what the cameras have (a virtual one is a slot that a program writes)")


def lenses(r: Rehearsal, arm: VirtualArm) -> None:
    from calibration.board import Board
    from harmowam.calibrate import BOARD
    from sim.rehearsal_cameras import filming, held_board

    r.command("calibrate", "board", r.folder / "board.pdf", look="a page to print at 100 % and to measure")
    for seed, (camera, mount) in enumerate(MOUNTS):
        # of an earlier rehearsal: a lens that is no better than the stored one is refused
        shutil.rmtree(r.folder / "calibration" / camera, ignore_errors=True)
        click.echo(f"\n(by hand: the board is held before the camera '{camera}', still in one place after the other)")
        with filming(r.folder, camera, functools.partial(held_board, Board.parse(BOARD), seed), 12):
            lens = ("calibrate", "intrinsics", "--robot", r.robot, "--views", 12, "--page", 0, *mount)
            page = ("--report", r.folder / f"{camera}-intrinsics.html")
            r.command(*lens, *page, look="it says how to hold the board; without --page 0 a page shows the picture")


def hand_eye(r: Rehearsal, arm: VirtualArm) -> None:
    from sim.rehearsal import plugged_in
    from sim.rehearsal_cameras import bench, board_on_arm, filming

    for seed, (camera, mount) in enumerate(MOUNTS):
        made, pose = bench(camera, seed)
        where = "in the gripper" if camera == "front" else "on the table"
        click.echo(f"\n(by hand: a small board is {where}, and the arm is held so that '{camera}' sees it)")
        arm.put(pose)
        seen = functools.partial(board_on_arm, made, arm.plant.joints, seed)
        with plugged_in(arm.servos, Path(r.port)), filming(r.folder, camera, seen, 6):
            eye = ("calibrate", "hand-eye", "--robot", r.robot, *mount)
            page = ("--report", r.folder / f"{camera}-hand-eye.html")
            r.command(*eye, *page, look="the arm moves by itself; corners at most poses; the precision at the end")
        x, y, z = made.X[:3, 3]
        click.echo(f"  the virtual camera is at {x:.3f}, {y:.3f}, {z:.3f} m")


def all_there(r: Rehearsal, arm: VirtualArm) -> None:
    from sim.rehearsal import plugged_in

    with plugged_in(arm.servos, Path(r.port)):
        r.command("doctor", "--robot", r.robot, look='"0 that will not work" in the last line')


def first_run(r: Rehearsal, arm: VirtualArm) -> None:
    from runtime.robot import load_robot
    from sim.rehearsal import plugged_in
    from sim.rehearsal_cameras import empty_table, filming

    if not r.bundle.is_dir():
        raise UserError(f"there is no bundle {r.bundle}: make it with `./build.sh bundle`, or name one with --bundle")
    described = load_robot(str(r.robot))
    arm.put(np.array(described.arm.rest))
    with contextlib.ExitStack() as stack:
        stack.enter_context(plugged_in(arm.servos, Path(r.port)))
        for camera, config in described.cameras.items():
            stack.enter_context(filming(r.folder, camera, empty_table, config.fps))
        drive = ("profile", "--robot", r.robot, "--bundle", r.bundle, "--task", TASK, "--seconds", 5)
        r.command(*drive, "--out", r.folder / "first", look="the arm moves; where the milliseconds went is on the page")


# The rows of the table in docs/arm.md; each function prints and runs the row's commands.
STEPS: tuple[tuple[str, Callable[[Rehearsal, VirtualArm], None]], ...] = (
    ("number the servos", number),
    ("look", watch),
    ("joints", joints),
    ("emergency stop", emergency_stop),
    ("cameras", cameras),
    ("lenses", lenses),
    ("where the cameras are", hand_eye),
    ("all there?", all_there),
    ("first run", first_run),
)


def _arm(r: Rehearsal) -> VirtualArm:
    from sim.rehearsal import VirtualArm

    return VirtualArm(r.ids)


def _robot_file(r: Rehearsal, anew: bool) -> None:
    """Copy the shipped robot file, with the virtual arm's port, where there is none or `anew`. Raises UserError for a
    robot file with another port: it is another arm's, which would move."""
    from harmowam.folders import make_folder
    from runtime.robot import SHIPPED

    make_folder(r.folder, "--out")
    there = r.robot.exists()
    if there and f'port = "{r.port}"' not in r.robot.read_text():
        raise UserError(f"{r.robot} is not the virtual arm's: name another folder with --out.")
    if anew or not there:
        text = (SHIPPED / "so101.toml").read_text().replace('port = "/dev/ttyACM0"', f'port = "{r.port}"')
        write_text(r.robot, text)


@click.command(short_help="Set up a virtual arm with the commands of docs/arm.md.")
@click.option(
    "--out",
    type=click.Path(readable=False, path_type=Path, file_okay=False),
    default=Path("out/rehearsal"),
    show_default=True,
    help="Folder for the robot file and its calibrations.",
)
@bundle_option
@click.option("--step", type=click.IntRange(1, len(STEPS)), help="Only this step; those before it must be done.")
@errors
def rehearse(out: Path, bundle: Path, step: int | None) -> None:
    """Every step of docs/arm.md on virtual servos and a virtual board: each with the command that you will type on a
    real arm, run here, and what to look for. What is done by hand is done by a script. Takes about five minutes; beside
    other work virtual servos may answer too late, and the arm then stops as a real one would."""
    r = Rehearsal(out, bundle)
    _robot_file(r, anew=step is None)
    for k, (title, run) in enumerate(STEPS, 1):
        if step not in (None, k):
            continue
        click.secho(f"\nstep {k} of docs/arm.md: {title}", bold=True)
        try:
            run(r, _arm(r))
        except (UserError, Mendable) as e:
            why = e.message if isinstance(e, UserError) else str(e)
            raise UserError(f"step {k} ({title}): {why.rstrip('.')}; then repeat with `--step {k}`.") from e
