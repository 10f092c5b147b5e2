"""ResNet of basic blocks (He et al. 2016, arXiv 1512.03385: 18 and 34 layers) without its classifier.

Sizes are read from the weights. `Norm.FROZEN` is a batch normalisation that is folded into the convolution before it;
`Norm.GROUPS` a group normalisation of 16 channels a group, as Diffusion Policy has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
BATCH_EPS = 1e-5
GROUP = 16  # channels
PLAIN = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")  # the parts' names in the weights


class Norm(Enum):
    FROZEN = "frozen"
    GROUPS = "groups"


def _conv(i: int, o: int, k: int, stride: int, norm: Norm) -> nn.Module:
    folded = norm is Norm.FROZEN
    conv = nn.Conv2d(i, o, k, stride, k // 2, bias=folded)
    return conv if folded else nn.Sequential(conv, nn.GroupNorm(max(o // GROUP, 1), o))


class Block(nn.Module):
    """Two convolutions and a skip, which is a convolution itself where the size changes."""

    def __init__(self, i: int, o: int, stride: int, norm: Norm):
        super().__init__()
        self.a, self.b = _conv(i, o, 3, stride, norm), _conv(o, o, 3, 1, norm)
        self.skip = nn.Identity() if stride == 1 and i == o else _conv(i, o, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.b(F.relu(self.a(x))))


class ResNet(nn.Module):
    """Pictures [B,3,h,w] to features [B,C,h/32,w/32] (rounded up)."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...], norm: Norm):
        """`widths`: channels of the first convolution and of each layer."""
        super().__init__()
        self.norm, self.channels = norm, widths[-1]
        self.first = _conv(3, widths[0], 7, 2, norm)
        self.layers = nn.ModuleList()
        for k, (i, o, depth) in enumerate(zip(widths[:-1], widths[1:], depths, strict=True)):
            blocks = [Block(i if n == 0 else o, o, 2 if n == 0 and k else 1, norm) for n in range(depth)]
            self.layers.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 3, 2, 1)
        for layer in self.layers:
            x = layer(x)
        return x

    def take(self, weights: Mapping[str, Tensor], parts: tuple[str, ...]) -> set[str]:
        """Fill in `weights`, whose parts (first convolution, its norm, four layers) have these names; returns the names
        that it has taken. Raises KeyError for a missing one and RuntimeError for one of another size."""
        taken: set[str] = set()
        self._into(self.first, weights, parts[0], parts[1], taken)
        for name, layer in zip(parts[2:], self.layers, strict=True):
            for n, block in enumerate(cast(Iterable[Block], layer)):
                at = f"{name}.{n}."
                self._into(block.a, weights, at + "conv1", at + "bn1", taken)
                self._into(block.b, weights, at + "conv2", at + "bn2", taken)
                if not isinstance(block.skip, nn.Identity):
                    self._into(block.skip, weights, at + "downsample.0", at + "downsample.1", taken)
        return taken

    def _into(self, module: nn.Module, weights: Mapping[str, Tensor], conv: str, norm: str, taken: set[str]) -> None:
        names = [f"{conv}.weight", f"{norm}.weight", f"{norm}.bias"]
        names += [f"{norm}.running_mean", f"{norm}.running_var"] if self.norm is Norm.FROZEN else []
        kernel, weight, bias, *running = (weights[name] for name in names)
        taken |= {*names, f"{norm}.num_batches_tracked"}
        if self.norm is Norm.FROZEN:
            scale = weight * torch.rsqrt(running[1] + BATCH_EPS)
            module.load_state_dict({"weight": kernel * scale[:, None, None, None], "bias": bias - running[0] * scale})
        else:
            module.load_state_dict({"0.weight": kernel, "1.weight": weight, "1.bias": bias})


def resnet_of(weights: Mapping[str, Tensor], depths: tuple[int, ...], norm: Norm, parts: tuple[str, ...]) -> ResNet:
    """A ResNet of the sizes that `weights` have; raises KeyError where they are none of such a net."""
    widths = (len(weights[f"{parts[0]}.weight"]), *(len(weights[f"{name}.0.conv1.weight"]) for name in parts[2:]))
    return ResNet(depths, widths, norm)
