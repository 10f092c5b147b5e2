"""Training: tokeniser, then world model, then experts and gate. Resumable, deterministic given a seed.

Every step draws its batch from a generator keyed by (seed, stage, step), so a run that was killed goes on exactly where its
last saved state stood. The loss of the last stage is the paper's: L_predictive + 0.1 L_reactive + 0.05 L_gate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from calibration.camera import Camera
from export.config import Config
from export.data import Demonstrations
from export.models import HarmoWam
from export.text import ngrams
from runtime.decode import heatmap_cell, proprio, relative_chunk
from sim.tasks import CLOSED, OPEN

STAGES = ("tokeniser", "world", "experts")
SAVE_EVERY_S = 60.0


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the text says why and what to do next."""


@dataclass(frozen=True)
class Plan:
    """Steps, batch and peak learning rate of each stage."""

    tokeniser: tuple[int, int, float] = (1500, 48, 8e-4)
    world: tuple[int, int, float] = (3500, 64, 6e-4)
    experts: tuple[int, int, float] = (3000, 96, 7e-4)
    seed: int = 0


def save_checkpoint(
    path: Path, model: HarmoWam, cameras: dict[str, Camera], instructions: list[str], note: dict[str, object]
) -> None:
    """One safetensors file with everything an export needs: weights, configuration, training cameras, instructions."""
    # Half precision halves the file; the export reads these very numbers, so nothing is lost after this point.
    tensors = {k: v.detach().to(torch.float16).contiguous().cpu() for k, v in model.state_dict().items()}
    metadata = {
        "config": json.dumps(dataclasses.asdict(model.cfg), sort_keys=True),
        "cameras": json.dumps({k: c.to_json() for k, c in cameras.items()}, sort_keys=True),
        "instructions": json.dumps(sorted(instructions)),
        "note": json.dumps(note, sort_keys=True),
    }
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file(tensors, str(partial), metadata)
    with open(partial, "rb+") as f:
        os.fsync(f.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path) -> tuple[HarmoWam, dict[str, Camera], list[str], dict[str, object]]:
    """Model in evaluation mode, training cameras, instructions, note; raises CheckpointError."""
    try:
        with safetensors.safe_open(str(path), "pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k).float() for k in f.keys()}  # noqa: SIM118  (not a dict)
        raw = json.loads(metadata["config"])
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        cfg = Config(**settings)
        cameras = {k: Camera.from_json(v, str(path)) for k, v in json.loads(metadata["cameras"]).items()}
        instructions, note = json.loads(metadata["instructions"]), json.loads(metadata["note"])
    except FileNotFoundError as e:
        raise CheckpointError(
            f"checkpoint {path} does not exist: train one with `harmowam train` or name another."
        ) from e
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as e:
        raise CheckpointError(
            f"checkpoint {path} is damaged or from another version ({e}): restore it or train again."
        ) from e
    model = HarmoWam(cfg)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        raise CheckpointError(
            f"checkpoint {path} does not fit its own configuration: restore it or train again."
        ) from e
    return model.eval(), cameras, instructions, note


def images(raw: np.ndarray) -> Tensor:
    """uint8[B,3,96,96] to float32 in [-1, 1], as the robot's pre-processing gives them."""
    return torch.from_numpy(raw).float().div_(127.5).sub_(1.0)


class Labels:
    """Everything the losses need, derived once from the demonstrations."""

    def __init__(self, data: Demonstrations, cfg: Config):
        n = len(data.pose)
        rows = np.arange(n)
        ahead = [np.minimum(rows + round(h * data.rate_hz), data.last) for h in cfg.horizon_s]
        self.future = np.stack([*ahead, data.next_event], 1)
        steps = np.minimum(rows[:, None] + np.arange(1, cfg.chunk + 1), data.last[:, None])
        stride = cfg.chunk_dt_s * data.rate_hz
        if abs(stride - 1) > 1e-6:
            raise ValueError("the chunk's time step must be the dataset's")
        self.chunk = relative_chunk(data.pose.astype(float), data.target[steps].astype(float))
        self.proprio = proprio(data.pose)
        event_pose = data.pose[data.next_event]
        self.cell = heatmap_cell(data.cameras["front"], event_pose[:, :3], cfg.heatmap).astype(np.float32)
        self.reach = event_pose[:, 2:5].astype(np.float32)
        near = np.zeros(n, bool)
        window = round(cfg.gate_window_s * data.rate_hz)
        for e in data.events:
            near[max(e - window, 0) : min(e + window + 1, int(data.last[e]) + 1)] = True
        same = data.episode[np.maximum(rows - window, 0)]  # a window never reaches back into the episode before
        self.gate = ((near & (same <= data.episode)) | (data.pose[:, 2] < cfg.gate_height_m)).astype(np.float32)
        self.jaw_open = (data.target[:, 5] > 0.5 * (OPEN + CLOSED)).astype(np.float32)
        self.text = np.stack([ngrams(s, cfg.text_ngrams) for s in data.instructions])[data.episode]


class Trainer:
    """Owns the model, its moving average, the optimiser of the stage at hand, and the state file of the run."""

    def __init__(self, data: Demonstrations, run: Path, plan: Plan, cfg: Config):
        self.data, self.run, self.plan, self.cfg = data, Path(run), plan, cfg
        self.run.mkdir(parents=True, exist_ok=True)
        self.labels = Labels(data, cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(plan.seed)
        self.model = HarmoWam(cfg).to(self.device)
        self.average = HarmoWam(cfg).to(self.device).eval()
        self.average.load_state_dict(self.model.state_dict())
        self._normalise()
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self.optimiser: torch.optim.Optimizer | None = None
        self._load()

    def _normalise(self) -> None:
        for m in (self.model, self.average):
            chunk, pro, reach = (
                torch.from_numpy(a)
                for a in (self.labels.chunk[~self.data.play], self.labels.proprio, self.labels.reach)
            )
            m.action_mean.copy_(chunk.mean(0))
            m.action_std.copy_(chunk.std(0).clamp_min(torch.tensor([2e-3, 2e-3, 2e-3, 2e-2, 2e-2, 5e-2])))
            m.proprio_mean.copy_(pro.mean(0))
            m.proprio_std.copy_(pro.std(0).clamp_min(1e-2))
            m.reach_mean.copy_(reach.mean(0))
            m.reach_std.copy_(reach.std(0).clamp_min(5e-3))

    @property
    def _fingerprint(self) -> str:
        raw = json.dumps([dataclasses.asdict(self.cfg), dataclasses.asdict(self.plan), len(self.data.pose)])
        return hashlib.sha256(raw.encode()).hexdigest()[:16]

    def _load(self) -> None:
        path = self.run / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"{path} belongs to a run with other settings or data: choose another --run folder or delete it."
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self._optimiser_state = state["optimiser"]

    def _save(self) -> None:
        state = {
            "fingerprint": self._fingerprint, "model": self.model.state_dict(), "average": self.average.state_dict(),
            "stage": self.stage, "step": self.step, "seconds": self.seconds,
            "optimiser": self.optimiser.state_dict() if self.optimiser else None,
        }  # fmt: skip
        partial = self.run / "state.partial"
        torch.save(state, partial)
        os.replace(partial, self.run / "state.pt")

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, self.stage, step])

    def train(self) -> HarmoWam:
        """Run the stages that are left; returns the averaged model."""
        with open(self.run / "log.jsonl", "a", buffering=1) as log:
            while self.stage < len(STAGES):
                self._train_stage(log)
        return self.average

    def _train_stage(self, log: TextIO) -> None:
        """One stage to its end, from wherever the state stood."""
        name = STAGES[self.stage]
        total, batch, peak = getattr(self.plan, name)
        parameters = self._begin(name)
        self.optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-4, betas=(0.9, 0.98))
        if getattr(self, "_optimiser_state", None):
            self.optimiser.load_state_dict(self._optimiser_state)
        self._optimiser_state = None
        saved = began = time.monotonic()
        with tqdm(total=total, initial=self.step, desc=name, mininterval=5) as bar:
            while self.step < total:
                rng = self._rng(self.step)
                torch.manual_seed(int(rng.integers(2**31)))
                warm = min(1.0, (self.step + 1) / 100)
                for group in self.optimiser.param_groups:
                    group["lr"] = peak * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * self.step / total)))
                losses = getattr(self, f"_{name}_loss")(rng, batch)
                loss = sum(losses.values())
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                self.optimiser.step()
                decay = min(0.998, (self.step + 1) / (self.step + 20))
                with torch.no_grad():
                    for a, b in zip(self.average.parameters(), self.model.parameters(), strict=True):
                        if b.requires_grad:
                            a.lerp_(b, 1 - decay)
                self.step += 1
                bar.update()
                if self.step % 50 == 0:
                    row = {k: round(float(v), 5) for k, v in losses.items()}
                    bar.set_postfix(row, refresh=False)
                    log.write(json.dumps({"stage": name, "step": self.step, **row}) + "\n")
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self.seconds += time.monotonic() - began
                    saved = began = time.monotonic()
                    self._save()
        self.seconds += time.monotonic() - began
        self._finish(name)
        self.stage, self.step, self.optimiser = self.stage + 1, 0, None
        self._save()

    def _begin(self, name: str) -> list[nn.Parameter]:
        """Freeze everything but the stage's own parts; cache what the frozen parts give."""
        m = self.model
        parts: dict[str, list[nn.Module]] = {
            "tokeniser": [m.tokeniser],
            "world": [m.world],
            "experts": [m.predictive, m.reactive, m.gate, m.world.tokens],
        }
        m.requires_grad_(False)
        for part in parts[name]:
            part.requires_grad_(True)
        if name == "tokeniser":
            front = self.data.front
            self.background = (
                torch.from_numpy(np.median(front[:: max(1, len(front) // 400)], 0)).float().div(127.5).sub(1.0)
            )
        if name in ("world", "experts") and not hasattr(self, "latents"):
            self.latents = torch.cat([self.average.tokeniser.encode(x).half() for x in self._chunks(self.data.front)])
        if name == "world":
            m.world.tokens.requires_grad_(False)
        if name == "experts":
            self._imagine_all()
        return [p for p in m.parameters() if p.requires_grad]

    @torch.no_grad()
    def _finish(self, name: str) -> None:
        if name == "tokeniser":  # unit-variance latents for the flow
            sample = self.data.front[:: max(1, len(self.data.front) // 3000)]
            raw = torch.cat([self.average.tokeniser.encoder(x) for x in self._chunks(sample)])
            self.average.tokeniser.mean.copy_(raw.mean((0, 2, 3), keepdim=True))
            self.average.tokeniser.std.copy_(raw.std((0, 2, 3), keepdim=True))
        # Later stages stand on the averaged weights.
        self.model.load_state_dict(self.average.state_dict())

    def _chunks(self, raw: np.ndarray, size: int = 256) -> Iterator[Tensor]:
        with torch.no_grad():
            for i in tqdm(range(0, len(raw), size), desc="encode", mininterval=5, leave=False):
                yield images(raw[i : i + size]).to(self.device)

    def _row(self, array: np.ndarray, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(array[rows]).to(self.device)

    def _state(self, rows: np.ndarray) -> Tensor:
        return (self._row(self.labels.proprio, rows) - self.model.proprio_mean) / self.model.proprio_std

    def _future(self, rows: np.ndarray) -> Tensor:
        return self.latents[torch.from_numpy(self.labels.future[rows])].flatten(1, 2).float()

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    # -- the losses, one a stage ----------------------------------------------------------------------------------------

    def _tokeniser_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        x = images(self.data.front[rng.integers(len(self.data.front), size=batch)]).to(self.device)
        # What differs from the still background (arm, cubes, plate) is a few per cent of the pixels and all of the matter.
        weight = 1 + 8 * ((x - self.background).abs().amax(1, keepdim=True) * 3).clamp(0, 1)
        with self._cast():
            y = self.model.tokeniser.decode(self.model.tokeniser.encode(x))
        error = y.float() - x
        return {"reconstruction": (weight * (error.abs() + 2 * error**2)).mean()}

    def _world_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        rows = rng.integers(len(self.data.pose), size=batch)
        now, future = self.latents[rows].float(), self._future(rows)
        # Few Euler steps at run time: half of the batch trains where they start, at pure noise.
        t = torch.from_numpy(np.where(rng.random(batch) < 0.4, 0.0, rng.random(batch)).astype(np.float32)).to(
            self.device
        )
        noise = torch.randn_like(future)
        x = (1 - t)[:, None, None, None] * noise + t[:, None, None, None] * future
        weight = 1 + 3 * (future - now.repeat(1, self.cfg.futures, 1, 1)).abs().clamp(0, 1)
        with self._cast():
            text = self.model.world.embed(self._row(self.labels.text, rows))
            velocity, _ = self.model.world(x, t, now, text, self._state(rows))
        return {"flow": (weight * (velocity.float() - (future - noise)) ** 2).mean()}

    @torch.no_grad()
    def _imagine_all(self) -> None:
        """Mid-layer features and generated futures of every row, by the frozen world model at one noise each."""
        m, n = self.average, len(self.data.pose)
        mids, generated = [], []
        generator = torch.Generator(self.device).manual_seed(self.plan.seed)
        for i in tqdm(range(0, n, 128), desc="imagine", mininterval=5, leave=False):
            rows = np.arange(i, min(i + 128, n))
            now = self.latents[rows].float()
            noise = torch.randn(
                len(rows), self.cfg.futures * now.shape[1], *now.shape[2:], generator=generator, device=self.device
            )
            with self._cast():
                text = m.world.embed(self._row(self.labels.text, rows))
                x, mid = noise, noise
                for k in range(self.cfg.world_steps):
                    t = torch.full((len(rows),), k / self.cfg.world_steps, device=self.device)
                    v, features = m.world(x, t, now, text, self._state(rows))
                    mid = features if k == 0 else mid
                    x = x + v.float() / self.cfg.world_steps
            mids.append(mid.half())
            generated.append(x.half())
        self.mids, self.generated = torch.cat(mids), torch.cat(generated)
        # The predictive expert learns from demonstrations of tasks alone, and three times as often where they touch things.
        weight = np.where(self.labels.gate > 0.5, 3.0, 1.0) * ~self.data.play
        self.sampling = np.cumsum(weight / weight.sum())

    def _experts_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        m, lab = self.model, self.labels
        rows = np.minimum(np.searchsorted(self.sampling, rng.random(batch)), len(lab.gate) - 1)
        chunk = (self._row(lab.chunk, rows) - m.action_mean) / m.action_std
        t = torch.from_numpy((1 - rng.beta(1.5, 1.0, len(rows))).astype(np.float32)).to(self.device)
        noise = torch.randn_like(chunk)
        x = (1 - t)[:, None, None] * noise + t[:, None, None] * chunk
        wrist = augment(images(self.data.wrist[rows]).to(self.device), rng)
        state = self._state(rows)
        now, mids = displace(self.latents[rows].float(), self.mids[rows].float(), lab.gate[rows] > 0.5, rng)
        state = state + 0.03 * torch.randn_like(state)
        with self._cast():
            memory = m.predictive.context(wrist, now, m.world.tokens(mids), state)
            velocity = m.predictive.velocity(x, t, memory)
        predictive = ((velocity.float() - (chunk - noise)) ** 2).mean()
        # The gate learns from play too; what the jaw should do, only a task says.
        rows = rng.integers(len(lab.gate), size=batch // 2)
        wrist = augment(images(self.data.wrist[rows]).to(self.device), rng)
        state = self._state(rows)
        with self._cast():
            logits = m.gate(wrist, self.latents[rows].float(), state + 0.03 * torch.randn_like(state))
        target = torch.stack([self._row(lab.gate, rows), self._row(lab.jaw_open, rows)], 1)
        told = torch.ones_like(target)
        told[:, 1] = self._row(~self.data.play, rows).float()
        gate = (F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none") * told).mean()
        # Reactive expert: half true, half generated futures; the newest frame may be up to 0.4 s younger than the Prior's.
        rows = rng.integers(len(lab.gate), size=batch // 2)
        newest = np.minimum(rows + rng.integers(0, 9, len(rows)), self.data.next_event[rows])
        futures = torch.where(
            torch.from_numpy(rng.random(len(rows)) < 0.5).to(self.device)[:, None, None, None],
            self.generated[rows].float(), self._future(rows),
        )  # fmt: skip
        with self._cast():
            heat, reach = m.reactive(self.latents[newest].float(), futures)
        side = self.cfg.heatmap
        grid = torch.arange(side, device=self.device, dtype=torch.float32)
        cell = self._row(lab.cell, rows)
        spread = torch.exp(
            -((grid[None, None, :] - cell[:, 0, None, None]) ** 2 + (grid[None, :, None] - cell[:, 1, None, None]) ** 2)
            / (2 * 0.8**2)
        )
        spread = spread.flatten(1) / spread.sum((1, 2))[:, None].clamp_min(1e-6)
        heat_loss = -(spread * F.log_softmax(heat.float(), -1)).sum(-1).mean()
        reach_loss = F.smooth_l1_loss(
            reach.float(), (self._row(lab.reach, rows) - m.reach_mean) / m.reach_std, beta=0.1
        )
        return {"predictive": predictive, "reactive": 0.1 * (heat_loss + reach_loss), "gate": 0.05 * gate}


def displace(now: Tensor, mids: Tensor, near: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Move what the front camera shows by whole token cells, for the rows that are `near` a contact: what a grasp looks like
    from close by does not depend on where on the table it happens, and the targets are the tool's own.

    `now` [B,C,12,12], `mids` [B,36,D] on a 6x6 grid; a quarter of the near rows lose the tokens altogether.
    """
    side = math.isqrt(mids.shape[1])
    ratio = now.shape[-1] // side
    here = torch.from_numpy(near).to(now.device)
    dx, dy = (int(v) for v in rng.integers(-2, 3, 2))
    grid = mids.transpose(1, 2).reshape(len(mids), -1, side, side)

    def moved(x: Tensor, by: int) -> Tensor:
        pad = 2 * by
        padded = F.pad(x, (pad, pad, pad, pad), mode="replicate")
        return torch.roll(padded, (dy * by, dx * by), (2, 3))[:, :, pad:-pad, pad:-pad]

    lost = here & torch.from_numpy(rng.random(len(near)) < 0.25).to(now.device)
    shifted = torch.where(here[:, None, None, None], moved(grid, 1), grid).flatten(2).transpose(1, 2)
    return torch.where(here[:, None, None, None], moved(now, ratio), now), shifted * ~lost[:, None, None]


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Small shifts (up to 3 pixels) and changes of light for the wrist view: the camera will never sit exactly so again."""
    dx, dy = (int(v) for v in rng.integers(-3, 4, 2))
    x = torch.roll(F.pad(x, (3, 3, 3, 3), mode="replicate"), (dy, dx), (2, 3))[:, :, 3:-3, 3:-3]
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(x), 1, 1, 1)).astype(np.float32)).to(x.device)
    return (x + 1) * gain - 1


def train(data: Demonstrations, run: Path, out: Path, plan: Plan = Plan(), cfg: Config = Config()) -> dict[str, object]:
    """Train (or go on training) in folder `run` and write the checkpoint to `out`; returns its note."""
    trainer = Trainer(data, run, plan, cfg)
    model = trainer.train()
    note: dict[str, object] = {
        "episodes": len(data.instructions), "rows": len(data.pose), "plan": dataclasses.asdict(plan),
        "train_minutes": round(trainer.seconds / 60, 1), "torch": torch.__version__,
    }  # fmt: skip
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(Path(out), model, data.cameras, data.task_instructions, note)
    return note
