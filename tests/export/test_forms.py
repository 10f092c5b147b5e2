"""The exported form of the model computes what the plain form computes, in few kernels."""

import dataclasses
from typing import Any, TypeVar

import onnx
import pytest
import torch
from torch import nn

from export.checkpoint import load_checkpoint
from export.config import Config
from export.forms import (
    CrossAttention,
    InPlaceOfMultihead,
    OwnAttention,
    StepBlock,
    WholeNorm,
    for_export,
    with_whole_norms,
)
from export.half import to_half
from export.layers import Attend, Residual
from export.models import ActionBlock, HarmoWam, flow_parts
from export.observations import engine_feeds, observation_feeds
from export.onnx import FastEngine, PredictiveEngine, WorldEngine, engines, export_engine
from export.origin import CHECKPOINT, samples_path
from export.tensorrt.builder import BuilderMissing, compiled

AnyModule = TypeVar("AnyModule", bound=nn.Module)
CLOSE = 1e-5
# Kernels in FP16 by TensorRT 11's compiler for SM86.
KERNELS = {"world_model": 95, "predictive": 205, "fast": 29}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def spread(module: AnyModule) -> AnyModule:
    """Every parameter drawn: at their starting values, weights of norms and last layers are ones and zeros and would
    hide an error."""
    for p in module.parameters():
        p.copy_(torch.randn_like(p) * 0.3)
    return module


def apart(a, b):
    return float((a - b).abs().max())


def test_a_group_norm_is_a_layer_norm_and_a_scale_of_each_channel():
    norm, x = spread(nn.GroupNorm(8, 32)), 3 * torch.randn(2, 32, 5, 5) + 1
    assert apart(norm(x), WholeNorm(norm)(x)) < CLOSE


def test_attention_is_the_same_with_one_product_and_the_scale_in_its_weights():
    attend, x, memory = spread(Attend(32, 4)), torch.randn(2, 7, 32), torch.randn(2, 11, 32)
    assert apart(attend(x, x), OwnAttention.of(attend)(x)) < CLOSE
    assert apart(attend(x, memory), CrossAttention(attend)(x, memory)) < CLOSE


def test_torchs_attention_is_the_same_with_split_heads():
    attention, x = spread(nn.MultiheadAttention(32, 4, batch_first=True)).eval(), torch.randn(2, 7, 32)
    assert apart(attention(x, x, x, need_weights=False)[0], InPlaceOfMultihead(attention)(x, x, x)[0]) < CLOSE


def test_the_time_of_each_step_is_in_the_weights_of_its_norm():
    cfg = dataclasses.replace(Config(), width=32)
    block, x, memory = spread(ActionBlock(cfg)), torch.randn(1, 16, 32), torch.randn(1, 9, 32)
    times = [torch.randn(1, 32) for _ in range(3)]
    folded = StepBlock(block, times)
    for step, t in enumerate(times):
        assert apart(block(x, memory, t), folded(x, memory, step)) < CLOSE


def test_the_contact_map_is_read_alike_in_the_order_of_its_channels():
    model = HarmoWam(Config())
    expert = spread(flow_parts(model)[1])
    fine, told = torch.randn(2, 96, 12, 12), torch.rand(2, 64, 12, 12)
    token, logits, turn = expert.aimed(fine, told)
    again, shuffled, turned = flow_parts(for_export(model))[1].aimed(fine, told)
    assert apart(token, again) < CLOSE * float(token.abs().max())
    assert apart(turn, turned) < CLOSE * float(turn.abs().max())
    assert torch.equal(logits, torch.pixel_shuffle(shuffled.reshape(2, 4, 12, 12), 2).flatten(1))


class Torch:
    """The world model in torch, called as an engine."""

    def __init__(self, module: nn.Module):
        self.module = module

    def run(self, feed):
        out = self.module(*map(torch.from_numpy, feed.values()))
        return dict(zip(("latent", "tokens", "future"), (t.numpy() for t in out), strict=True))


def test_the_engines_of_the_shipped_checkpoint_give_what_its_model_gives():
    model, _, instructions, _ = load_checkpoint(CHECKPOINT)
    c = model.eval().cfg
    plain = {
        "world_model": WorldEngine(model, c.world_steps),
        "predictive": PredictiveEngine(model, c.action_steps),
        "fast": FastEngine(model),
    }

    specs = engines(model)
    noise = {n: torch.randn(specs[n][1]["noise"]).numpy() for n in ("world_model", "predictive")}
    tasks = {s: torch.randn(c.text_dim).tanh().numpy() for s in instructions}
    world: Any = Torch(plain["world_model"])
    feeds = engine_feeds(world, observation_feeds(samples_path(CHECKPOINT), tasks)[::64], noise)
    for name, module in plain.items():
        for feed in feeds[name]:
            inputs = [torch.from_numpy(feed[k]) for k in specs[name][1]]
            for a, b in zip(*(m(*inputs) if name != "predictive" else (m(*inputs),) for m in (module, specs[name][0]))):
                assert apart(a, b) < CLOSE, name


def test_the_model_that_was_given_is_left_as_it_was():
    model = HarmoWam(Config())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for_export(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


class Step(nn.Module):
    """The first step of a block."""

    def __init__(self, block: StepBlock):
        super().__init__()
        self.block = block

    def forward(self, x, memory):
        return self.block(x, memory, 0)


def kernels(module, inputs, folder):
    """How many kernels the FP16 form of a module has; skips the test where the compiler is not installed."""
    export_engine(module, inputs, ["y"], folder / "e.onnx")
    to_half(folder / "e.onnx", folder / "half.onnx")
    try:
        return len(compiled(folder / "half.onnx", ("SM86",)).launched)
    except BuilderMissing:
        pytest.skip("no TensorRT for RTX")


def test_a_residual_block_is_two_norms_two_convolutions_and_a_cast(tmp_path):
    block = spread(Residual(128, 128))
    with_whole_norms(block)
    assert kernels(block, {"x": (1, 128, 12, 12)}, tmp_path) <= 5


def test_an_action_block_moves_each_attentions_heads_once(tmp_path):
    block = StepBlock(spread(ActionBlock(Config())), [torch.randn(1, 128)])
    assert kernels(Step(block), {"x": (1, 16, 128), "memory": (1, 110, 128)}, tmp_path) <= 16


def test_a_weight_that_two_steps_read_is_stored_once(tmp_path):
    """The exporter transposes a small weight once for each use; TensorRT's parser refuses the same name twice."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = spread(nn.Linear(32, 96)), spread(nn.Linear(96, 32))

        def forward(self, x):
            return self.narrow(self.wide(self.narrow(self.wide(x))))

    export_engine(Twice(), {"x": (1, 4, 32)}, ["y"], tmp_path / "e.onnx")
    names = [i.name for i in onnx.load(tmp_path / "e.onnx").graph.initializer]
    assert sorted(names) == ["narrow.bias", "narrow.weight.T", "wide.bias", "wide.weight.T"]


@pytest.mark.slow
def test_the_engines_of_the_shipped_checkpoint_keep_to_their_kernels(tmp_path):
    specs = engines(load_checkpoint(CHECKPOINT)[0])
    for name, most in KERNELS.items():
        module, inputs, outputs = specs[name]
        export_engine(module, inputs, outputs, tmp_path / "e.onnx")
        to_half(tmp_path / "e.onnx", tmp_path / "half.onnx")
        assert len(compiled(tmp_path / "half.onnx", ("SM86",)).launched) <= most, name
