"""What is the gate worth where the predictive expert has only seen task demonstrations? `python -m benchmarks.gate_worth`.

The shipped predictive expert also learnt from play, which shows whole tasks on the whole table: it transits well alone, and a gate has
little to win. Here another one is trained from nothing on demonstrations alone, as the paper's is; world model, reactive expert and gate
stay as shipped. Then the same test starts gated and predictive alone. Each part that is done is not done again: `--work` keeps it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.bundle import CHECKPOINT, export_bundle, samples_path
from export.checkpoint import load_checkpoint, save_checkpoint
from export.data import collect, load_demonstrations
from export.models import PredictiveExpert
from export.text import encoder_of
from export.train import Plan, Trainer
from sim.evaluate import jobs_for, run_jobs
from sim.results import difference, grouped, sentences, success_rate
from sim.tasks import ENVIRONMENTS, TASKS

POLICIES = ("gated", "predictive")


class PredictiveAlone(Trainer):
    """The last stage of a training, with nothing learning but the predictive expert."""

    def _begin(self, name: str) -> None:
        super()._begin(name)
        for part in (self.model.reactive, self.model.gate, self.model.world.tokens):
            part.requires_grad_(False)

    def _experts_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        return self._predictive_loss(rng, batch)


def train(work: Path, out: Path, episodes: int, steps: int, tables: float) -> None:
    """Write `out`: the shipped checkpoint with a predictive expert of `episodes` demonstrations of each task."""
    collect(work / "demonstrations", episodes, play=0, seed=5)
    data = load_demonstrations(work / "demonstrations", work / "run" / "pictures")
    start, cameras, instructions, note = load_checkpoint(CHECKPOINT)
    torch.manual_seed(0)
    start.predictive = PredictiveExpert(start.cfg)
    unused = Plan().world[1:]
    plan = Plan(tokeniser=(0, *unused), world=(0, *unused), experts=(steps, 96, 7e-4), tables=tables)
    trainer = PredictiveAlone(data, work / "run", plan, start.cfg, encoder_of(start.cfg), start)
    model = trainer.train()
    minutes = round(trainer.seconds / 60, 1)
    save_checkpoint(
        out,
        model,
        cameras,
        instructions,
        {"from": note, "predictive": "demonstrations alone", "train_minutes": minutes},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/gate_worth"))
    parser.add_argument("--demonstrations", type=int, default=100, help="of each task")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--tables", type=float, default=0.5, help="share of them on drawn tables, as in the shipped training"
    )
    parser.add_argument("--episodes", type=int, default=20, help="of each task in each environment with each policy")
    args = parser.parse_args()
    checkpoint, bundle = args.work / "checkpoint.safetensors", args.work / "fp32.bundle"
    if not checkpoint.exists():
        train(args.work, checkpoint, args.demonstrations, args.steps, args.tables)
    if not bundle.exists():
        export_bundle(checkpoint, bundle, samples_path(CHECKPOINT), int8=False)
    jobs = jobs_for(bundle, POLICIES, ENVIRONMENTS, tuple(TASKS), range(args.episodes), split="test")
    rows = run_jobs(jobs, args.work / "rows.jsonl")
    cells = grouped(rows, "policy", "environment")
    print(f"| | {' | '.join(ENVIRONMENTS)} |\n|---|{'---|' * len(ENVIRONMENTS)}")
    for policy in POLICIES:
        print(
            f"| {policy} | {' | '.join(f'{100 * (success_rate(cells[policy, e]) or 0):.0f} %' for e in ENVIRONMENTS)} |"
        )
    print("\n".join(sentences(rows)))
    for environment in ENVIRONMENTS:
        found = difference(rows, *POLICIES, (environment,))
        if found:
            print(f"gated minus predictive, {environment}: { ({k: round(v, 3) for k, v in found.items()}) }")


if __name__ == "__main__":
    main()
