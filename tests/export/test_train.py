"""Training: repeatable, resumable, and picky about what it is given."""

import dataclasses

import numpy as np
import pytest
import torch

from export.config import Config
from export.data import collect, load
from export.lerobot import DataError
from export.train import CheckpointError, Labels, Plan, Trainer, load_checkpoint, save_checkpoint

SMALL = Config(
    encoder_channels=(8, 16, 16), unet_channels=(16, 24), width=32, layers=1, token_channels=16, condition=32
)
PLAN = Plan(tokeniser=(6, 4, 1e-3), world=(6, 4, 1e-3), experts=(6, 4, 1e-3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    result = collect(folder, 2, seed=0, workers=1)
    assert result["kept"] == 2
    return folder


def weights(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


class Killed(Exception):
    pass


def test_a_killed_run_ends_where_an_unbroken_one_does(dataset, tmp_path, monkeypatch):
    data = load(dataset)
    whole = Trainer(data, tmp_path / "whole", PLAN, SMALL).train()
    monkeypatch.setattr("export.train.SAVE_EVERY_S", 0.0)  # save after every step
    for stage in ("tokeniser", "world", "experts"):
        trainer = Trainer(data, tmp_path / "broken", PLAN, SMALL)
        loss = getattr(trainer, f"_{stage}_loss")
        calls: list[int] = []

        def dies(rng, batch, loss=loss, calls=calls):
            calls.append(1)
            if len(calls) == 4:
                raise Killed
            return loss(rng, batch)

        monkeypatch.setattr(trainer, f"_{stage}_loss", dies)
        with pytest.raises(Killed):
            trainer.train()
    resumed = Trainer(data, tmp_path / "broken", PLAN, SMALL).train()
    assert torch.equal(weights(whole), weights(resumed))


def test_a_run_folder_of_other_settings_is_refused(dataset, tmp_path):
    data = load(dataset)
    Trainer(data, tmp_path, PLAN, SMALL)._save()
    with pytest.raises(CheckpointError, match="choose another --run folder"):
        Trainer(data, tmp_path, dataclasses.replace(PLAN, seed=1), SMALL)


def test_labels_are_made_in_hindsight(dataset):
    data = load(dataset)
    labels = Labels(data, Config())
    first = data.events[0]
    assert np.all(data.next_event[:first] == first)
    assert np.all(labels.gate[first - 3 : first + 4] == 1)
    assert labels.gate[0] == 0 and labels.jaw_open[0] == 1
    assert labels.chunk.shape == (len(data.pose), 16, 6)
    inside = (labels.cell >= -1) & (labels.cell <= 48)
    assert inside.all()  # every grasp, release and rest pose lies in the training camera's picture


def test_checkpoints_survive_a_round_trip_and_damage_is_said(dataset, tmp_path):
    data = load(dataset)
    trainer = Trainer(data, tmp_path, PLAN, SMALL)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, trainer.model, data.cameras, data.instructions, {"why": "test"})
    model, cameras, instructions, note = load_checkpoint(path)
    assert note == {"why": "test"} and set(cameras) == {"front", "wrist"} and instructions == sorted(data.instructions)
    assert torch.allclose(weights(model), weights(trainer.model), atol=2e-3)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none")


def test_datasets_that_are_absent_or_damaged_are_said(dataset, tmp_path):
    with pytest.raises(DataError, match="harmowam collect"):
        load(tmp_path)
    (tmp_path / "meta.json").write_text((dataset / "meta.json").read_text())
    (tmp_path / "shard-000.npz").write_bytes((dataset / "shard-000.npz").read_bytes()[:5000])
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path)
