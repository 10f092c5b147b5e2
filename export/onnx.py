"""torch to ONNX: the four engines of a bundle; fixed shapes, float32 inputs and outputs, normalisation inside."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.forms import for_export
from export.models import HarmoWam, WorldModel
from export.one_step import OneStepWorld

OPSET = 20
Specs = dict[
    str, tuple[nn.Module, dict[str, tuple[int, ...]], list[str]]
]  # engine -> module, shapes of its inputs, names of its outputs


class WorldEngine(nn.Module):
    """front, text, proprio, noise -> latent, tokens, future. The Euler steps are unrolled."""

    def __init__(self, model: HarmoWam, steps: int):
        super().__init__()
        self.m, self.steps = model, steps

    def forward(self, front: Tensor, text: Tensor, proprio: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, c = self.m, self.m.cfg
        assert isinstance(m.world, WorldModel)
        latent = m.tokeniser.encode(front)
        state = (proprio - m.proprio_mean) / m.proprio_std
        future, tokens = m.world.imagine(noise, latent, m.world.look(front), text, state, self.steps)
        return latent, tokens, future.reshape(c.futures, c.latent_channels, c.latent_size, c.latent_size)


class OneStepWorldEngine(nn.Module):
    """front, text, proprio -> latent, tokens, future, done (calibrated probability, `OneStepWorld.finished`)."""

    def __init__(self, model: HarmoWam):
        super().__init__()
        self.m = model

    def forward(self, front: Tensor, text: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, c, world = self.m, self.m.cfg, self.m.world
        assert isinstance(world, OneStepWorld)
        latent = m.tokeniser.encode(front)
        state = (proprio - m.proprio_mean) / m.proprio_std
        future, mid = world(latent, world.look(front), text, state)
        future = future.reshape(c.futures, c.latent_channels, c.latent_size, c.latent_size)
        return latent, world.tokens(mid), future, world.p_finished(mid)


class PredictiveEngine(nn.Module):
    """wrist, latent, tokens, proprio, noise -> chunk: targets in the tool frame, metres and radians."""

    def __init__(self, model: HarmoWam, steps: int):
        super().__init__()
        self.m, self.steps = model, steps

    def forward(self, wrist: Tensor, latent: Tensor, tokens: Tensor, proprio: Tensor, noise: Tensor) -> Tensor:
        m = self.m
        state = (proprio - m.proprio_mean) / m.proprio_std
        memory, _, _ = m.predictive.context(wrist, latent, tokens, state)
        return m.predictive.generate(noise, memory, self.steps) * m.action_std + m.action_mean


class FastEngine(nn.Module):
    """front, wrist, future, proprio -> heat (logits), reach (z, pitch, roll), gate (P(interaction), P(jaw open))."""

    def __init__(self, model: HarmoWam):
        super().__init__()
        self.m = model

    def forward(self, front: Tensor, wrist: Tensor, future: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = self.m
        latent = m.tokeniser.encode(front)
        heat, reach = m.reactive(latent, future.reshape(1, -1, *future.shape[2:]))
        state = (proprio - m.proprio_mean) / m.proprio_std
        gate = torch.sigmoid(m.gate(wrist, latent, state))
        return heat, reach * m.reach_std + m.reach_mean, gate


class DecoderEngine(nn.Module):
    """future -> frames, for people and reports; the robot's loops never run it."""

    def __init__(self, model: HarmoWam):
        super().__init__()
        self.m = model

    def forward(self, future: Tensor) -> Tensor:
        return self.m.tokeniser.decode(future).clamp(-1, 1)


def engines(model: HarmoWam) -> Specs:
    """The engines of a bundle, in the exported form (`export/forms.py`)."""
    c, model = model.cfg, for_export(model)
    picture = (1, 3, c.image, c.image)
    future = (c.futures, c.latent_channels, c.latent_size, c.latent_size)
    state = (1, len(c.proprio))
    known = {"front": picture, "text": (1, c.text_dim), "proprio": state}
    noise = (1, c.futures * c.latent_channels, c.latent_size, c.latent_size)
    made = ["latent", "tokens", "future"]
    return {
        "world_model": (OneStepWorldEngine(model), known, [*made, "done"])
        if c.form == "one_step"
        else (WorldEngine(model, c.world_steps), {**known, "noise": noise}, made),
        "predictive": (
            PredictiveEngine(model, c.action_steps),
            {
                "wrist": picture,
                "latent": (1, *future[1:]),
                "tokens": (1, c.token_size**2, c.token_channels),
                "proprio": state,
                "noise": (1, c.chunk, 6),
            },
            ["chunk"],
        ),
        "fast": (
            FastEngine(model),
            {"front": picture, "wrist": picture, "future": future, "proprio": state},
            ["heat", "reach", "gate"],
        ),
        "decoder": (DecoderEngine(model), {"future": future}, ["frames"]),
    }


def export_engine(module: nn.Module, inputs: dict[str, tuple[int, ...]], outputs: list[str], path: Path) -> None:
    """Write one float32 ONNX file with fixed shapes and no metadata (the exporter leaves source paths in it)."""
    feeds = tuple(torch.zeros(shape) for shape in inputs.values())
    # torch warns about its own deprecations and about torchvision, which nothing here uses.
    for library in ("torch.onnx", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            feeds,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = name_folded_weights(share_constants(fold_transposed_weights(program.model_proto)), module)
    onnx.save(clean(model), str(path))


def name_folded_weights(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Give weights that the exporter transposed and renamed their parameter's name with `.T` added: recipes and the
    search identify layers by it. A weight that is there under this name is not stored again. In place."""
    known = {k: p.detach().numpy().T for k, p in module.named_parameters() if p.ndim == 2}
    names: dict[str, str] = {}
    taken = {i.name for i in model.graph.initializer}
    for stored in [i for i in model.graph.initializer if i.name.startswith("val_") and len(i.dims) == 2]:
        array = onnx.numpy_helper.to_array(stored)
        found = next((f"{k}.T" for k, p in known.items() if p.shape == array.shape and np.array_equal(p, array)), None)
        if found is not None:
            names[stored.name] = found
            if found in taken:
                model.graph.initializer.remove(stored)
            else:
                stored.name = found
                taken.add(found)
    for node in model.graph.node:
        for i, value in enumerate(node.input):
            node.input[i] = names.get(value, value)
    return model


def share_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store equal constants of the exporter once: every normalisation without weights brings a tensor of ones. In
    place."""
    graph = model.graph
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for stored in [i for i in graph.initializer if i.name.startswith("val_")]:
        content = repr((stored.data_type, list(stored.dims))).encode() + onnx.numpy_helper.to_array(stored).tobytes()
        names[stored.name] = first.setdefault(content, stored.name)
        if names[stored.name] != stored.name:
            graph.initializer.remove(stored)
    for node in graph.node:
        for i, value in enumerate(node.input):
            node.input[i] = names.get(value, value)
    return model


def fold_transposed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weight of a Linear in the orientation in which its MatMul reads it. torch leaves a Transpose node,
    which hides the weight from quantisers.

    A folded weight keeps its name with `.T` added. In place.
    """
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    folded: dict[str, str] = {}
    for node in [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights]:
        order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        name = f"{node.input[0]}.T"
        if name not in weights:
            array = onnx.numpy_helper.to_array(weights[node.input[0]])
            weights[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(array.transpose(order)), name)
            graph.initializer.append(weights[name])
        folded[node.output[0]] = name
        graph.node.remove(node)
    for node in graph.node:
        for i, value in enumerate(node.input):
            node.input[i] = folded.get(value, value)
    used = {v for n in graph.node for v in n.input}
    for unused in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(unused)
    return model


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove everything that is not computation: doc strings, metadata, value hints, producer version."""
    model.doc_string, model.producer_name, model.producer_version = "", "harmowam", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string, graph.name = "", "main"
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    return model
