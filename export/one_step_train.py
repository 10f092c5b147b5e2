"""Training of a model of one step each (`export/one_step.py`): the same stages, and what differs of their losses.

What is run is what is trained. The world model predicts the mean future at once (no flow times, no noise): at flow time
0 the velocity is the mean of the data less the noise, so one Euler step of a trained flow ends at this mean, too. The
predictive expert is trained from the two starts that the run time has: zero, and on the later steps a share of the last
plan. Zero, because a flow from zero solved more starts than one from a draw (`runtime/policies/harmowam/slow.py`); a
share of the last plan, because plans that know nothing of it take two ways that are both open in turns
(docs/notebook.md, "Plans that contradict each other"). A flow of several steps hears the last plan in its later steps;
an expert of one step hears it only if it was trained to.

In half of the rows the start is the true plan's share under noise (`WARMTH` of it, and 1 - `WARMTH` of noise: what a
flow would see at that time). The noise is why the expert goes on looking: a plan that could be copied exactly would be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.augment import augment, displace, relit
from export.config import Config
from export.data import Demonstrations
from export.finish import calibrated, finish_labels
from export.losses import heat_loss
from export.models import HarmoWam
from export.one_step import OneStepExpert, OneStepWorld
from export.rows import images
from export.text import Encoder
from export.trainer import Plan, Trainer
from runtime.policies.harmowam.slow import WARM_AFTER_NS, WARM_MOST, WARMTH

# Of so many rows of the world model's batch, one is a demonstration that is done, and one play with an instruction that
# it may not have fulfilled.
FINISH = 16
OLDEST_S = 0.25  # age of the last plan that a plan starts from


class OneStepTrainer(Trainer):
    """As `Trainer`, for a model of form "one_step"."""

    def __init__(
        self,
        data: Demonstrations,
        run: Path,
        plan: Plan,
        cfg: Config,
        encode: Encoder | None = None,
        start: HarmoWam | None = None,
    ):
        super().__init__(data, run, plan, cfg, encode, start)
        self.finish = finish_labels(self.data, cfg, self.labels)
        self.ended = np.flatnonzero((self.finish.done > 0.5) & ~self.finish.apart)

    @property
    def world(self) -> OneStepWorld:
        assert isinstance(self.model.world, OneStepWorld)
        return self.model.world

    def _world_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        lab, fin = self.labels, self.finish
        rows = np.minimum(np.searchsorted(self.asked_for, rng.random(batch)), len(self.data.pose) - 1)
        relabelled = (lab.other[rows] >= 0) & (rng.random(batch) < 0.5)
        said = np.where(relabelled[:, None], lab.said[rows], lab.text[rows])
        done, told, own = fin.done[rows], fin.known[rows] & ~fin.apart[rows], np.ones(batch, bool)
        few = batch // FINISH
        if few and len(fin.judged) and len(self.ended):  # shown for the finish signal alone
            pick = rng.integers(len(fin.judged), size=few)
            rows[:few], said[:few], done[:few] = fin.judged[pick], lab.asked[fin.asked[pick]], fin.judged_done[pick]
            more = slice(few, 2 * few)
            rows[more] = self.ended[rng.integers(len(self.ended), size=few)]
            said[more], done[more] = lab.text[rows[more]], 1.0
            told[: 2 * few], own[: 2 * few] = True, False
        now, future = self.latents[rows].float(), self._future(rows)
        front = relit(images(self.data.front[rows], self.device), rng)
        world = self.world
        with self._cast():
            text = world.embed(torch.from_numpy(said).to(self.device))
            guess, mid = world(now, world.look(front), text, self._felt(rows, rng))
            where, finished = world.acts_next(mid), world.finished(mid)[:, 0].float()
        mine, knows = (torch.from_numpy(x.astype(np.float32)).to(self.device) for x in (own, told))
        weight = 1 + 3 * (future - now.repeat(1, self.cfg.futures, 1, 1)).abs().clamp(0, 1)
        asked = mine * self._row(lab.aims, rows)
        place = heat_loss(where, self._row(lab.cell, rows), self.cfg.heatmap)
        wrong = F.binary_cross_entropy_with_logits(finished, torch.from_numpy(done).to(self.device), reduction="none")
        return {
            "future": (mine[:, None, None, None] * weight * (guess.float() - future) ** 2).mean(),
            "where": 0.1 * (place * asked).sum() / asked.sum().clamp_min(1),
            "finish": 0.1 * (wrong * knows).sum() / knows.sum().clamp_min(1),
        }

    def _imagine(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        world = self.average.world
        assert isinstance(world, OneStepWorld)
        with self._cast():
            text = world.embed(self._row(self.labels.said, rows))
            seen = world.look(images(self.data.front[rows], self.device))
            future, mid = world(self.latents[rows].float(), seen, text, self._state(rows))
        return mid, future.float()

    def _start(self, chunk: Tensor, rng: np.random.Generator) -> Tensor:
        """What plans start from, [B, K, 6], for the true chunks [B, K, 6], normalised: zero, or in half of the rows,
        on the steps that a last plan of random age would still tell, its share under noise."""
        ahead = (np.arange(self.cfg.chunk) + 1) * self.cfg.chunk_dt_s
        age = rng.uniform(0, OLDEST_S, (len(chunk), 1))
        known = (ahead > WARM_AFTER_NS * 1e-9) & (ahead + age <= ahead[-1]) & (rng.random((len(chunk), 1)) < 0.5)
        told = WARMTH * chunk.clamp(-WARM_MOST, WARM_MOST) + (1 - WARMTH) * torch.randn_like(chunk)
        return told * torch.from_numpy(known.astype(np.float32)).to(self.device)[:, :, None]

    def _predictive_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        """As `Trainer._predictive_loss`, with the distance of the chunk itself: L1 beyond a tenth of a standard
        deviation, as of two ways that are both open the more frequent one is a plan, and their mean is none."""
        m, lab = self.model, self.labels
        expert = m.predictive
        assert isinstance(expert, OneStepExpert)
        rows = np.minimum(np.searchsorted(self.sampling, rng.random(batch)), len(lab.gate) - 1)
        chunk = (self._row(lab.chunk, rows) - m.action_mean) / m.action_std
        start = self._start(chunk, rng)
        wrist = augment(images(self.data.wrist[rows], self.device), rng)
        now, mids = displace(
            self.latents[rows].float(),
            self.mids[self.imagined[rows]].float(),
            (lab.gate[rows] > 0.5) & (rng.random(len(rows)) < 0.5),
            lab.ambiguous[rows],
            rng,
        )
        with self._cast():
            memory, where, turn = expert.context(wrist, now, m.world.tokens(mids), self._felt(rows, rng))
            plan = expert.generate(start, memory)
        # Actions in transit are large on this scale, and the reactive expert's job.
        matters = torch.where(self._row(lab.gate, rows) > 0.5, 1.0, 0.3) * self._row(lab.skilled, rows)
        matters = matters[:, None] * self._row(lab.taught, rows)
        off = F.smooth_l1_loss(plan.float(), chunk, beta=0.1, reduction="none")
        return {"predictive": (matters[:, :, None] * off).mean(), **self._aims(rows, where, turn)}

    def _finish(self, name: str) -> None:
        """After the world model's stage, calibrate its finish signal on the demonstrations that were kept apart."""
        super()._finish(name)
        rows = np.flatnonzero(self.finish.apart)
        if name != "world" or not len(rows):
            return
        world = self.average.world
        assert isinstance(world, OneStepWorld)
        logits = [world.finished(self._imagine(rows[i : i + 256])[0].float()) for i in range(0, len(rows), 256)]
        scale, shift = calibrated(torch.cat(logits)[:, 0].cpu().numpy(), self.finish.done[rows] > 0.5)
        world.finish_scale.fill_(scale)
        world.finish_shift.fill_(shift)
