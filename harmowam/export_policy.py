"""`harmowam export` of a folder that LeRobot saved: from its own units and pictures to a bundle of kind chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harmowam.options import UserError

if TYPE_CHECKING:
    from export.policies.bundle import Order
    from export.policies.units import Units
    from runtime.robot import Robot

OWN = ("recipe", "samples", "cameras", "text_encoder", "keep")  # options that only our own checkpoints have
LEROBOT = ("robot", "rate", "joints", "tasks")  # options that only LeRobot's folders have
UNITS = ("degrees", "rad", "normalised")


def is_policy(path: Path | None) -> bool:
    """Whether `path` is to be read as a LeRobot folder: our own checkpoints are single files."""
    return path is not None and path.is_dir()


def order_of(
    folder: Path,
    robot: str | None,
    rate: float | None,
    units: str | None,
    joints: Path | None,
    dataset: Path | None,
    tasks: tuple[str, ...],
    **how: Any,
) -> Order:
    """Raises UserError for what the folder does not say and the user did not either; RobotError, CalibrationError,
    ExportError."""
    from export.policies.bundle import Order
    from runtime.robot import load_robot

    if robot is None:
        raise UserError(f"{folder} does not say which arm it drives: add --robot with that robot's file.")
    noted = _noted(dataset)
    rate, units = rate or noted.get("fps"), units or noted.get("units")
    if rate is None:
        raise UserError(f"{folder} does not say the rate of its actions: add --rate, the fps it was recorded with.")
    if units is None:
        raise UserError(
            f"{folder} does not say the units of its joints: add --units normalised (LeRobot's default), degrees "
            "(use_degrees) or rad."
        )
    arm = load_robot(robot, calibrated=False)
    return Order(folder, arm.family, _units(arm, units, joints), rate, dataset=dataset, tasks=tasks, **how)


def _noted(dataset: Path | None) -> dict[str, Any]:
    """What a dataset says of itself: its "fps", and "units" where harmowam recorded it."""
    out: dict[str, Any] = {}
    for name, key in (("info.json", "fps"), ("harmowam.json", "units")):
        try:
            value = json.loads((dataset / "meta" / name).read_text())[key] if dataset else None
        except (OSError, ValueError, KeyError, TypeError):
            continue  # reading the dataset says what is wrong with it
        if isinstance(value, (int, float, str)):
            out[key] = value
    return out


def _units(robot: Robot, name: str, joints: Path | None) -> Units:
    from calibration.joints_lerobot import from_lerobot, negated
    from export.policies.units import units_of

    if joints is None and name == "normalised":
        raise UserError(
            "normalised joint values mean angles only with the calibration that they were recorded with: add --joints "
            "with that file of lerobot-calibrate."
        )
    if joints is None or name == "rad":
        return units_of(name, robot.family)
    return units_of(name, robot.family, from_lerobot(joints, robot.arm)[0], negated(joints, robot.arm))


def print_policy(source: dict[str, str], report: dict[str, Any]) -> None:
    """What is inside the bundle round the network."""
    for part, text in source.items():
        click.echo(f"{part:10}{text}")
    click.echo(f"ONNX against torch: {report['torch']['share_of_range']:.1e} of the actions' range")
