"""The behaviour-cloning baseline: what it is trained on, that an interrupted training resumes, and that its bundle
drives the loop.

Interrupted runs, a full disk and other settings are tested in tests/export/test_loop.py: the loop is the same.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from export.act import Act, ActConfig, ActError, ActPlan, ActTrainer, run_time_parameters, train_act
from export.checkpoint import CheckpointError
from export.data import Demonstrations
from export.state import load_state
from runtime.build import observations
from runtime.bundle import Bundle, BundleError
from runtime.contracts import Observation
from runtime.policies import open_policy
from sim.evaluate import jobs_for
from tests.dataset import camera
from tests.tiny import TASK, tiny_bundle
from tests.training import save_always

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ActConfig(channels=(8, 8, 8, 8), width=32, heads=4, feedforward=32, encoder_layers=1, style_layers=1, style=4)
PLAN = ActPlan((8, 4, 1e-3), bf16=False)
AT = np.array([0.2, -1.2, 1.2, 1.0, 0.1, 0.5], np.float32)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 60
    pictures = rng.integers(0, 255, (2, n, 3, 96, 96)).astype(np.uint8)
    joints = (AT + rng.normal(0, 0.1, (n, 6))).astype(np.float32)
    pose = np.zeros((n, 6), np.float32)
    last = np.repeat([29, 59], 30).astype(np.int32)
    episode = np.repeat([0, 1], 30).astype(np.int32)
    cameras = {name: camera(name) for name in ("front", "wrist")}
    return Demonstrations(
        pictures[0],
        pictures[1],
        pose,
        pose,
        last,
        np.array([10, 40], np.int32),
        episode,
        last,
        [TASK, "take the peg away"],
        ["plate", "peg"],
        episode == 1,
        cameras,
        20.0,
        joints,
        joints + 0.01,
    )


def test_it_has_about_our_models_size():
    assert run_time_parameters(Act(ActConfig(), 6)) == pytest.approx(5.9e6, rel=0.05)


def test_play_is_left_out_unless_asked_for(data, tmp_path):
    assert ActTrainer(data, tmp_path / "a", PLAN, SMALL, play=False).rows.tolist() == list(range(30))
    assert len(ActTrainer(data, tmp_path / "b", PLAN, SMALL, play=True).rows) == 60


def test_a_killed_run_resumes_where_it_stopped(data, tmp_path, monkeypatch):
    """Eight steps in one run, and six steps (four of them saved), a stop and a resumed run give the same weights."""
    save_always(monkeypatch)
    whole = ActTrainer(data, tmp_path / "whole", PLAN, SMALL, False).train()
    first = ActTrainer(data, tmp_path / "parts", PLAN, SMALL, False)
    loss = first._act_loss

    def stop_after_six(rng, batch):
        if first.step == 6:
            raise KeyboardInterrupt
        return loss(rng, batch)

    monkeypatch.setattr(first, "_act_loss", stop_after_six)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert load_state(tmp_path / "parts" / "state.safetensors")[1]["step"] == 4
    parts = ActTrainer(data, tmp_path / "parts", PLAN, SMALL, False).train()
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_steps_bring_it_nearer_to_the_demonstrations(data, tmp_path):
    trainer = ActTrainer(data, tmp_path, dataclasses.replace(PLAN, act=(40, 8, 1e-3)), SMALL, False)

    def error():
        torch.manual_seed(0)
        return float(trainer._act_loss(np.random.default_rng(0), 30)["l1"].detach())

    before = error()
    trainer.train()
    assert error() < 0.9 * before


def test_its_bundle_gives_the_models_outputs_and_drives_the_loop(data, tmp_path):
    report = train_act(data, tmp_path / "run", tmp_path / "act.bundle", play=False, plan=PLAN, cfg=SMALL)
    assert report["steps"] == 8 and report["rows"] == 30
    opened = Bundle.load(tmp_path / "act.bundle")
    assert list(opened.manifest.tasks) == [TASK]  # the hindsight texts of play are not instructions
    policy: Any = open_policy(opened, TASK, data.cameras)
    assert policy.kind == "chunk"
    frames = {name: x[3].transpose(1, 2, 0).copy() for name, x in (("front", data.front), ("wrist", data.wrist))}
    obs = Observation(7, frames, AT, np.zeros(6, np.float32), 1)
    prior = policy.slow.step(7, obs)
    assert prior.chunk.shape == (16, 6) and prior.chunk.dtype == np.float32 and len(prior.grid_ns) == 16
    model = ActTrainer(data, tmp_path / "run", PLAN, SMALL, play=False).average
    views = {k: torch.from_numpy(v) for k, v in policy.slow.views(obs).items()}
    with torch.no_grad():
        said = model(views["front"], views["wrist"], torch.from_numpy(policy.slow.text), torch.from_numpy(AT)[None])
    assert np.allclose(prior.chunk, said[0].numpy(), atol=1e-4)
    assert np.abs(prior.chunk - AT).max() < 1.0, "joint angles (rad), about those of the demonstrations"
    command, _ = policy.fast.step(200_000_000, obs, prior)
    assert np.allclose(command.q_rad, AT, atol=1e-5)
    with pytest.raises(BundleError, match="does not know the task"):
        policy.slow.set_task("take the peg away")
    tiny = tiny_bundle(tmp_path)
    job = jobs_for(tiny, ("bc",), ("seen",), (TASK,), range(1), baselines={"bc": tmp_path / "act.bundle"})[0]
    assert job.bundle.endswith("act.bundle")
    feeds = observations(opened, 4)["chunk"]
    assert [f["state"].shape for f in feeds] == [(1, 6)] * 4 and np.array_equal(feeds[0]["state"][0], data.state[0])
    opened.engine("chunk").run(feeds[0])


def test_a_run_is_not_resumed_with_other_data(data, tmp_path):
    ActTrainer(data, tmp_path, PLAN, SMALL, False).train()
    other = dataclasses.replace(data, front=255 - data.front)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(data"):
        ActTrainer(other, tmp_path, PLAN, SMALL, False)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(play False, now True"):
        ActTrainer(data, tmp_path, PLAN, SMALL, play=True)


def test_values_that_are_not_finite_end_the_training(data, tmp_path):
    action = data.action.copy()
    action[7] = np.nan
    with pytest.raises(CheckpointError, match="act diverged before step 8"):
        ActTrainer(dataclasses.replace(data, action=action), tmp_path, PLAN, SMALL, False).train()
    assert not (tmp_path / "state.safetensors").exists()


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    only_play = dataclasses.replace(data, play=np.ones(60, bool))
    with pytest.raises(ActError, match="no demonstrations of tasks"):
        ActTrainer(only_play, tmp_path / "p", PLAN, SMALL, play=False)
    with pytest.raises(ActError, match="collect at 20 Hz"):
        ActTrainer(dataclasses.replace(data, rate_hz=30.0), tmp_path / "p", PLAN, SMALL, play=False)
