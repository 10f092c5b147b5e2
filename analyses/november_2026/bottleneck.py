"""Measures which model errs in unseen environments, on demonstrations of each environment:

    python -m analyses.november_2026.bottleneck

Open loop, so that errors do not accumulate: every row is a state of the scripted expert, on starts of no training or
test. Distances are on the table, from where the gripper acted next (closed, opened, pressed) to where a model predicts
that it will.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from export.checkpoint import load_checkpoint
from export.data import Demonstrations, collect, load_demonstrations
from export.labels import Labels, grasps
from export.models import HarmoWam
from export.one_step import OneStepWorld
from export.origin import CHECKPOINT
from export.rows import images
from export.text import encoder_of
from runtime.policies.decode import heatmap_point
from sim.tasks import ENVIRONMENTS, TASKS

SEED = 77_000  # seed; training data is collected with seed 0


@torch.no_grad()
def everything(m: HarmoWam, data: Demonstrations, labels: Labels, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the models at `rows`: heat maps (of the world model, and of the reactive expert with predicted and
    with true futures), contact maps, action chunks, gate."""
    state = (torch.from_numpy(labels.proprio) - m.proprio_mean) / m.proprio_std
    generator = torch.Generator().manual_seed(0)
    out: dict[str, list[Tensor]] = {}
    for part in tqdm(np.array_split(rows, max(1, len(rows) // 96)), mininterval=5, leave=False):
        front = images(data.front[part])
        now, seen = m.tokeniser.encode(front), m.world.look(front)
        wrist = images(data.wrist[part])
        noise = torch.randn(len(part), m.cfg.futures * now.shape[1], *now.shape[2:], generator=generator)
        text = m.world.embed(torch.from_numpy(labels.text[part]))
        if isinstance(m.world, OneStepWorld):
            future, mid = m.world(now, seen, text, state[part])
            tokens = m.world.tokens(mid)
        else:
            _, mid = m.world(noise, torch.zeros(len(part)), now, seen, text, state[part])
            future, tokens = m.world.imagine(noise, now, seen, text, state[part], m.cfg.world_steps)
        true = torch.cat(
            [m.tokeniser.encode(images(data.front[labels.future[part, k]])) for k in range(m.cfg.futures)], 1
        )
        (heat, reach), (heat_true, reach_true) = m.reactive(now, future), m.reactive(now, true)
        memory, contact, turn = m.predictive.context(wrist, now, tokens, state[part])
        noise = torch.randn(len(part), m.cfg.chunk, 6, generator=generator)
        noise = torch.zeros_like(noise) if m.cfg.form == "one_step" else noise
        chunk = m.predictive.generate(noise, memory, m.cfg.action_steps) * m.action_std + m.action_mean
        said = {
            "where": m.world.acts_next(mid),
            "heat": heat,
            "z": reach[:, 0],
            "roll": reach[:, 2],
            "heat_true": heat_true,
            "z_true": reach_true[:, 0],
            "contact": contact,
            "turn": turn,
            "chunk": chunk,
            "gate": m.gate(wrist, now, state[part])[:, 0],
        }
        for name, x in said.items():
            out.setdefault(name, []).append(x)
    return {name: torch.cat(x).numpy() for name, x in out.items()}


def off_mm(data: Demonstrations, rows: np.ndarray, logits: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance on the table from each heat map's peak to where the gripper acted next, mm."""
    event = data.pose[data.next_event[rows], :3]
    side = round(logits.shape[1] ** 0.5)
    points = [heatmap_point(data.cameras["front"], h, side, float(v))[0] for h, v in zip(logits, z, strict=True)]
    return 1000 * np.hypot(*(np.array(points) - event)[:, :2].T)


def peak(logits: np.ndarray, side: int) -> np.ndarray:
    return np.stack([logits.argmax(1) % side, logits.argmax(1) // side], 1)


def report(m: HarmoWam, data: Demonstrations, labels: Labels, every: int) -> tuple[dict[str, str], dict[str, str]]:
    """Print each model's error (median, and a share), and by task the share of transits that the reactive expert would
    end within 15 mm."""
    rows = np.flatnonzero(np.isin(data.next_event, data.events))[::every]
    said = everything(m, data, labels, rows)
    transit, near = labels.gate[rows] < 0.5, labels.gate[rows] > 0.5
    first = data.next_event[rows] <= grasps(data)[data.episode[rows]]
    z = {k: said[k] * float(m.reach_std[0]) + float(m.reach_mean[0]) for k in ("z", "z_true")}
    where = off_mm(data, rows, said["where"], data.pose[data.next_event[rows], 2])
    heat, heat_true = off_mm(data, rows, said["heat"], z["z"]), off_mm(data, rows, said["heat_true"], z["z_true"])

    def share(off: np.ndarray) -> str:
        return f"{np.median(off):.0f} mm, {np.mean(off < 15):.0%}"

    def chunk_mm(which: np.ndarray) -> str:
        """Sideways distance between the chunk's targets and the demonstration's at the moment when the gripper acts."""
        k = (data.next_event - np.arange(len(data.pose)))[rows] - 1
        which = which & near & (k >= 0) & (k < m.cfg.chunk)
        at = np.flatnonzero(which)
        off = np.abs(said["chunk"][at] - labels.chunk[rows[at]])[np.arange(len(at)), k[at]]
        side, turned = 1000 * np.linalg.norm(off[:, :2], axis=1), np.rad2deg(off[:, 4])
        return " ".join(
            f"{np.median(x):.1f} / {np.percentile(x, 90):.0f} {unit}" for x, unit in ((side, "mm"), (turned, "deg"))
        )

    def heading(which: np.ndarray) -> str:
        """Difference between the reactive expert's heading and the heading at the contact; only bars and square things
        have one."""
        off = np.abs(said["roll"] * float(m.reach_std[2]) + float(m.reach_mean[2]) - labels.reach[rows, 2])
        return f"{np.median(np.rad2deg(off[which])):.0f} / {np.percentile(np.rad2deg(off[which]), 90):.0f} deg"

    seen = near & labels.in_view[rows]
    shown = near & labels.turns[rows]
    bins = np.abs(said["turn"].argmax(1) - labels.turn[rows]) * (2 * np.rad2deg(m.cfg.heading_range) / m.cfg.headings)
    cells = np.linalg.norm(peak(said["contact"], m.cfg.contact_map) - labels.contact[rows], axis=1)
    models = {
        "world model, to the item": share(where[transit & first]),
        "world model, to the goal": share(where[transit & ~first]),
        "reactive, to the item": share(heat[transit & first]),
        "reactive, to the goal": share(heat[transit & ~first]),
        "reactive, true frames": share(heat_true[transit]),
        "reactive, heading to the item": heading(transit & first),
        "reactive, heading to the goal": heading(transit & ~first),
        "contact map": f"{np.median(cells[seen]):.1f} cells, {np.mean(cells[seen] < 2):.0%}",
        "turn to the contact": f"{np.median(bins[shown]):.1f} / {np.percentile(bins[shown], 90):.0f} deg",
        "chunk at the contact, item": chunk_mm(first),
        "chunk at the contact, goal": chunk_mm(~first),
        "gate": f"{np.mean((said['gate'] > 0) == near):.0%}",
    }
    scene = np.array(data.scenes)[data.episode[rows]]
    tasks = {
        task: " / ".join(f"{np.mean(heat[transit & (scene == task) & part] < 15):.0%}" for part in (first, ~first))
        for task in TASKS
    }
    return models, tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--episodes", type=int, default=10, help="demonstrations of each task in each environment")
    parser.add_argument("--out", type=Path, default=Path("out/held_out"), help="where they are collected")
    parser.add_argument("--every", type=int, default=3, help="of the rows, judge each n-th")
    args = parser.parse_args()
    torch.manual_seed(0)
    m, _, _, _ = load_checkpoint(args.checkpoint, grow=True)  # older checkpoints: layers that they lack start at zero
    m.eval()
    tables: tuple[dict[str, dict[str, str]], ...] = ({}, {})
    for i, environment in enumerate(ENVIRONMENTS):
        folder = args.out / environment
        collect(folder, args.episodes, 0, SEED + i, rate_hz=m.cfg.rate_hz, environment=environment)
        data = load_demonstrations(folder, rate_hz=m.cfg.rate_hz)
        for table, part in zip(
            tables, report(m, data, Labels(data, m.cfg, encoder_of(m.cfg)), args.every), strict=True
        ):
            table[environment] = part
    for table in tables:
        print("\n| |", " | ".join(ENVIRONMENTS), "|")
        print("|---|" + "---|" * len(ENVIRONMENTS))
        for name in table["seen"]:
            print(f"| {name} |", " | ".join(table[e][name] for e in ENVIRONMENTS), "|")


if __name__ == "__main__":
    main()
