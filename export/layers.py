"""Layers that several parts of the model share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, k: int = 3, s: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, s, k // 2)


def start_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Set a layer to zero: its branch adds nothing at first and is learnt gradually."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """Two convolutions with a skip connection; an optional condition scales and shifts in between (FiLM)."""

    def __init__(self, i: int, o: int, condition: int = 0):
        super().__init__()
        self.a, self.b = conv(i, o), conv(o, o)
        self.norm_a, self.norm_b = nn.GroupNorm(8, i), nn.GroupNorm(8, o)
        self.skip = conv(i, o, 1) if i != o else nn.Identity()
        self.film = nn.Linear(condition, 2 * o) if condition else None
        start_at_zero(self.b)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.norm_b(self.a(F.silu(self.norm_a(x))))
        if self.film is not None and c is not None:
            scale, shift = self.film(c)[:, :, None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.b(F.silu(h))


def time_features(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features [B, dim] of flow time t [B] in [0, 1]."""
    freq = torch.exp(torch.arange(dim // 2, dtype=t.dtype, device=t.device) * (-math.log(1000.0) / (dim // 2 - 1)))
    angle = 1000.0 * t[:, None] * freq[None]
    return torch.cat([angle.sin(), angle.cos()], 1)


class Attend(nn.Module):
    """Multi-head attention built from plain matrix products, so that quantisers see Linear and MatMul."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.o = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        b, n, d = x.shape
        m = memory.shape[1]
        q = self.q(x).reshape(b, n, self.heads, d // self.heads).transpose(1, 2)
        k, v = self.kv(memory).reshape(b, m, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax((q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2), -1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, n, d))
