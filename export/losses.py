"""Losses for a place on a map and for a bin on an axis: cross-entropy against a narrow bump."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def heat_loss(logits: Tensor, cell: Tensor, side: int) -> Tensor:
    """Cross-entropy [B] of a square map's logits [B, n*n] against a Gaussian spot round `cell` [B, 2] (column, row on a
    map of side x side cells)."""
    n = math.isqrt(logits.shape[1])
    at = (cell + 0.5) * (n / side) - 0.5
    grid = torch.arange(n, device=logits.device, dtype=torch.float32)
    spot = torch.exp(
        -((grid[None, None, :] - at[:, 0, None, None]) ** 2 + (grid[None, :, None] - at[:, 1, None, None]) ** 2)
        / (2 * 0.8**2)
    ).flatten(1)
    spot = spot / spot.sum(1, keepdim=True).clamp_min(1e-6)
    return -(spot * F.log_softmax(logits.float(), -1)).sum(-1)


def bin_loss(logits: Tensor, at: Tensor) -> Tensor:
    """Cross-entropy [B] of logits [B, n] against a bump with a width of one bin round the bins `at` [B] (bin centres
    are whole numbers)."""
    bins = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
    bump = torch.softmax(-((bins - at[:, None]) ** 2) / 2, 1)
    return -(bump * F.log_softmax(logits.float(), -1)).sum(1)
