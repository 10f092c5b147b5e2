"""What training is given: labels in hindsight, datasets and checkpoints that are what they say."""

import numpy as np
import pytest
import torch

from export.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from export.config import Config
from export.data import collect, load_demonstrations
from export.lerobot import DataError
from export.train import Labels, Trainer
from sim.tasks import INSTRUCTIONS
from tests.training import PLAN, SMALL


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert collect(folder, episodes=1, play=2, seed=0, workers=1)["kept"] == 8
    return folder


@pytest.fixture(scope="module")
def data(dataset):
    return load_demonstrations(dataset)


def test_labels_are_made_in_hindsight(data):
    labels = Labels(data, Config())
    first = data.events[0]
    assert np.all(data.next_event[:first] == first)
    assert np.all(labels.gate[first - 3 : first + 4] == 1)
    assert labels.chunk.shape == (len(data.pose), 16, 6)
    inside = (labels.cell >= -1) & (labels.cell <= 48)
    assert inside.all()  # every grasp, release and rest pose lies in the training camera's picture


def test_events_are_found_in_what_the_arm_did(data):
    """A pick-and-place task has a grasp and a release (and an opening first, after a miss); two buttons are two touches."""
    for episode, text in enumerate(data.instructions):
        rows = np.flatnonzero(data.episode == episode)
        events = data.events[(data.events >= rows[0]) & (data.events <= rows[-1])]
        if data.play[rows[0]]:
            assert text.startswith(("take the ", "touch the "))
            continue
        jaw = data.target[events, 5] > 0.3
        if text.startswith("press"):
            assert len(events) == 2 and not jaw.any() and (data.pose[events, 2] < 0.03).all()
        else:
            assert list(jaw[-2:]) == [False, True] and len(events) in (2, 3)


def test_play_carries_no_task_and_tasks_carry_no_play(data):
    assert set(data.task_instructions) <= set(INSTRUCTIONS) and len(data.task_instructions) == 6
    assert 0 < data.play.sum() < len(data.play)


def test_checkpoints_survive_a_round_trip_and_damage_is_said(data, tmp_path):
    trainer = Trainer(data, tmp_path, PLAN, SMALL)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, trainer.model, data.cameras, data.instructions, {"why": "test"})
    model, cameras, instructions, note = load_checkpoint(path)
    assert note == {"why": "test"} and set(cameras) == {"front", "wrist"} and instructions == sorted(data.instructions)
    stored, trained = model.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(stored[k], trained[k]) for k in trained)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none")


def test_datasets_that_are_absent_or_of_another_rate_are_said(dataset, tmp_path):
    with pytest.raises(DataError, match="harmowam collect"):
        load_demonstrations(tmp_path)
    with pytest.raises(DataError, match="rows/s"):
        load_demonstrations(dataset, rate_hz=10.0)
