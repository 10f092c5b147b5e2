"""Policies that LeRobot trained: the same numbers as lerobot's own, and one sentence for what cannot be exported."""

import copy
import hashlib
import json
import re

import numpy as np
import pytest
import safetensors.numpy
import torch

from calibration.joints_lerobot import from_lerobot, negated
from export.policies.folder import PolicyFolderError
from export.policies.opened import open_folder
from export.policies.units import Units, units_of
from firmware_bridge.arms.koch import FAMILY as koch
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.arms.viperx import FAMILY as viperx
from runtime.policies.history import earlier
from runtime.robot import load_robot
from tests.export.lerobot_golden import golden, observation, small, weight, write_folder

RAD = units_of("rad", so101)
PRE = "policy_preprocessor.json"


def answer(folder, case, units=RAD):
    """The chunk [K,J] that the opened policy gives for the golden observation, rad."""
    opened = open_folder(folder, so101, units)
    features = case["files"]["config.json"]["input_features"]
    seen = observation(features, 1)
    pictures = [torch.from_numpy(seen[f"observation.images.{name}"])[None] for name in opened.cameras]
    state = torch.from_numpy(units.to_rad(seen["observation.state"]).astype(np.float32))[None]
    return opened.specs["chunk"][0](*pictures, state)[0].numpy()


def apart(name, made, wanted):
    """The largest difference as a share of the actions' range, printed for docs/policies.md."""
    share = float(np.abs(made - wanted).max() / np.ptp(wanted))
    print(f"{name}: {share:.1e} of the range")
    return share


@pytest.mark.parametrize("name", ["act", "act-pre-norm"])
def test_a_policy_answers_as_in_lerobot_itself(tmp_path, name):
    """Weights, statistics and pictures are those that lerobot 0.4.4 had: actions within 1e-4 of their range, and the
    cameras in the order of the configuration."""
    case = golden(name)
    wanted = np.array(case["actions"])
    made = answer(write_folder(tmp_path / "p", case), case)
    assert made.shape == wanted.shape == (8, 6)
    assert apart(name, made, wanted) < 1e-4
    opened = open_folder(tmp_path / "p", so101, RAD)
    assert opened.cameras == ("wrist", "front") and opened.size == (72, 40)
    assert opened.plan.use == {"act": 8, "act-pre-norm": 5}[name] and opened.plan.ensemble is None


@pytest.mark.parametrize("name", ["diffusion", "diffusion-ddim"])
def test_a_diffusion_policy_answers_as_in_lerobot_itself(tmp_path, name):
    """From two observations and noise of a seed; DDPM by the error, DDIM by the clean plan; cropped, and resized."""
    case = golden(name)
    wanted = np.array(case["actions"])
    opened = open_folder(write_folder(tmp_path / "p", case), so101, RAD)
    features = case["files"]["config.json"]["input_features"]
    feed: dict[str, np.ndarray] = {}
    for back, seed in ((1, 2), (0, 1)):
        seen = observation(features, seed)
        feed |= {earlier(c, back): seen[f"observation.images.{c}"][None] for c in opened.cameras}
        feed[earlier("state", back)] = seen["observation.state"][None]
    assert list(opened.specs["encode"][1]) == ["wrist-1", "front-1", "state-1", "wrist", "front", "state"]

    def run(engine, given):
        module, inputs, outputs = opened.specs[engine]
        made = module(*(torch.from_numpy(given[k]) for k in inputs))
        made = made if len(outputs) > 1 else (made,)
        return {k: x.numpy() for k, x in zip(outputs, made, strict=True)}

    made = opened.answer(run, {k: feed[k] for k in opened.specs["encode"][1]})["chunk"][0]
    assert apart(name, made[:4], wanted) < 1e-4
    assert len(made) == opened.plan.steps == 7 and opened.plan.use == 4


def older(case, prefix=""):
    """The case as lerobot 0.3 saved it: no processors, statistics among the weights."""
    old = copy.deepcopy(case)
    states = old.pop("states")
    old["files"] = {"config.json": old["files"]["config.json"]}
    weights = {k: weight(k, s) for k, s in old["shapes"].items()}
    for file, layers in (("pre", ("normalize_inputs", "normalize_targets")), ("post", ("unnormalize_outputs",))):
        for key, value in next(v for k, v in states.items() if file + "processor" in k).items():
            feature, _, statistic = key.rpartition(".")
            for layer in layers if file == "post" or feature != "action" else ("normalize_targets",):
                name = f"{layer}.{prefix}buffer_{feature.replace('.', '_')}.{statistic}"
                weights[name] = np.array(value, np.float32)
    return {**old, "states": {}}, weights


@pytest.mark.parametrize("prefix", ["", "so100."])
def test_an_older_policy_has_its_statistics_among_the_weights(tmp_path, prefix):
    case, weights = older(golden("act"), prefix)
    made = answer(write_folder(tmp_path / "p", case, weights), case)
    assert made == pytest.approx(np.array(golden("act")["actions"]), abs=1e-5)


@pytest.fixture
def case():
    return copy.deepcopy(small(golden("act")))


def test_keys_that_training_alone_reads_are_no_reason_to_refuse(tmp_path):
    """Those that lerobot 0.6 added."""
    case = copy.deepcopy(small(golden("diffusion")))
    case["files"]["config.json"] |= {"gradient_checkpointing": True, "pretrained_revision": None}
    assert open_folder(write_folder(tmp_path / "p", case), so101, RAD).kind == "diffusion"


def step(case, name, file=PRE):
    return next(s for s in case["files"][file]["steps"] if s["registry_name"] == name)


def test_units_are_undone_inside_the_policy(tmp_path, case):
    """Fed with rad and answering in rad, it gives what it gives in its own units."""
    folder = write_folder(tmp_path / "p", case)
    scaled = Units("toy", np.array([2.0, -3, 4, 5, 6, 7]), np.array([1.0, 2, 3, 4, 5, -6]))
    assert scaled.from_rad(answer(folder, case, scaled)) == pytest.approx(answer(folder, case), abs=1e-4)


def test_pictures_are_named_as_the_robot_names_them_before_lerobots_renaming(tmp_path, case):
    """rename_map leads from the robot's observation to the policy's."""
    renames = {"observation.images.top": "observation.images.wrist"}
    step(case, "rename_observations_processor")["config"]["rename_map"] = renames
    assert open_folder(write_folder(tmp_path / "p", case), so101, RAD).cameras == ("top", "front")


def test_an_ensembling_policy_says_so(tmp_path, case):
    case["files"]["config.json"] |= {"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}
    plan = open_folder(write_folder(tmp_path / "p", case), so101, RAD).plan
    assert (plan.use, plan.ensemble) == (None, 0.01)


def config(**changes):
    return lambda case: case["files"]["config.json"].update(changes)


def wider(case):
    for features in ("input_features", "output_features"):
        for key in ("observation.state", "action"):
            if key in case["files"]["config.json"][features]:
                case["files"]["config.json"][features][key]["shape"] = [14]


def without(statistic):
    def change(case):
        for state in case["states"].values():
            state.pop(statistic, None)

    return change


def impossible(case):
    for state in case["states"].values():
        state["action.std"] = [1.0, 1.0, -1.0, 1.0, 1.0, 1.0]


def another_step(case):
    case["files"][PRE]["steps"].insert(1, {"registry_name": "delta_action_processor", "config": {}})


def half_precision(case):
    step(case, "device_processor")["config"]["float_dtype"] = "float16"


def not_listed(case):
    del step(case, "normalizer_processor")["config"]["features"]["observation.images.front"]


CHANGED = [
    (config(type="tdmpc"), r"is a policy of type 'tdmpc', and act.* can be exported: train one of these\."),
    (wider, r"has a 'observation.state' of 14 numbers, and arms of the family 'so101' have 6 joints: name the robot"),
    (without("action.mean"), r"lacks the statistic 'mean' of 'action', by which it is normalised: train with these"),
    (without("observation.images.front.std"), r"lacks the statistic 'std' of 'observation\.images\.front'"),
    (impossible, r"has impossible statistics of 'action' \(mean and std\)"),
    (another_step, r"has the processor step 'delta_action_processor', which this version does not know: export it"),
    (half_precision, r"sets 'float_dtype' of the processor step 'device_processor' to 'float16', which this version"),
    (not_listed, r"does not normalise 'observation\.images\.front', which the policy takes"),
    (config(n_obs_steps=2), r"has 'n_obs_steps' 2 in its config\.json, and this version takes 1"),
    (config(vision_backbone="resnet50"), r"has 'vision_backbone' 'resnet50' .* takes resnet18 or resnet34"),
    (config(replace_final_stride_with_dilation=True), r"has 'replace_final_stride_with_dilation' True"),
    (config(feedforward_activation="glu"), r"has 'feedforward_activation' 'glu'"),
    (config(use_peft=True), r"has 'use_peft' True"),
    (config(token_pruning=0.5), r"has 'token_pruning' in its config\.json, which this version does not know"),
    (config(n_decoder_layers=3), r"lacks the weight 'model\.decoder\.layers\.1\..*', which its config\.json asks for"),
    (config(n_encoder_layers=1), r"holds the weight 'model\.encoder\.layers\.1\..*', which its config\.json does not"),
    (config(dim_model=64), r"has weights of other sizes than its config\.json says"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGED)
def test_what_would_behave_otherwise_is_refused_by_name(tmp_path, case, change, sentence):
    change(case)
    with pytest.raises(PolicyFolderError, match=sentence) as refused:
        open_folder(write_folder(tmp_path / "p", case), so101, RAD)
    assert str(refused.value).startswith(str(tmp_path / "p")) and str(refused.value).endswith(".")


def pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "a" + "\nsize 206699736\n"
    (folder / "model.safetensors").write_text(text)


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def begun(folder):
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "x.incomplete").touch()


def other_hash(folder):
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "model.safetensors.metadata").write_text("0123\n" + 64 * "a" + "\n1733000000.0\n")


def blob(folder):
    """As the hub's cache has it: a link to a blob that is named by its hash."""
    named = folder / (64 * "b")
    (folder / "model.safetensors").rename(named)
    (folder / "model.safetensors").symlink_to(named)


def gone(name):
    return lambda folder: (folder / name).unlink()


def not_finite(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["model.action_head.bias"][0] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


DAMAGED = [
    (pointer, r"model\.safetensors is a git-LFS pointer, not the weights: run `git lfs pull` in its folder\."),
    (pickled, r"has its weights in pytorch_model\.bin, a pickle, which could run any program here: save the policy"),
    (cut_short, r"model\.safetensors is damaged or was downloaded in part .*: download the folder again\."),
    (begun, r"was downloaded in part only \(x\.incomplete is left\): download the folder again\."),
    (other_hash, r"model\.safetensors does not match its hash in the hub \(aaaaaaaaaaaa\.\.\.\): download"),
    (blob, r"model\.safetensors does not match its hash in the hub \(bbbbbbbbbbbb\.\.\.\): download"),
    (gone("model.safetensors"), r"is incomplete, model\.safetensors is missing: download the folder again\."),
    (gone("config.json"), r"is no LeRobot policy \(no config\.json\): name the folder that lerobot-train saved"),
    (gone("policy_postprocessor.json"), r"is incomplete, policy_postprocessor\.json is missing: download"),
    (gone("policy_preprocessor_step_3_normalizer_processor.safetensors"), r"is incomplete, policy_pre.* is missing"),
    (not_finite, r"holds numbers in model\.action_head\.bias that are not finite: train the policy again\."),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGED)
def test_what_a_download_or_a_disk_left_is_one_sentence(tmp_path, case, damage, sentence):
    folder = write_folder(tmp_path / "p", case)
    damage(folder)
    with pytest.raises(PolicyFolderError, match=sentence):
        open_folder(folder, so101, RAD)


def test_a_folder_without_processors_and_statistics_is_refused(tmp_path, case):
    folder = write_folder(tmp_path / "p", case)
    for name in (PRE, "policy_postprocessor.json"):
        (folder / name).unlink()
    with pytest.raises(PolicyFolderError, match=r"policy_preprocessor\.json is missing and the weights hold no stat"):
        open_folder(folder, so101, RAD)


def test_weights_with_the_hash_of_the_hub_are_taken(tmp_path, case):
    folder = write_folder(tmp_path / "p", case)
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (cache / "model.safetensors.metadata").write_text(f"0123\n{digest}\n1733000000.0\n")
    assert open_folder(folder, so101, RAD).cameras == ("wrist", "front")


# -- units -------------------------------------------------------------------------------------------------------------

RANGES = ((700, 3300), (800, 3200), (900, 3100), (1000, 3000), (300, 3900), (1500, 3050))
MEASURED = {  # as lerobot-calibrate writes it; one joint is reversed
    name: {
        "id": k + 1,
        "drive_mode": int(name == "wrist_flex"),
        "homing_offset": 10 * k,
        "range_min": low,
        "range_max": high,
    }
    for k, (name, (low, high)) in enumerate(zip(so101.JOINTS, RANGES, strict=True))
}


def lerobots(step, row, name, jaw):
    """A Feetech servo's step as lerobot's motors bus normalises it."""
    low, high, mode = row["range_min"], row["range_max"], row["drive_mode"]
    if name == "degrees" and not jaw:
        return (step - (low + high) / 2) * 360 / 4095
    share = (step - low) / (high - low)
    if jaw:
        return 100 - 100 * share if mode else 100 * share
    return -(200 * share - 100) if mode else 200 * share - 100


@pytest.mark.parametrize("name", ["degrees", "normalised"])
def test_joint_values_are_those_of_lerobots_motors_bus(tmp_path, name):
    """At the same steps of the servos: joint for joint, with a reversed one and the jaw's own scale."""
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(MEASURED))
    arm = load_robot("so101", calibrated=False).arm
    joints = from_lerobot(file, arm)[0]
    units = units_of(name, so101, joints, negated(file, arm))
    for share in (0.0, 0.3, 1.0):
        steps = [r["range_min"] + share * (r["range_max"] - r["range_min"]) for r in MEASURED.values()]
        q = [(s - j.zero_step) * j.direction * j.rad_per_step for s, j in zip(steps, joints.joints, strict=True)]
        values = [lerobots(s, r, name, k == "gripper") for s, (k, r) in zip(steps, MEASURED.items(), strict=True)]
        assert units.from_rad(np.array(q)) == pytest.approx(values, abs=1e-9)
        assert units.to_rad(np.array(values)) == pytest.approx(q, abs=1e-9)


@pytest.mark.parametrize("arm", [so101, koch, viperx])
def test_degrees_without_a_calibration_are_the_familys(arm):
    q = np.random.default_rng(2).uniform(arm.LOWER, arm.UPPER)
    assert units_of("degrees", arm).from_rad(q) == pytest.approx(arm.to_lerobot(q), abs=1e-9)
    with pytest.raises(ValueError, match=re.escape("need the calibration")):
        units_of("normalised", arm)
