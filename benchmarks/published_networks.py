"""Networks whose time with TensorRT on an Orin was published, in plain torch with random weights: only their shapes
count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(i: int, o: int, k: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with the bias that a folded batch normalisation leaves."""
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups)


class Residual(nn.Module):
    """He et al. 2015: two 3x3 layers, or a bottleneck with the stride in the 3x3 layer, as torchvision builds it."""

    def __init__(self, i: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        o = 4 * width if bottleneck else width
        if bottleneck:
            self.path = nn.ModuleList([conv(i, width, 1), conv(width, width, 3, stride), conv(width, o, 1)])
        else:
            self.path = nn.ModuleList([conv(i, width, 3, stride), conv(width, o, 3)])
        self.skip = conv(i, o, 1, stride) if stride != 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.path[:-1]:
            y = F.relu(layer(y))
        return F.relu(self.path[-1](y) + self.skip(x))


def resnet(blocks: tuple[int, ...], bottleneck: bool, head: bool = True) -> nn.Sequential:
    """ResNet-18 is ((2, 2, 2, 2), False), ResNet-50 ((3, 4, 6, 3), True); without `head` it ends with features."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    i = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for b in range(count):
            layers.append(Residual(i, width, 2 if b == 0 and stage else 1, bottleneck))
            i = 4 * width if bottleneck else width
    return nn.Sequential(*layers, *([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 1000)] if head else []))


class Inverted(nn.Module):
    """Sandler et al. 2018: 1x1 up, 3x3 depthwise, 1x1 down."""

    def __init__(self, i: int, o: int, stride: int, expand: int):
        super().__init__()
        width = i * expand
        up = [conv(i, width, 1), nn.ReLU6()] if expand != 1 else []
        self.path = nn.Sequential(*up, conv(width, width, 3, stride, width), nn.ReLU6(), conv(width, o, 1))
        self.joins = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x) if self.joins else self.path(x)


def mobilenet_v2() -> nn.Sequential:
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [conv(3, 32, 3, 2), nn.ReLU6()]
    i = 32
    for expand, o, count, stride in rows:
        for b in range(count):
            layers.append(Inverted(i, o, stride if b == 0 else 1, expand))
            i = o
    return nn.Sequential(
        *layers, conv(i, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)
    )


class Attention(nn.Module):
    """Multi-head attention with one product each for queries, keys, values and output."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.reshape(1, t.shape[1], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(memory)), split(self.v(memory))
        weights = torch.softmax(q * (q.shape[-1] ** -0.5) @ k.transpose(2, 3), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(1, x.shape[1], -1))


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y)
        return x + self.down(F.gelu(self.up(self.second(x))))


class Vit(nn.Module):
    """Dosovitskiy et al. 2020, ViT-B/16."""

    def __init__(self, width: int = 768, layers: int = 12, heads: int = 12):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token, self.place = (nn.Parameter(torch.randn(1, n, width)) for n in (1, 197))
        self.blocks = nn.Sequential(*(VitBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token, self.patches(x).flatten(2).transpose(1, 2)], 1) + self.place
        return self.head(self.norm(self.blocks(x))[:, 0])


def perceptrons(layers: int = 6, width: int = 768) -> nn.Sequential:
    """A stack of the two products of a transformer's block."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)]
    return nn.Sequential(*parts)


class Decoder(nn.Module):
    """A block of ACT's decoder: queries attend to one another, then to the encoder's tokens."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.own, self.cross = Attention(width, heads), Attention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, memory: Tensor, place: Tensor, queries: Tensor) -> Tensor:
        x = self.norms[0](x + self.own(x + queries, x + queries))
        x = self.norms[1](x + self.cross(x + queries, memory + place))
        return self.norms[2](x + self.down(F.relu(self.up(x))))


class Encoder(nn.Module):
    """A block of ACT's encoder."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.own, self.norms = Attention(width, heads), nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        x = self.norms[0](x + self.own(x + place, x + place))
        return self.norms[1](x + self.down(F.relu(self.up(x))))


class Act(nn.Module):
    """Zhao et al. 2023 with two pictures of 224 x 224: ResNet-18, width 512, 4 encoder and 4 decoder layers, a chunk of
    30."""

    def __init__(self, width: int = 512, heads: int = 8, inner: int = 3200, chunk: int = 30):
        super().__init__()
        self.backbone = resnet((2, 2, 2, 2), False, head=False)
        self.tokens, self.state = nn.Conv2d(512, width, 1), nn.Linear(6, width)
        self.style = nn.Parameter(torch.randn(1, 1, width))
        self.place, self.queries = (nn.Parameter(torch.randn(1, n, width)) for n in (100, chunk))
        self.encoder = nn.ModuleList(Encoder(width, heads, inner) for _ in range(4))
        self.decoder = nn.ModuleList(Decoder(width, heads, inner) for _ in range(4))
        self.head = nn.Linear(width, 8)

    def forward(self, pictures: Tensor, state: Tensor) -> Tensor:
        seen = self.tokens(self.backbone(pictures)).flatten(2).transpose(1, 2).reshape(1, 98, -1)
        x = torch.cat([self.style, self.state(state)[None], seen], 1)
        for block in self.encoder:
            x = block(x, self.place)
        y = torch.zeros_like(self.queries)
        for block in self.decoder:
            y = block(y, x, self.place, self.queries)
        return self.head(y)
