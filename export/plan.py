"""One plan for what is done with a checkpoint: exporting it, searching a recipe for it, certifying its bundle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch

from calibration.camera import Camera
from export.checkpoint import load_checkpoint
from export.gates import ExportError
from export.models import HarmoWam
from export.observations import observation_feeds
from export.onnx import Specs, engines
from export.origin import CHECKPOINT, load_recipe, origin, samples_path
from export.quantise import Feeds
from export.text import encoder_of

Target = Literal["onnxruntime", "tensorrt"]
Precision = Literal["int8", "int8-fp16", "fp16", "fp32"]
TARGETS, PRECISIONS = get_args(Target), get_args(Precision)


def refuse_precision(precision: Precision, target: Target) -> None:
    """Raises ExportError for a precision that the target cannot compute."""
    if precision.endswith("fp16") and target != "tensorrt":
        raise ExportError(
            f"--precision {precision} is for TensorRT, ONNX Runtime on a CPU computes in FP32: add --target "
            "tensorrt, or choose int8 or fp32."
        )


class Precise(Protocol):
    """What an export is told about precision; see `Plan`."""

    @property
    def target(self) -> Target: ...
    @property
    def int8(self) -> bool: ...
    @property
    def half(self) -> bool: ...
    def recipe_or_committed(self) -> dict[str, Any]: ...
    def origin(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Plan:
    """`precision`: "int8" is INT8 by `recipe` and float32 for the rest; "int8-fp16" has float16 for the rest; "fp16"
    and "fp32" (the reference) are uniform.

    `samples`: observations to use instead of those beside the checkpoint. `recipe`: a recipe to use instead of the
    committed one for `target`. `text_encoder`: folder of the sentence encoder, where the checkpoint was trained with
    another than the default. `world_steps`, `action_steps`: numbers of Euler steps to use instead of the checkpoint's
    own (for example for the undistilled control of a student).
    """

    checkpoint: Path = CHECKPOINT
    target: Target = "onnxruntime"
    precision: Precision = "int8"
    samples: Path | None = None
    recipe: dict[str, Any] | None = None
    text_encoder: Path | None = None
    world_steps: int | None = None
    action_steps: int | None = None

    def __post_init__(self) -> None:
        """Raises ExportError for a precision that the target cannot compute."""
        refuse_precision(self.precision, self.target)

    @property
    def int8(self) -> bool:
        return self.precision.startswith("int8")

    @property
    def half(self) -> bool:
        """Whether the layers that are not INT8 are float16."""
        return self.precision.endswith("fp16")

    @property
    def observations(self) -> Path:
        return self.samples or samples_path(self.checkpoint)

    def recipe_or_committed(self) -> dict[str, Any]:
        return self.recipe or load_recipe(self.target)

    def origin(self) -> dict[str, Any]:
        """What the bundle is made from, for its manifest. Raises OSError for a file that is absent."""
        steps = {"world_steps": self.world_steps, "action_steps": self.action_steps}
        return origin(self.checkpoint, self.observations, self.recipe_or_committed(), self.precision, **steps)

    def opened(self) -> Opened:
        """Load the checkpoint and its observations; raises CheckpointError and ExportError."""
        model, cameras, instructions, note = load_checkpoint(self.checkpoint)
        c = model.cfg
        model.cfg = dataclasses.replace(
            c, world_steps=self.world_steps or c.world_steps, action_steps=self.action_steps or c.action_steps
        )
        encode = encoder_of(model.cfg, self.text_encoder)
        with torch.no_grad():
            tasks = {s: model.world.embed(torch.from_numpy(encode(s))[None])[0].numpy() for s in instructions}
        return Opened(model, cameras, tasks, note, engines(model), observation_feeds(self.observations, tasks))


@dataclass(frozen=True)
class Opened:
    """`tasks`: instruction -> embedding float32[E]. `note`: the note of the training. `specs`: module, inputs and
    outputs of each engine."""

    model: HarmoWam
    cameras: dict[str, Camera]
    tasks: dict[str, np.ndarray]
    note: dict[str, Any]
    specs: Specs
    observations: list[Feeds]
