"""The manifest of a bundle as declared shapes: what it may hold, and which fields must fit each other.

The ranges are what an arm on a desk and a policy for it can have; damage that stays within them is found by the hashes
of the files only.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType, field

from calibration.camera import CalibrationError, Camera
from common.schema import Digest, Name, Shape, Text
from firmware_bridge.arms import FAMILIES, beyond

SCHEMA = 3  # with a hash of its own; 2 named rates and the parts of proprio, which nothing reads
PROPRIO = 4  # height, pitch, roll, how far the jaw is open: `runtime.policies.decode.proprio`
LINK_SLACK = 0.03  # m: an arm of a family is built to its drawings, and a tool tip may be a little longer
TENSORS = {  # what the HarmoWAM policy feeds to each engine and reads from it
    "world_model": ({"front", "text", "proprio", "noise"}, {"latent", "tokens", "future"}),
    "predictive": ({"wrist", "latent", "tokens", "proprio", "noise"}, {"chunk"}),
    "fast": ({"front", "wrist", "future", "proprio"}, {"heat", "reach", "gate"}),
    "decoder": ({"future"}, {"frames"}),
}

# An engine may lack these inputs and give these outputs as well: a world model that draws no noise, and P(done).
OPTIONAL = {"world_model": ({"noise"}, {"done"})}

File = Annotated[
    str,
    Meta(pattern=r"\A[A-Za-z0-9_][\w.-]{0,99}(/[A-Za-z0-9_][\w.-]{0,99}){0,7}\Z", description="a path in the bundle"),
]
Sizes = Annotated[list[Annotated[int, Meta(ge=1, le=65536)]], Meta(min_length=1, max_length=8)]
Side = Annotated[int, Meta(ge=8, le=2048)]  # pixels
Angle = Annotated[float, Meta(ge=-6.2832, le=6.2832)]  # rad
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0.5, le=500)]  # Hz
Spread = Annotated[float, Meta(ge=1e-3, le=2)]
Target = Annotated[float, Meta(ge=-100, le=100)]  # m, rad, or how far a jaw is open
TargetSpread = Annotated[float, Meta(ge=1e-6, le=100)]
Embedding = Annotated[list[Annotated[float, Meta(ge=-1e4, le=1e4)]], Meta(min_length=1, max_length=4096)]


class EngineFiles(Shape, frozen=True):
    """Where an engine lies in the bundle and what it takes and gives (fixed shapes, float32)."""

    file: File
    inputs: dict[Name, Sizes]
    outputs: Annotated[list[Name], Meta(min_length=1, max_length=64)]


class Preprocess(Shape, frozen=True, omit_defaults=True):
    """Size [width, height] of the pictures that engines take; mean and standard deviation a colour, of values from 0 to
    1. `straight`: they are what the cameras give, pixel for pixel, without undistortion or re-projection."""

    size: Annotated[list[Side], Meta(min_length=2, max_length=2)]
    mean: Annotated[list[Share], Meta(min_length=3, max_length=3)]
    std: Annotated[list[Spread], Meta(min_length=3, max_length=3)]
    straight: bool = False


class JointLimits(Shape, frozen=True):
    """Radians."""

    name: Name
    lower: Angle
    upper: Angle


class Chunk(Shape, frozen=True, omit_defaults=True):
    """Targets of a plan, `dt_ms` apart, and mean and spread of each in training, [steps][width]: empty for a policy
    without a warm start.

    Target k, from 0, applies `first + k` steps after the capture. `use`: a plan is followed for so many of its targets
    before the newest one takes over (None: the newest at once). `ensemble`: what is followed is the mean of all plans
    for an instant, weighted exp(-ensemble i), i steps after the oldest (None: one plan).
    """

    steps: Annotated[int, Meta(ge=1, le=1000)]
    dt_ms: Annotated[int, Meta(ge=5, le=1000)] | Annotated[float, Meta(ge=5, le=1000)]
    mean: list[list[Target]] = field(default_factory=list)
    std: list[list[TargetSpread]] = field(default_factory=list)
    first: Annotated[int, Meta(ge=0, le=1)] = 1
    use: Annotated[int, Meta(ge=1, le=1000)] | None = None
    ensemble: Annotated[float, Meta(ge=-1, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.use is not None and self.use > self.steps:
            raise ValueError(f"'use' {self.use} must not be above 'steps' {self.steps}, all that a plan has")
        if self.use is not None and self.ensemble is not None:
            raise ValueError("'use' and 'ensemble' cannot both be given: an ensemble is of all plans")
        widths = {len(row) for row in self.mean + self.std}
        if {len(self.mean), len(self.std)} not in ({0}, {self.steps}) or len(widths) > 1 or 0 in widths:
            raise ValueError(f"'mean' and 'std' must hold {self.steps} rows of equal length each, one a step")


class Gate(Shape, frozen=True, omit_defaults=True):
    """P(interaction) above which the predictive expert takes over, and below which the reactive one does.

    The policy says that its task is done once P(done) has been above `done` for `done_s`; None: it never says so.
    """

    on: Share
    off: Share
    done: Share | None = None
    done_s: Annotated[float, Meta(ge=0, le=60)] = 0.6

    def __post_init__(self) -> None:
        if self.off > self.on:
            raise ValueError(
                f"'off' {self.off:g} must not be above 'on' {self.on:g}, or both experts would want the arm"
            )


class Reactive(Shape, frozen=True, omit_defaults=True):
    """`heatmap`: its side in cells; None where there is no fast engine."""

    heatmap: Annotated[int, Meta(ge=4, le=1024)] | None = None


class PolicyKind(Shape, frozen=True):
    """`kind`: a file of `runtime/policies`. `does`: what the engines do round the network itself, part by part."""

    kind: Name = "harmowam"
    does: dict[Name, Text] | UnsetType = UNSET


class Manifest(Shape, frozen=True, kw_only=True):
    """See `docs/ARCHITECTURE.md`, "The bundle". SI units; cameras are the training geometry (`Camera.to_json`)."""

    name: Text
    licence: Text
    arm_family: Text
    engines: Annotated[dict[Name, EngineFiles], Meta(min_length=1, max_length=16)]
    preprocess: Preprocess
    cameras: dict[Name, dict[str, Any]]
    joints: list[JointLimits]
    links: dict[Name, Annotated[float, Meta(ge=-2, le=2)]]
    tasks: Annotated[dict[Text, Embedding], Meta(min_length=1, max_length=1000)]
    chunk: Chunk
    gate: Gate
    reactive: Reactive
    quantization: dict[str, Any]
    policy: PolicyKind = field(default_factory=PolicyKind)
    files: dict[File, Digest] = field(default_factory=dict)
    schema: Annotated[int, Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA

    def __post_init__(self) -> None:
        self._fits_the_arm()
        sizes = {len(t) for t in self.tasks.values()}
        if len(sizes) > 1:
            raise ValueError("'tasks' must hold equally many numbers each")
        self._cameras_fit()
        for name, engine in self.engines.items():
            self._engine_fits(name, engine, next(iter(sizes)))
        if "fast" in self.engines and self.reactive.heatmap is None:
            raise ValueError("'reactive.heatmap' is missing, which the fast engine's answer is read by")
        if (
            self.gate.done is not None
            and "done" not in self.engines.get("world_model", EngineFiles("x", {}, ["x"])).outputs
        ):
            raise ValueError("'gate.done' needs an engine 'world_model' that gives 'done'")
        if "predictive" in self.engines and not self.chunk.mean:
            raise ValueError(
                "'chunk.mean' and 'chunk.std' are missing, which the predictive engine's plans are gone on by"
            )

    def _fits_the_arm(self) -> None:
        family = FAMILIES.get(self.arm_family)
        if family is None:
            raise ValueError(f"'arm_family' must be one of {', '.join(FAMILIES)}, not '{self.arm_family}'")
        if (names := tuple(j.name for j in self.joints)) != family.JOINTS:
            raise ValueError(
                f"'joints' must be {', '.join(family.JOINTS)} in this order, not {', '.join(names) or 'none'}"
            )
        if wrong := beyond(family, [j.lower for j in self.joints], [j.upper for j in self.joints]):
            raise ValueError(f"'joints' holds {wrong}")
        if strange := sorted(self.links.keys() ^ family.lengths.keys()):
            what = "is no link of this arm" if strange[0] in self.links else "is missing"
            raise ValueError(f"'links.{strange[0]}' {what} (these are: {', '.join(sorted(family.lengths))})")
        for name, metres in family.lengths.items():
            if abs(self.links[name] - metres) > LINK_SLACK:
                raise ValueError(
                    f"'links.{name}' must be a number from {metres - LINK_SLACK:.4f} to {metres + LINK_SLACK:.4f} (m), "
                    f"not {self.links[name]:g}"
                )

    def _cameras_fit(self) -> None:
        if not self.cameras:
            raise ValueError("'cameras' must name one or more: a loop ticks when a frame arrives")
        if "fast" in self.engines and "front" not in self.cameras:
            raise ValueError("'cameras.front' is missing, through which the fast engine looks")
        for name, data in self.cameras.items():
            try:
                camera = Camera.from_json(data, f"'cameras.{name}'")
            except CalibrationError as e:
                raise ValueError(str(e).partition(": ")[0]) from None
            if [camera.width, camera.height] != self.preprocess.size:
                raise ValueError(f"'cameras.{name}' must be of the size that 'preprocess.size' says")

    def _engine_fits(self, name: str, engine: EngineFiles, text: int) -> None:
        """Raises ValueError for tensors that the policy does not feed, or that differ in size from what it feeds."""
        names, free = (set(engine.inputs), set(engine.outputs)), OPTIONAL.get(name, (set(), set()))
        if name in TENSORS and not all(a ^ b <= f for a, b, f in zip(names, TENSORS[name], free, strict=True)):
            raise ValueError(
                f"'engines.{name}' must take {', '.join(sorted(TENSORS[name][0]))} and give "
                f"{', '.join(sorted(TENSORS[name][1]))}"
            )
        width, height = self.preprocess.size
        sizes = {**{camera: [1, 3, height, width] for camera in self.cameras}, "text": [1, text]}
        if name in TENSORS:
            sizes["proprio"] = [1, PROPRIO]
        if name == "predictive" and self.chunk.mean:
            sizes["noise"] = [1, self.chunk.steps, len(self.chunk.mean[0])]
        for tensor, found in engine.inputs.items():
            if tensor in sizes and found != sizes[tensor]:
                raise ValueError(f"'engines.{name}.inputs.{tensor}' must be {sizes[tensor]}, not {found}")
