"""From demonstrations of any arm to a bundle for it: the dataset names the family, and tensor widths follow from it."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

import export.trace
from export.act import SIZES, Act, ActConfig, ActPlan, run_time_parameters, train_act
from export.data import load_demonstrations
from export.lerobot import DataError
from firmware_bridge.arms import FAMILIES
from harmowam.cli import main
from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.policies import open_policy
from runtime.robot import load_robot
from sim.trace import INSTRUCTIONS

pytestmark = pytest.mark.usefixtures("one_thread")

TOY = ActConfig(channels=(8, 8, 8, 8), width=16, heads=2, feedforward=16, encoder_layers=1, style_layers=1, style=4)
PLAN = ActPlan((2, 4, 1e-3), bf16=False)


@pytest.fixture(params=["koch", "viperx"], scope="module")
def dataset(request, tmp_path_factory):
    """One second in each direction, recorded in this process."""
    robot = load_robot(f"sim_{request.param}")
    folder = tmp_path_factory.mktemp("traced") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.trace, "SECONDS", 1.0)
        patch.setattr("export.data.spawned", lambda work, jobs, workers: map(work, jobs))
        assert export.trace.collect_traces(folder, robot, 1) == {"kept": 2, "tried": 2}
        assert export.trace.collect_traces(folder, robot, 1) == {"kept": 0, "tried": 0}
    return robot, folder


def test_demonstrations_of_any_arm_make_a_bundle_for_it(dataset, tmp_path):
    robot, folder = dataset
    arm, n = robot.family, len(robot.family.JOINTS)
    data = load_demonstrations(folder, arm=None)
    assert data.arm is arm and data.state.shape == data.action.shape == (40, n) and data.pose.shape == (40, 6)
    assert data.task_instructions == sorted(INSTRUCTIONS) and not data.play.any()
    assert np.all(data.action >= robot.arm.lower) and np.all(data.action <= robot.arm.upper)
    assert np.ptp(data.pose[:, 1:3], axis=0).max() > 0.03 * arm.reach_m, "it moves"
    train_act(data, tmp_path / "run", tmp_path / "act.bundle", play=False, plan=PLAN, cfg=TOY)
    bundle = Bundle.load(tmp_path / "act.bundle")
    assert bundle.manifest.arm_family == arm.NAME and tuple(j.name for j in bundle.manifest.joints) == arm.JOINTS
    assert bundle.check_arm(robot.arm, robot.path) == robot.arm
    policy = open_policy(bundle, data.instructions[0], data.cameras)
    frames = {k: x[3].transpose(1, 2, 0).copy() for k, x in (("front", data.front), ("wrist", data.wrist))}
    prior = policy.slow.step(7, Observation(7, frames, data.state[3], np.zeros(n, np.float32), 1))
    assert prior.chunk.shape == (16, n)


def test_our_own_model_takes_no_dataset_of_an_arm_that_it_is_not_made_for(dataset):
    robot, folder = dataset
    with pytest.raises(DataError, match=rf"recorded with a {robot.family.NAME} .*use a dataset of a so101"):
        load_demonstrations(folder)
    done = CliRunner().invoke(main, ["train", "--dataset", str(folder), "--run", str(folder.parent / "run")])
    assert done.exit_code == 2 and f"recorded with a {robot.family.NAME}" in done.output


def test_a_folder_of_one_arm_takes_no_demonstrations_of_another(dataset):
    robot, folder = dataset
    other = load_robot("sim_viperx" if robot.family.NAME == "koch" else "sim_koch")
    with pytest.raises(
        DataError, match=f"begun with arm {robot.family.NAME}: repeat that, or collect into a new folder"
    ):
        export.trace.collect_traces(folder, other, 1)


@pytest.mark.parametrize("arm", FAMILIES.values(), ids=list(FAMILIES))
def test_widths_of_the_model_follow_from_the_arm(arm):
    n = len(arm.JOINTS)
    model = Act(TOY, n)
    assert {model.state_in.in_features, model.out[1].out_features, model.style_action.in_features} == {n}
    assert "joints" not in {f.name for f in dataclasses.fields(ActConfig)}


def test_the_small_one_is_small():
    assert 100_000 < run_time_parameters(Act(SIZES["act-small"], 7)) < 400_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--robot", "koch"), "drives simulated robots only: use --robot sim_koch"),
        (
            ("--robot", "sim_koch", "--play", "3"),
            "--play means nothing with a koch, which traces circles: leave it out",
        ),
        (("--robot", "sim_viperx", "--more", "ring=3"), "--more means nothing with a viperx"),
    ],
)
def test_what_an_arm_cannot_show_is_refused(words, said, tmp_path):
    done = CliRunner().invoke(main, ["collect", "--out", str(tmp_path / "data"), *words])
    assert done.exit_code == 2 and said in done.output and not (tmp_path / "data").exists()
