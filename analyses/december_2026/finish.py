"""Measures the finish signal on demonstrations that no training saw, in every environment:

    python -m analyses.december_2026.finish --checkpoint FILE

Open loop: every row is a state of the scripted expert. Rows count as in training (`export/finish.py`): not done up to
the last event, done once the tool has risen after it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from analyses.november_2026.bottleneck import SEED
from export.bundle import DONE
from export.checkpoint import CheckpointError, load_checkpoint
from export.data import Demonstrations, collect, load_demonstrations
from export.finish import finish_labels
from export.labels import Labels
from export.models import HarmoWam
from export.one_step import OneStepWorld
from export.rows import images
from export.text import encoder_of
from sim.tasks import ENVIRONMENTS


@torch.no_grad()
def p_done(m: HarmoWam, world: OneStepWorld, data: Demonstrations, labels: Labels, rows: np.ndarray) -> np.ndarray:
    """P(done) float32[n] of `rows`."""
    out = []
    for part in np.array_split(rows, max(1, len(rows) // 96)):
        front = images(data.front[part])
        state = (torch.from_numpy(labels.proprio[part]) - m.proprio_mean) / m.proprio_std
        text = world.embed(torch.from_numpy(labels.text[part]))
        out.append(world.p_finished(world(m.tokeniser.encode(front), world.look(front), text, state)[1])[:, 0])
    return torch.cat(out).numpy()


def area(p: np.ndarray, done: np.ndarray) -> float:
    """Share of pairs of a done and a not done row that P(done) puts into the right order (ties count half)."""
    order = np.unique(p, return_inverse=True)[1]
    below = np.cumsum(np.bincount(order[~done], minlength=order.max() + 1))
    equal = np.bincount(order[~done], minlength=order.max() + 1)
    return float((below - 0.5 * equal)[order[done]].sum() / (done.sum() * (~done).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=10, help="demonstrations of each task in each environment")
    parser.add_argument("--out", type=Path, default=Path("out/held_out_25"), help="where they are collected")
    parser.add_argument("--every", type=int, default=3, help="of the rows, judge each n-th")
    args = parser.parse_args()
    m, _, _, _ = load_checkpoint(args.checkpoint)
    if not isinstance(m.world, OneStepWorld):
        raise CheckpointError(f"{args.checkpoint} never says that it is done: name one of form one_step.")
    print(f"| | area under the curve | done rows above {DONE} | other rows above {DONE} |\n|---|---|---|---|")
    for i, environment in enumerate(ENVIRONMENTS):
        folder = args.out / environment
        collect(folder, args.episodes, 0, SEED + i, rate_hz=m.cfg.rate_hz, environment=environment)
        data = load_demonstrations(folder, rate_hz=m.cfg.rate_hz)
        labels = Labels(data, m.cfg, encoder_of(m.cfg))
        found = finish_labels(data, m.cfg, labels)
        rows = np.flatnonzero(found.known)[:: args.every]
        p, done = p_done(m, m.world, data, labels, rows), found.done[rows] > 0.5
        shares = " | ".join(f"{np.mean(p[which] > DONE):.1%}" for which in (done, ~done))
        print(f"| {environment} | {area(p, done):.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
