"""The text of a robot file: every key of `runtime.robot.RobotFile` with its meaning, unit and range.

Keys, defaults and ranges come from the declared structs, meanings from `MEANINGS`. A key that has its default value is
commented out.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from common.schema import Malformed, parse_toml, read_bounded, shaped
from firmware_bridge.arms import FAMILIES
from firmware_bridge.service import Found
from runtime.robot import MOST_BYTES, SHIPPED, CameraConfig, RobotError, RobotFile

HEAD = """\
# A robot file that `harmowam setup` wrote. A key that is commented out shows its default value, or an example where
# it is not set by default. docs/arm.md says how to go on.
"""
MEANINGS = {  # of every key, by its path without the numbers of joints and the names of cameras
    "name": "What reports call this arm",
    "family": "Kind of arm, a file of firmware_bridge/arms/",
    "simulated": "Whether simulated servos stand for the arm",
    "bundles": "Folder of the current bundle and the one before it (`harmowam bundle promote`)",
    "bus": "Servo adapter",
    "bus.port": "Serial port, best by its name under /dev/serial/by-id",
    "bus.baud": "Baud rate of all servos, bit/s",
    "arm": "Limits of the motion; lists have one value a joint, gripper last",
    "arm.rest": "Pose in which the torque is released, rad, within the joints' limits",
    "arm.max_velocity": "Largest velocity, rad/s; keep it low until the arm is known",
    "arm.max_acceleration": "Largest acceleration, rad/s^2",
    "arm.max_jerk": "Largest jerk, rad/s^3; by default 50 / s times max_acceleration",
    "arm.stop_after_s": "How long the arm holds still without commands until it is lowered, s",
    "arm.release_s": "Duration of the ramp from full torque to none, s",
    "arm.lower_speed": "Velocity while the arm is lowered to its rest pose, rad/s",
    "arm.max_lead": "Largest distance of a goal position from the measured position, rad",
    "arm.follow_rad": "A joint that is further than this from its goal for follow_s is a fault, rad",
    "arm.follow_s": "See follow_rad, s",
    "arm.estop": "Emergency stop: key:DEVICE or gpio:DEVICE:LINE, normally closed, to ground (docs/arm.md)",
    "arm.calibration": "Joint calibration beside this file (`harmowam calibrate joints`): its zeros and ranges count",
    "arm.joint": "The joints in the family's order",
    "arm.joint.name": "Joint of the family",
    "arm.joint.id": "Servo's id on the bus",
    "arm.joint.lower": "Lower limit, rad",
    "arm.joint.upper": "Upper limit, rad",
    "arm.joint.zero_step": "Servo step at 0 rad, where there is no joint calibration; below the steps of a turn",
    "arm.joint.direction": "-1 where the servo's steps grow while the joint's angle falls",
    "arm.joint.model": "Servo model",
    "arm.joint.gear": "Turns of the servo for one turn of the joint",
    "arm.joint.shadow": "Second servo on this joint: id, direction, and step at 0 rad",
    "arm.joint.homing_offset": "Value that this register of the servo must hold, compared at start",
    "arm.joint.min_position": "Value that this register of the servo must hold, compared at start",
    "arm.joint.max_position": "Value that this register of the servo must hold, compared at start",
    "rates": "Rates of the loops",
    "rates.fast_hz": "Fast step, Hz; no more than the cameras give",
    "rates.slow_hz": "Slow step, Hz",
    "rates.motor_hz": "Motor process, Hz",
    "camera": "A camera by the name that the bundle has for it",
    "camera.source": "Device (best by its name under /dev/v4l/by-id), gst:PIPELINE, slot:PATH, video file or URL",
    "camera.width": "Width of its pictures, pixels",
    "camera.height": "Height of its pictures, pixels",
    "camera.fps": "Pictures a second",
    "camera.calibration": "Camera calibration beside this file (`harmowam calibrate intrinsics` and `hand-eye`)",
    "camera.marker": "Board fixed to table or base that is looked at before every run (`harmowam calibrate check`)",
    "camera.delay_ms": "Time from exposure to hand-over where no driver stamps the pictures, ms",
    "camera.fourcc": "Pixel format asked of a V4L2 device, four characters; by itself OpenCV chooses",
    "compute": "What networks and pre-processing run on",
    "compute.engine": "Engine of the networks; auto takes TensorRT where it is built for this board, else the CPU",
    "compute.preprocess": "Where pictures are scaled and cut; auto is the CPU",
    "compute.cores": "Processor cores that loops and engines may use, by number; an empty list leaves it to the kernel",
    "trust": "Whose bundles this robot runs; without this table anybody's",
    "trust.signers": "File of OpenSSH's allowed signers, beside this file",
    "trust.engines": "List of the TensorRT engines that may be loaded, beside this file",
}


def families() -> list[str]:
    """Names of the arm families that have a shipped robot file to begin from."""
    return [name for name in FAMILIES if (SHIPPED / f"{name}.toml").is_file()]


def shipped(family: str) -> RobotFile:
    """The shipped robot file of a real arm of `family`, one of `families()`."""
    return shaped(parse_toml(read_bounded(SHIPPED / f"{family}.toml", MOST_BYTES)), RobotFile)


def filled(file: RobotFile, port: str, cameras: Iterable[CameraConfig], calibration: str = "") -> RobotFile:
    """`file` with the serial port `port`, the joint calibration `calibration` ("" for none), and `cameras` in place of
    its own, where there are any. Raises RobotError for what cannot stand in a robot file."""
    raw: dict[str, Any] = msgspec.to_builtins(file)
    raw["bus"]["port"] = port
    raw["arm"]["calibration"] = calibration
    rows = [dataclasses.asdict(c) for c in cameras]
    raw["camera"] = {row.pop("name"): row for row in rows} or raw["camera"]
    try:
        return shaped(raw, RobotFile)
    except Malformed as e:
        raise RobotError(f"no robot file can be written of this: {e}: give another value.") from e


def servos(file: RobotFile) -> list[tuple[int, str]]:
    """Id and model of every servo of `file`, second ones included."""
    return [(i, j.model) for j in file.arm.joint for i in (j.id, *([j.shadow.id] if j.shadow else []))]


def answering(file: RobotFile, found: Iterable[Found]) -> list[int]:
    """Ids of the servos of `file` that are among `found`, by id and model."""
    there = {(f.servo, f.name) for f in found if not f.double}
    return [i for i, model in servos(file) if (i, model) in there]


def recognised(found: Iterable[Found]) -> str | None:
    """The family most of whose servos are among `found`; None where none is or two are alike."""
    found = list(found)
    counts = {name: len(answering(shipped(name), found)) for name in families()}
    best = [name for name, count in counts.items() if count and count == max(counts.values())]
    return best[0] if len(best) == 1 else None


def text(file: RobotFile) -> str:
    """A robot file in TOML that reads as `file`. Meanings stand at the first joint and the first camera."""
    return HEAD + "\n".join(_table(RobotFile, file, "", "", _examples(file), told=True)) + "\n"


def _examples(file: RobotFile) -> dict[str, Any]:
    """Values to show for keys whose default is empty, by path."""
    free = max(i for i, _ in servos(file)) + 1
    return {
        "bundles": "bundles",
        "arm.max_jerk": [50.0 * a for a in file.arm.max_acceleration],
        "arm.estop": "key:/dev/input/by-id/NAME",
        "arm.calibration": "calibration/joints",
        "arm.joint.shadow": {"id": free, "direction": -1, "zero_step": 2048},
        "arm.joint.homing_offset": 0,
        "arm.joint.min_position": 0,
        "arm.joint.max_position": 4095,
        "camera.marker": "chessboard:6x5:0.015",
        "camera.fourcc": "MJPG",
        "trust.signers": "allowed_signers",
        "trust.engines": "engines.json",
    }


def _table(
    kind: type[msgspec.Struct], value: Any, path: str, header: str, examples: Mapping[str, Any], told: bool
) -> Iterator[str]:
    """Lines of the table `value` of `kind`, None for one that is absent by default; `path` as in `MEANINGS`, `header`
    as in the file. `told`: with the meanings, and with the keys that have their defaults."""
    inner = []
    for field in msgspec.structs.fields(kind):
        where = f"{path}.{field.name}".lstrip(".")
        info = inspect.type_info(field.type)
        table = _struct(info)
        if table is not None and where not in examples:
            inner.append((field.name, where, table, info))
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        now = default if value is None else getattr(value, field.name)
        if (is_default := value is None or now == default) and not told:
            continue
        if told:
            unset = "; not set by default" if default in (None, "") else ""
            yield f"# {MEANINGS[where]}{_range(info)}{unset}."
        shown = examples[where] if now in (None, "", msgspec.NODEFAULT) else now
        yield f"{'# ' * is_default}{field.name} = {_toml(shown)}"
    for name, where, table, info in inner:
        below = None if value is None else getattr(value, name)
        yield from _tables(table, below, where, f"{header}.{_toml_key(name)}".lstrip("."), info, examples)


def _tables(
    kind: type[msgspec.Struct], value: Any, path: str, header: str, info: inspect.Type, examples: Mapping[str, Any]
) -> Iterator[str]:
    """Lines of one table, of a list of tables, or of tables by name, with their headers."""
    yield f"\n# {MEANINGS[path]}."
    if isinstance(info, inspect.DictType):
        rows = [(f"[{header}.{_toml_key(name)}]", row) for name, row in value.items()]
    elif isinstance(info, inspect.ListType):
        rows = [(f"[[{header}]]", row) for row in value]
    else:
        rows = [(f"[{header}]" if value is not None else f"# [{header}]", value)]
    for k, (line, row) in enumerate(rows):
        yield line if k == 0 else f"\n{line}"
        yield from _table(kind, row, path, header, examples, told=k == 0)


def _struct(info: inspect.Type) -> type[msgspec.Struct] | None:
    """The struct that a declared type holds, by itself or in a list, in a dictionary or as an option."""
    if isinstance(info, inspect.StructType):
        return info.cls
    if isinstance(info, inspect.ListType):
        return _struct(info.item_type)
    if isinstance(info, inspect.DictType):
        return _struct(info.value_type)
    options = info.types if isinstance(info, inspect.UnionType) else ()
    return next((s for s in map(_struct, options) if s is not None), None)


def _range(info: inspect.Type) -> str:
    """What a declared type allows, to follow a key's meaning."""
    if isinstance(info, inspect.Metadata):
        return _range(info.type)
    if isinstance(info, inspect.UnionType):
        return "".join(_range(t) for t in info.types)
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        low, high = (int(v) if v is not None and v == int(v) else v for v in (info.ge, info.le))
        return f"; {low} to {high}"
    if isinstance(info, inspect.LiteralType):
        return f"; {' or '.join(_toml(v) for v in info.values)}"
    if isinstance(info, inspect.BoolType):
        return "; true or false"
    if isinstance(info, (inspect.ListType, inspect.VarTupleType)):
        return _range(info.item_type).replace("; ", "; each ")
    return ""


def _toml(value: Any) -> str:
    """A value of a robot file in TOML; what `common.schema.Text` allows in a text is the same in JSON."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {_toml(v)}' for k, v in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
