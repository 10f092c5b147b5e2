"""HarmoWAM at table-top scale: one world model, two experts, one gate (source: arXiv 2605.10942).

Shapes: images float32[B,3,96,96] normalised to [-1, 1]; latents float32[B,C,12,12]; futures are `futures` latents
stacked on the channel axis. All shapes are fixed and the kinds of operator are few, so that the model exports to ONNX
without changes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.config import Config
from export.layers import Attend, Residual, conv, start_at_zero, time_features
from export.one_step import OneStepExpert, OneStepReactive, OneStepWorld, WristGate


class Tokeniser(nn.Module):
    """Visual tokeniser: a convolutional autoencoder, 96x96x3 to 12x12xC and back. Frozen after its own training
    stage."""

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: Config):
        super().__init__()
        a, b, c = cfg.encoder_channels
        self.encoder = nn.Sequential(
            conv(3, a, 3, 2),
            nn.ReLU(),
            conv(a, b, 3, 2),
            nn.ReLU(),
            conv(b, c, 3, 2),
            nn.ReLU(),
            conv(c, c),
            nn.ReLU(),
            conv(c, cfg.latent_channels, 1),
        )
        up = nn.Upsample(scale_factor=2, mode="nearest")
        self.decoder = nn.Sequential(
            conv(cfg.latent_channels, c),
            nn.ReLU(),
            conv(c, c),
            nn.ReLU(),
            up,
            conv(c, b),
            nn.ReLU(),
            conv(b, b),
            nn.ReLU(),
            up,
            conv(b, a),
            nn.ReLU(),
            conv(a, 12),
            nn.PixelShuffle(2),
        )
        self.register_buffer("mean", torch.zeros(1, cfg.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(1, cfg.latent_channels, 1, 1))

    def encode(self, image: Tensor) -> Tensor:
        return (self.encoder(image) - self.mean) / self.std

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(latent * self.std + self.mean)


class WorldModel(nn.Module):
    """Latent flow-matching U-Net: gives the velocity of the future latents from the current latent, instruction and
    proprioception."""

    grid: Tensor

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        c1, c2 = cfg.unet_channels
        d = cfg.condition
        channels = cfg.latent_channels
        self.text = nn.Linear(cfg.text_ngrams, cfg.text_dim)
        # With the default initialisation, sentences that differ in one word would have nearly the same embedding.
        nn.init.normal_(self.text.weight)
        self.condition = nn.Sequential(
            nn.Linear(64 + cfg.text_dim + len(cfg.proprio), d), nn.SiLU(), nn.Linear(d, d), nn.SiLU()
        )
        # Two coordinate planes tell the convolutions where on the table a thing lies.
        grid = torch.linspace(-1, 1, cfg.latent_size)
        yy, xx = torch.meshgrid(grid, grid, indexing="ij")
        self.register_buffer("grid", torch.stack([xx, yy])[None])
        self.stem = conv(channels * (1 + cfg.futures) + 2, c1)
        # The picture itself is an input, too. Latents are trained for reconstruction: a post three pixels wide is a
        # grey blot in them, which does not show where the gripper acts next.
        a, b, c = cfg.encoder_channels
        last = conv(c, c1)
        start_at_zero(last)
        self.look = nn.Sequential(
            conv(3, a, 3, 2), nn.ReLU(), conv(a, b, 3, 2), nn.ReLU(), conv(b, c, 3, 2), nn.ReLU(), last
        )
        self.down1 = Residual(c1, c1, d)
        self.down2 = Residual(c1, c1, d)
        self.pool = conv(c1, c2, 3, 2)
        self.mid1 = Residual(c2, c2, d)
        self.attention: nn.Module = nn.MultiheadAttention(c2, 4, batch_first=True)
        self.attention_norm = nn.LayerNorm(c2)
        self.mid2 = Residual(c2, c2, d)
        self.tokens = nn.Sequential(nn.LayerNorm(c2), nn.Linear(c2, cfg.token_channels))
        # Predicts where on a 24x24 map the gripper acts next. Trained beside the flow, because a pixel loss alone
        # teaches little of what words mean; not exported.
        self.where = nn.Sequential(nn.LayerNorm(c2), nn.Linear(c2, 16))
        self.up = conv(c2, c1)
        self.up1 = Residual(2 * c1, c1, d)
        self.up2 = Residual(c1, c1, d)
        self.out_norm = nn.GroupNorm(8, c1)
        self.out = conv(c1, channels * cfg.futures)
        start_at_zero(self.out)

    def embed(self, ngrams: Tensor) -> Tensor:
        """Instruction embedding [B, text_dim] from hashed n-gram counts [B, text_ngrams]; at run time it is looked
        up."""
        return torch.tanh(self.text(ngrams))

    def acts_next(self, mid: Tensor) -> Tensor:
        """Logits [B, 576] of a 24x24 map, from mid-layer features [B, 36, c2]."""
        side = self.cfg.token_size
        return F.pixel_shuffle(self.where(mid).transpose(1, 2).reshape(-1, 16, side, side), 4).flatten(1)

    def forward(
        self, future: Tensor, t: Tensor, now: Tensor, seen: Tensor, text: Tensor, proprio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity [B, futures*C, 12, 12] and mid-layer features [B, 36, c2]. `seen` [B, c1, 12, 12] is
        `look(front)`."""
        c = self.condition(torch.cat([time_features(t, 64), text, proprio], 1))
        x = torch.cat([future, now, self.grid.expand(now.shape[0], -1, -1, -1)], 1)
        h1 = self.down2(self.down1(self.stem(x) + seen, c), c)
        m = self.mid1(self.pool(h1), c)
        flat = m.flatten(2).transpose(1, 2)
        n = self.attention_norm(flat)
        flat = flat + self.attention(n, n, n, need_weights=False)[0]
        m = self.mid2(flat.transpose(1, 2).reshape(m.shape), c)
        mid = m.flatten(2).transpose(1, 2)
        u = self.up(F.interpolate(m, scale_factor=2.0, mode="nearest"))
        u = self.up2(self.up1(torch.cat([u, h1], 1), c), c)
        return self.out(F.silu(self.out_norm(u))), mid

    def imagine(
        self, noise: Tensor, now: Tensor, seen: Tensor, text: Tensor, proprio: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Euler integration from noise (t = 0) to the future (t = 1): futures [B, futures*C, 12, 12] and tokens [B, 36,
        token_channels].

        The tokens come from the first forward pass, at pure noise: one pass already conditions well (VPP, mimic-video).
        """
        x, mid = noise, None
        for i in range(steps):
            t = torch.full((noise.shape[0],), i / steps, dtype=noise.dtype, device=noise.device)
            v, features = self(x, t, now, seen, text, proprio)
            mid = features if mid is None else mid
            x = x + v / steps
        return x, self.tokens(mid)


class ActionBlock(nn.Module):
    """Self-attention over the action chunk, cross-attention to what is seen and predicted, feed-forward; adaLN by flow
    time."""

    def __init__(self, cfg: Config):
        super().__init__()
        d = cfg.width
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
        self.own, self.cross = Attend(d, cfg.heads), Attend(d, cfg.heads)
        self.ff = nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(approximate="tanh"), nn.Linear(3 * d, d))
        self.film = nn.Linear(d, 2 * d)
        start_at_zero(self.film)

    def forward(self, x: Tensor, memory: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.film(t)[:, None].chunk(2, -1)
        n = self.norms[0](x) * (1 + scale) + shift
        x = x + self.own(n, n)
        x = x + self.cross(self.norms[1](x), memory)
        return x + self.ff(self.norms[2](x))


class PredictiveExpert(nn.Module):
    """Precise interaction: generates an action chunk iteratively, conditioned on the world model's latent dynamics.

    Inputs: the wrist view (through its own small CNN), the current front latent, proprioception without absolute
    position, and the world-model tokens. Actions are relative to the current pose, in the tool frame, normalised to
    unit variance.

    A contact map over the wrist view says where the tool will be when the gripper next acts. The map is trained by
    cross-entropy, also on play, and the features under it form one token of the memory. The predicted turn of the tool
    until then is added to that token: a bar and its tray are a few pixels wide. Regression of actions alone learns to
    aim at small things late, and hardly learns headings.
    """

    grid: Tensor

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        d = cfg.width
        self.wrist = nn.Sequential(
            conv(3, 32, 3, 2),
            nn.ReLU(),
            conv(32, 64, 3, 2),
            nn.ReLU(),
            conv(64, 96, 3, 2),
            nn.ReLU(),
            conv(96, 96, 3, 2),
            nn.ReLU(),
            conv(96, d, 1),
        )
        self.aim = nn.Linear(d, 2 * 64)
        self.spot_in, self.spot = conv(96, 64), nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 4, 1))
        self.contact = nn.Sequential(nn.Linear(96 + 2, d), nn.SiLU(), nn.Linear(d, d))
        self.turn = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, cfg.headings, 1))
        self.turned = nn.Linear(cfg.headings, d)
        start_at_zero(self.aim)
        start_at_zero(self.turned)
        line = torch.linspace(-1, 1, cfg.contact_map)
        yy, xx = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([xx, yy], -1).reshape(-1, 2))
        self.front = nn.Sequential(conv(cfg.latent_channels, 64, 3, 2), nn.ReLU(), conv(64, d, 1))
        self.world = nn.Linear(cfg.token_channels, d)
        self.proprio = nn.Sequential(nn.Linear(len(cfg.proprio), d), nn.SiLU(), nn.Linear(d, d))
        self.place = nn.Parameter(torch.randn(1, 36 + 36 + 36 + 1, d) * 0.02)
        self.time = nn.Sequential(nn.Linear(64, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.action_in, self.action_out = nn.Linear(6, d), nn.Linear(d, 6)
        self.position = nn.Parameter(torch.randn(1, cfg.chunk, d) * 0.02)
        self.blocks = nn.ModuleList(ActionBlock(cfg) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(d)
        self.memory_norm = nn.LayerNorm(d)

    def aimed(self, fine: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The contact's token [B, width], its map's logits [B, 24*24] and the turn's logits [B, headings], from the
        wrist's features `fine` [B, 96, 12, 12] and the part that knows what is sought, `told` [B, 64, 12, 12]."""
        logits = F.pixel_shuffle(self.spot(told), 2).flatten(1)
        side = self.cfg.contact_map
        p = torch.softmax(logits, -1)
        there = F.avg_pool2d(p.reshape(-1, 1, side, side), 2) * 4
        turn = (there * self.turn(told)).sum((2, 3))
        contact = self.contact(torch.cat([(there * fine).sum((2, 3)), p @ self.grid], -1))
        return contact + self.turned(torch.softmax(turn, -1)), logits, turn

    def context(self, wrist: Tensor, now: Tensor, tokens: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory [B, 110, width], logits [B, 24*24] of the contact map and logits [B, headings] of the tool's turn
        until the contact."""
        fine = self.wrist[:6](wrist)  # [B, 96, 12, 12]
        world, state = self.world(tokens), self.proprio(proprio)
        scale, shift = self.aim(world.mean(1) + state)[:, :, None, None].chunk(2, 1)
        contact, logits, turn = self.aimed(fine, F.relu(self.spot_in(fine) * (1 + scale) + shift))
        parts = [
            self.wrist[6:](fine).flatten(2).transpose(1, 2),
            self.front(now).flatten(2).transpose(1, 2),
            world,
            state[:, None],
        ]
        return self.memory_norm(torch.cat([torch.cat(parts, 1) + self.place, contact[:, None]], 1)), logits, turn

    def velocity(self, x: Tensor, t: Tensor, memory: Tensor) -> Tensor:
        h = self.action_in(x) + self.position
        c = self.time(time_features(t, 64))
        for block in self.blocks:
            h = block(h, memory, c)
        return self.action_out(self.norm(h))

    def generate(self, noise: Tensor, memory: Tensor, steps: int) -> Tensor:
        """Action chunk float32[B, K, 6], normalised; Euler integration from noise (t = 0)."""
        x = noise
        for i in range(steps):
            t = torch.full((noise.shape[0],), i / steps, dtype=noise.dtype, device=noise.device)
            x = x + self.velocity(x, t, memory) / steps
        return x


def flow_parts(model: HarmoWam) -> tuple[WorldModel, PredictiveExpert]:
    """World model and predictive expert of a model of form "flow"."""
    assert isinstance(model.world, WorldModel) and isinstance(model.predictive, PredictiveExpert)
    return model.world, model.predictive


class ReactiveExpert(nn.Module):
    """Transit: finds in the predicted futures where the gripper will be. Fully convolutional, so that its output moves
    with the picture.

    Inputs: the predicted latents and their difference to the newest frame's latent; no text, no target id, no pose.
    Outputs: heat-map logits [B, 48*48] over the training camera's pixels and, averaged under the heat map, [z, pitch,
    roll].
    """

    def __init__(self, cfg: Config):
        super().__init__()
        channels = cfg.latent_channels
        self.stem = nn.Sequential(
            conv(2 * channels * cfg.futures, 128), nn.ReLU(), conv(128, 96), nn.ReLU(), conv(96, 96), nn.ReLU()
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv(96, 64),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv(64, 32),
            nn.ReLU(),
        )
        self.heat = conv(32, 1)
        self.reach = conv(96, 3, 1)

    def forward(self, now: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        """Heat-map logits [B, 48*48], and [z, pitch, roll] [B, 3] averaged under the heat map."""
        b, c = now.shape[:2]
        n = future.shape[1] // c
        difference = future - now.repeat(1, n, 1, 1)
        h = self.stem(torch.cat([future, difference], 1))
        heat = self.heat(self.up(h)).flatten(1)
        side = math.isqrt(heat.shape[1])
        weights = (
            F.avg_pool2d(torch.softmax(heat, -1).reshape(b, 1, side, side), side // now.shape[-1])
            * (side // now.shape[-1]) ** 2
        )
        reach = (self.reach(h) * weights).sum((2, 3))
        return heat, reach


class Gate(nn.Module):
    """Process-adaptive gate: P(interaction) from the current views and proprioception; it also predicts P(jaw open)."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.wrist = nn.Sequential(
            conv(3, 16, 5, 4),
            nn.ReLU(),
            conv(16, 32, 3, 2),
            nn.ReLU(),
            conv(32, 48, 3, 2),
            nn.ReLU(),
        )
        self.front = nn.Sequential(conv(cfg.latent_channels, 32, 3, 2), nn.ReLU(), conv(32, 16, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48 * 36 + 16 * 36 + len(cfg.proprio), 96), nn.ReLU(), nn.Linear(96, 2))

    def forward(self, wrist: Tensor, now: Tensor, proprio: Tensor) -> Tensor:
        """Logits [B, 2]: interaction, jaw open."""
        return self.head(torch.cat([self.wrist(wrist).flatten(1), self.front(now).flatten(1), proprio], 1))


class HarmoWam(nn.Module):
    """The whole model, in the form that its configuration names; `action_mean/std`, `proprio_mean/std` and
    `reach_mean/std` are its normalisation."""

    action_mean: Tensor
    action_std: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor
    reach_mean: Tensor
    reach_std: Tensor

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.tokeniser = Tokeniser(cfg)
        one = cfg.form == "one_step"
        self.world: WorldModel | OneStepWorld = OneStepWorld(cfg) if one else WorldModel(cfg)
        self.predictive: PredictiveExpert | OneStepExpert = OneStepExpert(cfg) if one else PredictiveExpert(cfg)
        self.reactive: ReactiveExpert | OneStepReactive = OneStepReactive(cfg) if one else ReactiveExpert(cfg)
        self.gate: Gate | WristGate = WristGate(cfg) if one else Gate(cfg)
        self.register_buffer("action_mean", torch.zeros(cfg.chunk, 6))
        self.register_buffer("action_std", torch.ones(cfg.chunk, 6))
        self.register_buffer("proprio_mean", torch.zeros(len(cfg.proprio)))
        self.register_buffer("proprio_std", torch.ones(len(cfg.proprio)))
        self.register_buffer("reach_mean", torch.zeros(3))
        self.register_buffer("reach_std", torch.ones(3))
