"""The behaviour-cloning baseline: ACT (Zhao et al. 2023, arXiv 2304.13705) at about the size of our own model.

Action chunking with transformers: one convolutional backbone per camera; a transformer encoder over picture tokens,
joint angles, the instruction and a style variable; a transformer decoder that gives the whole action chunk in one pass.
It is trained as a conditional VAE with an L1 loss. ACT sees the same pictures, instructions and episodes as our model
and drives the arm through the same loop, as a policy of kind chunk (`runtime/policies/chunk.py`). Unlike our experts it
reads all joint angles and gives absolute joint targets.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import Mendable
from export.data import VIEWS, Demonstrations
from export.loop import Loop, Stage
from export.manifest import manifest_for
from export.onnx import export_engine
from export.text import ngrams
from runtime.bundle import check_replaceable, save_bundle
from runtime.manifest import Chunk, Gate, PolicyKind, Reactive

STAGES = ("act",)


class ActError(Mendable):
    """A dataset that the baseline cannot be trained on; one sentence and the next step."""


@dataclass(frozen=True)
class ActConfig:
    """As in ACT (4 encoder layers, 1 decoder layer, KL weight 10), but narrower: what runs on the robot has 5.8 M
    parameters.

    Our model has 6.3 M parameters, lerobot's ACT 51.6 M (ResNet-18, width 512). The VAE's encoder (1.5 M more) is used
    in training only.
    """

    image: int = 96
    channels: tuple[int, int, int, int] = (32, 64, 128, 192)
    width: int = 248
    heads: int = 8
    feedforward: int = 960
    encoder_layers: int = 4
    decoder_layers: int = 1
    style_layers: int = 2
    style: int = 32
    kl_weight: float = 10.0
    text_ngrams: int = 512
    text_dim: int = 32
    chunk: int = 16
    chunk_dt_s: float = 0.05
    views: tuple[str, ...] = VIEWS


SMALL = ActConfig(
    channels=(8, 16, 24, 32), width=64, heads=4, feedforward=128, encoder_layers=1, style_layers=1, style=8
)  # 0.2 M parameters: for simple tasks, trained within minutes
SIZES = {"act": ActConfig(), "act-small": SMALL}


@dataclass(frozen=True)
class ActPlan:
    """Steps, batch and peak learning rate; the number of shards in which a batch is drawn (`export/loop.py`). `bf16`:
    None chooses what is faster on the device."""

    act: Stage = (3000, 48, 3e-4)
    seed: int = 0
    shards: int = 2
    bf16: bool | None = None


class Block(nn.Module):
    """Two convolutions with a skip, as in ResNet; halves the picture."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.a, self.b = nn.Conv2d(i, o, 3, 2, 1), nn.Conv2d(o, o, 3, 1, 1)
        self.norm_a, self.norm_b = nn.GroupNorm(8, o), nn.GroupNorm(8, o)
        self.skip = nn.Conv2d(i, o, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm_a(self.a(x)))
        return F.relu(self.skip(x) + self.norm_b(self.b(h)))


def _layer(cfg: ActConfig, kind: Callable[..., nn.Module]) -> nn.Module:
    return kind(cfg.width, cfg.heads, cfg.feedforward, dropout=0.1, batch_first=True, norm_first=True)


class Act(nn.Module):
    """`forward` is what runs on the robot: the style variable is zero, as in ACT."""

    joints_mean: Tensor
    joints_std: Tensor

    def __init__(self, cfg: ActConfig, joints: int):
        """`joints`: number of the arm's joints, including the jaw."""
        super().__init__()
        self.cfg, self.joints = cfg, joints
        d = cfg.width
        sizes = (3, *cfg.channels)
        self.backbones = nn.ModuleDict(
            {
                view: nn.Sequential(
                    *(Block(i, o) for i, o in zip(sizes, cfg.channels, strict=False)), nn.Conv2d(cfg.channels[-1], d, 1)
                )
                for view in cfg.views
            }
        )
        tokens = len(cfg.views) * (cfg.image // 2 ** len(cfg.channels)) ** 2
        self.text = nn.Linear(cfg.text_ngrams, cfg.text_dim)
        self.text_in, self.state_in, self.style_in = (
            nn.Linear(cfg.text_dim, d),
            nn.Linear(joints, d),
            nn.Linear(cfg.style, d),
        )
        self.place = nn.Parameter(torch.randn(1, tokens + 3, d) * 0.02)
        self.encoder = nn.ModuleList(_layer(cfg, nn.TransformerEncoderLayer) for _ in range(cfg.encoder_layers))
        self.encoder_norm = nn.LayerNorm(d)
        self.query = nn.Parameter(torch.randn(1, cfg.chunk, d) * 0.02)
        self.decoder = nn.ModuleList(_layer(cfg, nn.TransformerDecoderLayer) for _ in range(cfg.decoder_layers))
        self.out = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, joints))
        # training only
        self.style_action, self.style_state = nn.Linear(joints, d), nn.Linear(joints, d)
        self.style_place = nn.Parameter(torch.randn(1, cfg.chunk + 2, d) * 0.02)
        self.style_encoder = nn.ModuleList(_layer(cfg, nn.TransformerEncoderLayer) for _ in range(cfg.style_layers))
        self.style_out = nn.Linear(d, 2 * cfg.style)
        self.register_buffer("joints_mean", torch.zeros(joints))
        self.register_buffer("joints_std", torch.ones(joints))

    def embed(self, grams: Tensor) -> Tensor:
        """Instruction embedding [B, text_dim]; at run time only looked up."""
        return torch.tanh(self.text(grams))

    def chunk(self, views: Sequence[Tensor], text: Tensor, state: Tensor, style: Tensor) -> Tensor:
        """Normalised joint targets [B,K,J] from pictures [B,3,96,96] of each view, instruction embedding, normalised
        joint angles [B,J] and style."""
        pictures = [self.backbones[k](x).flatten(2).transpose(1, 2) for k, x in zip(self.cfg.views, views)]
        rest = torch.stack([self.text_in(text), self.state_in(state), self.style_in(style)], 1)
        memory = torch.cat([*pictures, rest], 1) + self.place
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        x = self.query.expand(len(text), -1, -1)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.out(x)

    def encode_style(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, style] of the style variable, from the chunk `actions` [B,K,J] and the joint
        angles."""
        first = self.style_state(state)[:, None]
        x = torch.cat([torch.zeros_like(first), first, self.style_action(actions)], 1) + self.style_place
        for layer in self.style_encoder:
            x = layer(x)
        mean, log_variance = self.style_out(x[:, 0]).chunk(2, -1)
        return mean, log_variance

    def forward(self, *inputs: Tensor) -> Tensor:
        """Joint targets float32[B,K,J] (rad) from the pictures [B,3,96,96] of each view, the instruction's embedding
        and measured joint angles [B,J] (rad)."""
        *views, text, state = inputs
        style = torch.zeros(text.shape[0], self.cfg.style, dtype=text.dtype, device=text.device)
        normal = self.chunk(views, text, (state - self.joints_mean) / self.joints_std, style)
        return normal * self.joints_std + self.joints_mean


def run_time_parameters(model: Act) -> int:
    """How many parameters the robot needs: all but the VAE's encoder."""
    return sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.startswith(("style_action", "style_state", "style_place", "style_encoder", "style_out"))
    )


class ActTrainer(Loop[Act]):
    """The single stage of ACT's training: L1 loss and weighted KL divergence of random batches."""

    stages = STAGES
    layout = (
        torch.contiguous_format
    )  # in channels-last layout PyTorch 2.13 crashes on a CPU in the backward pass of 1x1 convolutions with a stride

    def __init__(self, data: Demonstrations, run: Path, plan: ActPlan, cfg: ActConfig, play: bool):
        """Raises ActError for data without anything to learn, CheckpointError as Loop does."""
        if abs(cfg.chunk_dt_s * data.rate_hz - 1) > 1e-6:
            raise ActError("the chunk's time step must be the dataset's: collect at 20 Hz.")
        self.rows = np.flatnonzero(~data.play | play)
        if not len(self.rows):
            raise ActError("the dataset holds no demonstrations of tasks: collect some, or add --play.")
        torch.manual_seed(plan.seed)
        model = Act(cfg, len(data.arm.JOINTS))
        targets = torch.from_numpy(data.action[self.rows])
        model.joints_mean.copy_(targets.mean(0))
        model.joints_std.copy_(targets.std(0).clamp_min(1e-2))
        self.text = np.stack([ngrams(s, cfg.text_ngrams) for s in data.instructions])
        super().__init__(run, model, cfg, data, {"act": plan.act}, plan.seed, plan.shards, plan.bf16, play=play)

    def _begin(self, name: str) -> None:
        self.model.requires_grad_(True)
        self.model.train()

    def _finish(self, name: str) -> None:
        self.model.eval()

    def _normal(self, joints: np.ndarray) -> Tensor:
        return (torch.from_numpy(joints).to(self.device) - self.model.joints_mean) / self.model.joints_std

    def _act_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        d, cfg, m = self.data, self.cfg, self.model
        rows = d.draw(rng, self.rows, batch)
        steps = rows[:, None] + np.arange(1, cfg.chunk + 1)
        inside = torch.from_numpy(steps <= d.last[rows][:, None]).to(self.device)
        actions = self._normal(d.action[np.minimum(steps, d.last[rows][:, None])])
        state = self._normal(d.state[rows])
        views = [jitter(getattr(d, view)[rows], rng, self.device) for view in cfg.views]
        with self._cast():
            text = m.embed(self._row(self.text, d.episode[rows]))
            mean, log_variance = (x.float() for x in m.encode_style(state, actions))
            style = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            said = m.chunk(views, text, state, style)
        error = ((said.float() - actions).abs().mean(-1) * inside).sum() / inside.sum()
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        return {"l1": error, "kl": cfg.kl_weight * kl}


def jitter(raw: np.ndarray, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Pictures uint8[B,3,96,96] as float32 in [-1, 1], each made a little brighter or darker."""
    x = torch.from_numpy(raw).to(device).float().div_(127.5).sub_(1.0)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(x), 1, 1, 1)).astype(np.float32)).to(device)
    return (x + 1) * gain - 1


def samples_of(data: Demonstrations, count: int = 64) -> bytes:
    """`count` rows of task demonstrations as npz: the observations on which engines built from a bundle are compared
    (`runtime.build`)."""
    candidates = np.flatnonzero(~data.play)
    candidates = candidates if len(candidates) else np.arange(len(data.play))
    rows = candidates[np.linspace(0, len(candidates) - 1, min(count, len(candidates))).astype(int)]
    stored = io.BytesIO()
    texts = np.array([data.instructions[e] for e in data.episode[rows]])
    pictures = {view: getattr(data, view)[rows] for view in data.views}
    np.savez_compressed(stored, **pictures, state=data.state[rows], instruction=texts)
    return stored.getvalue()


def save_act_bundle(model: Act, data: Demonstrations, out: Path, report: dict[str, Any]) -> None:
    """Write the baseline as a bundle of kind chunk: one FP32 engine; tasks, cameras and joints as in any bundle."""
    c, arm, model = model.cfg, data.arm, model.cpu().eval()
    picture, instructions = (1, 3, c.image, c.image), data.task_instructions
    inputs = {**dict.fromkeys(c.views, picture), "text": (1, c.text_dim), "state": (1, model.joints)}
    with torch.no_grad():
        grams = torch.from_numpy(np.stack([ngrams(s, c.text_ngrams) for s in instructions]))
        tasks = dict(zip(instructions, model.embed(grams).numpy(), strict=True))
    manifest = manifest_for(
        f"act-{arm.NAME}",
        arm,
        data.cameras,
        tasks,
        {"chunk": (inputs, ["chunk"])},
        c.image,
        chunk=Chunk(c.chunk, round(c.chunk_dt_s * 1000)),
        gate=Gate(on=1.0, off=1.0),
        reactive=Reactive(),
        quantization={"format": "fp32"},
        policy=PolicyKind("chunk"),
    )
    with tempfile.TemporaryDirectory() as folder:
        path, said, samples = (Path(folder) / name for name in ("chunk.onnx", "training.json", "samples.npz"))
        export_engine(model, inputs, ["chunk"], path)
        samples.write_bytes(samples_of(data))
        said.write_text(json.dumps(report, indent=1, sort_keys=True))
        save_bundle(out, manifest, {"onnx/chunk.onnx": path, "samples.npz": samples}, reports={"training.json": said})


def train_act(
    data: Demonstrations, run: Path, out: Path, play: bool, plan: ActPlan = ActPlan(), cfg: ActConfig = ActConfig()
) -> dict[str, Any]:
    """Train (or continue a training) in folder `run` and write the bundle `out`; returns the training's report.

    Raises ActError, BundleError for an `out` that is not a bundle, and CheckpointError when `run` cannot be written.
    """
    check_replaceable(out)
    cfg = dataclasses.replace(cfg, views=data.views)
    trainer = ActTrainer(data, run, plan, cfg, play)
    model = trainer.train()
    report = {
        "baseline": "act",
        "play": play,
        "rows": len(trainer.rows),
        "steps": plan.act[0],
        "train_minutes": round(trainer.seconds / 60, 1),
        "parameters": run_time_parameters(model),
        "parameters_training": sum(p.numel() for p in model.parameters()),
        "config": dataclasses.asdict(cfg),
        "plan": dataclasses.asdict(plan),
        "torch": torch.__version__,
    }
    if trainer.rank == 0:
        save_act_bundle(model, data, out, report)
    return report
