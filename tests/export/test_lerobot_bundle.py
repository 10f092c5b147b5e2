"""A LeRobot policy as a bundle: what `harmowam export` writes, and what a robot then does with it."""

import copy
import re

import numpy as np
import onnx
import pytest
import torch

from calibration.camera import Camera
from export.lerobot import DataError, raw_observations
from export.policies.bundle import Order, export_policy
from export.policies.opened import open_folder
from export.policies.units import units_of
from firmware_bridge.arms.so101 import FAMILY as so101
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.policies import kind_of, open_policy
from runtime.policies.history import History
from tests import dataset
from tests.command import harmowam, refusal
from tests.export.golden import FOLDER as RECORDED
from tests.export.lerobot_golden import golden, observation, small, write_folder
from tests.once import once


def of_size(height, width):
    """The small ACT for pictures of that size."""
    case = copy.deepcopy(small(golden("act")))
    for name, feature in case["files"]["config.json"]["input_features"].items():
        if "images" in name:
            feature["shape"] = [3, height, width]
    return case


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A policy, a dataset that we recorded, and two bundles: INT8 with it, and FP32 in degrees without."""

    def make(folder):
        write_folder(folder / "policy", of_size(96, 96))
        dataset.write_all(folder / "data")
        how = ("export", folder / "policy", "--robot", "so101")
        wrong = refusal(*how, "--rate", 20, "--units", "degrees", "--dataset", folder / "data", "--out", folder / "x")
        assert "with --units degrees no joint of" in wrong
        calibrated = harmowam(*how, "--dataset", folder / "data", "--target", "tensorrt", "--out", folder / "int8")
        plain = harmowam(*how, "--rate", 30, "--units", "degrees", "--task", "sort", "--out", folder / "fp32")
        for result in (calibrated, plain):
            assert result.exit_code == 0, result.output
        (folder / "said.txt").write_text(plain.output)

    return once(tmp_path_factory, "lerobot-bundles", make)


def test_a_robot_does_what_the_policy_says_from_its_own_pictures_and_angles(made):
    """Through the runtime: frames and rad in, rad out; the first target belongs to the capture."""
    bundle = Bundle.load(made / "fp32")
    cameras = {k: Camera.from_json(v) for k, v in bundle.manifest.cameras.items()}
    rng = np.random.default_rng(4)
    frames = {k: rng.integers(0, 256, (96, 96, 3)).astype(np.uint8) for k in cameras}
    q = rng.uniform(so101.LOWER, so101.UPPER).astype(np.float32)
    prior = open_policy(bundle, "sort", cameras).slow.step(0, Observation(0, frames, q, q))
    opened = open_folder(made / "policy", so101, units_of("degrees", so101))
    pictures = [torch.from_numpy(frames[k].transpose(2, 0, 1)[None] / np.float32(255)) for k in opened.cameras]
    wanted = opened.specs["chunk"][0](*pictures, torch.from_numpy(q)[None])[0].numpy()
    assert prior.chunk == pytest.approx(wanted, abs=1e-5)
    assert prior.grid_ns[:3].tolist() == [0, 33_333_333, 66_666_666]


def test_everything_round_the_network_is_shown(made):
    shown = harmowam("bundle", "show", made / "fp32")
    assert shown.exit_code == 0
    for line in (
        "its source    LeRobot act, statistics from its processors",
        "its cameras   wrist as observation.images.wrist, front as observation.images.front",
        "its pictures  96 x 96, RGB from 0 to 1, then MEAN_STD",
        "its state     degrees, then MEAN_STD",
        "its actions   MEAN_STD undone, from degrees",
        "its chunk     8 of 8 targets, then the next plan",
    ):
        assert line in shown.output
    assert "AGX Orin 64GB" in (made / "said.txt").read_text()  # the roofline of every board


def test_with_a_dataset_it_is_int8_and_sees_through_its_calibrated_cameras(made):
    """Rate and units are the dataset's, the layers really are INT8, and the kept observations fit the engines."""
    bundle = Bundle.load(made / "int8")
    m = bundle.manifest
    assert m.quantization["layers"]["chunk"]["int8_layers"] >= 20 and m.chunk.dt_ms == 50
    assert not m.preprocess.straight and m.cameras["front"] == dataset.CAMERAS["front"].to_json()
    assert Bundle.load(made / "fp32").manifest.preprocess.straight
    graph = onnx.load(made / "int8" / "onnx" / "chunk.onnx").graph
    assert any(i.data_type == onnx.TensorProto.INT8 for i in graph.initializer)
    with np.load(made / "int8" / "samples.npz") as stored:
        (feed, *_) = kind_of(bundle).feeds(bundle, dict(stored))["chunk"]
    assert np.isfinite(bundle.engine("chunk").run(feed)["chunk"]).all()


def test_a_diffusion_policy_plans_from_what_it_saw_a_step_before(tmp_path):
    """Two engines, driven by the runtime, give lerobot's own actions; with another past it is another plan."""
    case = golden("diffusion")
    folder, units = write_folder(tmp_path / "policy", case), units_of("rad", so101)
    export_policy(Order(folder, so101, units, 30, precision="fp32", tasks=("sort",)), tmp_path / "out")
    bundle = Bundle.load(tmp_path / "out")
    slow = open_policy(bundle, "sort", {k: Camera.from_json(v) for k, v in bundle.manifest.cameras.items()}).slow
    assert slow.history_ns == (33_333_333,) and bundle.manifest.chunk.use == 4
    features = case["files"]["config.json"]["input_features"]

    def seen(t_ns, seed):
        raw = observation(features, seed)
        frames = {c: (raw[f"observation.images.{c}"].transpose(1, 2, 0) * 255).round() for c in bundle.manifest.cameras}
        frames = {c: np.ascontiguousarray(x, dtype=np.uint8) for c, x in frames.items()}
        return Observation(t_ns, frames, raw["observation.state"], raw["observation.state"])

    history = History(slow.history_ns)
    history(seen(0, 2))
    newest = history(seen(33_000_000, 1))
    chunk = slow.step(0, newest).chunk
    assert chunk[:4] == pytest.approx(np.array(case["actions"]), abs=1e-4)
    assert slow.step(0, newest).chunk.tobytes() == chunk.tobytes()
    assert np.abs(slow.step(0, History(slow.history_ns)(newest)).chunk - chunk).max() > 1e-3
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        feeds = kind_of(bundle).feeds(bundle, dict(stored))
    assert {k: len(v) for k, v in feeds.items()} == {"encode": 8, "denoise": 8}


REFUSED = [
    ((), r"does not say which arm it drives: add --robot"),
    (("--robot", "so101"), r"does not say the rate of its actions: add --rate"),
    (("--robot", "so101", "--rate", 30), r"does not say the units of its joints: add --units normalised"),
    (("--robot", "so101", "--rate", 30, "--units", "normalised"), r"mean angles only with the calibration .* --joints"),
    (("--robot", "koch", "--rate", 30, "--units", "rad", "--precision", "int8"), r"name the dataset .* with --dataset"),
    (("--robot", "viperx", "--rate", 30, "--units", "rad"), r"of 6 numbers, and arms of the family 'viperx' have 7"),
    (("--robot", "so101", "--rate", 30, "--units", "rad", "--precision", "fp16"), r"fp16 is for TensorRT"),
    (("--robot", "so101", "--samples", "x.npz"), r"--samples means nothing for a LeRobot policy: leave it out"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_what_the_folder_does_not_say_the_user_is_asked_for(tmp_path, options, sentence):
    folder = write_folder(tmp_path / "p", of_size(96, 96))
    said = refusal("export", folder, *options, "--out", tmp_path / "out")
    assert re.search(sentence, said) and not (tmp_path / "out").exists()


def test_options_of_a_lerobot_policy_mean_nothing_for_our_own_checkpoint(tmp_path):
    assert "--rate means nothing for a checkpoint of our own" in refusal(
        "export", "--rate", 30, "--out", tmp_path / "o"
    )


def test_observations_are_taken_as_they_were_recorded():
    """Pictures at their own size, joint values in their own units; the same ones every time."""
    raw = raw_observations(RECORDED, ("wrist", "front"), so101, 20, 9)
    again = raw_observations(RECORDED, ("wrist", "front"), so101, 20, 9)
    assert raw.pictures["front"].shape == (9, 3, 120, 160) and raw.cameras == {}
    assert np.abs(raw.state).max() > 7 and (raw.pictures["wrist"] == again.pictures["wrist"]).all()
    everything = raw_observations(RECORDED, ("front",), so101, 20, 1000)
    assert len(everything.state) == len(everything.instructions) == 21
    assert (
        raw.pictures["front"]
        == everything.pictures["front"][[(everything.state == s).all(1).argmax() for s in raw.state]]
    ).all()
    with pytest.raises(DataError, match="has no camera 'side'"):
        raw_observations(RECORDED, ("side",), so101, 20, 9)
