"""What training costs: the size of the state in each stage, the time of a step by arithmetic and shards.

`python -m benchmarks.training --state` (real state files of the full model on a small drawn dataset, and the seconds to write one) or
`--step` (processor time of one thread, so that other work on the machine does not count; OMP_NUM_THREADS=1 is set).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

import export.loop
from export.config import Config
from export.data import load_demonstrations
from export.models import HarmoWam
from export.train import STAGES, Plan, Trainer
from tests.dataset import write_all


class Measured(Trainer):
    """Says the size of the state just before a stage ends, with everything in it that the stage trains."""

    def _finish(self, name: str) -> None:
        began = time.perf_counter()
        self.save()
        seconds = time.perf_counter() - began
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        print(
            f"{name:10} {trained / 1e6:6.2f} M trained {self.state_path.stat().st_size / 1e6:8.2f} MB {seconds:6.2f} s"
        )
        super()._finish(name)


def state() -> None:
    export.loop.ROUND_EVERY = 1
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder) / "data")
        data = load_demonstrations(Path(folder) / "data")
        # Layers that begin at zero let gradients through one after the other: a few steps until everything has moved.
        plan = Plan(**dict.fromkeys(STAGES, (5, 4, 0.1)))  # type: ignore[arg-type]
        trainer = Measured(data, Path(folder) / "run", plan, Config())
        trainer.train()
        everything = sum(p.numel() for p in trainer.model.parameters())
        print(
            f"{'float32':10} {everything / 1e6:6.2f} M trained {16 * everything / 1e6:8.2f} MB, weight, average and moments"
        )


def step() -> None:
    torch.manual_seed(0)
    model, c = HarmoWam(Config()), Config()

    def once(batch: int, bf16: bool) -> None:
        future = torch.randn(batch, c.futures * c.latent_channels, c.latent_size, c.latent_size)
        now, text = torch.randn(batch, c.latent_channels, c.latent_size, c.latent_size), torch.randn(batch, c.text_dim)
        front, proprio = torch.randn(batch, 3, c.image, c.image), torch.randn(batch, len(c.proprio))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            velocity, _ = model.world(future, torch.rand(batch), now, model.world.look(front), text, proprio)
        (velocity.float() ** 2).mean().backward()

    for bf16 in (True, False):
        for shards in (1, 2, 4):
            seconds = []
            for _ in range(7):
                began = time.process_time()
                for _ in range(shards):
                    once(64 // shards, bf16)
                seconds.append(time.process_time() - began)
            print(f"{'bf16' if bf16 else 'fp32'} {shards} x {64 // shards:2}: {np.median(seconds[1:]):.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--state", dest="run", action="store_const", const=state, help="size of the state, seconds to write it"
    )
    what.add_argument("--step", dest="run", action="store_const", const=step, help="processor time of a step")
    parser.parse_args().run()
