"""The behaviour-cloning baseline: ACT (Zhao et al. 2023, arXiv 2304.13705) at about the size of our own model.

Action chunking with transformers: a convolutional backbone a camera, a transformer encoder over picture tokens, the tool's pose, the
instruction and a style variable, a transformer decoder that reads the whole chunk off in one pass; trained as a conditional VAE with
an L1 loss. It sees the same pictures, instructions and episodes as our model, gives targets in the same space, and drives the arm
through the same loop; unlike our experts it knows the tool's absolute pose and gives absolute targets, as ACT does.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from calibration.camera import Camera
from common.errors import Mendable
from export.checkpoint import CheckpointError, write_file
from export.data import Demonstrations
from export.loop import alone, make_run_folder, rounds_bf16
from export.onnx import export_engine
from export.rows import digest_of
from export.text import ngrams
from firmware_bridge.arms import so101
from runtime.bundle import check_replaceable, save_bundle
from runtime.manifest import Chunk, EngineFiles, Gate, JointLimits, Manifest, Preprocess, Rates, Reactive

SAVE_EVERY_S = 60.0


class ActError(Mendable):
    """A baseline that cannot be trained or continued; one sentence and the next step."""


@dataclass(frozen=True)
class ActConfig:
    """As in ACT (4 encoder layers, 1 decoder layer, KL weight 10), narrower, so that what runs on the robot has 5.8 M parameters.

    Ours has 6.3 M; lerobot's ACT 51.6 M (ResNet-18, width 512). The VAE's encoder (1.5 M more) exists in training only.
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
    batch: int = 48
    rate: float = 3e-4
    seed: int = 0


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

    pose_mean: Tensor
    pose_std: Tensor

    def __init__(self, cfg: ActConfig):
        super().__init__()
        self.cfg = cfg
        d = cfg.width
        sizes = (3, *cfg.channels)
        self.backbones = nn.ModuleDict({
            view: nn.Sequential(*(Block(i, o) for i, o in zip(sizes, cfg.channels, strict=False)), nn.Conv2d(cfg.channels[-1], d, 1))
            for view in ("front", "wrist")
        })  # fmt: skip
        tokens = 2 * (cfg.image // 2 ** len(cfg.channels)) ** 2
        self.text = nn.Linear(cfg.text_ngrams, cfg.text_dim)
        self.text_in, self.pose_in, self.style_in = nn.Linear(cfg.text_dim, d), nn.Linear(6, d), nn.Linear(cfg.style, d)
        self.place = nn.Parameter(torch.randn(1, tokens + 3, d) * 0.02)
        self.encoder = nn.ModuleList(_layer(cfg, nn.TransformerEncoderLayer) for _ in range(cfg.encoder_layers))
        self.encoder_norm = nn.LayerNorm(d)
        self.query = nn.Parameter(torch.randn(1, cfg.chunk, d) * 0.02)
        self.decoder = nn.ModuleList(_layer(cfg, nn.TransformerDecoderLayer) for _ in range(cfg.decoder_layers))
        self.out = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 6))
        # training only
        self.style_action, self.style_pose = nn.Linear(6, d), nn.Linear(6, d)
        self.style_place = nn.Parameter(torch.randn(1, cfg.chunk + 2, d) * 0.02)
        self.style_encoder = nn.ModuleList(_layer(cfg, nn.TransformerEncoderLayer) for _ in range(cfg.style_layers))
        self.style_out = nn.Linear(d, 2 * cfg.style)
        self.register_buffer("pose_mean", torch.zeros(6))
        self.register_buffer("pose_std", torch.ones(6))

    def embed(self, grams: Tensor) -> Tensor:
        """Instruction embedding [B, text_dim]; at run time only looked up."""
        return torch.tanh(self.text(grams))

    def chunk(self, front: Tensor, wrist: Tensor, text: Tensor, pose: Tensor, style: Tensor) -> Tensor:
        """Normalised absolute targets [B, K, 6] from pictures [B,3,96,96], embedding, normalised pose [B,6] and style."""
        pictures = [self.backbones[k](x).flatten(2).transpose(1, 2) for k, x in (("front", front), ("wrist", wrist))]
        rest = torch.stack([self.text_in(text), self.pose_in(pose), self.style_in(style)], 1)
        memory = torch.cat([*pictures, rest], 1) + self.place
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        x = self.query.expand(len(front), -1, -1)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.out(x)

    def encode_style(self, pose: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, style] of what the chunk `actions` [B,K,6] adds to pictures and instruction."""
        first = self.style_pose(pose)[:, None]
        x = torch.cat([torch.zeros_like(first), first, self.style_action(actions)], 1) + self.style_place
        for layer in self.style_encoder:
            x = layer(x)
        mean, log_variance = self.style_out(x[:, 0]).chunk(2, -1)
        return mean, log_variance

    def forward(self, front: Tensor, wrist: Tensor, text: Tensor, pose: Tensor) -> Tensor:
        """Absolute targets float32[B, K, 6] (m, rad) from the measured pose [B, 6] (m, rad)."""
        style = torch.zeros(front.shape[0], self.cfg.style, dtype=front.dtype, device=front.device)
        normal = self.chunk(front, wrist, text, (pose - self.pose_mean) / self.pose_std, style)
        return normal * self.pose_std + self.pose_mean


def run_time_parameters(model: Act) -> int:
    """How many parameters the robot needs: all but the VAE's encoder."""
    return sum(
        p.numel()
        for n, p in model.named_parameters()
        if not n.startswith(("style_action", "style_p", "style_e", "style_out"))
    )


class ActTrainer:
    """Owns model, moving average, optimiser and the state file of a run in folder `run`."""

    def __init__(self, data: Demonstrations, run: Path, cfg: ActConfig, play: bool):
        self.data, self.run, self.cfg, self.play = data, Path(run), cfg, play
        make_run_folder(self.run)
        if abs(cfg.chunk_dt_s * data.rate_hz - 1) > 1e-6:
            raise ActError("the chunk's time step must be the dataset's: collect at 20 Hz.")
        self.rows = np.flatnonzero(~data.play | play)
        if not len(self.rows):
            raise ActError("the dataset holds no demonstrations of tasks: collect some, or add --play.")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(cfg.seed)
        self.model, self.average = Act(cfg).to(self.device), Act(cfg).to(self.device).eval()
        for m in (self.model, self.average):
            targets = torch.from_numpy(data.target[self.rows])
            m.pose_mean.copy_(targets.mean(0))
            m.pose_std.copy_(targets.std(0).clamp_min(1e-2))
        self.average.load_state_dict(self.model.state_dict())
        self.text = np.stack([ngrams(s, cfg.text_ngrams) for s in data.instructions])
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=cfg.rate, weight_decay=1e-4)
        self.step, self.seconds = 0, 0.0
        self.bf16 = rounds_bf16(self.device)  # its budget is wall time, as ours
        self._load()

    @property
    def _fingerprint(self) -> str:
        return json.dumps([dataclasses.asdict(self.cfg), self.play, digest_of(self.data)], sort_keys=True)

    def _load(self) -> None:
        path = self.run / "act.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as e:  # zip, pickle and tensors each have errors of their own
            raise ActError(f"{path} cannot be read: it was damaged; delete it, or choose another --run folder.") from e
        if state["fingerprint"] != self._fingerprint:
            raise ActError(
                f"{path} belongs to a run with other settings or data: choose another --run folder or delete it."
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _save(self) -> None:
        state = {
            "fingerprint": self._fingerprint, "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        packed = io.BytesIO()
        torch.save(state, packed)
        write_file(self.run / "act.pt", packed.getvalue())

    def _note(self, row: dict[str, Any]) -> None:
        path = self.run / "act.jsonl"
        try:
            with open(path, "a") as log:
                log.write(json.dumps(row) + "\n")
        except OSError as e:
            raise CheckpointError(
                f"{path} cannot be written ({e.strerror}), the state saved before is untouched: make room there and run the same "
                "command again."
            ) from e

    def losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """L1 and weighted KL of one random batch."""
        d, cfg, m = self.data, self.cfg, self.model
        rows = self.rows[rng.integers(len(self.rows), size=cfg.batch)]
        steps = rows[:, None] + np.arange(1, cfg.chunk + 1)
        inside = torch.from_numpy(steps <= d.last[rows][:, None]).to(self.device)
        actions = self._normal(d.target[np.minimum(steps, d.last[rows][:, None])])
        pose = self._normal(d.pose[rows])
        front, wrist = (jitter(raw[rows], rng, self.device) for raw in (d.front, d.wrist))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            text = m.embed(torch.from_numpy(self.text[d.episode[rows]]).to(self.device))
            mean, log_variance = (x.float() for x in m.encode_style(pose, actions))
            style = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            said = m.chunk(front, wrist, text, pose, style)
        error = ((said.float() - actions).abs().mean(-1) * inside).sum() / inside.sum()
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        return {"l1": error, "kl": cfg.kl_weight * kl}

    def _normal(self, poses: np.ndarray) -> Tensor:
        return (torch.from_numpy(poses).to(self.device) - self.model.pose_mean) / self.model.pose_std

    def train(self, minutes: float, steps: int | None = None) -> Act:
        """Train until `minutes` of wall time (or `steps`, if fewer) are used up in all runs together; returns the averaged model."""
        saved = began = time.monotonic()

        def share() -> float:
            used = (self.seconds + time.monotonic() - began) / (60 * minutes)
            return max(used, self.step / steps if steps else 0.0)

        self.model.train()
        with tqdm(initial=self.step, desc="act", mininterval=5) as bar:
            while (done := share()) < 1.0:
                rng = np.random.default_rng([self.cfg.seed, 9, self.step])
                torch.manual_seed(int(rng.integers(2**31)))
                # The rate falls with the time that is left: the budget is wall time, however fast the machine.
                for group in self.optimiser.param_groups:
                    group["lr"] = (
                        self.cfg.rate
                        * min(1.0, (self.step + 1) / 200)
                        * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))
                    )
                losses = self.losses(rng)
                if not all(v.isfinite() for v in losses.values()):
                    raise ActError(
                        f"the training diverged at step {self.step} (what was saved before is kept): look for numbers that are not "
                        "finite in the dataset."
                    )
                self.optimiser.zero_grad(set_to_none=True)
                torch.stack(list(losses.values())).sum().backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimiser.step()
                decay = min(0.998, (self.step + 1) / (self.step + 20))
                with torch.no_grad():
                    for a, b in zip(self.average.parameters(), self.model.parameters(), strict=True):
                        a.lerp_(b, 1 - decay)
                self.step += 1
                bar.update()
                if self.step % 50 == 0:
                    row = {k: round(float(v.detach()), 5) for k, v in losses.items()}
                    bar.set_postfix(row, refresh=False)
                    self._note({"stage": "act", "step": self.step, **row})
                if time.monotonic() - saved > SAVE_EVERY_S:
                    now = time.monotonic()
                    self.seconds, saved, began = self.seconds + now - began, now, now
                    self._save()
        self.seconds += time.monotonic() - began
        self._save()
        return self.average


def jitter(raw: np.ndarray, rng: np.random.Generator, device: torch.device) -> Tensor:
    """uint8[B,3,96,96] to float32 in [-1, 1], in a little more or less light."""
    x = torch.from_numpy(raw).to(device).float().div_(127.5).sub_(1.0)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(x), 1, 1, 1)).astype(np.float32)).to(device)
    return (x + 1) * gain - 1


def save_act_bundle(
    model: Act, cameras: dict[str, Camera], instructions: list[str], out: Path, report: dict[str, Any]
) -> None:
    """Write the baseline as a bundle of its own: one FP32 engine, "act"; what it knows of tasks, cameras and joints as in any bundle."""
    c, model = model.cfg, model.cpu().eval()
    picture = (1, 3, c.image, c.image)
    inputs = {"front": picture, "wrist": picture, "text": (1, c.text_dim), "pose": (1, 6)}
    with torch.no_grad():
        grams = torch.from_numpy(np.stack([ngrams(s, c.text_ngrams) for s in instructions]))
        tasks = dict(zip(instructions, model.embed(grams).numpy(), strict=True))
    manifest = Manifest(
        name="act-so101",
        licence="Apache-2.0",
        arm_family=so101.FAMILY,
        engines={"act": EngineFiles("onnx/act.onnx", {k: list(s) for k, s in inputs.items()}, ["chunk"])},
        preprocess=Preprocess([c.image, c.image], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        cameras={k: v.to_json() for k, v in sorted(cameras.items())},
        joints=[
            JointLimits(n, float(a), float(b)) for n, a, b in zip(so101.JOINTS, so101.LOWER, so101.UPPER, strict=True)
        ],
        links={k: float(v) for k, v in vars(so101.Links()).items()},
        tasks={k: [float(x) for x in v] for k, v in tasks.items()},
        rates=Rates(fast_hz=50.0, slow_hz=8.0, motor_hz=100.0),
        chunk=Chunk(c.chunk, round(c.chunk_dt_s * 1000)),
        proprio=["x", "y", "z", "pitch", "roll", "gripper"],
        gate=Gate(on=1.0, off=1.0),
        reactive=Reactive(),
        quantization={"format": "fp32"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path, said = Path(folder) / "act.onnx", Path(folder) / "training.json"
        export_engine(model, inputs, ["chunk"], path)
        said.write_text(json.dumps(report, indent=1, sort_keys=True))
        save_bundle(out, manifest, {"onnx/act.onnx": path}, reports={"training.json": said})


def train_act(
    data: Demonstrations,
    run: Path,
    out: Path,
    play: bool,
    minutes: float,
    steps: int | None = None,
    cfg: ActConfig = ActConfig(),
) -> dict[str, Any]:
    """Train (or go on training) in folder `run` and write the bundle `out`; returns what was done.

    Raises ActError, BundleError for an `out` that is something else, and CheckpointError when `run` cannot be written.
    """
    check_replaceable(out)
    make_run_folder(run)
    with alone(run):
        trainer = ActTrainer(data, run, cfg, play)
        model = trainer.train(minutes, steps)
    report = {
        "baseline": "act", "play": play, "rows": len(trainer.rows), "steps": trainer.step, "train_minutes": round(trainer.seconds / 60, 1),
        "parameters": run_time_parameters(model), "parameters_training": sum(p.numel() for p in model.parameters()),
        "config": dataclasses.asdict(cfg), "torch": torch.__version__,
    }  # fmt: skip
    save_act_bundle(model, data.cameras, data.task_instructions, out, report)
    return report
