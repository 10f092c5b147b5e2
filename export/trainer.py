"""The three stages of training: tokeniser, then world model, then experts and gate, with the loss of each.

`export/loop.py` takes, saves and resumes steps. The loss of the last stage is the paper's: L_predictive + 0.1
L_reactive + 0.05 L_gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.augment import augment, displace, relit
from export.backdrop import with_other_tables
from export.config import Config
from export.data import Demonstrations
from export.labels import Labels
from export.losses import bin_loss, heat_loss
from export.models import HarmoWam, PredictiveExpert, WorldModel
from export.rows import images
from export.schedule import Stage
from export.text import Encoder
from export.world_loop import WorldLoop

STAGES = ("tokeniser", "world", "experts")


@dataclass(frozen=True)
class Plan:
    """Steps, batch and peak learning rate of each stage; the number of shards in which a batch is drawn
    (`export/loop.py`).

    `tables`: share of demonstrations that get another table top (`export/backdrop.py`). `end`: the learning rate falls
    in a straight line to this share of its peak; None is half a cosine to 3 %. `bf16`: None chooses what is faster on
    the device.
    """

    tokeniser: Stage = (3000, 48, 8e-4)
    world: Stage = (4500, 64, 6e-4)
    experts: Stage = (8000, 96, 7e-4)
    tables: float = 0.0
    end: float | None = None
    seed: int = 0
    shards: int = 2
    bf16: bool | None = None


@torch.no_grad()
def normalise(m: HarmoWam, data: Demonstrations, labels: Labels) -> None:
    """Set the normalisation of inputs and outputs: of actions from rows near a contact, of everything else from all
    rows.

    Near a contact the tool moves sideways by millimetres, in transit by centimetres. On a common scale, 2 mm would be
    lost in the noise.
    """
    precise = ~data.play & (labels.gate > 0.5)
    actions = labels.chunk[precise if precise.any() else ~data.play]
    chunk, pro, reach = (torch.from_numpy(a) for a in (actions, labels.proprio, labels.reach))
    m.action_mean.copy_(chunk.mean(0))
    m.action_std.copy_(chunk.std(0).clamp_min(torch.tensor([2e-3, 2e-3, 2e-3, 2e-2, 2e-2, 5e-2])))
    m.proprio_mean.copy_(pro.mean(0))
    m.proprio_std.copy_(pro.std(0).clamp_min(1e-2))
    m.reach_mean.copy_(reach.mean(0))
    m.reach_std.copy_(reach.std(0).clamp_min(5e-3))


class Trainer(WorldLoop):
    """The three stages on one dataset: tokeniser, world model, experts and gate."""

    stages = STAGES

    def __init__(
        self,
        data: Demonstrations,
        run: Path,
        plan: Plan,
        cfg: Config,
        encode: Encoder | None = None,
        start: HarmoWam | None = None,
    ):
        """`start`: continue from this trained model and its normalisation, instead of weights drawn from the seed."""
        data = with_other_tables(data, plan.tables, plan.seed, cfg)
        labels = Labels(data, cfg, encode)
        torch.manual_seed(plan.seed)
        model = HarmoWam(cfg)
        normalise(model, data, labels)
        if start is not None:
            model.load_state_dict(start.state_dict())
        schedule = {s: getattr(plan, s) for s in STAGES}
        self.end, self.everything = plan.end, np.arange(len(data.state))
        line = {} if plan.end is None else {"end": plan.end}
        super().__init__(
            run, model, data, labels, schedule, plan.seed, plan.shards, plan.bf16, tables=plan.tables, **line
        )

    def _begin(self, name: str) -> None:
        """Unfreeze the parts that the stage trains; cache what the frozen parts compute."""
        m = self.model
        parts: dict[str, list[nn.Module]] = {
            "tokeniser": [m.tokeniser],
            "world": [m.world],
            "experts": [m.predictive, m.reactive, m.gate, m.world.tokens],
        }
        for part in parts[name]:
            part.requires_grad_(True)
        if name in ("world", "experts") and not hasattr(self, "latents"):
            self._encode_all()
        if name == "world":
            m.world.tokens.requires_grad_(False)
            # without this weight, the instruction would decide in a quarter of the rows only
            weight = np.where(self.labels.ambiguous, 3.0, 1.0)
            # Rows after the last event have an arm at rest. Their weight is low: an arm at rest that has not yet begun
            # may look the same, and it must not stay at rest.
            weight[~self.labels.aims] *= 0.3
            if self.data.weight is not None:
                weight = weight * self.data.weight
            self.asked_for = np.cumsum(weight / weight.sum())
        if name == "experts":
            self._imagine_all()

    def _finish(self, name: str) -> None:
        if name == "tokeniser":  # unit-variance latents for the flow
            sample = self.data.front[:: max(1, len(self.data.front) // 3000)]
            pictures = (images(sample[i : i + 256], self.device) for i in range(0, len(sample), 256))
            raw = torch.cat([self.average.tokeniser.encoder(x) for x in pictures])
            self.average.tokeniser.mean.copy_(raw.mean((0, 2, 3), keepdim=True))
            self.average.tokeniser.std.copy_(raw.std((0, 2, 3), keepdim=True))

    # -- the losses, one a stage ---------------------------------------------------------------------------------------

    def _tokeniser_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        x = images(self.data.front[self.data.draw(rng, self.everything, batch)], self.device)
        # What differs from its surroundings (arm, things) is a few per cent of the pixels and matters most.
        padded = F.pad(x, (12, 12, 12, 12), mode="replicate")
        around = F.avg_pool2d(F.avg_pool2d(padded, (1, 25), 1), (25, 1), 1)
        weight = 1 + 8 * ((x - around).abs().amax(1, keepdim=True) * 3).clamp(0, 1)
        with self._cast():
            y = self.model.tokeniser.decode(self.model.tokeniser.encode(x))
        error = y.float() - x
        # A term for edges (gradient difference loss: Mathieu et al. 2016): without it, thin things and things with a
        # hole became blots on tables with a pattern.
        across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean() + (
            weight[..., 1:, :] * error.diff(dim=-2).abs()
        ).mean()
        return {"reconstruction": (weight * (error.abs() + 2 * error**2)).mean(), "edges": 0.5 * across}

    def _world_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        rows = np.minimum(np.searchsorted(self.asked_for, rng.random(batch)), len(self.data.pose) - 1)
        now, future = self.latents[rows].float(), self._future(rows)
        # At run time there are few Euler steps: 40 % of the batch trains at pure noise, where they start.
        t = torch.from_numpy(np.where(rng.random(batch) < 0.4, 0.0, rng.random(batch)).astype(np.float32)).to(
            self.device
        )
        noise = torch.randn_like(future)
        x = (1 - t)[:, None, None, None] * noise + t[:, None, None, None] * future
        weight = 1 + 3 * (future - now.repeat(1, self.cfg.futures, 1, 1)).abs().clamp(0, 1)
        lab = self.labels
        relabelled = (lab.other[rows] >= 0) & (rng.random(batch) < 0.5)
        said = np.where(relabelled[:, None], lab.said[rows], lab.text[rows])
        front = relit(images(self.data.front[rows], self.device), rng)
        world = self.model.world
        assert isinstance(world, WorldModel)
        with self._cast():
            text = world.embed(torch.from_numpy(said).to(self.device))
            velocity, mid = world(x, t, now, world.look(front), text, self._felt(rows, rng))
            where = world.acts_next(mid)
        # The instruction changes a few cells of the picture only: predicting where the gripper will act teaches its
        # meaning much sooner than a pixel loss.
        asked = (t == 0).float() * self._row(lab.aims, rows)  # at later times the noisy future itself shows the place
        place = heat_loss(where, self._row(lab.cell, rows), self.cfg.heatmap)
        return {
            "flow": (weight * (velocity.float() - (future - noise)) ** 2).mean(),
            "where": 0.1 * (place * asked).sum() / asked.sum().clamp_min(1),
        }

    def _imagine_all(self) -> None:
        """Compute mid-layer features and generated futures by the frozen world model, from one noise each, for every
        second row of an episode.

        That is 10 or 12.5 per second; a robot's slow loop makes 8. `imagined` maps a row to its newest ones.
        """
        m = self.average
        first = np.searchsorted(self.data.episode, self.data.episode)
        every_other = (np.arange(len(first)) - first) % 2 == 0
        self.imagined = torch.from_numpy(np.cumsum(every_other) - 1)

        self.mids, self.generated = self._every_row(
            "imagine", self._imagine, [m.tokeniser, m.world], np.flatnonzero(every_other)
        )
        # The predictive expert learns actions from rows that tasks could ask for, three times as often near a contact,
        # and learns where to look from all of play.
        weight = np.where(self.labels.skilled, np.where(self.labels.gate > 0.5, 3.0, 1.0), 0.7 * self.labels.in_view)
        if self.data.weight is not None:
            weight = weight * self.data.weight
        self.sampling = np.cumsum(weight / weight.sum())
        aims = self.labels.aims
        self.aiming = np.flatnonzero(aims if aims.any() else ~aims)

    def _imagine(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mid-layer features [n, 36, c2] and generated futures [n, futures*C, 12, 12] of `rows`."""
        world, now = self.average.world, self.latents[rows].float()
        assert isinstance(world, WorldModel)
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + int(rows[0]))
        noise = torch.randn(
            len(rows), self.cfg.futures * now.shape[1], *now.shape[2:], generator=generator, device=self.device
        )
        with self._cast():
            text = world.embed(self._row(self.labels.said, rows))
            seen = world.look(images(self.data.front[rows], self.device))
            x, mid = noise, noise
            for k in range(self.cfg.world_steps):
                t = torch.full((len(rows),), k / self.cfg.world_steps, device=self.device)
                v, features = world(x, t, now, seen, text, self._state(rows))
                mid = features if k == 0 else mid
                x = x + v.float() / self.cfg.world_steps
        return mid, x

    def _experts_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        predictive = self._predictive_loss(rng, batch)
        gate = self._gate_loss(rng, batch)
        return {**predictive, **self._reactive_loss(rng, batch), **gate}

    def _predictive_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        m, lab = self.model, self.labels
        rows = np.minimum(np.searchsorted(self.sampling, rng.random(batch)), len(lab.gate) - 1)
        chunk = (self._row(lab.chunk, rows) - m.action_mean) / m.action_std
        t = torch.from_numpy((1 - rng.beta(1.5, 1.0, len(rows))).astype(np.float32)).to(self.device)
        noise = torch.randn_like(chunk)
        x = (1 - t)[:, None, None] * noise + t[:, None, None] * chunk
        wrist = augment(images(self.data.wrist[rows], self.device), rng)
        now, mids = displace(
            self.latents[rows].float(),
            self.mids[self.imagined[rows]].float(),
            (lab.gate[rows] > 0.5) & (rng.random(len(rows)) < 0.5),
            lab.ambiguous[rows],
            rng,
        )
        state = self._felt(rows, rng)
        assert isinstance(m.predictive, PredictiveExpert)
        with self._cast():
            memory, where, turn = m.predictive.context(wrist, now, m.world.tokens(mids), state)
            velocity = m.predictive.velocity(x, t, memory)
        # Actions in transit are large on this scale, and the reactive expert's job.
        matters = torch.where(self._row(lab.gate, rows) > 0.5, 1.0, 0.3) * self._row(lab.skilled, rows)
        matters = matters[:, None] * self._row(lab.taught, rows)
        predictive = (matters[:, :, None] * (velocity.float() - (chunk - noise)) ** 2).mean()
        return {"predictive": predictive, **self._aims(rows, where, turn)}

    def _aims(self, rows: np.ndarray, where: Tensor, turn: Tensor) -> dict[str, Tensor]:
        """Losses of the contact map's logits and the turn's."""
        lab = self.labels
        in_view = self._row(lab.in_view, rows).float()
        place = heat_loss(where, self._row(lab.contact, rows), self.cfg.contact_map)
        contact = (in_view * place).sum() / in_view.sum().clamp_min(1)
        turns = self._row(lab.turns, rows).float()
        heading = (turns * bin_loss(turn, self._row(lab.turn, rows))).sum() / turns.sum().clamp_min(1)
        return {"contact": 0.1 * contact, "heading": 0.1 * heading}

    def _gate_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        """The gate learns from play, too; the jaw's target comes from tasks only."""
        m, lab = self.model, self.labels
        rows = self.data.draw(rng, self.everything, batch // 2)
        wrist = augment(images(self.data.wrist[rows], self.device), rng)
        with self._cast():
            logits = m.gate(wrist, self.latents[rows].float(), self._felt(rows, rng))
        target = torch.stack([self._row(lab.gate, rows), self._row(lab.jaw_open, rows)], 1)
        told = torch.stack([self._row(lab.gate_told, rows), self._row(~self.data.play, rows)], 1).float()
        return {
            "gate": 0.05 * (F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none") * told).mean()
        }

    def _reactive_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        """Half of the futures are true, half generated; the newest frame is up to 0.4 s younger than the Prior's."""
        m, lab = self.model, self.labels
        rows = self.data.draw(rng, self.aiming, max(1, batch // 4))
        latest = 1 + round(0.4 * self.data.rate_hz)
        newest = np.minimum(rows + rng.integers(0, latest, len(rows)), self.data.next_event[rows])
        futures = torch.where(
            torch.from_numpy(rng.random(len(rows)) < 0.5).to(self.device)[:, None, None, None],
            self.generated[self.imagined[rows]].float(),
            self._future(rows),
        )
        with self._cast():
            heat, reach = m.reactive(self.latents[newest].float(), futures)
        place = heat_loss(heat, self._row(lab.cell, rows), self.cfg.heatmap).mean()
        reach_loss = F.smooth_l1_loss(
            reach.float(), (self._row(lab.reach, rows) - m.reach_mean) / m.reach_std, beta=0.1
        )
        return {"reactive": 0.1 * (place + reach_loss)}
