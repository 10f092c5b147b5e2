"""A robot is one TOML file: family, bus, joints, rest pose, limits, rates, cameras. The simulated arm is just another
such file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from calibration.joints import JointCalibration
from calibration.store import Store
from common.errors import Mendable
from common.schema import Malformed, Name, Shape, Text, parse_toml, read_bounded, shaped
from firmware_bridge.arms import FAMILIES, UNUSABLE, Family, beyond
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.registers import RegisterError
from runtime.compute import Compute
from runtime.signing import Trust

SHIPPED = Path(__file__).parent / "robots"
MOST_BYTES = 64 * 1024  # of a robot file
# An arm without a torque limit could not be let down in a ramp.
DRIVABLE = {name: m for name, m in MODELS.items() if "torque_limit" in m.registers}


class RobotError(Mendable):
    """A robot file that cannot be used; names file, key and next step."""


@dataclass(frozen=True)
class CameraConfig:
    """`source`: "sim", slot:PATH (a slot that another program writes), a device such as /dev/video0, gst:PIPELINE, a
    video file or a URL. `calibration`: a file beside the robot file. `delay_ms`: from capture to hand-over where no
    driver stamps the frames. `fourcc`: the pixel format asked of a V4L2 device, such as MJPG; "" leaves it to
    OpenCV."""

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
    """Everything about one robot that is not learned. `trust`: whose bundles it runs, None for anybody's. `bundles`:
    where it keeps its current bundle and the one before (`runtime.promotion`), None where the file does not say."""

    name: str
    path: Path
    simulated: bool
    port: str
    arm: ArmConfig
    fast_hz: float
    slow_hz: float
    cameras: dict[str, CameraConfig]
    family: Family
    joints_measured: bool = False  # zeros and ranges come from a joint calibration
    compute: Compute = field(default_factory=Compute)
    trust: Trust | None = None
    bundles: Path | None = None


# The ranges are those of arms on a desk: wide enough for every arm that we know of, narrow enough to find a misprint.
Seconds = Annotated[float, Meta(ge=0.05, le=10)]
Lag = Annotated[float, Meta(ge=0.02, le=1.6)]  # rad
Angle = Annotated[float, Meta(ge=-6.2832, le=6.2832)]  # rad
Angles = list[Angle]
Velocities = list[Annotated[float, Meta(ge=0.01, le=20)]]  # rad/s
Accelerations = list[Annotated[float, Meta(ge=0.1, le=1000)]]  # rad/s^2
Jerks = list[Annotated[float, Meta(ge=1, le=1e6)]]  # rad/s^3
ServoId = Annotated[int, Meta(ge=0, le=252)]
Step = Annotated[int, Meta(ge=0, le=1_048_575)]  # how many a turn has is the servo model's
Register = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]  # what fits into it is the servo model's
Side = Annotated[int, Meta(ge=16, le=8192)]  # pixels
File = Annotated[
    str, Meta(min_length=1, max_length=1000, pattern=r"\A[^\x00-\x1f\x7f]+\Z", description="a file's name")
]
FourCC = Annotated[str, Meta(pattern=r"\A([ -~]{4})?\Z", description="four characters such as MJPG")]


class BusTable(Shape, frozen=True):
    """[bus]"""

    port: Text
    baud: Annotated[int, Meta(ge=9600, le=4_500_000)] = 1_000_000


class RatesTable(Shape, frozen=True):
    """[rates]"""

    fast_hz: Annotated[float, Meta(ge=5, le=240)]
    slow_hz: Annotated[float, Meta(ge=0.5, le=60)]
    motor_hz: Annotated[float, Meta(ge=20, le=500)]


class ShadowTable(Shape, frozen=True):
    """The second servo of a joint."""

    id: ServoId
    direction: Literal[1, -1] = -1
    zero_step: Step = 2048


class JointTable(Shape, frozen=True):
    """[[arm.joint]]"""

    name: Name
    id: ServoId
    lower: Angle
    upper: Angle
    zero_step: Step = 2048
    direction: Literal[1, -1] = 1
    model: Text = "STS3215"
    gear: Annotated[float, Meta(ge=0.1, le=20)] = 1.0
    shadow: ShadowTable | None = None
    homing_offset: Register | None = None
    min_position: Register | None = None
    max_position: Register | None = None

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f"impossible limits, 'lower' {self.lower:g} is not below 'upper' {self.upper:g}")
        if self.model not in DRIVABLE:
            raise ValueError(f"servo model '{self.model}' cannot be driven (these can: {', '.join(DRIVABLE)})")
        last = DRIVABLE[self.model].steps - 1
        for step in (self.zero_step, *([self.shadow.zero_step] if self.shadow else [])):
            if step > last:
                raise ValueError(f"'zero_step' must be a whole number from 0 to {last}, not {step}")
        for register, value in self.eeprom:
            try:
                DRIVABLE[self.model].encode(register, value)
            except RegisterError as e:
                raise ValueError(f"'{register}' cannot be held by the servo ({e})") from None

    @property
    def eeprom(self) -> list[tuple[str, int]]:
        """Registers of the servo and what the file says of them: verified at start."""
        held = (
            ("homing_offset", self.homing_offset),
            ("min_position", self.min_position),
            ("max_position", self.max_position),
        )
        return [(register, value) for register, value in held if value is not None]


class ArmTable(Shape, frozen=True):
    """[arm]: what a file does not say of the tuning is as in `ArmConfig`."""

    joint: list[JointTable]
    rest: Angles
    max_velocity: Velocities
    max_acceleration: Accelerations
    max_jerk: Jerks | None = None
    stop_after_s: Seconds = ArmConfig.stop_after_s
    release_s: Seconds = ArmConfig.release_s
    lower_speed: Annotated[float, Meta(ge=0.05, le=3)] = ArmConfig.lower_speed  # rad/s
    max_lead: Lag = ArmConfig.max_lead
    follow_rad: Lag = ArmConfig.follow_rad
    follow_s: Seconds = ArmConfig.follow_s
    estop: Text = ""
    calibration: Text = ""

    def __post_init__(self) -> None:
        joints, n = self.joint, len(self.joint)
        for key in ("rest", "max_velocity", "max_acceleration", "max_jerk"):
            row = getattr(self, key)
            if row is not None and len(row) != n:
                raise ValueError(f"'{key}' must hold {n} numbers, one a joint, not {len(row)}")
        for j, angle in zip(joints, self.rest, strict=True):
            if not j.lower <= angle <= j.upper:
                raise ValueError(f"'rest' puts {j.name} at {angle:g}, outside its limits of {j.lower:g} to {j.upper:g}")
        ids = [j.id for j in joints] + [j.shadow.id for j in joints if j.shadow]
        if len(set(ids)) != len(ids):
            raise ValueError("two servos share a servo id, and each needs its own")
        if len({j.name for j in joints}) != n:
            raise ValueError("two joints share a name, and each needs its own")
        if len({DRIVABLE[j.model].protocol for j in joints}) > 1:
            raise ValueError("servo models of two protocols cannot be driven on one bus")


class CameraTable(Shape, frozen=True):
    """[camera.NAME]: see `CameraConfig`."""

    source: Text
    width: Side
    height: Side
    fps: Annotated[float, Meta(ge=1, le=1000)]
    calibration: Text
    marker: Text = ""
    delay_ms: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    fourcc: FourCC = ""


class TrustTable(Shape, frozen=True):
    """[trust]: see `runtime.signing.Trust`; files beside the robot file, or anywhere."""

    signers: File
    engines: File | None = None


class RobotFile(Shape, frozen=True):
    """A whole robot file."""

    name: Text
    family: Text
    bus: BusTable
    arm: ArmTable
    rates: RatesTable
    camera: dict[Name, CameraTable]
    simulated: bool = False
    compute: Compute = msgspec.field(default_factory=Compute)
    trust: TrustTable | None = None
    bundles: File | None = None

    def __post_init__(self) -> None:
        family = FAMILIES.get(self.family)
        if family is None and self.family in UNUSABLE:
            raise ValueError(f"arm family '{self.family}' is not usable: {UNUSABLE[self.family]}")
        if family is None:
            raise ValueError(f"arm family '{self.family}' is not known (this version drives {', '.join(FAMILIES)})")
        if len(self.arm.joint) != len(family.JOINTS):
            raise ValueError(
                f"arms of the family {self.family} have {len(family.JOINTS)} joints, gripper last, [[arm.joint]] is "
                "there "
                f"{len(self.arm.joint)} times"
            )
        if (names := tuple(j.name for j in self.arm.joint)) != family.JOINTS:
            raise ValueError(
                f"the joints of a {self.family} are {', '.join(family.JOINTS)}, in this order, not {', '.join(names)}"
            )
        if wrong := beyond(family, [j.lower for j in self.arm.joint], [j.upper for j in self.arm.joint]):
            raise ValueError(wrong)


def load_robot(name_or_path: str, *, calibrated: bool = True) -> Robot:
    """A shipped robot by name ("sim_so101", "so101") or any robot file by path.

    `calibrated` False ignores the joint calibration that it names (for programs that make one). Raises RobotError, or
    CalibrationError for its joint calibration.
    """
    try:
        path = SHIPPED / f"{name_or_path}.toml"
        path = path if path.is_file() else Path(name_or_path)
        file = shaped(parse_toml(read_bounded(path, MOST_BYTES)), RobotFile)
    except (OSError, ValueError) as e:  # ValueError: a path that can be none
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
        why = e.strerror if isinstance(e, OSError) else e
        raise RobotError(f"robot file {name_or_path} cannot be read ({why}): give a path or one of {shipped}.") from e
    except Malformed as e:
        raise RobotError(f"robot file {path}: {e}: correct it (runtime/robots/so101.toml shows how).") from e
    return robot_of(file, path, calibrated=calibrated)


def robot_of(file: RobotFile, path: Path, *, calibrated: bool = True) -> Robot:
    """The robot that `file`, which lies at `path` or shall lie there, describes; raises and `calibrated` as in
    `load_robot`."""
    config = arm_config(file)
    measured = calibrated and bool(file.arm.calibration)
    if measured:  # a store's "joints" folder: measured zeros and ranges
        folder = path.parent / file.arm.calibration
        record = Store(folder.parent).get(folder.name, kind="joints")
        config = JointCalibration.from_json(record["result"], str(folder)).apply(config)
    cameras = {
        name: CameraConfig(name, c.source, c.width, c.height, c.fps, c.calibration, c.marker, c.delay_ms, c.fourcc)
        for name, c in file.camera.items()
    }
    return Robot(
        file.name,
        path,
        file.simulated,
        file.bus.port,
        config,
        file.rates.fast_hz,
        file.rates.slow_hz,
        cameras,
        FAMILIES[file.family],
        measured,
        file.compute,
        trust(file.trust, path.parent),
        path.parent / file.bundles if file.bundles else None,
    )


def trust(table: TrustTable | None, folder: Path) -> Trust | None:
    """What [trust] says, its files beside the robot file in `folder`."""
    if table is None:
        return None
    return Trust(folder / table.signers, folder / table.engines if table.engines else None)


def arm_config(file: RobotFile) -> ArmConfig:
    """What the motor process is told, without a joint calibration."""
    arm, joints = file.arm, file.arm.joint
    gear = tuple(j.gear for j in joints)
    return ArmConfig(
        joints=tuple(j.name for j in joints),
        ids=tuple(j.id for j in joints),
        lower=tuple(j.lower for j in joints),
        upper=tuple(j.upper for j in joints),
        direction=tuple(j.direction for j in joints),
        zero_step=tuple(j.zero_step for j in joints),
        rest=tuple(arm.rest),
        max_velocity=tuple(arm.max_velocity),
        max_acceleration=tuple(arm.max_acceleration),
        baud=file.bus.baud,
        motor_hz=file.rates.motor_hz,
        max_jerk=tuple(arm.max_jerk or ()),
        models=tuple(j.model for j in joints),
        gear=gear if any(g != 1.0 for g in gear) else (),
        shadows=tuple(
            (j.shadow.id, k, j.shadow.direction, j.shadow.zero_step) for k, j in enumerate(joints) if j.shadow
        ),
        eeprom=tuple((j.id, register, value) for j in joints for register, value in j.eeprom),
        family=file.family,
        estop=arm.estop,
        stop_after_s=arm.stop_after_s,
        lower_speed=arm.lower_speed,
        release_s=arm.release_s,
        max_lead=arm.max_lead,
        follow_rad=arm.follow_rad,
        follow_s=arm.follow_s,
    )
