"""`harmowam distill`: trains a student of one Euler step from a teacher of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from harmowam.options import errors, json_option, write_json
from harmowam.train import PATH, changed, goes_on, read, training_options


@click.command(short_help="Distil a model to one Euler step.")
@click.argument("checkpoint", type=PATH)
@training_options
@click.option("--out", type=PATH, required=True, help="The student's checkpoint.")
@click.option(
    "--run",
    "--run-folder",  # torchrun has an option --run of its own
    "run_folder",
    type=PATH,
    default=Path("runs/distill"),
    show_default=True,
    help="State and log; an interrupted run resumes from here.",
)
@click.option(
    "--teacher-steps", type=click.IntRange(2, 100), default=8, show_default=True, help="Euler steps of the teacher."
)
@click.option(
    "--action-steps",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="Euler steps of the student's expert.",
)
@json_option
@errors
@goes_on
def distill(
    checkpoint: Path,
    datasets: tuple[Path, ...],
    weights: tuple[float, ...],
    stages: tuple[str, ...],
    shards: int,
    bf16: bool | None,
    text_encoder: Path | None,
    seed: int,
    out: Path,
    run_folder: Path,
    teacher_steps: int,
    action_steps: int,
    json_path: Path | None,
    **recording: Any,
) -> None:
    """Train a student that predicts futures in one Euler step and action chunks in one or two, from the model
    CHECKPOINT.

    The same command resumes an interrupted run.
    """
    from export.checkpoint import load_checkpoint
    from export.distill import STAGES, DistilPlan, distil
    from export.loop import leads
    from export.observations import pick_samples
    from export.origin import samples_path

    plan = DistilPlan(teacher_steps=teacher_steps, action_steps=action_steps, seed=seed, shards=shards, bf16=bf16)
    plan = changed(plan, stages, STAGES)
    load_checkpoint(checkpoint)  # checked before the dataset is read, which takes longer
    data = read(datasets, run_folder, weights=weights, **recording)
    note = distil(checkpoint, data, run_folder, out, plan, text_encoder)
    if not leads():
        return
    pick_samples(data, samples_path(out))
    click.echo(f"{'distance (rms) to':20}{'teacher':>10}{'truth':>10}")
    for part, row in cast("dict[str, dict[str, Any]]", note["distance"]).items():
        for who in ("student", "control", "teacher"):
            to = f"{row[f'{who}_to_teacher']:10.4f}" if who != "teacher" else f"{'':10}"
            click.echo(f"{part + ', ' + who:20}{to}{row[f'{who}_to_truth']:10.4f}")
    click.echo(
        f"{out}: 1 step of the world model, {action_steps} of the predictive expert, {note['train_minutes']} min"
    )
    write_json(json_path, note)
