"""The behaviour-cloning baseline: what it is trained on, that it goes on where it stopped, and that its bundle drives the loop."""

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch

from export.act import Act, ActConfig, ActError, ActTrainer, run_time_parameters, train_act
from export.checkpoint import CheckpointError
from export.data import Demonstrations
from export.loop import alone
from firmware_bridge.arms import so101
from runtime.bundle import Bundle, BundleError
from runtime.contracts import Observation
from sim.baseline import ChunkStep
from sim.evaluate import jobs_for
from tests.dataset import camera
from tests.tiny import TASK, tiny_bundle

SMALL = ActConfig(
    channels=(8, 8, 8, 8), width=32, heads=4, feedforward=32, encoder_layers=1, style_layers=1, style=4, batch=4
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 60
    pictures = rng.integers(0, 255, (2, n, 3, 96, 96)).astype(np.uint8)
    pose = rng.normal(0, 0.1, (n, 6)).astype(np.float32)
    last = np.repeat([29, 59], 30).astype(np.int32)
    episode = np.repeat([0, 1], 30).astype(np.int32)
    cameras = {name: camera(name) for name in ("front", "wrist")}
    return Demonstrations(
        pictures[0], pictures[1], pose, pose + 0.01, last, np.array([10, 40], np.int32), episode, last, [TASK, "take the peg away"],
        ["plate", "peg"], episode == 1, cameras, 20.0,
    )  # fmt: skip


def test_it_is_about_our_size():
    assert run_time_parameters(Act(ActConfig())) == pytest.approx(5.9e6, rel=0.05)


def test_play_is_left_out_unless_asked_for(data, tmp_path):
    assert ActTrainer(data, tmp_path / "a", SMALL, play=False).rows.tolist() == list(range(30))
    assert len(ActTrainer(data, tmp_path / "b", SMALL, play=True).rows) == 60


def test_a_killed_run_goes_on_where_it_stood(data, tmp_path, monkeypatch):
    """Four steps at once, and two, a stop, and two more: the same weights (the rate depends on steps here, not on the clock)."""
    whole = ActTrainer(data, tmp_path / "whole", SMALL, False).train(1e6, steps=4)
    first = ActTrainer(data, tmp_path / "parts", SMALL, False)
    saved = first.losses

    def stop_after_two(rng):
        if first.step == 2:
            first._save()
            raise KeyboardInterrupt
        return saved(rng)

    monkeypatch.setattr(first, "losses", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        first.train(1e6, steps=4)
    again = ActTrainer(data, tmp_path / "parts", SMALL, False)
    assert again.step == 2
    parts = again.train(1e6, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_its_bundle_says_what_the_model_says_and_drives_the_loop(data, tmp_path):
    report = train_act(data, tmp_path / "run", tmp_path / "act.bundle", play=False, minutes=1e6, steps=2, cfg=SMALL)
    assert report["steps"] == 2 and report["rows"] == 30
    opened = Bundle.load(tmp_path / "act.bundle")
    assert list(opened.manifest.tasks) == [TASK]  # the hindsight texts of play are not instructions
    step = ChunkStep(opened, data.cameras)
    frames = {name: x[3].transpose(1, 2, 0).copy() for name, x in (("front", data.front), ("wrist", data.wrist))}
    q = np.array([0.2, -1.2, 1.2, 1.0, 0.1, 0.5], np.float32)
    prior = step.step(7, Observation(7, frames, q, np.zeros(6, np.float32), 1))
    assert prior.chunk.shape == (16, 6) and prior.chunk.dtype == np.float32 and len(prior.grid_ns) == 16
    model = ActTrainer(data, tmp_path / "run", SMALL, play=False).average
    views = {
        k: torch.from_numpy(v) for k, v in step.views(Observation(7, frames, q, np.zeros(6, np.float32), 1)).items()
    }
    pose = torch.from_numpy(so101.forward(q, step.links).astype(np.float32))[None]
    with torch.no_grad():
        said = model(views["front"], views["wrist"], torch.from_numpy(step.text), pose)[0].numpy()
    assert np.allclose(prior.chunk, said, atol=1e-4)
    with pytest.raises(BundleError, match="does not know the task"):
        step.set_task("take the peg away")
    tiny = tiny_bundle(tmp_path)
    job = jobs_for(tiny, ("bc",), ("seen",), (TASK,), range(1), baselines={"bc": tmp_path / "act.bundle"})[0]
    assert job.bundle.endswith("act.bundle") and job.loop.endswith("tiny.bundle")


def test_a_run_is_not_taken_up_with_other_data_nor_by_two(data, tmp_path):
    run = tmp_path / "run"
    ActTrainer(data, run, SMALL, False).train(1e6, steps=1)
    other = dataclasses.replace(data, front=255 - data.front)
    with pytest.raises(ActError, match="belongs to a run with other settings or data"):
        ActTrainer(other, run, SMALL, False)
    with alone(run), pytest.raises(CheckpointError, match="another process trains in"):
        train_act(data, run, tmp_path / "a.bundle", play=False, minutes=1e6, steps=2, cfg=SMALL)
    state = (run / "act.pt").read_bytes()
    for cut in (0, 10, len(state) // 2):
        (run / "act.pt").write_bytes(state[:cut])
        with pytest.raises(ActError, match="was damaged; delete it"):
            ActTrainer(data, run, SMALL, False)


def test_a_full_disk_is_said_in_a_sentence_and_keeps_what_was_saved(data, tmp_path, monkeypatch):
    ActTrainer(data, tmp_path, SMALL, False).train(1e6, steps=1)
    saved = (tmp_path / "act.pt").read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*make room there"):
            ActTrainer(data, tmp_path, SMALL, False).train(1e6, steps=2)
    assert (tmp_path / "act.pt").read_bytes() == saved and not list(tmp_path.glob("*.partial"))
    trainer = ActTrainer(data, tmp_path, SMALL, False)
    (tmp_path / "act.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"act.jsonl cannot be written \(No space left"):
        trainer.train(1e6, steps=50)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be made .*choose another --run folder"):
        train_act(data, tmp_path / "file" / "run", tmp_path / "a.bundle", play=False, minutes=1e6, steps=1, cfg=SMALL)


def test_numbers_that_are_none_end_the_training(data, tmp_path):
    target = data.target.copy()
    target[7] = np.nan
    with pytest.raises(ActError, match="diverged at step 0"):
        ActTrainer(dataclasses.replace(data, target=target), tmp_path, SMALL, False).train(1e6, steps=40)
    assert not (tmp_path / "act.pt").exists()


def test_what_cannot_be_trained_is_refused(data, tmp_path):
    only_play = Demonstrations(**{**vars(data), "play": np.ones(60, bool)})
    with pytest.raises(ActError, match="no demonstrations of tasks"):
        ActTrainer(only_play, tmp_path / "p", SMALL, play=False)
    ActTrainer(data, tmp_path / "q", SMALL, play=False).train(1e6, steps=1)
    with pytest.raises(ActError, match="other settings or data"):
        ActTrainer(data, tmp_path / "q", SMALL, play=True)
