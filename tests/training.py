"""Training at toy scale: a small model, a dataset of drawn pictures, and the command line with both.

`python -m tests.training train --dataset ...` is `harmowam train` with the small model and a state that is saved as
often as possible.
"""

from __future__ import annotations

import pytest

import export.loop
import export.train
from export.config import Config
from export.train import Plan

SMALL = Config(
    encoder_channels=(8, 16, 16), unet_channels=(16, 24), width=32, layers=1, token_channels=16, condition=32
)
PLAN = Plan(tokeniser=(12, 4, 1e-2), world=(24, 4, 1e-2), experts=(12, 4, 1e-2))


def plan_options(plan: Plan = PLAN) -> list[str]:
    return [
        f"--plan={name}={steps},{batch},{rate}"
        for name, (steps, batch, rate) in ((s, getattr(plan, s)) for s in export.train.STAGES)
    ]


def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.loop.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("export.loop.ROUND_EVERY", 4)


if __name__ == "__main__":
    import torch

    import export.bundle
    import export.config
    import export.distill
    import export.sources
    from harmowam.cli import main

    torch.set_num_threads(1)
    export.loop.rounds_bf16 = lambda device: False  # type: ignore[attr-defined]
    export.loop.SAVE_EVERY_S, export.loop.ROUND_EVERY = 0.0, 4
    export.config.Config = lambda: SMALL  # type: ignore[misc,assignment]  # the command asks for it by this name
    main()
