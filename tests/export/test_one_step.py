"""The model of one step each: its parts, its engines, its finish labels and its training."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from export.config import Config
from export.data import Demonstrations
from export.finish import calibrated, finish_labels
from export.half import to_half
from export.labels import Labels
from export.models import HarmoWam
from export.one_step import OneStepWorld
from export.one_step_train import OneStepTrainer
from export.onnx import engines
from export.tensorrt.builder import compiled
from export.text import ngrams
from export.train import Plan, train
from sim.phases import next_events
from tests.dataset import camera
from tests.onnx_files import exporter
from tests.training import SMALL, save_always

FULL = Config(form="one_step", world_steps=1, action_steps=1, rate_hz=25.0, chunk_dt_s=0.04)
TOY = dataclasses.replace(SMALL, form="one_step", world_steps=1, action_steps=1)


def random_model(cfg):
    """A model in which no branch is still at zero."""
    torch.manual_seed(0)
    model = HarmoWam(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(0, 0.02)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with the full model's engines as ONNX files, and their specifications."""
    folder = tmp_path_factory.mktemp("one_step")
    specs = engines(random_model(FULL))
    for name in ("world_model", "predictive", "fast"):
        exporter(tmp_path_factory)(*specs[name], folder / f"{name}.onnx")
    return folder, specs


@pytest.mark.parametrize("engine", ["world_model", "predictive", "fast"])
def test_an_engine_computes_what_torch_computes(made, engine):
    folder, specs = made
    module, inputs, outputs = specs[engine]
    rng = np.random.default_rng(0)
    feeds = {k: rng.standard_normal(s).astype(np.float32) for k, s in inputs.items()}
    with torch.no_grad():
        wanted = module(*map(torch.from_numpy, feeds.values()))
    wanted = dict(zip(outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True))
    found = onnxruntime.InferenceSession(folder / f"{engine}.onnx").run(outputs, feeds)
    for name, x in zip(outputs, found, strict=True):
        assert x.shape == tuple(wanted[name].shape) and np.abs(x - wanted[name].numpy()).max() < 1e-5, name
        assert np.ptp(x) > 0 or x.size == 1, name


@pytest.mark.parametrize(("engine", "most"), [("world_model", 52), ("predictive", 55), ("fast", 25)])
def test_an_engine_is_compiled_into_few_kernels(made, tmp_path, engine, most):
    """FP16, TensorRT for RTX, SM86: kernels that are launched."""
    to_half(made[0] / f"{engine}.onnx", tmp_path / "half.onnx")
    assert len(compiled(tmp_path / "half.onnx", ("SM86",)).launched) <= most


def test_the_world_model_draws_no_noise_and_says_whether_it_is_done(made):
    _, inputs, outputs = made[1]["world_model"]
    assert set(inputs) == {"front", "text", "proprio"} and outputs == ["latent", "tokens", "future", "done"]


def test_an_untrained_world_model_predicts_that_nothing_changes():
    torch.manual_seed(0)
    world = HarmoWam(TOY).eval().world
    now = torch.randn(2, 16, 12, 12)
    future, _ = world(now, torch.zeros(2, 16, 12, 12), torch.zeros(2, 32), torch.zeros(2, 4))
    assert torch.equal(future, now.repeat(1, 3, 1, 1))


def test_a_plan_depends_on_what_it_starts_from_and_on_the_memory():
    expert = random_model(TOY).predictive
    start, memory = torch.zeros(1, 16, 6), torch.randn(1, 110, 32)
    plan = expert.generate(start, memory)
    assert plan.shape == (1, 16, 6)
    assert not torch.allclose(plan, expert.generate(start + 1, memory))
    assert not torch.allclose(plan, expert.generate(start, memory + torch.randn(1, 110, 32)))


def test_one_step_is_one_step():
    with pytest.raises(ValueError, match="world_steps = 1"):
        dataclasses.replace(Config(), form="one_step")
    with pytest.raises(ValueError, match="use flow or one_step"):
        Config(form="two_step")


@pytest.fixture
def one_step_trainer(drawn, tmp_path):
    return OneStepTrainer(drawn, tmp_path, Plan(), TOY)


def test_plans_are_trained_from_zero_and_from_a_share_of_the_last_one(one_step_trainer):
    """On the steps after 0.3 s that a plan of at most 0.25 s of age still tells: the run time has no others."""
    chunk = torch.full((4000, 16, 6), 2.0)
    start = one_step_trainer._start(chunk, np.random.default_rng(0))
    given = (start != 0).any(2)
    assert 0.4 < given.any(1).float().mean() < 0.6
    assert not given[:, :6].any() and not given[:, 16 - 1 :].all() and given[:, 6].any()
    assert float(start[:, 6][given[:, 6]].mean()) == pytest.approx(0.4 * 2.0, abs=0.05)
    assert float(start[:, 6][given[:, 6]].std()) == pytest.approx(0.6, abs=0.05)


def shown(pose, events, texts, scenes, play):
    """Episodes of 10 rows at heights `pose` with the jaw at 0.36 rad, which act at the rows `events`."""
    n = len(pose)
    episode = np.arange(n) // 10
    last = 10 * episode + 9
    at = np.zeros((n, 6), np.float32)
    at[:, 2], at[:, 5] = pose, 0.36
    target = at.copy()
    target[:, 5] = 0.05
    pictures, joints = np.zeros((n, 3, 96, 96), np.uint8), np.zeros((n, 6), np.float32)
    found = np.array(events, np.int32)
    cameras = {name: camera(name) for name in ("front", "wrist")}
    return Demonstrations(
        *(pictures, pictures, at, target, next_events(found, last), found, episode, last, texts, scenes),
        *(np.array(play)[episode], cameras, 20.0, joints, joints),
    )


def test_a_demonstration_is_done_once_the_tool_has_risen_after_the_last_event():
    low = [0.09, 0.09, 0.02, 0.09, 0.09, 0.02, 0.03, 0.07, 0.09, 0.09]
    data = shown(low, [2, 5], ["put the red cube on the plate"], ["plate"], [False])
    found = finish_labels(data, TOY, Labels(data, TOY))
    assert found.done.tolist() == [0] * 7 + [1] * 3
    assert np.flatnonzero(~found.known).tolist() == [6]  # the jaw is open and the tool still stands there
    assert not len(found.judged) and not found.apart.any()


def test_what_play_put_elsewhere_is_not_done():
    """In play the cube that a task wants on the plate was put on another cube: the task is not done, whatever the tool
    did. What play put onto the plate is done."""
    low = [0.09, 0.09, 0.02, 0.09, 0.09, 0.02, 0.03, 0.07, 0.09, 0.09]
    texts = ["drop the red cube onto the blue cube", "drop the red cube onto the plate", "take the peg away"]
    data = shown(low * 3, [2, 5, 12, 15, 22, 25], texts, ["plate", "plate", "peg"], [True] * 3)
    labels = Labels(data, TOY)
    found = finish_labels(data, TOY, labels)
    assert not found.known.any()
    assert found.judged.tolist() == [*range(3, 10), 17, 18, 19] and found.judged_done.tolist() == [0.0] * 7 + [1.0] * 3
    assert np.array_equal(labels.asked[found.asked[0]], ngrams("put the red cube on the plate", TOY.text_ngrams))


def test_one_demonstration_of_twenty_is_kept_apart():
    low = [0.09, 0.09, 0.02, 0.09, 0.09, 0.02, 0.03, 0.07, 0.09, 0.09]
    events = [10 * e + k for e in range(40) for k in (2, 5)]
    data = shown(low * 40, events, ["put the red cube on the plate"] * 40, ["plate"] * 40, [False] * 40)
    apart = finish_labels(data, TOY, Labels(data, TOY)).apart
    assert sorted({int(e) for e in data.episode[apart]}) == [19, 39] and apart.sum() == 2 * 9


def test_calibration_finds_the_scale_and_shift_that_logits_lack():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    done = rng.random(len(logits)) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    assert calibrated(logits, done) == pytest.approx((0.5, -1), abs=0.08)
    assert calibrated(logits, done & False) == (1.0, 0.0)
    scale, _ = calibrated(logits, logits > 0)  # no logit is certain, however well it parts the classes
    assert 1 < scale < 1000


class Stopped(Exception):
    pass


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_training_ends_like_an_uninterrupted_one(drawn, tmp_path, monkeypatch):
    """Stopped in the stage of the world model, and once more in the stage of the experts."""
    save_always(monkeypatch)
    plan = Plan(tokeniser=(4, 4, 1e-2), world=(8, 32, 1e-2), experts=(8, 4, 1e-2))
    train(drawn, tmp_path / "whole", tmp_path / "whole.safetensors", plan, TOY)
    for loss in ("_world_loss", "_predictive_loss"):
        ours = getattr(OneStepTrainer, loss)
        taken: list[int] = []

        def stopped(self, rng, batch, ours=ours, taken=taken):
            taken.append(self.step)
            if self.step == 6:
                raise Stopped
            return ours(self, rng, batch)

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(OneStepTrainer, loss, stopped)
            train(drawn, tmp_path / "cut", tmp_path / "cut.safetensors", plan, TOY)
        assert min(taken) == 0
    train(drawn, tmp_path / "cut", tmp_path / "cut.safetensors", plan, TOY)
    one, other = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_finish_signal_is_learnt_and_calibrated(tmp_path):
    """Forty demonstrations whose front picture is black and then, once it is done, white."""
    low = [0.09, 0.09, 0.02, 0.09, 0.09, 0.02, 0.03, 0.07, 0.09, 0.09]
    events = [10 * e + k for e in range(40) for k in (2, 5)]
    data = shown(low * 40, events, ["put the red cube on the plate"] * 40, ["plate"] * 40, [False] * 40)
    done = finish_labels(data, TOY, Labels(data, TOY)).done > 0.5
    data.front[done] = 255
    plan = Plan(tokeniser=(4, 8, 1e-3), world=(60, 32, 1e-2), experts=(1, 8, 1e-3), bf16=False)
    trainer = OneStepTrainer(data, tmp_path, plan, TOY)
    world = trainer.train().world
    assert isinstance(world, OneStepWorld)
    rows = np.flatnonzero(trainer.finish.apart)
    p = world.p_finished(trainer._imagine(rows)[0])[:, 0].detach().numpy()
    assert p[done[rows]].min() > 0.7 and p[~done[rows]].max() < 0.3
    assert float(world.finish_scale) != 1.0
