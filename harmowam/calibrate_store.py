"""The verbs of `harmowam calibrate` that look into its store: history, rollback, diff, export; how a store is
opened, and the options of the verbs that write to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harmowam.hints import as_given
from harmowam.options import UserError, errors, json_option, robot_option, write_json

camera_option = click.option("--camera", default="front", show_default=True, help="Camera of the robot file.")
report_option = click.option(
    "--report", type=click.Path(readable=False, path_type=Path), help="HTML report (default: out/calibrate/...)."
)
store_option = click.option(
    "--store",
    type=click.Path(readable=False, path_type=Path),
    help="Folder of calibrations (default: calibration/ beside the robot file).",
)


def open_store(store: Path | None, robot: str) -> Any:
    """The folder of --store, or the one beside the robot file. Raises UserError for a robot file that is shipped."""
    from calibration.store import Store
    from harmowam.calibration_rig import default_store
    from runtime.robot import SHIPPED, load_robot

    loaded = load_robot(robot, calibrated=False)
    if store is None and loaded.path.parent == SHIPPED and not loaded.simulated:
        raise UserError(
            f"{loaded.path.name} is shipped, and its calibrations would be looked for beside it: write your arm's own "
            "with `harmowam setup`, then name it with --robot my_arm/robot.toml."
        )
    return Store(store or default_store(loaded))


@click.command()
@click.argument("name", required=False)
@robot_option
@store_option
@json_option
@errors
def history(name: str | None, robot: str, store: Path | None, json_path: Path | None) -> None:
    """Every calibration of NAME (default: of all), oldest first; * marks the one in use."""
    from runtime.robot import load_robot

    where = open_store(store, robot)
    names = [name] if name else where.names()
    rows = {n: where.history(n) for n in names}
    if not any(rows.values()):
        virtual = store is None and load_robot(robot, calibrated=False).simulated
        mend = "`harmowam rehearse` makes those of a virtual arm" if virtual else "run `harmowam calibrate intrinsics`"
        raise UserError(as_given(f"no calibration of {name or 'anything'} in {where.root}: {mend}.", "store"))
    for n, found in rows.items():
        for r in found:
            click.echo(
                f"{'*' if r['current'] else ' '} {n:18} {r['hash'][:10]}  {r['created']}  {r['error'] or r['summary']}"
            )
    write_json(json_path, rows)


@click.command()
@click.argument("name")
@click.option("--to", help="Hash or its beginning (default: the one in use before).")
@robot_option
@store_option
@json_option
@errors
def rollback(name: str, to: str | None, robot: str, store: Path | None, json_path: Path | None) -> None:
    """Go back to an earlier calibration of NAME. Nothing is deleted."""
    digest = open_store(store, robot).rollback(name, to)
    click.echo(f"{name} is {digest[:10]} again")
    write_json(json_path, {"name": name, "current": digest})


@click.command()
@click.argument("name")
@click.argument("old")
@click.argument("new", required=False)
@robot_option
@store_option
@json_option
@errors
def diff(name: str, old: str, new: str | None, robot: str, store: Path | None, json_path: Path | None) -> None:
    """What changed from OLD to NEW (default: the one in use): pixels, millimetres, degrees."""
    from calibration.records import compare_records

    where = open_store(store, robot)
    a = where.get(name, where.resolve(name, old))
    b = where.get(name, where.resolve(name, new) if new else None)
    changes = compare_records(a, b)
    for key, value in changes.items():
        click.echo(
            f"{key.replace('_', ' '):32}{value:.4f}"
            if isinstance(value, float)
            else f"{key.replace('_', ' '):32}{value}"
        )
    write_json(json_path, changes)


@click.command()
@click.argument("camera")
@click.option(
    "--format",
    "form",
    type=click.Choice(["opencv", "ros"]),
    required=True,
    help="cv2.FileStorage, or ROS's camera_info; both YAML.",
)
@click.option("--out", type=click.Path(readable=False, path_type=Path, dir_okay=False), required=True, help="The file.")
@robot_option
@store_option
@json_option
@errors
def export(camera: str, form: str, out: Path, robot: str, store: Path | None, json_path: Path | None) -> None:
    """Write the lens of CAMERA that is in use, for other programs; its pose has no place in either form."""
    from calibration.camera_files import FORMATS
    from calibration.records import camera_of
    from calibration.store import write_result

    record = open_store(store, robot).get(camera, kind="camera")
    write_result(out, FORMATS[form](camera_of(record)).encode())
    click.echo(f"{out}: the lens of {camera} ({record['hash'][:10]})")
    write_json(json_path, {"file": str(out), "format": form, "hash": record["hash"]})
