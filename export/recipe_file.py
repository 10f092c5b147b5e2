"""A training recipe: data, seeds and stages that train a checkpoint from scratch, in one file and with one command.

`export/recipes/so101.toml` is an example. `[data]`: arguments of `collect`. `[model]`: fields of `Config` that differ
from their defaults. A `[[stage]]` trains one part (`tokeniser`, `world` or `experts`) for a number of steps. Its
learning rate falls in a straight line from the first number of `rate` to the second. It writes a checkpoint, from which
the next stage starts. A stage whose checkpoint exists is skipped.

The weights of a stage can also be carried to another machine (`pack`): weights of a finished stage replace its
training; weights of an unfinished stage are where its training continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from common.errors import Mendable
from common.files import must_open
from export.arithmetic import remember, remembered
from export.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, write_file
from export.config import Config
from export.data import Demonstrations
from export.labels import Labels
from export.loop import leads
from export.models import HarmoWam
from export.state import MOMENTS, load_state, unpack_running
from export.train import STAGES, Plan, normalise, train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# buffers of the normalisation: computed before the first stage, kept by all stages
SCALES = ("action_", "proprio_", "reach_")
PARTS = {
    "tokeniser": ("tokeniser.", *SCALES),
    "world": ("world.",),
    "experts": ("predictive.", "reactive.", "gate.", "world.tokens."),
}


class RecipeError(Mendable):
    """A recipe that cannot be followed; one sentence and the next step."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe. `tables`: as in `Plan`. `minutes`: expected time on two idle cores, for information
    only."""

    name: str
    part: str
    steps: int
    batch: int
    rate: tuple[float, float]
    minutes: float
    tables: float = 0.0

    def plan(self, seed: int, index: int, done: int = 0) -> Plan:
        """The training plan for the steps after `done`; the other parts have no steps. Batches and tables are drawn
        with a seed of their own for each stage and each continuation."""
        first, last = self.rate
        rate = first + (last - first) * done / self.steps
        drawn = int(np.random.SeedSequence([seed, index, done]).generate_state(1)[0])
        rest = dict.fromkeys(STAGES, (0, self.batch, rate))
        stages: dict[str, Any] = {**rest, self.part: (self.steps - done, self.batch, rate)}
        return Plan(**stages, tables=self.tables, end=last / rate, seed=drawn)


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe file; `data` are arguments of `export.data.collect`."""

    seed: int
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    stages: tuple[Step, ...]

    @property
    def cfg(self) -> Config:
        return Config(**self.model)

    def digest(self, step: Step) -> str:
        """Identifies what a stage's weights come from: data, seed, and the stages up to this one. The model is left
        out: a wrong model is found by the shapes of the weights."""
        until = [dataclasses.asdict(s) | {"minutes": 0} for s in self.stages[: self.stages.index(step) + 1]]
        text = json.dumps([self.seed, dict(self.data), until], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; raises RecipeError."""
    try:
        raw = tomllib.loads(path.read_text())
        stages = tuple(
            Step(**{**s, "rate": (float(first), float(last))}) for s in raw["stage"] for first, last in [s["rate"]]
        )
        model = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.get("model", {}).items()}
        recipe = Recipe(int(raw["seed"]), raw["data"], model, stages)
        _ = recipe.cfg
    except FileNotFoundError as e:
        raise RecipeError(f"recipe {path} does not exist: name one, for example export/recipes/so101.toml.") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RecipeError(f"recipe {path} is not understood ({e}): compare it with export/recipes/so101.toml.") from e
    order = [STAGES.index(s.part) if s.part in STAGES else -1 for s in stages]
    names = {s.name for s in stages}
    if -1 in order or order != sorted(order) or set(order) != set(range(len(STAGES))) or len(names) < len(stages):
        raise RecipeError(
            f"recipe {path} has stages of {', '.join(s.part for s in stages)}: give each another name, and of "
            f"{', '.join(STAGES)} at least one each in this order."
        )
    for s in stages:
        if s.steps < 1 or not all(0 < r < 1 for r in s.rate):
            raise RecipeError(
                f"stage {s.name} of {path} has {s.steps} steps at rates {s.rate}: give it steps, and two rates "
                "between 0 and 1."
            )
    return recipe


# -- the weights of one stage ------------------------------------------------------------------------------------------


def weights_of(model: HarmoWam, part: str) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith(PARTS[part])}


def pack(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write weights as float16: first the high bytes of all, which repeat, compressed; then the low bytes uncompressed
    (0.85 of the plain size)."""
    half = {k: v.detach().cpu().half() for k, v in weights.items()}
    raw = torch.cat([v.flatten() for v in half.values()]).numpy().view(np.uint8).reshape(-1, 2)
    high = np.frombuffer(lzma.compress(raw[:, 1].tobytes()), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"stage": json.dumps(dict(about)), "shapes": json.dumps({k: list(v.shape) for k, v in half.items()})}
    write_file(path, safetensors.numpy.save({"low": raw[:, 0].copy(), "high": high.copy()}, meta))


def unpack(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights as float32, and the `about` that was given to `pack`; raises CheckpointError."""
    try:
        must_open(path)
        with safetensors.safe_open(str(path), "np") as f:
            low, high, meta = f.get_tensor("low"), f.get_tensor("high"), f.metadata()
        raw = np.stack([low, np.frombuffer(lzma.decompress(high.tobytes()), np.uint8)], 1)
        shapes: dict[str, list[int]] = json.loads(meta["shapes"])
        flat = torch.from_numpy(raw.view(np.float16)[:, 0].astype(np.float32))
        parts = flat.split([int(np.prod(s)) for s in shapes.values()])
        return {k: p.reshape(s) for (k, s), p in zip(shapes.items(), parts, strict=True)}, json.loads(meta["stage"])
    except (OSError, safetensors.SafetensorError, lzma.LZMAError, KeyError, ValueError, RuntimeError, TypeError) as e:
        raise CheckpointError(f"stage {path} is damaged ({e}): restore it, or delete it and it is trained.") from e


# -- following a recipe ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """A recipe that is trained in folder `run`; `stages`: a folder of packed stages to start from and to write to, or
    None."""

    recipe: Recipe
    run: Path
    stages: Path | None

    def checkpoint(self, step: Step) -> Path:
        return self.run / f"{step.name}.safetensors"

    def cut(self, step: Step) -> Path:
        """The checkpoint from which an unfinished stage continues after it was trained on another machine."""
        return self.run / f"{step.name}.cut.safetensors"

    def before(self, step: Step) -> Path:
        index = self.recipe.stages.index(step)
        return self.checkpoint(self.recipe.stages[index - 1]) if index else self.run / "beginning.safetensors"

    def start(self, step: Step) -> Path:
        return self.cut(step) if self.cut(step).exists() else self.before(step)

    def done(self, step: Step) -> int:
        """Steps of the stage that were done elsewhere, before the training in `run/NAME`."""
        if not self.cut(step).exists():
            return 0
        note = load_checkpoint(self.cut(step))[3]
        return int(note["stage"]["done"])  # type: ignore[index]


def begin(data: Demonstrations, course: Course) -> None:
    """Write the checkpoint from which the first stage starts, unless it exists: weights drawn from the seed, and the
    normalisation."""
    path = course.before(course.recipe.stages[0])
    if path.exists():
        return
    torch.manual_seed(course.recipe.seed)
    model = HarmoWam(course.recipe.cfg)
    normalise(model, data, Labels(data, course.recipe.cfg))
    save_checkpoint(path, model, data.cameras, data.task_instructions, {})


def take_over(course: Course, step: Step) -> None:
    """Turn a packed stage, if there is one and the run has not begun that stage itself, into the stage's checkpoint, or
    into the checkpoint from which the stage continues.

    Raises CheckpointError for a stage of another recipe, or one that does not fit the model.
    """
    path = course.stages / f"{step.name}.safetensors" if course.stages else None
    if path is None or not path.exists() or (course.run / step.name).exists():
        return
    weights, about = unpack(path)
    if about["recipe"] != course.recipe.digest(step):
        raise CheckpointError(
            f"{path} was made by another recipe ({about['recipe']}, now {course.recipe.digest(step)}): use that one, "
            "or move the file away."
        )
    model, cameras, instructions, note = load_checkpoint(course.before(step))
    mine = weights_of(model, step.part)
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in weights.items()}:
        raise CheckpointError(f"{path} does not fit the recipe's model: restore [model], or move the file away.")
    model.load_state_dict({**model.state_dict(), **weights})
    out = course.checkpoint(step) if about["done"] == step.steps else course.cut(step)
    save_checkpoint(out, model, cameras, instructions, {"from": note, "stage": about})


def follow(recipe: Recipe, data: Demonstrations, run: Path, stages: Path | None = None) -> Path:
    """Train the stages that are left of the recipe in folder `run`; returns the last stage's checkpoint.

    Raises CheckpointError; what was saved then stays.
    """
    course = Course(recipe, run, stages)
    begin(data, course)
    for index, step in enumerate(recipe.stages):
        out = course.checkpoint(step)
        if out.exists():
            continue
        take_over(course, step)
        if out.exists():
            continue
        done = course.done(step)
        about = {
            "recipe": recipe.digest(step),
            "name": step.name,
            "done": step.steps,
            "of": step.steps,
            "seed": recipe.seed,
        }
        plan = dataclasses.replace(step.plan(recipe.seed, index, done), bf16=remembered(run))
        note = train(data, run / step.name, out, plan, recipe.cfg, None, course.start(step), {"stage": about})
        if remembered(run) is None and leads():
            remember(run, bool(note["bf16"]))  # for later stages, on this machine or another
        if stages is not None:
            more = {"minutes": note["train_minutes"], "losses": note["losses"]}
            pack(stages / f"{step.name}.safetensors", weights_of(load_checkpoint(out)[0], step.part), about | more)
    return course.checkpoint(recipe.stages[-1])


def snapshot(recipe: Recipe, run: Path, stages: Path) -> tuple[Step, int]:
    """Pack the averaged weights of the stage that is in training in `run`, also while the training runs; returns the
    file and the steps done.

    Raises CheckpointError where no stage has begun.
    """
    course = Course(recipe, run, None)
    left = [s for s in recipe.stages if not course.checkpoint(s).exists()]
    state = run / left[0].name / "state.safetensors" if left else run
    if not state.is_file():
        raise CheckpointError(f"{run} holds no stage that is half done: there is nothing to pack.")
    step, (tensors, at) = left[0], load_state(state)
    model = load_checkpoint(course.start(step))[0]
    values = model.state_dict()
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "finished":
            values[name] = value.float()
        elif kind == "average":
            stored = {k: tensors[f"{k}/{name}"] for k in ("weight", "average", *MOMENTS)}
            values[name] = unpack_running(stored, values[name].shape)[1]
    model.load_state_dict(values)
    done = course.done(step) + (int(at["step"]) if STAGES.index(step.part) == at["stage"] else step.steps)
    about = {"recipe": recipe.digest(step), "name": step.name, "done": done, "of": step.steps, "seed": recipe.seed}
    pack(
        stages / f"{step.name}.safetensors",
        weights_of(model, step.part),
        about | {"minutes": round(at["seconds"] / 60, 1)},
    )
    return step, done
