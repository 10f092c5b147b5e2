"""Hand-eye calibration from files: pictures of a board in a folder, and a table that says where the arm was at each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.hand_eye_job import finish_hand_eye
from calibration.pose_file import ArmPoses, tool_pose
from calibration.store import Store, refuse_other_camera
from calibration.views import ArmNoise, ArmView, Forward
from common.files import barred


def hand_eye_from_files(
    store: Store,
    name: str,
    folder: Path,
    poses: ArmPoses,
    board: Board,
    mount: str,
    noise: ArmNoise,
    page: Path,
    dry_run: bool,
    forward: Forward,
    joints: tuple[str, ...],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Find the board in the pictures of `folder`, solve, store and report: `finish_hand_eye`'s result.

    `forward` and `joints` are the arm's, for a table of joint angles. Where the table gives the tool's poses, no joint
    offsets are estimated. Raises CalibrationError, also for a picture that is missing, unreadable or of another size
    than the stored lens is for."""
    old = store.get(name, kind="camera")
    views = [_view(old, folder, picture, q, board, say) for picture, q in zip(poses.pictures, poses.q, strict=True)]
    if poses.of_tool:
        forward, joints, noise = tool_pose, (), dataclasses.replace(noise, offset_deg=0.0)
    return finish_hand_eye(store, name, old, views, mount, noise, page, dry_run, board.text, forward, joints)


def _view(old: dict[str, Any], folder: Path, picture: str, q: Any, board: Board, say: Callable[[str], None]) -> ArmView:
    path = folder / picture
    if said := barred(path):  # OpenCV tells no reason
        raise CalibrationError(said)
    if not path.is_file():
        raise CalibrationError(f"picture {path} does not exist: correct its name in the table, or leave its row out.")
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise CalibrationError(f"picture {path} cannot be read: give a PNG or JPEG file, or leave its row out.")
    refuse_other_camera(old, {"height": image.shape[0], "width": image.shape[1]})
    found = board.detect(image)
    say(f"{picture}: {len(found.ids)} corners" if len(found.ids) else f"{picture}: {board.why_unseen(image)}")
    return ArmView(picture, board.points()[found.ids], found.pixels, q)
