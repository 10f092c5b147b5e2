"""The virtual cameras of `harmowam rehearse`: pictures of boards, and of an empty table, in slots that a robot file
names."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calibration.board import Board
from calibration.camera import Camera
from calibration.views import ArmNoise
from runtime.cameras.frames import FrameWriter, frames_path
from sim.boards import look_at_board, render
from sim.calibration_rig import LENS, ArmBench
from sim.rehearsal import VirtualArm
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


def board_on_arm(where: ArmBench, arm: VirtualArm, seed: int) -> Pictures:
    """What the camera of `where` sees of its board, with the arm as it stands."""
    rng = np.random.default_rng(seed)
    while True:
        yield render(CAMERA, where.cam_from_board(ARM.tool(arm.q[:-1])), where.board, rng)


def empty_table() -> Pictures:
    """Grey pictures; a few columns differ from one to the next, as no two pictures of a real camera are equal."""
    for k in itertools.count():
        picture = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
        picture[:, 4 * k % SIZE[0]] = 200
        yield picture


@contextlib.contextmanager
def filming(folder: Path, camera: str, pictures: Pictures, fps: float) -> Iterator[None]:
    """Write `pictures` as camera `camera`'s into `folder`, at most `fps` a second."""
    writer, over = FrameWriter(frames_path(folder, camera), *SIZE), threading.Event()

    def film() -> None:
        due = time.monotonic()
        for picture in pictures:
            due = max(due + 1 / fps, time.monotonic())
            if over.wait(due - time.monotonic()):
                return
            rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
            writer.write(time.monotonic_ns(), rgb)

    thread = threading.Thread(target=film, name=f"camera {camera}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        writer.close()
        writer.path.unlink(missing_ok=True)
