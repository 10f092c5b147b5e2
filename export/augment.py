"""Augmentation of training pictures and of the world model's features."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def displace(
    now: Tensor, mids: Tensor, near: np.ndarray, ambiguous: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Shift the front camera's latents and features by whole token cells in the rows that are `near` a contact.

    The look of a grasp from close by does not depend on its place on the table, and the targets are in the tool frame.
    `now` [B,C,12,12], `mids` [B,36,D] on a 6x6 grid. A fifth of the near rows get zeros for tokens, except `ambiguous`
    ones, where only the tokens say which thing is meant.
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

    lost = here & torch.from_numpy((rng.random(len(near)) < 0.2) & ~ambiguous).to(now.device)
    shifted = torch.where(here[:, None, None, None], moved(grid, 1), grid).flatten(2).transpose(1, 2)
    return torch.where(here[:, None, None, None], moved(now, ratio), now), shifted * ~lost[:, None, None]


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """The wrist view shifted by up to one pixel and in another light. One pixel is 1.6 mm at the jaws' tips; more than
    that would exceed the play of a peg in its hole."""
    dx, dy = (int(v) for v in rng.integers(-1, 2, 2))
    x = torch.roll(F.pad(x, (1, 1, 1, 1), mode="replicate"), (dy, dx), (2, 3))[:, :, 1:-1, 1:-1]
    return relit(x, rng)


def relit(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures in another light and, for some, with another row's picture blended in: task demonstrations show one
    table only (random overlay: Hansen and Wang 2021)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(x), *shape)).astype(np.float32)).to(x.device)

    share = uniform(0.05, 0.35, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.3)
    x = x + share * (x.roll(1, 0) - x)
    return (x + 1) * uniform(0.8, 1.2, 1, 1, 1) * uniform(0.88, 1.12, 3, 1, 1) - 1 + uniform(-0.12, 0.12, 3, 1, 1)
