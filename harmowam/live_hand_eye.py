"""Hand-eye calibration of a live robot: hold, drive, look, solve. A simulated one brings its own camera, lens and
board."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration import hand_eye, lens, pose_planning
from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.hand_eye_job import finish_hand_eye
from calibration.records import camera_of, current, theta_of
from calibration.store import Store, new_record, refuse_other_camera
from calibration.transforms import inverse
from calibration.views import ArmNoise, ArmView, Forward, Size, board_pose
from runtime.robot import Robot

TAKE_S = 15.0  # that an operator has to take the board out of the gripper, before the arm goes down with it
SEEK_S = 60.0  # how long an operator has to bring the board into view
FEWEST = 6  # corners of the board that tell its place roughly


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
    from harmowam.calibration_rig import live_identity

    if robot.simulated:
        from sim.calibration_rig import BOARD, ArmBench, webcam

        board = BOARD
        old = current(store, name) or new_record(
            "camera",
            name,
            webcam(None).to_json(),
            identity={"width": 1280, "height": 720, "mount": mount},
            parents=[],
            uncertainty={},
            evidence={},
        )
        bench: Any = ArmBench(mount, np.random.default_rng(seed), noise)
    else:
        now = live_identity(robot, name)
        old = store.get(name, kind="camera")
        refuse_other_camera(old, now)
        bench = None
    camera = camera_of(old)
    theta, model = theta_of(camera)
    lower, upper = np.array(robot.arm.lower[:-1]), np.array(robot.arm.upper[:-1])
    rng = np.random.default_rng(seed)
    with _rig(robot, bench, name, port, seed, board, say) as (move_to, picture, held):
        if held is None:
            visible = bench.visible
        else:
            X, Z = _first_guess(held, theta, model, board, move_to, picture, robot.family.tool, robot, mount)
            visible = _board_in_view(
                X, Z, board, theta, model, (camera.width, camera.height), robot.family.tool, on_arm=mount == "arm"
            )
        views = []
        # A board in the gripper must clear the table however it is turned, on the way as well.
        floor = max(0.09, 0.02 + float(np.hypot(*board.size())) / 2) if mount == "base" else 0.09
        last: np.ndarray | None = None
        for k, q in enumerate(pose_planning.propose(rng, robot.family.tool, lower, upper, visible, count, floor)):
            if last is not None and not pose_planning.clear_path(robot.family.tool, last, q, floor - 0.02):
                say(f"pose {k + 1} of {count}: passed over, the way there is too close to the table")
                continue
            last, measured = q, move_to(q)
            image = picture()
            found = board.detect(image)
            say(f"pose {k + 1} of {count}: {len(found.ids)} corners")
            views.append(ArmView(f"pose-{k:02d}", board.points()[found.ids], found.pixels, measured))
        if held is not None and mount == "base":
            try:
                move_to(np.clip(held, lower + 0.05, upper - 0.05))
            except CalibrationError as e:  # the views are there already
                say(str(e))
            say(
                f"take the board out of the gripper: in {TAKE_S:.0f} s the arm goes down to its rest pose, lower than "
                "a board is high"
            )
            time.sleep(TAKE_S)
    return finish_hand_eye(
        store, name, old, views, mount, noise, page, dry_run, board.text, robot.family.tool, robot.arm.joints
    )


@contextlib.contextmanager
def _rig(
    robot: Robot, bench: Any, name: str, port: str | None, seed: int, board: Board, say: Callable[[str], None]
) -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], Callable[[], np.ndarray], np.ndarray | None]]:
    """(move_to, picture, joint angles at which it was held) of the real arm, which stays limp until the camera sees the
    board; of the simulated one, which nobody holds, the last is None."""
    if bench is not None:
        from sim.calibration_rig import ServoRig

        rig = ServoRig(bench, seed)
        try:
            yield rig.move_to, rig.picture, None
        finally:
            rig.world.close()
        return
    from harmowam.calibration_rig import LiveRig, take
    from runtime.cameras.process import looking_at

    with looking_at(robot, name) as source, tempfile.TemporaryDirectory() as folder:

        def picture() -> np.ndarray:
            return cv2.cvtColor(take(source, 2)[-1], cv2.COLOR_RGB2GRAY)

        with LiveRig(robot, Path(folder), port) as live:
            say("hold the arm where the camera sees the board: it stiffens when it does, and then moves by itself")
            _until_seen(picture, board)
            live.arm()
            yield live.move_to, picture, live.state().q_rad[:-1].astype(float)


def _until_seen(picture: Callable[[], np.ndarray], board: Board) -> None:
    """Return when the board has been seen in three pictures running; raises CalibrationError when it was not in
    time."""
    deadline, seen = time.monotonic() + SEEK_S, 0
    while seen < 3:
        image = picture()
        seen = seen + 1 if len(board.detect(image).ids) >= FEWEST else 0
        if time.monotonic() > deadline:
            raise CalibrationError(
                f"the camera did not see the board ({board.why_unseen(image)}): hold the arm so that it does, then "
                "repeat."
            )


def _first_guess(
    held: np.ndarray,
    theta: np.ndarray,
    model: str,
    board: Board,
    move_to: Callable[[np.ndarray], np.ndarray],
    picture: Callable[[], np.ndarray],
    forward: Forward,
    robot: Robot,
    mount: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Rough X and Z from small wiggles about where the operator held the arm, board in view; enough to plan wide
    poses."""
    lower, upper = np.array(robot.arm.lower[:-1]) + 0.05, np.array(robot.arm.upper[:-1]) - 0.05
    first = move_to(np.clip(held, lower, upper))
    arms, boards = [], []
    moved = [robot.family.PAN, robot.family.RAISING[0], robot.family.RAISING[-1], len(first) - 1]
    for turns in (
        [0, 0, 0, 0],  # of pan, of the first and of the last joint that raises the gripper, and of its roll
        [0.15, 0, 0.15, 0.2],
        [-0.15, 0, -0.15, 0.2],
        [0.1, 0, 0.2, -0.25],
        [-0.1, 0, -0.2, -0.25],
        [0, -0.1, 0.25, 0.4],
    ):
        d = np.zeros(len(first))
        d[moved] = turns
        q = move_to(np.clip(first + d, lower, upper))
        found = board.detect(picture())
        if len(found.ids) >= FEWEST:
            arms.append(forward(q))
            boards.append(board_pose(ArmView("", board.points()[found.ids], found.pixels, q), theta, model))
    if len(arms) < 4:
        raise CalibrationError(
            "the board is not seen where the arm stands: move the arm by hand so that the camera sees the board, "
            "then repeat."
        )
    return hand_eye.park(mount, arms, boards)


def _board_in_view(
    X: np.ndarray,
    Z: np.ndarray,
    board: Board,
    theta: np.ndarray,
    model: str,
    size: Size,
    forward: Forward,
    on_arm: bool = False,
) -> Callable[[np.ndarray], bool]:
    """Whether a pose shows most of the board, from in front, by the rough calibration."""

    def visible(q: np.ndarray) -> bool:
        A = forward(q)
        T = inverse(X) @ (inverse(A) if on_arm else A) @ Z
        if T[2, 3] < 0.08 or T[:3, 2] @ T[:3, 3] / np.linalg.norm(T[:3, 3]) < 0.5:
            return False
        uv = lens.project(board.points(), theta, model, cv2.Rodrigues(T[:3, :3])[0], T[:3, 3])[0]
        return bool(((uv > 0.05 * np.array(size)) & (uv < 0.95 * np.array(size))).all(1).mean() > 0.7)

    return visible
