"""The parts of a model of one step each (`Config.form` "one_step"): a world model that predicts the future in one
pass, a predictive expert that maps the start of a plan to the plan in one pass, and a fast engine of few layers.

One Euler step from the mean of the noise gives the mean of what follows: at flow time 0 the noise says nothing of the
data, so the velocity there is the mean of the data less the noise. These parts compute that mean directly. They have no
flow time and draw no noise: a network that is only ever run at time 0 would spend its capacity on subtracting the noise
that it was given. Two ways that are both open are therefore told apart by what the plan starts from
(`OneStepExpert.generate`), not by a draw.

They are written in operators of which TensorRT's compiler makes few kernels: one norm in a residual block, joined by
FiLM and activation; one product for queries, keys and values; maps in the order in which the convolution leaves them.
Only norms and the world model's attention have another form in an export (`export/forms.py`). Shapes as in
`export/models.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.config import Config
from export.layers import conv, start_at_zero


class Block(nn.Module):
    """Two convolutions with a skip connection; norm, condition (FiLM) and activation before the first one, a ReLU
    before the second."""

    def __init__(self, i: int, o: int, condition: int):
        super().__init__()
        self.norm, self.film = nn.GroupNorm(8, i), nn.Linear(condition, 2 * i)
        self.a, self.b = conv(i, o), conv(o, o)
        self.skip = conv(i, o, 1) if i != o else nn.Identity()
        start_at_zero(self.b)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c)[:, :, None, None].chunk(2, 1)
        h = self.a(F.silu(self.norm(x) * (1 + scale) + shift))
        return self.skip(x) + self.b(F.relu(h))


class OneStepWorld(nn.Module):
    """Predicts the future latents as a change of the present one, from instruction and proprioception; U-Net.

    A head on the mid-layer features says whether the instruction is fulfilled and the tool has left (`finished`). These
    features know the sentence and all that the front camera sees; the views of the gate know neither.
    """

    grid: Tensor
    finish_scale: Tensor
    finish_shift: Tensor

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
            nn.Linear(cfg.text_dim + len(cfg.proprio), d), nn.SiLU(), nn.Linear(d, d), nn.SiLU()
        )
        # Two coordinate planes tell the convolutions where on the table a thing lies.
        line = torch.linspace(-1, 1, cfg.latent_size)
        yy, xx = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("grid", torch.stack([xx, yy])[None])
        self.stem = conv(channels + 2, c1)
        # The picture itself is an input, too: a post three pixels wide is a grey blot in the latents.
        a, b, c = cfg.encoder_channels
        last = conv(c, c1)
        start_at_zero(last)
        self.look = nn.Sequential(
            conv(3, a, 3, 2), nn.ReLU(), conv(a, b, 3, 2), nn.ReLU(), conv(b, c, 3, 2), nn.ReLU(), last
        )
        self.down1, self.down2 = Block(c1, c1, d), Block(c1, c1, d)
        self.pool = conv(c1, c2, 3, 2)
        self.mid1, self.mid2 = Block(c2, c2, d), Block(c2, c2, d)
        self.attention = nn.MultiheadAttention(c2, 4, batch_first=True)
        self.attention_norm = nn.LayerNorm(c2)
        self.tokens = nn.Sequential(nn.LayerNorm(c2), nn.Linear(c2, cfg.token_channels))
        # Predicts where on a 24x24 map the gripper acts next: a pixel loss alone teaches little of what words mean.
        # Not exported.
        self.where = nn.Sequential(nn.LayerNorm(c2), nn.Linear(c2, 16))
        self.finish = nn.Sequential(nn.LayerNorm(c2), nn.Linear(c2, 32), nn.ReLU())
        self.finish_out = nn.Linear(32, 1)
        self.register_buffer("finish_scale", torch.ones(1))  # calibration of the logit, on episodes kept apart
        self.register_buffer("finish_shift", torch.zeros(1))
        self.up = conv(c2, c1)
        self.up1, self.up2 = Block(2 * c1, c1, d), Block(c1, c1, d)
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

    def finished(self, mid: Tensor) -> Tensor:
        """Logit [B, 1], not calibrated, that the instruction is fulfilled and the tool has left, from mid-layer
        features [B, 36, c2]."""
        return self.finish_out(self.finish(mid).mean(1))

    def p_finished(self, mid: Tensor) -> Tensor:
        """`finished` as a calibrated probability [B, 1]."""
        return torch.sigmoid(self.finished(mid) * self.finish_scale + self.finish_shift)

    def forward(self, now: Tensor, seen: Tensor, text: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        """Future latents [B, futures*C, 12, 12] and mid-layer features [B, 36, c2]. `seen` [B, c1, 12, 12] is
        `look(front)`."""
        c = self.condition(torch.cat([text, proprio], 1))
        h = self.stem(torch.cat([now, self.grid.expand(now.shape[0], -1, -1, -1)], 1))
        h = self.down2(self.down1(h + seen, c), c)
        m = self.mid1(self.pool(h), c)
        flat = m.flatten(2).transpose(1, 2)
        n = self.attention_norm(flat)
        flat = flat + self.attention(n, n, n, need_weights=False)[0]
        m = self.mid2(flat.transpose(1, 2).reshape(m.shape), c)
        u = self.up(F.interpolate(m, scale_factor=2.0, mode="nearest"))
        u = self.up2(self.up1(torch.cat([u, h], 1), c), c)
        change = self.out(F.silu(self.out_norm(u)))
        return now.repeat(1, self.cfg.futures, 1, 1) + change, m.flatten(2).transpose(1, 2)


class PlanBlock(nn.Module):
    """One attention of the chunk to itself and to the memory, in one softmax; then feed-forward."""

    def __init__(self, cfg: Config):
        super().__init__()
        d = cfg.width
        self.heads = cfg.heads
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.qkv, self.kv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.ff = nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(approximate="tanh"), nn.Linear(3 * d, d))

    def _parted(self, product: Tensor, parts: int) -> tuple[Tensor, ...]:
        """A product [B, N, parts * width] as `parts` tensors [B, heads, N, width / heads]. Five dimensions and an
        unbind would be copies in kernels of their own."""
        b, n, width = product.shape
        split = product.reshape(b, n, parts * self.heads, width // (parts * self.heads)).transpose(1, 2)
        return split.split(self.heads, 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self._parted(self.qkv(self.norms[0](x)), 3)
        far_k, far_v = self._parted(self.kv(memory), 2)
        k, v = torch.cat([k, far_k], 2), torch.cat([v, far_v], 2)
        weights = torch.softmax((q @ k.transpose(-1, -2)) * (d // self.heads) ** -0.5, -1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.ff(self.norms[1](x))


class OneStepExpert(nn.Module):
    """Precise interaction: an action chunk in one pass from what it starts from, conditioned on the world model's
    latent dynamics.

    Inputs, contact map and turn as in `PredictiveExpert`; map and turn are read from the same features. Actions are
    relative to the current pose, in the tool frame, normalised to unit variance.
    """

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
        self.spot_in = conv(96, 64)
        self.spot = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 4 + cfg.headings, 1))
        self.contact_in, self.contact_out = nn.Linear(96, d), nn.Linear(d, d)
        self.turned = nn.Linear(cfg.headings, d)
        start_at_zero(self.aim)
        start_at_zero(self.turned)
        # What the contact's token learns of a cell of the map, in the order [4, 12, 12] that `spot` leaves; at first
        # linear in the cell's place.
        half = cfg.contact_map // 2
        line = torch.linspace(-1, 1, cfg.contact_map)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
        cells = places.reshape(half, 2, half, 2, 2).permute(1, 3, 0, 2, 4).reshape(-1, 2)
        self.contact_at = nn.Parameter(cells @ torch.randn(2, d) * 0.5)
        self.front = nn.Sequential(conv(cfg.latent_channels, 64, 3, 2), nn.ReLU(), conv(64, d, 1))
        self.world = nn.Linear(cfg.token_channels, d)
        self.proprio = nn.Sequential(nn.Linear(len(cfg.proprio), d), nn.SiLU(), nn.Linear(d, d))
        self.place = nn.Parameter(torch.randn(1, 36 + 36 + 36 + 1, d) * 0.02)
        self.action_in, self.action_out = nn.Linear(6, d), nn.Linear(d, 6)
        self.position = nn.Parameter(torch.randn(1, cfg.chunk, d) * 0.02)
        self.blocks = nn.ModuleList(PlanBlock(cfg) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(d)
        self.memory_norm = nn.LayerNorm(d)

    def context(self, wrist: Tensor, now: Tensor, tokens: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory [B, 110, width], logits [B, 24*24] of the contact map and logits [B, headings] of the tool's turn
        until the contact."""
        fine = self.wrist[:6](wrist)  # [B, 96, 12, 12]
        world, state = self.world(tokens), self.proprio(proprio)
        scale, shift = self.aim(world.mean(1) + state)[:, :, None, None].chunk(2, 1)
        told = F.relu(self.spot_in(fine) * (1 + scale) + shift)
        cells, turns = self.spot(told).split([4, self.cfg.headings], 1)
        p = torch.softmax(cells.flatten(1), -1)
        there = p.reshape(len(p), 4, -1).sum(1)
        seen = torch.cat([fine.flatten(2), turns.flatten(2)], 1)
        read, turn = (there[:, None] * seen).sum(2).split([fine.shape[1], self.cfg.headings], 1)
        contact = self.contact_out(F.silu(self.contact_in(read) + p @ self.contact_at))
        contact = contact + self.turned(torch.softmax(turn, -1))
        parts = [
            self.wrist[6:](fine).flatten(2).transpose(1, 2),
            self.front(now).flatten(2).transpose(1, 2),
            world,
            state[:, None],
        ]
        memory = self.memory_norm(torch.cat([torch.cat(parts, 1) + self.place, contact[:, None]], 1))
        return memory, F.pixel_shuffle(cells, 2).flatten(1), turn

    def generate(self, start: Tensor, memory: Tensor, steps: int = 1) -> Tensor:
        """Action chunk float32[B, K, 6], normalised, from `start` [B, K, 6]: zero, or on some steps a share of the last
        plan (`runtime/policies/harmowam/slow.py`). `steps` must be 1."""
        assert steps == 1
        h = self.action_in(start) + self.position
        for block in self.blocks:
            h = block(h, memory)
        return self.action_out(self.norm(h))


class OneStepReactive(nn.Module):
    """As `ReactiveExpert`. The heat map's cells are channels of the 12x12 features until the end: 16 cells of 48x48
    each."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.shrink = cfg.heatmap // cfg.latent_size
        self.stem = nn.Sequential(
            conv(2 * cfg.latent_channels * cfg.futures, 128),
            nn.ReLU(),
            conv(128, 96),
            nn.ReLU(),
            conv(96, 96),
            nn.ReLU(),
        )
        self.heat = nn.Sequential(conv(96, 64), nn.ReLU(), conv(64, self.shrink**2))
        self.reach = conv(96, 3, 1)

    def forward(self, now: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        """Heat-map logits [B, 48*48], and [z, pitch, roll] [B, 3] averaged under the heat map."""
        n = future.shape[1] // now.shape[1]
        h = self.stem(torch.cat([future, future - now.repeat(1, n, 1, 1)], 1))
        cells = self.heat(h)
        p = torch.softmax(cells.flatten(1), -1).reshape(len(h), self.shrink**2, -1).sum(1)
        reach = (self.reach(h).flatten(2) * p[:, None]).sum(2)
        return F.pixel_shuffle(cells, self.shrink).flatten(1), reach


class WristGate(nn.Module):
    """Process-adaptive gate: P(interaction) and P(jaw open) from the wrist view and proprioception alone."""

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
        self.head = nn.Sequential(nn.Linear(48 * 36 + len(cfg.proprio), 96), nn.ReLU(), nn.Linear(96, 2))

    def forward(self, wrist: Tensor, now: Tensor, proprio: Tensor) -> Tensor:
        """Logits [B, 2]: interaction, jaw open. `now`, the front latent, is not looked at."""
        return self.head(torch.cat([self.wrist(wrist).flatten(1), proprio], 1))
