"""`harmowam calibrate from-recording`: where the front camera of a recording stands, without a board."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmware_bridge.motion.endings import Exit
from harmowam.calibrate_store import open_store
from harmowam.data import PATH, how_of, recording_options
from harmowam.options import ROBOT, UserError, errors, json_option, say, write_json

if TYPE_CHECKING:
    from calibration.camera import Camera
    from calibration.from_recording import Found, Recorded
    from calibration.store import Store
    from export.recordings import Examined

VIEW = "front"
EPISODES, PICTURES = 20, 400  # that are looked at


@click.command(name="from-recording")
@click.argument("folder", type=PATH)
@recording_options
@click.option("--urdf", type=PATH, help="The arm's URDF with its meshes: exact shapes in place of the family's boxes.")
@click.option("--robot", help="Robot file beside which the result is stored.")
@click.option("--store", type=PATH, help="Folder of calibrations, in place of the one beside --robot.")
@click.option("--dry-run", is_flag=True, help="Compute and show, store nothing.")
@click.option("--out", type=PATH, default=Path("out/calibrate"), show_default=True, help="Folder of the overlays.")
@json_option
@errors
def from_recording(
    folder: Path,
    urdf: Path | None,
    robot: str | None,
    store: Path | None,
    dry_run: bool,
    out: Path,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Where the front camera of the recording FOLDER stands, its focal length, and the joints' zeros, from its episodes
    alone: no board, no robot. Stored when it is accepted; exit code 1 when it is not. The wrist camera is not found."""
    from calibration import arm_shapes
    from calibration.from_recording import solve, to_json
    from calibration.from_recording_job import put, write_overlays
    from export.recordings import examine, refusal

    if not dry_run and robot is None and store is None:
        raise UserError("nothing says where the result belongs: add --robot FILE, --store FOLDER or --dry-run.")
    where = None if dry_run else open_store(store, robot or ROBOT)
    found = examine(folder, how_of(folder, **options))
    if not found.accepted:
        raise refusal(found)
    if found.arm is None or VIEW not in found.views:
        raise UserError(f"{folder} has no front view: say which camera stands, with --camera front=NAME.")
    shapes = arm_shapes.of_urdf(urdf, found.arm) if urdf else arm_shapes.of_family(found.arm)
    recorded = _recorded(found)
    solved = solve(found.arm, shapes, recorded, VIEW, _known(found, where), lambda text: say(f"{text} ..."))
    film = found.cameras[found.views[VIEW]]  # pictures that are looked at may be smaller than those that are stored
    solved = dataclasses.replace(solved, camera=solved.camera.scaled(film.width, film.height))
    pictures = write_overlays(out, f"{VIEW}-from-recording", solved)
    digest = None if where is None or solved.refused else put(where, VIEW, solved, folder.name)
    _print(solved, found.arm.JOINTS, pictures)
    if digest and where:
        click.echo(f"stored as {digest[:10]} in {where.root}")
    write_json(json_path, {**to_json({VIEW: solved}), "overlays": [str(p) for p in pictures], "hash": digest})
    if solved.refused:
        sys.exit(Exit.VERDICT)


def _recorded(found: Examined) -> Recorded:
    """Pictures spread over up to `EPISODES` episodes, with the joint angles of their rows."""
    import cv2
    import numpy as np

    from calibration.from_recording import WIDEST, Recorded
    from export.recordings.pictures import pictures
    from export.recordings.units import to_rad

    assert found.arm is not None
    takes = [found.takes[k] for k in np.unique(np.linspace(0, len(found.takes) - 1, EPISODES).round().astype(int))]
    images, angles, speeds, numbers = [], [], [], []
    for take in takes:
        q = to_rad(take.state, found.units, found.arm)
        speed = np.abs(np.gradient(q, take.t, axis=0)).max(1) if len(q) > 1 else np.zeros(len(q))
        rows = set(np.linspace(0, len(q) - 1, max(2, PICTURES // len(takes))).round().astype(int).tolist())
        for k, (_, coloured) in enumerate(pictures(found, take, found.views[VIEW])):
            if k not in rows:
                continue
            whole = coloured()
            if whole.shape[1] > WIDEST:
                size = (WIDEST, round(whole.shape[0] * WIDEST / whole.shape[1]))
                whole = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
            images.append(whole)
            angles.append(q[k])
            speeds.append(float(speed[k]))
            numbers.append(take.number)
    return Recorded(np.stack(images), np.array(angles), np.array(speeds), np.array(numbers))


def _known(found: Examined, store: Store | None) -> Camera | None:
    """The lens of the front camera where it is calibrated at the recording's size: of --cameras, else of the store."""
    from calibration.records import camera_of, current

    film = found.cameras[found.views[VIEW]]
    known = found.how.calibration.get(VIEW) or found.how.calibration.get(film.name)
    if known is None and store is not None and (record := current(store, VIEW)) is not None:
        # a focal length that came from a recording is no witness for another recording
        known = camera_of(record) if "recording" not in record["evidence"] else None
    return known if known and (known.width, known.height) == (film.width, film.height) else None


def _print(solved: Found, joints: tuple[str, ...], pictures: list[Path]) -> None:
    import numpy as np

    assert solved.camera.T_base_from_cam is not None
    place = ", ".join(f"{v:.3f}" for v in solved.camera.T_base_from_cam[:3, 3])
    sd = f"standard deviation {solved.position_sd_mm:.0f} mm and {solved.angle_sd_deg:.1f} degrees"
    click.echo(f"front camera at {place} m, {sd}")
    click.echo(f"focal length {solved.camera.K[0, 0]:.0f} px, {100 * solved.focal_sd:.1f} % (sd)")
    click.echo(f"held-out episodes: outlines {solved.heldout_px:.2f} px off (median)")
    for name, zero, spread in zip(joints, np.degrees(solved.zeros), np.degrees(solved.zeros_sd), strict=True):
        told = f"{zero:+.1f} degrees, {spread:.1f} (sd)" if np.isfinite(spread) else "undetermined"
        click.echo(f"zero of {name:14} {told}")
    for why in solved.refused:
        click.echo(f"not accepted: {why}")
    click.echo(f"outlines over pictures: {', '.join(str(p) for p in pictures)}")
