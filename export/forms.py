"""The form in which a model is exported: the same function of the same weights, in operators of which TensorRT's
compiler makes few kernels.

Every kernel of a network this small costs 2 to 5 microseconds on an Orin, whatever it computes. `for_export` rewrites a
copy of the model; training and the checkpoint keep the plain form (`export/models.py`), and `export/lint.py` refuses a
graph that lacks the exported one.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.layers import Attend, time_features
from export.models import ActionBlock, HarmoWam, PredictiveExpert


class WholeNorm(nn.Module):
    """GroupNorm as one LayerNormalization over [B, groups, -1], then scale and shift of the channels: with the FiLM and
    the activation that follow, that is one kernel. torch's exporter writes an InstanceNormalization between reshapes
    for a GroupNorm."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        flat, each = x.reshape(x.shape[0], self.groups, -1), (-1, *(1,) * (x.dim() - 2))
        whole = F.layer_norm(flat, flat.shape[2:], eps=self.eps).reshape(x.shape)
        return whole * self.weight.reshape(each) + self.bias.reshape(each)


def with_whole_norms(module: nn.Module) -> None:
    """Replace every GroupNorm in `module` by a WholeNorm, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, WholeNorm(child))
        else:
            with_whole_norms(child)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A Linear with the given weight [out, in] and bias [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


class SplitAttention(nn.Module):
    """Multi-head attention with the scale inside the query's weights. The heads of a product's result are split by one
    reshape, one transpose and one split: five dimensions and an unbind would be copies in kernels of their own."""

    def __init__(self, heads: int, out: nn.Linear):
        super().__init__()
        self.heads, self.o = heads, out
        self.scale = (out.in_features // heads) ** -0.5

    def parted(self, product: Tensor, parts: int) -> tuple[Tensor, ...]:
        """A product [B, N, parts * width] as `parts` tensors [B, heads, N, width / heads]."""
        b, n, width = product.shape
        split = product.reshape(b, n, parts * self.heads, width // (parts * self.heads)).transpose(1, 2)
        return split.split(self.heads, 1) if parts > 1 else (split,)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, n, _ = q.shape
        return self.o((torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).reshape(b, n, -1))


class OwnAttention(SplitAttention):
    """A sequence's attention to itself: queries, keys and values are one product."""

    def __init__(self, heads: int, weight: Tensor, bias: Tensor, out: nn.Linear):
        """`weight` [3 * width, width] and `bias` give queries, keys and values, in this order."""
        super().__init__(heads, out)
        scale = torch.ones(len(bias))
        scale[: out.in_features] = self.scale
        self.qkv = linear(weight * scale[:, None], bias * scale)

    @classmethod
    def of(cls, attend: Attend) -> OwnAttention:
        weights, biases = ([getattr(layer, p) for layer in (attend.q, attend.kv)] for p in ("weight", "bias"))
        return cls(attend.heads, torch.cat(weights), torch.cat(biases), attend.o)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(*self.parted(self.qkv(x), 3))


class InPlaceOfMultihead(nn.Module):
    """Is called as an `nn.MultiheadAttention` whose queries, keys and values are the same sequence."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        heads, out = attention.num_heads, attention.out_proj
        self.own = OwnAttention(heads, attention.in_proj_weight, attention.in_proj_bias, out)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        return self.own(query), None


class CrossAttention(SplitAttention):
    """`Attend` of a sequence to another."""

    def __init__(self, attend: Attend):
        super().__init__(attend.heads, attend.o)
        self.q, self.kv = linear(self.scale * attend.q.weight, self.scale * attend.q.bias), attend.kv

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.mixed(*self.parted(self.q(x), 1), *self.parted(self.kv(memory), 2))


class StepBlock(nn.Module):
    """An `ActionBlock` for fixed flow times `times` (embeddings [1, width], one for each step): the scale and the shift
    by time are part of that step's LayerNorm weights."""

    def __init__(self, block: ActionBlock, times: list[Tensor]):
        super().__init__()
        first, *rest = block.norms
        self.first = nn.ModuleList(modulated(first, block.film(t)[0]) for t in times)
        self.norms, self.ff = nn.ModuleList(rest), block.ff
        self.own, self.cross = OwnAttention.of(block.own), CrossAttention(block.cross)

    def forward(self, x: Tensor, memory: Tensor, step: int) -> Tensor:
        x = x + self.own(self.first[step](x))
        x = x + self.cross(self.norms[0](x), memory)
        return x + self.ff(self.norms[1](x))


def modulated(norm: nn.Module, film: Tensor) -> nn.LayerNorm:
    """`norm(x) * (1 + scale) + shift` as one LayerNorm; `film` is scale and shift, one after the other."""
    assert isinstance(norm, nn.LayerNorm)
    scale, shift = film.chunk(2)
    out = nn.LayerNorm(norm.normalized_shape, norm.eps)
    out.weight, out.bias = nn.Parameter(norm.weight * (1 + scale)), nn.Parameter(norm.bias * (1 + scale) + shift)
    return out


class StepExpert(PredictiveExpert):
    """A `PredictiveExpert` whose flow has a fixed number of steps.

    The contact map is not put into the order of its cells, for nobody outside reads it: its four channels are the four
    cells of each place, and the softmax does not depend on the order.
    """

    def __init__(self, expert: PredictiveExpert, steps: int):
        with torch.device("meta"):
            super().__init__(expert.cfg)
        self.load_state_dict(expert.state_dict(), assign=True)
        times = [expert.time(time_features(torch.full((1,), i / steps), 64)) for i in range(steps)]
        self.blocks = nn.ModuleList(
            StepBlock(block, times) for block in expert.blocks if isinstance(block, ActionBlock)
        )
        del self.time
        first, _, last = expert.contact
        assert isinstance(first, nn.Linear)
        features = first.in_features - 2
        half = self.cfg.contact_map // 2
        cells = self.grid.reshape(half, 2, half, 2, 2).permute(1, 3, 0, 2, 4).reshape(-1, 2)
        # The first layer of `contact` reads the pooled features and the mean place. The second part is a product with
        # the map's probabilities.
        self.contact = nn.Sequential(linear(first.weight[:, :features].clone(), first.bias), last)
        self.contact_at = nn.Parameter(cells @ first.weight[:, features:].T)

    def aimed(self, fine: Tensor, told: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `PredictiveExpert.aimed`, with the map's logits in the order [4, 12, 12]."""
        logits = self.spot(told).flatten(1)
        p = torch.softmax(logits, -1)
        there = p.reshape(len(p), 4, -1).sum(1)
        seen = torch.cat([fine.flatten(2), self.turn(told).flatten(2)], 1)
        read, turn = (there[:, None] * seen).sum(2).split([fine.shape[1], self.cfg.headings], 1)
        first, last = self.contact
        contact = last(F.silu(first(read) + p @ self.contact_at))
        return contact + self.turned(torch.softmax(turn, -1)), logits, turn

    def generate(self, noise: Tensor, memory: Tensor, steps: int) -> Tensor:
        """As `PredictiveExpert.generate`; `steps` is the number that the expert was made for."""
        x = noise
        for i in range(steps):
            h = self.action_in(x) + self.position
            for block in self.blocks:
                h = block(h, memory, i)
            x = x + self.action_out(self.norm(h)) / steps
        return x


@torch.no_grad()
def for_export(model: HarmoWam) -> HarmoWam:
    """A copy of `model` in the exported form, for as many steps as its configuration says. Its outputs differ from the
    model's by float32 rounding."""
    out = copy.deepcopy(model).requires_grad_(False)
    with_whole_norms(out.world)
    assert isinstance(out.world.attention, nn.MultiheadAttention)
    out.world.attention = InPlaceOfMultihead(out.world.attention)
    if isinstance(out.predictive, PredictiveExpert):  # a OneStepExpert has this form already
        out.predictive = StepExpert(out.predictive, out.cfg.action_steps)
    return out
