"""`harmowam train`: from a dataset to a checkpoint, in one process or, under torchrun, in several."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harmowam.baseline import baseline_options, train_baseline
from harmowam.data import RECORDING, how_of, recording_options
from harmowam.options import UserError, errors, json_option, printable, refuse_unused, resumable, say, write_json

if TYPE_CHECKING:
    from export.act import ActPlan
    from export.config import Config
    from export.data import Demonstrations
    from export.distill import DistilPlan
    from export.text import Encoder
    from export.train import Plan

PlanT = TypeVar("PlanT", "Plan", "DistilPlan", "ActPlan")
PATH = click.Path(readable=False, path_type=Path)
NOT_OF_A_RECIPE = (
    "start",
    "stages",
    "shards",
    "bf16",
    "text_encoder",
    "seed",
    "tables",
    "weights",
    "baseline",
    "play",
)


def goes_on(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with --run that says after Ctrl-C how to go on."""

    @functools.wraps(command)
    def wrapped(*args: Any, run_folder: Path, **kwargs: Any) -> Any:
        with resumable(f"the same command goes on; {run_folder} keeps the training's state, saved once a minute"):
            return command(*args, run_folder=run_folder, **kwargs)

    return wrapped


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of both training and distillation."""
    option: Any  # click's and ours
    for option in reversed(
        [
            click.option(
                "--dataset",
                "datasets",
                type=PATH,
                multiple=True,
                default=(Path("data/table_top"),),
                show_default=True,
                help="LeRobotDataset of ours or of others (`harmowam data check`); several are trained on together.",
            ),
            click.option(
                "--weight",
                "weights",
                type=click.FloatRange(min=0, min_open=True),
                multiple=True,
                help="Share of the rows drawn from each --dataset, in their order (default: all rows alike).",
            ),
            recording_options,
            click.option(
                "--plan",
                "stages",
                multiple=True,
                metavar="STAGE=STEPS[,BATCH[,RATE]]",
                help="Number of steps, batch or peak learning rate of a stage.",
            ),
            click.option(
                "--shards",
                type=click.IntRange(min=1),
                default=2,
                show_default=True,
                help="Parts into which a batch is divided; processes share them.",
            ),
            click.option("--bf16/--fp32", default=None, help="Arithmetic (default: bf16 where the processor has it)."),
            click.option("--text-encoder", type=PATH, help="Folder of a Hugging Face sentence encoder."),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="Seed of weights, batches and noise.",
            ),
        ]
    ):
        command = option(command)
    return command


def changed(plan: PlanT, stages: Sequence[str], names: Sequence[str]) -> PlanT:
    """The plan with the stages that `--plan` names; raises UserError."""
    for item in stages:
        name, _, rest = item.partition("=")
        numbers = rest.split(",")
        if name not in names:
            raise UserError(f"--plan {item}: there is no stage '{name}', choose {', '.join(names)}.")
        usual: tuple[int, int, float] = getattr(plan, name)
        try:
            given: list[float] = [kind(n) for kind, n in zip((int, int, float), numbers, strict=False)]
        except ValueError:
            given = []
        if not given or len(numbers) > 3:
            example = ",".join(f"{n:g}" for n in usual)
            raise UserError(f"--plan {item} is not understood: write for example --plan {name}={example}.")
        stage: dict[str, Any] = {name: (*given, *usual[len(given) :])}
        plan = dataclasses.replace(plan, **stage)
    return plan


def read(
    datasets: Sequence[Path],
    run: Path,
    any_arm: bool = False,
    weights: Sequence[float] = (),
    rate_hz: float | None = None,
    **recording: Any,
) -> Demonstrations:
    """Read the datasets at `rate_hz` rows a second (None: as many as the default model takes).

    Decoded pictures stay in the run's folder, where a resumed run and other processes find them. `any_arm`: accept any
    arm, and cameras without calibration, which the baseline is trained for; else raises UserError for what our model
    cannot be trained on. `recording`: options of `harmowam.data`.
    """
    from export.config import Config
    from export.loop import leads
    from export.recordings import How
    from export.sources import Source, load_sources
    from sim.tasks import ARM

    if weights and len(weights) != len(datasets):
        raise UserError(f"{len(datasets)} --dataset and {len(weights)} --weight: give one weight for each.")
    sources = []
    for folder, weight in zip(datasets, weights or [1.0] * len(datasets)):
        how = how_of(folder, alone=len(datasets) == 1, **recording) if recording else How()
        sources.append(Source(folder, how, weight))

    def told(line: str) -> None:
        if leads():
            say(printable(line))

    rate = Config().rate_hz if rate_hz is None else rate_hz
    data = load_sources(sources, run / "pictures", rate, arm=None if any_arm else ARM, say=told)
    if not any_arm:
        _suits_our_model(data)
    return data


def _suits_our_model(data: Demonstrations) -> None:
    from export.data import VIEWS

    missing = [v for v in VIEWS if v not in data.views]
    lacks = [f"no {v} view" for v in missing] + [f"no one calibration of its {v} camera" for v in data.uncalibrated]
    if lacks:
        raise UserError(
            f"the data has {' and '.join(lacks)}, and our model needs both views calibrated: add --cameras FOLDER, or "
            "train --baseline act on it."
        )


def follow_recipe(
    path: Path, datasets: Sequence[Path], run: Path, out: Path, packed: Path | None, only_snapshot: bool
) -> None:
    """Train a checkpoint from scratch by a recipe, or finish an interrupted training; raises UserError."""
    from export.checkpoint import write_file
    from export.data import collect
    from export.observations import pick_samples
    from export.origin import samples_path
    from export.recipe_file import follow, read_recipe, snapshot

    if len(datasets) > 1:
        raise UserError("--recipe collects one dataset of its own: name one folder with --dataset.")
    (dataset,), recipe = datasets, read_recipe(path)
    if only_snapshot:
        if packed is None:
            raise UserError("--snapshot needs a folder to write to: add --stages.")
        step, done = snapshot(recipe, run, packed)
        click.echo(f"{packed / step.name}.safetensors: {done} of {step.steps} steps")
        return
    rate_hz = recipe.cfg.rate_hz
    collect(dataset, **recipe.data, rate_hz=rate_hz)
    data = read([dataset], run, rate_hz=rate_hz)
    last = follow(recipe, data, run, packed)
    write_file(out, last.read_bytes())
    pick_samples(data, samples_path(out))
    click.echo(f"{out}: {len(recipe.stages)} stages on {len(data.instructions)} episodes")


@click.command(short_help="Train the model, or a baseline, on a dataset.")
@training_options
@click.option(
    "--run",
    "--run-folder",  # torchrun has an option --run of its own
    "run_folder",
    type=PATH,
    default=Path("runs/default"),
    show_default=True,
    help="State and log; an interrupted run resumes from here.",
)
@click.option(
    "--from", "start", type=PATH, help="Fine-tune this checkpoint; `--plan tokeniser=0` leaves a part as it is."
)
@click.option(
    "--tables",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of demonstrations that get another table top; they must have been recorded on one plain table.",
)
@click.option(
    "--recipe",
    type=PATH,
    help="Train a checkpoint from scratch by this file, data included (export/recipes/so101.toml).",
)
@click.option(
    "--stages",
    "packed",
    type=PATH,
    help="With --recipe: a folder of packed stage weights, which replace the training of those stages; finished "
    "stages are written there.",
)
@click.option(
    "--snapshot",
    is_flag=True,
    help="With --recipe and --stages: only pack the weights of the stage in training.",
)
@baseline_options
@click.option("--out", type=PATH, help="The checkpoint (default: harmowam-so101.safetensors in the run's folder).")
@json_option
@errors
@goes_on
def train(
    datasets: tuple[Path, ...],
    weights: tuple[float, ...],
    stages: tuple[str, ...],
    shards: int,
    bf16: bool | None,
    text_encoder: Path | None,
    seed: int,
    run_folder: Path,
    start: Path | None,
    tables: float,
    recipe: Path | None,
    packed: Path | None,
    snapshot: bool,
    out: Path | None,
    json_path: Path | None,
    baseline: str | None,
    play: bool,
    **recording: Any,
) -> None:
    """Train tokeniser, world model, experts and gate, or a baseline; the same command resumes an interrupted run.

    Several processes: torchrun --nproc-per-node 2 -m harmowam.cli train --run-folder RUN ...
    """
    from export.act import STAGES as ACT_STAGES
    from export.act import ActPlan
    from export.backdrop import with_other_tables
    from export.checkpoint import load_checkpoint
    from export.config import Config
    from export.loop import leads
    from export.observations import pick_samples
    from export.origin import samples_path
    from export.train import STAGES, Plan, train

    out = out or run_folder / "harmowam-so101.safetensors"
    if recipe is not None:
        refuse_unused("with --recipe", *NOT_OF_A_RECIPE, *RECORDING)
        follow_recipe(recipe, datasets, run_folder, out, packed, snapshot)
        return
    refuse_unused("without --recipe", "packed", "snapshot")
    if baseline:
        refuse_unused("with --baseline", "start", "text_encoder")
        act_plan = changed(ActPlan(seed=seed, shards=shards, bf16=bf16), stages, ACT_STAGES)
    else:
        refuse_unused("without --baseline", "play")
        plan = changed(Plan(tables=tables, seed=seed, shards=shards, bf16=bf16), stages, STAGES)
    cfg, encode = _with_encoder(Config() if start is None else load_checkpoint(start)[0].cfg, text_encoder)
    data = read(datasets, run_folder, bool(baseline), weights, cfg.rate_hz, **recording)
    if baseline:
        if tables:
            _suits_our_model(data)
        data = with_other_tables(data, tables, seed, cfg)
        note = train_baseline(data, run_folder, out, act_plan, baseline, play)
    else:
        note = train(data, run_folder, out, plan, cfg, encode, start)
        if leads():
            pick_samples(data, samples_path(out))
            click.echo(f"{out}: {note['train_minutes']} min of training on {note['episodes']} episodes")
    if leads():
        write_json(json_path, note)


def _with_encoder(cfg: Config, folder: Path | None) -> tuple[Config, Encoder | None]:
    """`cfg` for the sentence encoder in `folder`, and that encoder; None is the default encoder."""
    if folder is None:
        return cfg, None
    from export.text import hugging_face

    encode = hugging_face(folder)
    return dataclasses.replace(cfg, text_encoder=encode.name, text_ngrams=encode.size), encode


@click.command(short_help="Average a checkpoint with the one that it was fine-tuned from.")
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option("--out", type=PATH, required=True, help="The checkpoint to write.")
@click.option(
    "--share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Weight of AFTER in the mean."
)
@json_option
@errors
def average(before: Path, after: Path, out: Path, share: float, json_path: Path | None) -> None:
    """Average the weights of BEFORE and of AFTER, which `train --from BEFORE` made: often better than either."""
    from export.checkpoint import average as mean
    from export.checkpoint import save_checkpoint, write_file
    from export.origin import samples_path

    model, cameras, instructions, note = mean(before, after, share)
    save_checkpoint(out, model, cameras, instructions, note)
    if samples_path(after).is_file():
        write_file(samples_path(out), samples_path(after).read_bytes())
    click.echo(f"{out}: {1 - share:g} x {before} + {share:g} x {after}")
    write_json(json_path, note)
