"""The virtual cameras of `harmowam rehearse`: pictures of boards, and of an empty table, in slots that a robot file
names."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from calibration.board import Board
from calibration.camera import Camera
from calibration.views import ArmNoise
from runtime.cameras.frames import FrameWriter, frames_path
from sim.boards import look_at_board, render
from sim.calibration_rig import LENS, ArmBench
from sim.tasks import ARM

SIZE = (640, 480)
K = np.array([[470.0, 0, 326], [0, 468, 235], [0, 0, 1]])
CAMERA = Camera("virtual", *SIZE, K, LENS[1], None)
SHOWN = 3  # times that a picture of a held board is shown: the hand stands still
Pictures = Iterator[np.ndarray]  # uint8[480,640] or uint8[480,640,3]


def held_board(board: Board, seed: int) -> Pictures:
    """A person holds the board still in one place after the other, at all tilts."""
    rng = np.random.default_rng(seed)
    while True:
        picture = render(CAMERA, look_at_board(rng, board, CAMERA, fill=(0.5, 0.95)), board, rng)
        yield from itertools.repeat(picture, SHOWN)


def bench(camera: str, seed: int) -> tuple[ArmBench, np.ndarray]:
    """Where camera "front" or "wrist" and its board are, and joint angles float64[6] (rad) at which it sees the
    board."""
    rng, exact, jaw = np.random.default_rng(seed), ArmNoise(offset_deg=0.0), ARM.SHUT
    if camera == "front":
        return ArmBench("base", rng, exact, camera=CAMERA), np.array([*ARM.UPRIGHT[:4], 0.0, jaw])
    made = ArmBench("arm", rng, exact, camera=CAMERA)
    made.Z[0, 3] += 0.04  # the board lies where the arm can look at it from more sides
    return made, np.array([0.0, -0.6, 0.4, 1.4, 0.0, jaw])


def board_on_arm(where: ArmBench, joints: Sequence[float], seed: int) -> Pictures:
    """What the camera of `where` sees of its board; `joints` are the true angles (rad, 6) as they change."""
    rng = np.random.default_rng(seed)
    while True:
        yield render(CAMERA, where.cam_from_board(ARM.tool(np.array(joints[:5]))), where.board, rng)


def empty_table() -> Pictures:
    """Grey pictures; a few columns differ from one to the next, as no two pictures of a real camera are equal."""
    for k in itertools.count():
        picture = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        picture[:, 4 * k % SIZE[0]] = 200
        yield picture


def _film(path: Path, pictures: Callable[[], Pictures], fps: float, starter: int) -> None:
    """Write pictures into the slot `path`, at most `fps` a second, while process `starter` lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the arm is still lowered then
    writer, due = FrameWriter(path, *SIZE), time.monotonic()
    for picture in pictures():
        due = max(due + 1 / fps, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0.0))
        if os.getppid() != starter:
            return
        writer.write(time.monotonic_ns(), picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2))


@contextlib.contextmanager
def filming(folder: Path, camera: str, pictures: Callable[[], Pictures], fps: float) -> Iterator[None]:
    """Write `pictures` as camera `camera`'s into `folder`, from a process: in a thread, rendering would hold the
    interpreter while a servo has to answer."""
    path = frames_path(folder, camera)
    path.unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=_film, args=(path, pictures, fps, os.getpid()), daemon=True
    )
    process.start()
    try:
        while process.is_alive() and not path.exists():
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.join()
        path.unlink(missing_ok=True)
