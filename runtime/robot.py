"""A robot is one TOML file: family, bus, joints, rest pose, limits, rates, cameras. The simulated arm is just another such file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.joints import JointCalibration
from calibration.store import Store
from firmware_bridge.arm import ArmConfig
from firmware_bridge.arms.so101 import FAMILY
from firmware_bridge.mendable import Mendable
from firmware_bridge.models import MODELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

JOINTS = 6  # of an SO-101
SHIPPED = Path(__file__).parent / "robots"


class RobotError(Mendable):
    """A robot file that cannot be used; names file, key and next step."""


@dataclass(frozen=True)
class CameraConfig:
    """`source`: "sim", slot:PATH (a slot that another program writes), a device such as /dev/video0, gst:PIPELINE, a video file or
    a URL. `calibration`: a file beside the robot file. `delay_ms`: from capture to hand-over where no driver stamps the frames.
    `fourcc`: the pixel format asked of a V4L2 device, such as MJPG; "" leaves it to OpenCV."""

    name: str
    source: str
    width: int
    height: int
    fps: float
    calibration: str
    marker: str = ""  # board fixed to the table or base, looked at before every run (`harmowam calibrate check`)
    delay_ms: float = 0.0
    fourcc: str = ""


@dataclass(frozen=True)
class Robot:
    """Everything about one robot that is not learnt."""

    name: str
    path: Path
    simulated: bool
    port: str
    arm: ArmConfig
    fast_hz: float
    slow_hz: float
    cameras: dict[str, CameraConfig]
    joints_measured: bool = False  # zeros and ranges come from a joint calibration


_JOINT = {"name": str, "id": int, "lower": float, "upper": float, "zero_step": int, "direction": int}
_EEPROM = ("homing_offset", "min_position", "max_position")  # of a joint's servo, verified at start when given
_TOP = {"name", "family", "simulated", "bus", "arm", "rates", "camera"}


def _take(table: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = table.get(key, default)
    if value is None:
        raise RobotError(f"{where} lacks '{key}': add it (runtime/robots/so101.toml shows how).")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RobotError(f"{where}: '{key}' must be {kind.__name__}, not {value!r}: correct it.")
    return value


def _known(table: dict[str, Any], keys: set[str], where: str) -> None:
    extra = sorted(set(table) - keys)
    if extra:
        raise RobotError(
            f"{where}: '{extra[0]}' is no key of a robot file: remove it or correct its spelling ({', '.join(sorted(keys))})."
        )


def _vector(table: dict[str, Any], key: str, n: int, where: str) -> tuple[float, ...]:
    value = _take(table, key, list, where)
    if len(value) != n or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        raise RobotError(f"{where}: '{key}' must hold {n} numbers, one a joint: correct it.")
    return tuple(float(v) for v in value)


def _positive(table: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = _take(table, key, kind, where, default)
    if not 0 < value < float("inf"):
        raise RobotError(f"{where}: '{key}' must be greater than zero, not {value!r}: correct it.")
    return value


def _fourcc(table: dict[str, Any], where: str) -> str:
    value = str(_take(table, "fourcc", str, where, ""))
    if value and not (len(value) == 4 and value.isascii() and value.isprintable()):
        raise RobotError(f"{where}: 'fourcc' must be four characters such as MJPG, not {value!r}: correct it.")
    return value


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RobotError(
            f"{where} must be a table of keys, not {value!r}: correct it (runtime/robots/so101.toml shows how)."
        )
    return value


def _shadow(joint: dict[str, Any], k: int, where: str) -> tuple[int, int, int, int]:
    """The second servo of joint `k`, as ArmConfig has it: id, joint, direction, step at 0 rad."""
    where = f"{where} shadow"
    table = _table(joint["shadow"], where)
    _known(table, {"id", "direction", "zero_step"}, where)
    servo, direction = _take(table, "id", int, where), _take(table, "direction", int, where, -1)
    if direction not in (1, -1) or not 0 <= servo <= 252:
        raise RobotError(f"{where} has an impossible direction or id: correct it.")
    return servo, k, direction, _take(table, "zero_step", int, where, 2048)


def load_robot(name_or_path: str, *, calibrated: bool = True) -> Robot:
    """A shipped robot by name ("sim_so101", "so101") or any robot file by path.

    `calibrated` False leaves the joint calibration that it names aside (for who makes one). Raises RobotError, or CalibrationError
    for its joint calibration.
    """
    path = SHIPPED / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as e:
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
        raise RobotError(
            f"robot file {name_or_path} cannot be read ({e.strerror}): give a path or one of {shipped}."
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise RobotError(f"robot file {path} is not TOML ({e}): correct that line.") from e
    where = str(path)
    _known(raw, _TOP, where)
    bus, arm, rates = (_take(raw, k, dict, where) for k in ("bus", "arm", "rates"))
    _known(bus, {"port", "baud"}, f"{where} [bus]")
    _known(
        arm,
        {
            "rest",
            "max_velocity",
            "max_acceleration",
            "joint",
            "stop_after_s",
            "lower_speed",
            "release_s",
            "max_lead",
            "max_jerk",
            "follow_rad",
            "follow_s",
            "estop",
            "calibration",
        },
        f"{where} [arm]",
    )
    _known(rates, {"fast_hz", "slow_hz", "motor_hz"}, f"{where} [rates]")
    joints = _take(arm, "joint", list, f"{where} [arm]")
    rows = []
    for k, j in enumerate(joints):
        at = f"{where} [[arm.joint]] number {k + 1}"
        _known(_table(j, at), {*_JOINT, *_EEPROM, "model", "gear", "shadow"}, at)
        rows.append(
            {key: _take(j, key, kind, at, {"zero_step": 2048, "direction": 1}.get(key)) for key, kind in _JOINT.items()}
        )
    n = len(rows)
    if n != JOINTS:
        raise RobotError(
            f"{where}: an so101 has {JOINTS} joints, gripper last, this file has {n}: correct [[arm.joint]]."
        )
    for r in rows:
        if not r["lower"] < r["upper"] or r["direction"] not in (1, -1) or not 0 <= r["id"] <= 252:
            raise RobotError(f"{where}: joint '{r['name']}' has impossible limits, direction or id: correct it.")
    gear = tuple(_positive(j, "gear", float, where, 1.0) for j in joints)
    shadows = tuple(
        _shadow(j, k, f"{where} [[arm.joint]] number {k + 1}") for k, j in enumerate(joints) if "shadow" in j
    )
    if len({r["id"] for r in rows} | {s[0] for s in shadows}) != n + len(shadows):
        raise RobotError(f"{where}: two joints share a servo id: give each its own.")
    if len({r["name"] for r in rows}) != n:
        raise RobotError(f"{where}: two joints share a name: give each its own.")
    tuning = ("stop_after_s", "lower_speed", "release_s", "max_lead", "follow_rad", "follow_s")
    optional = {k: _positive(arm, k, float, f"{where} [arm]") for k in tuning if k in arm}
    rest, velocity, acceleration = (
        _vector(arm, k, n, f"{where} [arm]") for k in ("rest", "max_velocity", "max_acceleration")
    )
    for k, r in enumerate(rows):
        if not r["lower"] <= rest[k] <= r["upper"]:
            raise RobotError(f"{where} [arm]: 'rest' puts {r['name']} outside its limits: correct one of them.")
        if not (0 < velocity[k] < float("inf") and 0 < acceleration[k] < float("inf")):
            raise RobotError(
                f"{where} [arm]: {r['name']} needs a velocity and an acceleration above zero: correct them."
            )
    jerk = _vector(arm, "max_jerk", n, f"{where} [arm]") if "max_jerk" in arm else ()
    if jerk and min(jerk) <= 0:
        raise RobotError(f"{where} [arm]: every 'max_jerk' must be greater than zero: correct it.")
    models = tuple(_take(j, "model", str, where, "STS3215") for j in joints)
    # An arm without a torque limit could not be let down in a ramp.
    unknown = [m for m in models if m not in MODELS or "torque_limit" not in MODELS[m].registers]
    if unknown or len({MODELS[m].protocol for m in models}) > 1:
        raise RobotError(
            f"{where}: servo model '{unknown[0] if unknown else models}' cannot be driven: "
            f"use models of one protocol ({', '.join(n for n, m in MODELS.items() if 'torque_limit' in m.registers)})."
        )
    held = tuple((r["id"], k, _take(j, k, int, where)) for r, j in zip(rows, joints) for k in _EEPROM if k in j)
    config = ArmConfig(
        joints=tuple(r["name"] for r in rows),
        ids=tuple(r["id"] for r in rows),
        lower=tuple(r["lower"] for r in rows),
        upper=tuple(r["upper"] for r in rows),
        direction=tuple(r["direction"] for r in rows),
        zero_step=tuple(r["zero_step"] for r in rows),
        rest=rest,
        max_velocity=velocity,
        max_acceleration=acceleration,
        baud=_positive(bus, "baud", int, f"{where} [bus]", 1_000_000),
        motor_hz=_positive(rates, "motor_hz", float, f"{where} [rates]"),
        max_jerk=jerk,
        models=models,
        gear=gear if any(g != 1.0 for g in gear) else (),
        shadows=shadows,
        eeprom=held,
        family=_take(raw, "family", str, where),
        estop=_take(arm, "estop", str, f"{where} [arm]", ""),
        **optional,
    )
    if calibrated and "calibration" in arm:  # a store's "joints" folder: measured zeros and ranges
        folder = path.parent / _take(arm, "calibration", str, f"{where} [arm]")
        record = Store(folder.parent).get(folder.name, kind="joints")
        config = JointCalibration.from_json(record["result"], str(folder)).apply(config)
    cameras = {}
    for key, c in _take(raw, "camera", dict, where).items():
        at = f"{where} [camera.{key}]"
        _known(_table(c, at), {"source", "width", "height", "fps", "calibration", "marker", "delay_ms", "fourcc"}, at)
        cameras[key] = CameraConfig(
            key,
            _take(c, "source", str, at),
            _positive(c, "width", int, at),
            _positive(c, "height", int, at),
            _positive(c, "fps", float, at),
            _take(c, "calibration", str, at),
            _take(c, "marker", str, at, ""),
            _take(c, "delay_ms", float, at, 0.0),
            _fourcc(c, at),
        )
    if config.family != FAMILY:
        raise RobotError(f"{where}: arm family '{config.family}' is not known: this version drives {FAMILY}.")
    return Robot(
        _take(raw, "name", str, where),
        path,
        _take(raw, "simulated", bool, where, False),
        _take(bus, "port", str, f"{where} [bus]"),
        config,
        _positive(rates, "fast_hz", float, f"{where} [rates]"),
        _positive(rates, "slow_hz", float, f"{where} [rates]"),
        cameras,
        joints_measured=calibrated and "calibration" in arm,
    )
