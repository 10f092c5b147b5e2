"""Does the instruction reach the reactive expert through the predicted frames? `python -m benchmarks.ablation`.

Two reactive experts are trained from nothing on the same rows: one gets what the world model predicts, as on the robot, the other the
current frame in its place. Where one thing only could be meant, a detector on the current frame would do; where an instruction chooses
between things, it must fail. Judged on episodes that neither has seen, before the first grasp: how far the heat map's point is from where
the gripper then acted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from export.bundle import CHECKPOINT
from export.checkpoint import load_checkpoint
from export.data import Demonstrations, load_demonstrations
from export.labels import Labels, grasps
from export.models import HarmoWam, ReactiveExpert
from export.rows import images
from export.text import encoder_of
from export.train import heat_loss
from runtime.policies.decode import heatmap_point
from sim.tasks import TASKS


@torch.no_grad()
def foresee(m: HarmoWam, data: Demonstrations, labels: Labels, rows: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """Latents now and predicted futures of `rows`, by the checkpoint's own world model."""
    now, future = [], []
    generator = torch.Generator().manual_seed(seed)
    state = (torch.from_numpy(labels.proprio) - m.proprio_mean) / m.proprio_std
    for part in tqdm(np.array_split(rows, max(1, len(rows) // 128)), desc="imagine", mininterval=5):
        front = images(data.front[part])
        latent, seen = m.tokeniser.encode(front), m.world.look(front)
        noise = torch.randn(len(part), m.cfg.futures * latent.shape[1], *latent.shape[2:], generator=generator)
        text = m.world.embed(torch.from_numpy(labels.text[part]))
        x, _ = m.world.imagine(noise, latent, seen, text, state[part], m.cfg.world_steps)
        now.append(latent)
        future.append(x)
    return torch.cat(now), torch.cat(future)


def fit(
    m: HarmoWam, now: Tensor, future: Tensor, cell: Tensor, reach: Tensor, steps: int, seed: int, name: str
) -> ReactiveExpert:
    torch.manual_seed(seed)
    head = ReactiveExpert(m.cfg)
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc=name, mininterval=5):
        rows = torch.from_numpy(rng.integers(len(now), size=64))
        heat, z = head(now[rows], future[rows])
        loss = heat_loss(heat, cell[rows], m.cfg.heatmap).mean() + F.smooth_l1_loss(z, reach[rows], beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--dataset", type=Path, default=Path("data/table_top"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    m, _, _, _ = load_checkpoint(args.checkpoint)
    data = load_demonstrations(args.dataset)
    labels = Labels(data, m.cfg, encoder_of(m.cfg))
    # Tasks only, up to the first thing done; every fifth episode is held out.
    wanted = np.flatnonzero(~data.play & (data.next_event <= grasps(data)[data.episode]))
    held = wanted[data.episode[wanted] % 5 == 0][::4]
    learn = wanted[data.episode[wanted] % 5 != 0][::2]
    reach = (torch.from_numpy(labels.reach) - m.reach_mean) / m.reach_std
    cell = torch.from_numpy(labels.cell)
    now, future = foresee(m, data, labels, learn, args.seed)
    now_held, future_held = foresee(m, data, labels, held, args.seed + 1)
    still, still_held = (x.repeat(1, m.cfg.futures, 1, 1) for x in (now, now_held))
    several = np.array([len(TASKS[s].instructions) > 1 for s in data.scenes])[data.episode[held]]
    print(f"{len(learn)} rows to learn from, {len(held)} of other episodes to judge by\n")
    print("| the reactive expert gets | tasks | off by, median mm | within 15 mm |")
    print("|---|---|---|---|")
    for name, seen, seen_held in (("predicted frames", future, future_held), ("the current frame", still, still_held)):
        head = fit(m, now, seen, cell[learn], reach[learn], args.steps, args.seed, name)
        with torch.no_grad():
            heat, read = (
                torch.cat(x).numpy()
                for x in zip(
                    *(head(*p) for p in zip(now_held.split(128), seen_held.split(128), strict=True)), strict=True
                )
            )
        height = read[:, 0] * float(m.reach_std[0]) + float(m.reach_mean[0])
        event = data.pose[data.next_event[held], :3]
        off = [
            1000 * float(np.hypot(*(heatmap_point(data.cameras["front"], h, m.cfg.heatmap, float(z))[0] - e)[:2]))
            for h, z, e in zip(heat, height, event, strict=True)
        ]
        for tasks, rows in (
            ("words choose (plate, stack, press)", several),
            ("one thing only (peg, slot, ring)", ~several),
        ):
            errors = np.array(off)[rows]
            print(f"| {name} | {tasks} | {np.median(errors):.1f} | {np.mean(errors < 15):.0%} |", flush=True)


if __name__ == "__main__":
    main()
