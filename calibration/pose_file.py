"""A table of arm poses that somebody else recorded: CSV or JSON, a row for each picture.

Columns: `picture` (file name) and one of
    the arm's joints by name, rad; the jaw's column is passed over
    x y z (m) qx qy qz qw: place and unit quaternion of the tool in the base's frame
    t00 t01 ... t33: T_base_from_tool row by row (m); in JSON also "T_base_from_tool", 4 rows of 4 numbers
JSON is a list of objects with these keys.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import ROUNDED, CalibrationError, rigid
from calibration.transforms import log, transform
from common.errors import unreadable
from common.schema import Malformed, parse_json, read_bounded, shown

MOST_BYTES = 4 * 1024 * 1024
PLACE, QUATERNION = ("x", "y", "z"), ("qx", "qy", "qz", "qw")
MATRIX = tuple(f"t{row}{column}" for row in range(4) for column in range(4))
FARTHEST = 10.0  # m from the base: what is farther was not given in metres
TURN = 2 * np.pi  # rad: a joint angle beyond it was not given in radians


@dataclass(frozen=True)
class ArmPoses:
    """`pictures` and the arm's pose `q` at each: float64[n,J] joint angles (rad), or float64[n,6] where `of_tool`: the
    tool's rotation vector (rad) and place (m) in the base's frame, which `tool_pose` turns into a pose."""

    pictures: tuple[str, ...]
    q: np.ndarray
    of_tool: bool


def tool_pose(q: np.ndarray) -> np.ndarray:
    """T_base_from_tool float64[4,4] of a rotation vector and a place, float64[6]."""
    return transform(q[:3], q[3:])


def read_poses(path: Path, joints: tuple[str, ...]) -> ArmPoses:
    """The table at `path`; `joints`: the arm's, the jaw last. Raises CalibrationError for what is no such table."""
    try:
        rows = _rows(path)
        columns = _columns(rows[0], joints)
        names = [_picture(row, k) for k, row in enumerate(rows)]
        poses = [_pose(row, columns, name, joints[-1]) for row, name in zip(rows, names, strict=True)]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise Malformed(f"picture '{shown(twice)}' has two rows")
    except FileNotFoundError as e:
        raise CalibrationError(f"{path} does not exist: name the file of the arm's poses with --poses.") from e
    except OSError as e:
        said = unreadable(e) or f"{path} cannot be read ({e.strerror}): name another file with --poses."
        raise CalibrationError(said) from e
    except Malformed as e:
        raise CalibrationError(f"{path} is no table of arm poses ({e}): correct it.") from e
    return ArmPoses(tuple(names), np.array(poses), columns != joints[:-1])


def _rows(path: Path) -> list[dict[str, Any]]:
    """Column to value, of every row; at least one."""
    data = read_bounded(path, MOST_BYTES)
    if path.suffix.lower() == ".json":
        rows = parse_json(data)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Malformed("it is not a list of objects")
        rows = [_flat(row) for row in rows]
    else:
        try:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), skipinitialspace=True))
        except (UnicodeDecodeError, csv.Error) as e:
            raise Malformed(f"it is no CSV: {e}") from e
        if long := [k for k, row in enumerate(rows) if None in row]:
            raise Malformed(f"row {long[0] + 1} has more cells than the first line has columns")
    if not rows:
        raise Malformed("it has no rows")
    return rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """`row` of a JSON file with the columns of a CSV file."""
    if "T_base_from_tool" not in row:
        return row
    T = row["T_base_from_tool"]
    if not isinstance(T, list) or len(T) != 4 or not all(isinstance(line, list) and len(line) == 4 for line in T):
        raise Malformed("a T_base_from_tool is not 4 rows of 4 numbers")
    rest = {k: v for k, v in row.items() if k != "T_base_from_tool"}
    return {**rest, **dict(zip(MATRIX, [v for line in T for v in line], strict=True))}


def _columns(row: dict[str, Any], joints: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the three kinds of pose the table gives."""
    kinds = (joints[:-1], PLACE + QUATERNION, MATRIX)
    best = max(kinds, key=lambda kind: len(row.keys() & set(kind)))
    if not row.keys() & set(best):
        ways = "; ".join(" ".join(kind) for kind in kinds[:2])
        raise Malformed(f"it has the columns of no pose: beside picture {ways}; or t00 t01 to t33 are needed")
    return best


def _picture(row: dict[str, Any], k: int) -> str:
    name = row.get("picture")
    if not isinstance(name, str) or not name:
        raise Malformed(f"row {k + 1} names no picture in a column 'picture'")
    return name


def _pose(row: dict[str, Any], columns: tuple[str, ...], name: str, jaw: str) -> np.ndarray:
    """Joint angles, or the tool's rotation vector and place."""
    where = f"picture '{shown(name)}'"
    if unknown := [c for c in row if c not in (*columns, "picture", jaw)]:
        raise Malformed(f"{where} has a column '{shown(unknown[0])}', where picture, {', '.join(columns)} are known")
    if missing := [c for c in columns if c not in row]:
        raise Malformed(f"{where} has no column '{missing[0]}'")
    values = np.array([_number(row[c], c, where) for c in columns])
    if columns == MATRIX:
        T = values.reshape(4, 4)
        if not rigid(T):
            raise Malformed(f"{where} has no pose: a rotation and a place are needed")
        pose = log(T)
    elif columns == PLACE + QUATERNION:
        length = float(np.linalg.norm(values[3:]))
        if abs(length - 1) > ROUNDED:
            raise Malformed(f"{where} has a quaternion of length {length:.4f}, where 1 is needed")
        pose = np.concatenate([_rotation_vector(values[3:] / length), values[:3]])
    else:
        if np.abs(values).max() > TURN:
            raise Malformed(f"{where} has a joint angle of {np.abs(values).max():.1f} rad, more than a turn")
        return values
    if np.abs(pose[3:]).max() > FARTHEST:
        raise Malformed(f"{where} has a tool {np.abs(pose[3:]).max():.0f} m from the base, more than {FARTHEST:.0f} m")
    return pose


def _number(value: Any, column: str, where: str) -> float:
    try:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and np.isfinite(number := float(value)):
            return number
    except (ValueError, OverflowError):
        pass
    raise Malformed(f"{where} has no number in column '{column}'")


def _rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector float64[3] (rad, less than a turn) of a unit quaternion float64[4] (x y z w)."""
    axis = quaternion[:3]
    sine = float(np.linalg.norm(axis))
    return np.asarray(axis * (2 * np.arctan2(sine, quaternion[3]) / sine if sine > 1e-12 else 2.0))
