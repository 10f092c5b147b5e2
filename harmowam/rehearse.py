"""`harmowam rehearse`: the steps of docs/arm.md on a virtual arm, with the commands that a real one is set up with."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from common.errors import Mendable
from harmowam.machine_load import load, told
from harmowam.options import UserError, bundle_option, errors, refuse_unused, write_text

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
        arm.carry(*arm.every_joint(), looks=12)  # the monitor shows every joint once or twice on its way
        monitor = ("bus", "monitor", "--robot", r.robot, "--seconds", 6)
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
    r.edit('# calibration = "calibration/joints"', 'calibration = "calibration/joints"')


def emergency_stop(r: Rehearsal, arm: VirtualArm) -> None:
    click.echo("\n(by hand: a switch in the arm's supply; a virtual arm has none, and needs none)")


def cameras(r: Rehearsal, arm: VirtualArm) -> None:
    from runtime.robot import load_robot

    for camera in load_robot(str(r.robot), calibrated=False).cameras.values():
        named = f"[camera.{camera.name}] {camera.source}, {camera.width}x{camera.height} at {camera.fps:g} a second"
        click.echo(f"  (in {r.robot}: {named})")
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


@contextlib.contextmanager
def _empty_tables(r: Rehearsal) -> Iterator[None]:
    """Every camera of the robot file shows an empty table."""
    from runtime.robot import load_robot
    from sim.rehearsal_cameras import empty_table, filming

    with contextlib.ExitStack() as stack:
        for camera, config in load_robot(str(r.robot)).cameras.items():
            stack.enter_context(filming(r.folder, camera, empty_table, config.fps))
        yield


def all_there(r: Rehearsal, arm: VirtualArm) -> None:
    from sim.rehearsal import plugged_in

    with plugged_in(arm.servos, Path(r.port)), _empty_tables(r):
        r.command("doctor", "--robot", r.robot, look='"0 that will not work" in the last line')


def first_run(r: Rehearsal, arm: VirtualArm) -> None:
    from runtime.robot import load_robot
    from sim.rehearsal import plugged_in

    if not r.bundle.is_dir():
        raise UserError(f"there is no bundle {r.bundle}: make it with `./build.sh bundle`, or name one with --bundle")
    arm.put(np.array(load_robot(str(r.robot)).arm.rest))
    with plugged_in(arm.servos, Path(r.port)), _empty_tables(r):
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
NEEDS = {7: (3, 6), 8: (3, 6, 7), 9: (3, 6, 7)}  # of the steps that leave something, which must be done before


def _arm(r: Rehearsal) -> VirtualArm:
    from sim.rehearsal import VirtualArm

    return VirtualArm(r.ids)


def missing(r: Rehearsal, step: int) -> int | None:
    """The first step that `step` needs and that is not done; None where there is none."""
    from calibration.records import camera_of, current, pose_of
    from calibration.store import Store

    store = Store(r.folder / "calibration")
    stored = [(current(store, camera), "arm" if options else "base") for camera, options in MOUNTS]
    done = {
        3: r.robot.exists() and 'calibration = "calibration/joints"' in r.robot.read_text().splitlines(),
        6: all(old for old, _ in stored),
        7: all(old and pose_of(camera_of(old), mount) is not None for old, mount in stored),
    }
    return next((k for k in NEEDS.get(step, ()) if not done[k]), None)


def _set_up(r: Rehearsal, anew: bool) -> None:
    """Write the virtual arm's robot file with `harmowam setup`, where there is none or `anew`. Raises UserError for a
    robot file with another port: it is another arm's, which would move."""
    from harmowam.folders import make_folder
    from runtime.cameras.frames import frames_path
    from sim.rehearsal import new_servo, plugged_in
    from sim.tasks import ARM

    make_folder(r.folder, "--out")
    if r.robot.exists():
        if f'port = "{r.port}"' not in r.robot.read_text():
            raise UserError(f"{r.robot} is not the virtual arm's: name another folder with --out.")
        if not anew:
            return
        r.robot.unlink()
    click.secho("\nbefore the steps of docs/arm.md: setup", bold=True)
    slots = [f"--camera={camera}=slot:{frames_path(r.folder.absolute(), camera)}" for camera, _ in MOUNTS]
    with plugged_in(new_servo(), Path(r.port)):  # what is virtual cannot be found plugged in: options name it
        found = ("--family", ARM.NAME, "--port", r.port, *slots, "--out", r.folder, "--yes")
        r.command("setup", *found, look="the robot file, and what comes next: the servos have no numbers yet")


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
@click.option("--from", "first", type=click.IntRange(1, len(STEPS)), help="This step and those after it.")
@errors
def rehearse(out: Path, bundle: Path, step: int | None, first: int | None) -> None:
    """`harmowam setup` and every step of docs/arm.md on virtual servos and a virtual board: each with the command of
    that page, run here, and what to look for; a few options more keep it short and its pages in one folder. What is
    done by hand is done by a script. Takes about five minutes; beside other work virtual servos may answer too late,
    and the arm then stops as a real one would."""
    if step is not None:
        refuse_unused("with --step", "first")
    r, begin = Rehearsal(out, bundle), step or first or 1
    if (needed := missing(r, begin)) is not None:
        title, before = STEPS[begin - 1][0], STEPS[needed - 1][0]
        raise UserError(
            f"step {begin} ({title}) needs step {needed} ({before}), which is not done in {out}: begin with "
            f"`{_again(needed)}`."
        )
    _set_up(r, anew=begin == 1 and step is None)
    for k, (title, run) in enumerate(STEPS, 1):
        if k < begin or step not in (None, k):
            continue
        click.secho(f"\nstep {k} of docs/arm.md: {title}", bold=True)
        try:
            run(r, _arm(r))
        except (UserError, Mendable) as e:
            why = e.message if isinstance(e, UserError) else str(e)
            raise UserError(f"step {k} ({title}): {why.rstrip('.')}; {_late()}then go on with `{_again(k)}`.") from e


def _again(k: int) -> str:
    """The command that goes on with step `k`, with the folder and bundle that were given."""
    context, typed = click.get_current_context(), click.core.ParameterSource.COMMANDLINE
    given = [n for n in ("out", "bundle") if context.get_parameter_source(n) == typed]
    return " ".join(
        ["harmowam rehearse", *(f"--{n} {shlex.quote(str(context.params[n]))}" for n in given), f"--from {k}"]
    )


def _late() -> str:
    """On a busy machine: the likeliest reason why a virtual arm stopped."""
    now = load()
    return f"end other work on this machine ({told(now)}), beside which virtual servos answer late; " * (
        now[0] > now[1]
    )
