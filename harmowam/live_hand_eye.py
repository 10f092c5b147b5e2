"""Hand-eye calibration of a live robot: hold, drive, look, solve. A simulated one brings its own camera, lens and
board."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import lens
from calibration.board import Board
from calibration.camera import CalibrationError, Camera
from calibration.hand_eye import park
from calibration.hand_eye_job import finish_hand_eye
from calibration.pose_planning import clear_path, propose
from calibration.records import camera_of, current, theta_of
from calibration.store import Store, new_record, refuse_other_camera
from calibration.transforms import inverse
from calibration.views import ArmNoise, ArmView, Forward, View, board_pose
from runtime.robot import Robot

FLOOR_M = 0.09  # how high the tool stays above the table, at least
NEAR = 0.05  # rad, kept free at each end of a joint's range about where the operator held the arm
TAKE_S = 15.0  # how long an operator has to take the board out of the gripper, before the arm goes down with it
SEEK_S = 60.0  # how long an operator has to bring the board into view


@dataclass(frozen=True)
class Rig:
    """An arm and the camera that calibrates with it. `move_to` drives to joint angles float64[J] (rad) and returns
    those that were measured; `picture` is the camera's next, uint8[H,W]; `held` are the joint angles at which the
    operator held the arm, None for the simulated one, which nobody holds."""

    move_to: Callable[[np.ndarray], np.ndarray]
    picture: Callable[[], np.ndarray]
    held: np.ndarray | None


def run_hand_eye(
    robot: Robot,
    store: Store,
    name: str,
    board: Board,
    mount: str,
    count: int,
    noise: ArmNoise,
    port: str | None,
    seed: int,
    page: Path,
    dry_run: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Drive, look, solve, compare halves, store. A simulated robot brings its own camera, lens and board.

    Raises RobotError, CameraError or CalibrationError before a real arm moves where the camera is not the one whose
    lens is stored: another one, another resolution, another focus."""
    bench: Any = None
    if robot.simulated:
        from sim.calibration_rig import BOARD, ArmBench

        board, bench = BOARD, ArmBench(mount, np.random.default_rng(seed), noise)
    old = _lens_record(robot, store, name, mount)
    camera, forward = camera_of(old), robot.family.tool
    lower, upper = _limits(robot)
    # A board in the gripper must clear the table however it is turned, on the way as well.
    floor = max(FLOOR_M, 0.02 + float(np.hypot(*board.size())) / 2) if mount == "base" else FLOOR_M
    with _rig(robot, bench, name, port, seed, board, say) as rig:
        if rig.held is None:
            visible = bench.visible
        else:
            X, Z = _first_guess(rig, rig.held, camera, board, robot, mount)
            visible = _board_in_view(X, Z, board, camera, forward, on_arm=mount == "arm")
        poses = propose(np.random.default_rng(seed), forward, lower, upper, visible, count, floor)
        views = _visit(rig, poses, board, forward, floor, say)
        if rig.held is not None and mount == "base":
            _board_taken_out(rig, np.clip(rig.held, lower + NEAR, upper - NEAR), say)
    return finish_hand_eye(store, name, old, views, mount, noise, page, dry_run, board.text, forward, robot.arm.joints)


def _limits(robot: Robot) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits float64[J] (rad) of the joints but for the jaw."""
    return np.array(robot.arm.lower[:-1]), np.array(robot.arm.upper[:-1])


def _lens_record(robot: Robot, store: Store, name: str, mount: str) -> dict[str, Any]:
    """The record of the camera's lens. Raises CalibrationError where a real camera is not the one that it is for."""
    from harmowam.calibration_rig import live_identity

    if not robot.simulated:
        now = live_identity(robot, name)
        stored = store.get(name, kind="camera")
        refuse_other_camera(stored, now)
        return stored
    from sim.calibration_rig import webcam

    return current(store, name) or new_record(
        "camera",
        name,
        webcam(None).to_json(),
        identity={"width": 1280, "height": 720, "mount": mount},
        parents=[],
        uncertainty={},
        evidence={},
    )


def _visit(
    rig: Rig, poses: np.ndarray, board: Board, forward: Forward, floor: float, say: Callable[[str], None]
) -> list[ArmView]:
    """What the camera sees of the board at each of `poses` float64[n,J] (rad); one that the arm cannot reach from the
    last with its tool well above the table is passed over."""
    views = []
    last: np.ndarray | None = None
    for k, q in enumerate(poses):
        if last is not None and not clear_path(forward, last, q, floor - 0.02):
            say(f"pose {k + 1} of {len(poses)}: passed over, the way there is too close to the table")
            continue
        last, measured = q, rig.move_to(q)
        found = board.detect(rig.picture())
        say(f"pose {k + 1} of {len(poses)}: {len(found.ids)} corners")
        views.append(ArmView(f"pose-{k:02d}", board.points()[found.ids], found.pixels, measured))
    return views


def _board_taken_out(rig: Rig, q: np.ndarray, say: Callable[[str], None]) -> None:
    """Go to where the operator held the arm, and give time to take the board out of the gripper."""
    try:
        rig.move_to(q)
    except CalibrationError as e:  # the views are there already
        say(str(e))
    say(
        f"take the board out of the gripper: in {TAKE_S:.0f} s the arm goes down to its rest pose, lower than a board "
        "is high"
    )
    time.sleep(TAKE_S)


@contextlib.contextmanager
def _rig(
    robot: Robot, bench: Any, name: str, port: str | None, seed: int, board: Board, say: Callable[[str], None]
) -> Iterator[Rig]:
    """The simulated arm of `bench`, or, where that is None, the real one, which is limp until the camera sees the
    board."""
    if bench is not None:
        from sim.calibration_rig import ServoRig

        simulated = ServoRig(bench, seed)
        try:
            yield Rig(simulated.move_to, simulated.picture, None)
        finally:
            simulated.world.close()
        return
    from harmowam.calibration_rig import LiveRig, take
    from runtime.cameras.process import looking_at

    with looking_at(robot, name) as source, tempfile.TemporaryDirectory() as folder:

        def picture() -> np.ndarray:
            return cv2.cvtColor(take(source, 2)[-1], cv2.COLOR_RGB2GRAY)

        with LiveRig(robot, Path(folder), port) as live:
            say("hold the arm where the camera sees the board: it stiffens when it does, and then moves by itself")
            _until_seen(picture, board)
            live.enable_torque()
            yield Rig(live.move_to, picture, live.state().q_rad[:-1].astype(float))


def _until_seen(picture: Callable[[], np.ndarray], board: Board) -> None:
    """Return when the board has been seen in three pictures running; raises CalibrationError when it was not in
    time."""
    deadline, seen = time.monotonic() + SEEK_S, 0
    while seen < 3:
        image = picture()
        seen = seen + 1 if len(board.detect(image).ids) >= board.enough else 0
        if time.monotonic() > deadline:
            raise CalibrationError(
                f"the camera did not see the board ({board.why_unseen(image)}): hold the arm so that it does, then "
                "repeat."
            )


def _first_guess(
    rig: Rig, held: np.ndarray, camera: Camera, board: Board, robot: Robot, mount: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rough X and Z (`calibration.hand_eye`) from small moves about `held`, where the board is in view; good enough to
    plan wide ones. Raises CalibrationError where the board is seldom seen."""
    lower, upper = _limits(robot)
    lower, upper = lower + NEAR, upper - NEAR
    theta, model = theta_of(camera)
    first = rig.move_to(np.clip(held, lower, upper))
    arms, boards = [], []
    moved = [robot.family.PAN, robot.family.RAISING[0], robot.family.RAISING[-1], len(first) - 1]
    for turns in (
        [0, 0, 0, 0],  # rad: of pan, of the first and of the last joint that raises the gripper, and of its roll
        [0.15, 0, 0.15, 0.2],
        [-0.15, 0, -0.15, 0.2],
        [0.1, 0, 0.2, -0.25],
        [-0.1, 0, -0.2, -0.25],
        [0, -0.1, 0.25, 0.4],
    ):
        d = np.zeros(len(first))
        d[moved] = turns
        q = rig.move_to(np.clip(first + d, lower, upper))
        found = board.detect(rig.picture())
        if len(found.ids) >= board.enough:
            arms.append(robot.family.tool(q))
            boards.append(board_pose(View("", board.points()[found.ids], found.pixels), theta, model))
    if len(arms) < 4:
        raise CalibrationError(
            "the board is not seen where the arm stands: move the arm by hand so that the camera sees the board, "
            "then repeat."
        )
    return park(mount, arms, boards)


def _board_in_view(
    X: np.ndarray, Z: np.ndarray, board: Board, camera: Camera, forward: Forward, on_arm: bool
) -> Callable[[np.ndarray], bool]:
    """A function that says whether the camera sees most of the board, from in front, at joint angles float64[J] (rad),
    by the rough X and Z."""
    theta, model = theta_of(camera)
    size = np.array([camera.width, camera.height])
    share = 0.7 if len(board.points()) > board.enough else 1.0  # a lone tag is found whole or not at all

    def visible(q: np.ndarray) -> bool:
        A = forward(q)
        T = inverse(X) @ (inverse(A) if on_arm else A) @ Z
        if T[2, 3] < 0.08 or T[:3, 2] @ T[:3, 3] / np.linalg.norm(T[:3, 3]) < 0.5:
            return False
        uv = lens.project(board.points(), theta, model, cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]
        return bool(((uv > 0.05 * size) & (uv < 0.95 * size)).all(1).mean() >= share)

    return visible
