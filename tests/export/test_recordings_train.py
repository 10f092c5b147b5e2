"""`harmowam train` takes recordings of others by the same options as `harmowam data check`."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.camera import Camera
from export.lerobot import DataError
from export.recordings import How
from export.sources import Source, load_sources
from harmowam.cli import main
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.policies import open_policy
from tests.recordings import Spec, like, write

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = Spec("v2.1", cameras={"top": (64, 48, "h264"), "side": (48, 64, "h264")})
MAPPED = ("--camera", "front=top", "--camera", "wrist=side")
HOW = How(cameras={"front": "top", "wrist": "side"})
TOY = ("--baseline", "act-small", "--plan", "act=2,4", "--fp32")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return write(tmp_path_factory.mktemp("train") / "set", BOTH)


def train(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["train", *map(str, args)])
    return done.exit_code, done.output


def test_a_recording_of_30_fps_in_degrees_with_mapped_cameras_trains_a_small_act(both, tmp_path):
    run = tmp_path / "run"
    code, said = train("--dataset", both, *MAPPED, *TOY, "--run", run, "--json", tmp_path / "r.json")
    assert code == 0, said
    assert "2 of 2 episodes; joints in degrees" in said and "camera 'top' (front) has no calibration" in said
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == 30 + 27
    bundle = Bundle.load(run / "act-small.bundle")
    assert set(bundle.manifest.cameras) == {"front", "wrist"} and set(bundle.manifest.tasks) == set(BOTH.tasks)


def test_a_policy_without_a_wrist_view_is_trained_and_drives(both, tmp_path):
    code, said = train("--dataset", both, *MAPPED[:2], *TOY, "--run", tmp_path / "run")
    assert code == 0 and "there is no wrist view" in said, said
    bundle = Bundle.load(tmp_path / "run/act-small.bundle")
    assert set(bundle.manifest.cameras) == {"front"} and "wrist" not in bundle.manifest.engines["chunk"].inputs
    cameras = {k: Camera.from_json(c) for k, c in bundle.manifest.cameras.items()}
    frames = {"front": np.full((96, 96, 3), 90, np.uint8)}
    seen = Observation(7, frames, np.zeros(6, np.float32), np.zeros(6, np.float32), 1)
    prior = open_policy(bundle, BOTH.tasks[0], cameras).slow.step(7, seen)
    assert prior.chunk.shape == (16, 6) and np.isfinite(prior.chunk).all()


def test_our_model_says_what_a_recording_lacks_for_it(both, tmp_path):
    code, said = train("--dataset", both, *MAPPED[:2], "--run", tmp_path / "run")
    assert code == 2 and "the data has no wrist view and no one calibration of its front camera" in said
    assert "train --baseline act on it" in said


def test_what_stands_against_training_is_said_at_once(both, tmp_path):
    code, said = train("--dataset", both, "--units", "rad", *TOY, "--run", tmp_path / "run")
    assert code == 2 and "none of its cameras" in said and "give --units degrees" in said
    assert "harmowam data check" in said


def test_several_datasets_are_read_together_and_weighted(both, tmp_path):
    slow = write(tmp_path / "b", like(BOTH, fps=10.0, lengths=(30,), told="normalised", version="v3.0"))
    said: list[str] = []
    data = load_sources([Source(both, HOW, 3.0), Source(slow, HOW, 1.0)], tmp_path / "cache", say=said.append)
    rows = np.bincount(data.episode)
    assert rows.tolist() == [30, 27, 59] and data.instructions == [*BOTH.tasks, BOTH.tasks[0]]
    assert data.last[0] == 29 and data.last[-1] == len(data.state) - 1 and isinstance(data.front, np.memmap)
    drawn = data.draw(np.random.default_rng(0), np.arange(len(data.state)), 20_000)
    assert (drawn < 57).mean() == pytest.approx(0.75, abs=0.01)
    alone = [load_sources([Source(f, HOW)]) for f in (both, slow)]
    assert np.array_equal(data.front, np.concatenate([d.front for d in alone]))
    assert np.array_equal(data.state, np.concatenate([d.state for d in alone]))
    assert load_sources([Source(both, HOW), Source(slow, HOW)]).weight is None
    assert any("joints in normalised" in line for line in said)


def test_datasets_with_different_views_are_not_mixed(both):
    with pytest.raises(DataError, match="the datasets have different views"):
        load_sources([Source(both, HOW), Source(both, How(cameras={"front": "top"}))])


def test_a_weight_for_each_dataset(both, tmp_path):
    code, said = train("--dataset", both, "--weight", 1, "--weight", 2, *TOY, "--run", tmp_path / "run")
    assert code == 2 and "1 --dataset and 2 --weight: give one weight for each" in said


def test_a_converted_recording_trains_without_further_words(both, tmp_path):
    out = tmp_path / "clean"
    done = CliRunner().invoke(main, ["data", "convert", str(both), *MAPPED, "--out", str(out)])
    assert done.exit_code == 0, done.output
    same, before = load_sources([Source(out)]), load_sources([Source(both, HOW)])
    assert np.allclose(same.state, before.state, atol=1e-5) and same.instructions == before.instructions
    assert np.abs(same.front.astype(int) - before.front).mean() < 2


def test_our_own_dataset_is_read_as_it_was_written(dataset_folder, drawn):
    data = load_sources([Source(dataset_folder)])
    assert np.array_equal(data.state, drawn.state) and np.array_equal(data.front, drawn.front)
