"""Training: from a dataset to a checkpoint. Resumable, and deterministic for a given seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from export.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from export.config import Config
from export.data import Demonstrations
from export.lerobot import DataError
from export.one_step_train import OneStepTrainer
from export.text import Encoder
from export.trainer import STAGES as STAGES
from export.trainer import Plan as Plan
from export.trainer import Trainer as Trainer
from export.trainer import normalise as normalise


def trainer_of(cfg: Config) -> type[Trainer]:
    """The trainer of a model of this form."""
    return Trainer if cfg.form == "flow" else OneStepTrainer


def check_rate(data: Demonstrations, cfg: Config) -> None:
    """Raises DataError unless one row of the dataset is one step of the action chunk."""
    if abs(cfg.chunk_dt_s * data.rate_hz - 1) > 1e-6:
        raise DataError(
            f"the dataset has {data.rate_hz:g} rows/s and the model's actions are {1 / cfg.chunk_dt_s:g} a second: "
            "record it at that rate."
        )


def train(
    data: Demonstrations,
    run: Path,
    out: Path,
    plan: Plan = Plan(),
    cfg: Config = Config(),
    encode: Encoder | None = None,
    start: Path | None = None,
    about: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Train (or continue a training) in folder `run` and write the checkpoint to `out`; returns its note.

    `start` is a checkpoint to fine-tune: its configuration must equal `cfg`, and stages may have no steps. `about` is
    added to the note.

    Raises DataError for a dataset of another rate, and CheckpointError for everything else that prevents the training;
    what was saved then stays.
    """
    check_rate(data, cfg)
    if data.play.all():
        raise DataError("the dataset holds no demonstrations of tasks, only play: collect some with --episodes.")
    model = before = None
    if start is not None:
        torch.manual_seed(plan.seed)
        model, _, _, before = load_checkpoint(start, grow=True)
        if model.cfg != cfg:
            raise CheckpointError(
                f"{start} has another configuration than this training: name a checkpoint made with these settings."
            )
    elif not all(getattr(plan, s)[0] for s in STAGES):
        raise CheckpointError(
            "a stage without steps leaves its part untrained: give it steps, or a trained checkpoint with --from."
        )
    trainer = trainer_of(cfg)(data, run, plan, cfg, encode, model)
    model = trainer.train()
    note: dict[str, object] = {
        "episodes": len(data.instructions),
        "rows": len(data.pose),
        "plan": dataclasses.asdict(plan),
        "train_minutes": round(trainer.seconds / 60, 1),
        "torch": torch.__version__,
        "processes": trainer.processes,
        "bf16": trainer.bf16,
        **({"from": before} if before is not None else {}),
        **(about or {}),
        "losses": trainer.losses(),
    }
    if trainer.rank == 0:
        save_checkpoint(Path(out), model, data.cameras, data.task_instructions, note)
    return note
