"""LeRobot's ACT (Zhao et al. 2023, arXiv 2304.13705) as it runs: with a style variable of zero, without its encoder.

One ResNet for all cameras, a transformer encoder over [style, state, picture tokens], and a decoder whose queries are
learnt places of the actions. Places are added to queries and keys of every layer, not to values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.policies.folder import ACTION, STATE, Folder
from export.policies.resnet import DEPTHS, PLAIN, Norm, ResNet, resnet_of
from export.policies.settings import Plan, Settings

UNUSED = ("model.vae_encoder",)  # beginnings of the names of weights that only training needs
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
LATENT = "model.encoder_latent_input_proj"


class Attention(nn.Module):
    """Multi-head attention of plain matrix products, so that quantisers see Linear and MatMul."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q(query)), split(self.k(key)), split(self.v(value))
        share = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        return self.o((share @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of the encoder or, with `memory`, of the decoder."""

    def __init__(self, s: Settings, memory: bool):
        super().__init__()
        width, heads = s.whole("dim_model"), s.whole("n_heads")
        self.pre = s.flag("pre_norm")
        self.act = ACTIVATIONS[s.choice("feedforward_activation", tuple(ACTIVATIONS))]
        self.own = Attention(width, heads)
        self.cross = Attention(width, heads) if memory else None
        self.wide = nn.Linear(width, s.whole("dim_feedforward"))
        self.narrow = nn.Linear(s.whole("dim_feedforward"), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if memory else 2))

    def forward(self, x: Tensor, place: Tensor, memory: Tensor | None = None, there: Tensor | None = None) -> Tensor:
        """`place`: of the tokens `x`; `there`: of the tokens `memory`."""

        def own(y: Tensor) -> Tensor:
            return self.own(y + place, y + place, y)

        def cross(y: Tensor) -> Tensor:
            assert self.cross is not None and memory is not None and there is not None
            return self.cross(y + place, memory + there, memory)

        def feed(y: Tensor) -> Tensor:
            return self.narrow(self.act(self.wide(y)))

        parts = [own, feed] if self.cross is None else [own, cross, feed]
        for norm, part in zip(self.norms, parts, strict=True):
            x = x + part(norm(x)) if self.pre else norm(x + part(x))
        return x

    def take(self, w: Mapping[str, Tensor], at: str) -> set[str]:
        """Fill in the weights under the name `at`; returns the names that it has taken."""
        pairs = [(self.own, "self_attn")] + ([(self.cross, "multihead_attn")] if self.cross is not None else [])
        state: dict[str, Tensor] = {}
        taken = set()
        for module, name in pairs:
            part = "own" if module is self.own else "cross"
            for kind in ("weight", "bias"):
                packed, out = f"{at}{name}.in_proj_{kind}", f"{at}{name}.out_proj.{kind}"
                state |= dict(zip((f"{part}.{k}.{kind}" for k in "qkv"), w[packed].chunk(3), strict=True))
                state[f"{part}.o.{kind}"] = w[out]
                taken |= {packed, out}
        ours = {"wide": "linear1", "narrow": "linear2"}
        ours |= {f"norms.{n}": f"norm{n + 1}" for n in range(len(self.norms))}
        for mine, theirs in ours.items():
            for kind in ("weight", "bias"):
                state[f"{mine}.{kind}"] = w[f"{at}{theirs}.{kind}"]
                taken.add(f"{at}{theirs}.{kind}")
        self.load_state_dict(state)
        return taken


def places(height: int, width: int, dim: int) -> Tensor:
    """Sinusoidal places [height * width, dim] of picture tokens, rows first; DETR's (arXiv 2005.12872), which count
    from 1."""
    half = dim // 2
    frequency = 10000.0 ** (2 * (torch.arange(half) // 2) / half)

    def along(count: int) -> Tensor:
        at = torch.arange(1, count + 1, dtype=torch.float32)
        angle = (at / (count + 1e-6) * 2 * math.pi)[:, None] / frequency
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)

    y, x = along(height)[:, None].expand(-1, width, -1), along(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], -1).flatten(0, 1)


class LeRobotAct(nn.Module):
    """`forward`: normalised pictures [1,3,h,w] each and normalised state [1,J] -> normalised actions [1,K,A]."""

    backbone: ResNet
    place: Tensor
    latent: Tensor

    def __init__(self, folder: Folder, s: Settings, cameras: Sequence[str]):
        """Raises KeyError for a weight that is missing and RuntimeError for one of another size."""
        super().__init__()
        w, width = folder.weights, s.whole("dim_model")
        taken = {f"{LATENT}.weight", f"{LATENT}.bias"}
        inner = {k.removeprefix("model.backbone."): t for k, t in w.items() if k.startswith("model.backbone.")}
        depths = DEPTHS[s.choice("vision_backbone", tuple(DEPTHS))]
        self.backbone = resnet_of(inner, depths, Norm.FROZEN, PLAIN)
        taken |= {f"model.backbone.{k}" for k in self.backbone.take(inner, PLAIN)}
        self.picture = nn.Conv2d(self.backbone.channels, width, 1)
        self.state = nn.Linear(folder.inputs[STATE].shape[0], width)
        self.encoder = nn.ModuleList(Layer(s, False) for _ in range(s.whole("n_encoder_layers")))
        self.decoder = nn.ModuleList(Layer(s, True) for _ in range(s.whole("n_decoder_layers")))
        self.encoder_norm = nn.LayerNorm(width) if s.flag("pre_norm") else None
        self.decoder_norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.zeros(s.whole("chunk_size"), width))
        self.out = nn.Linear(width, folder.outputs[ACTION].shape[0])
        for stack, name in ((self.encoder, "encoder"), (self.decoder, "decoder")):
            for n, layer in enumerate(cast(Iterable[Layer], stack)):
                taken |= layer.take(w, f"model.{name}.layers.{n}.")
        taken |= self._take_rest(w)
        self.register_buffer("latent", w[f"{LATENT}.bias"][None, None])  # of a style variable that is zero
        ones = w["model.encoder_1d_feature_pos_embed.weight"]
        if len(ones) != 2:
            raise RuntimeError("model.encoder_1d_feature_pos_embed.weight has places for other inputs")
        h, w_ = (-(-n // 32) for n in folder.inputs[cameras[0]].shape[1:])
        self.register_buffer("place", torch.cat([ones, *[places(h, w_, width)] * len(cameras)])[None])
        folder.all_taken(taken | {"model.encoder_1d_feature_pos_embed.weight"}, UNUSED)

    def _take_rest(self, w: Mapping[str, Tensor]) -> set[str]:
        named: dict[str, nn.Module | None] = {
            "encoder_img_feat_input_proj": self.picture,
            "encoder_robot_state_input_proj": self.state,
            "action_head": self.out,
            "encoder.norm": self.encoder_norm,
            "decoder.norm": self.decoder_norm,
        }
        taken = {"model.decoder_pos_embed.weight"}
        self.query.data.copy_(w["model.decoder_pos_embed.weight"])
        for name, module in named.items():
            if module is not None:
                names = {k: f"model.{name}.{k}" for k in ("weight", "bias")}
                module.load_state_dict({k: w[v] for k, v in names.items()})
                taken |= set(names.values())
        return taken

    def forward(self, pictures: Sequence[Tensor], state: Tensor) -> Tensor:
        seen = self.picture(self.backbone(torch.cat(list(pictures)))).flatten(2).transpose(1, 2)  # [cameras, tokens, d]
        memory = torch.cat([self.latent, self.state(state)[:, None], seen.flatten(0, 1)[None]], 1)
        for layer in self.encoder:
            memory = layer(memory, self.place)
        if self.encoder_norm is not None:
            memory = self.encoder_norm(memory)
        x = torch.zeros_like(self.query)[None]
        for layer in self.decoder:
            x = layer(x, self.query, memory, self.place)
        return self.out(self.decoder_norm(x))


def act(folder: Folder, s: Settings, cameras: Sequence[str]) -> Plan:
    """The network of a folder of type act. Raises as `LeRobotAct` does, and PolicyFolderError for its settings."""
    s.only("n_obs_steps", 1)
    s.only("replace_final_stride_with_dilation", False)
    ensemble = s.number_or_none("temporal_ensemble_coeff")
    steps, use = s.whole("chunk_size"), s.whole("n_action_steps")
    s.ignored("use_vae", "latent_dim", "n_vae_encoder_layers", "kl_weight", "optimizer_lr_backbone")
    network = LeRobotAct(folder, s, cameras)
    return Plan(network, steps, use=None if ensemble is not None else use, ensemble=ensemble)
