"""The front camera from a recording alone: planted truth, the maker's meshes in the pictures, hulls in the solver."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from calibration import arm_shapes
from calibration.camera import CalibrationError, Camera
from calibration.from_recording import Recorded, solve
from calibration.from_recording_job import put
from calibration.store import Store, load_camera
from firmware_bridge.arms.so101 import FAMILY as so101
from harmowam.cli import main
from sim.planted import Planted, errors, lens, look_at, motions, rendered
from tests import makers, recordings

URDF = makers.SO101.with_suffix(".urdf")
EPISODES, ROWS, SIZE = 5, 6, (480, 360)


@pytest.fixture(scope="module")
def shapes():
    return arm_shapes.of_urdf(URDF, so101)


@pytest.fixture(scope="module")
def planted():
    """The truth, and what was recorded: zeros wrong by 2 degrees, links 1 % thicker than the solver's."""
    rng = np.random.default_rng(2)
    pose = look_at(np.array([0.5, 0.3, 0.35]), np.array([0.12, 0.0, 0.08]))
    zeros = np.radians([1.5, -2.0, 2.0, -1.5, 2.0, 1.0])
    truth = Planted(pose, 435.0, SIZE, zeros, thicker=1.01)
    q, episode = motions(so101, EPISODES, ROWS, rng)
    return truth, Recorded(rendered(makers.SO101, truth, q, episode), q, np.zeros(len(q)), episode)


def known(truth):
    K, D = lens(truth)
    return Camera("front", truth.size[0], truth.size[1], K, D)


@pytest.fixture(scope="module")
def solved(planted, shapes):
    truth, recorded = planted
    return solve(so101, shapes, recorded, known=known(truth))


def test_the_camera_is_found_within_what_it_says_of_itself(planted, solved):
    off = errors(planted[0], solved.camera.T_base_from_cam)
    assert not solved.refused
    assert off["mm"] < min(20, 3 * solved.position_sd_mm) and off["deg"] < min(1.6, 3 * solved.angle_sd_deg)
    assert solved.heldout_px < 1.0


def test_the_joint_zeros_are_found_or_said_to_be_undetermined(planted, solved):
    off, told = np.degrees(solved.zeros - planted[0].zeros), np.isfinite(solved.zeros_sd)
    assert told[1:4].all()  # the lifting joints, which every pose shows
    assert np.sqrt((off[told] ** 2).mean()) < 0.7


def test_light_that_changes_is_refused(planted, shapes):
    truth, recorded = planted
    gain = np.random.default_rng(0).uniform(0.75, 1.25, len(recorded.q))[:, None, None, None]
    dimmed = np.clip(recorded.pictures * gain, 0, 255).astype(np.uint8)
    with pytest.raises(CalibrationError, match="light changes"):
        solve(so101, shapes, dataclasses.replace(recorded, pictures=dimmed), known=known(truth))


def test_too_few_poses_are_refused(planted, shapes):
    truth, r = planted
    few = r.episode < 3
    with pytest.raises(CalibrationError, match="record more episodes"):
        solve(so101, shapes, Recorded(r.pictures[few], r.q[few], r.speed[few], r.episode[few]), known=known(truth))


def test_a_urdf_of_another_arm_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "arm.urdf"
    path.write_text('<robot name="x"><link name="base"/></robot>')
    with pytest.raises(CalibrationError, match="no shape that shoulder_pan moves"):
        arm_shapes.of_urdf(path, so101)


def test_an_accepted_result_becomes_the_camera_in_use_and_a_refused_one_never(solved, tmp_path):
    store = Store(tmp_path)
    put(store, "front", solved, "recording")
    assert load_camera(tmp_path / "front").to_json() == solved.camera.to_json()
    assert store.moves("front")[-1]["why"] == "from recording"
    with pytest.raises(ValueError, match="refused"):
        put(store, "front", dataclasses.replace(solved, refused=("why",)), "recording")


def test_the_verb_reads_a_dataset_and_refuses_shapes_that_are_not_the_arms(planted, tmp_path):
    """Each pose is held for five rows: the arm is slow there. Without a URDF the shapes are too loose."""
    truth, r = planted
    each = [np.repeat(np.flatnonzero(r.episode == k), 5) for k in range(EPISODES)]
    shot = [(r.q[rows], r.pictures[rows]) for rows in each]
    spec = recordings.Spec(cameras={"top": (*SIZE, "h264")}, lengths=(ROWS * 5,) * EPISODES, shot=shot)
    data = recordings.write(tmp_path / "data", spec)
    (tmp_path / "lens").mkdir()
    (tmp_path / "lens/front.json").write_text(json.dumps(known(truth).to_json()))
    said = ["calibrate", "from-recording", str(data), "--units", "degrees", "--camera", "front=top"]
    said += ["--cameras", str(tmp_path / "lens"), "--store", str(tmp_path / "store")]
    ran = CliRunner().invoke(main, [*said, "--out", str(tmp_path), "--json", str(tmp_path / "out.json")])
    assert ran.exit_code == 1 and "--urdf" in ran.output, ran.output
    told = json.loads((tmp_path / "out.json").read_text())
    front = told["cameras"]["front"]
    assert not front["accepted"] and front["refused"] and np.shape(front["base_from_camera"]) == (4, 4)
    assert len(told["joint_zero_deg"]) == len(told["joint_zero_sd_deg"]) == 6
    assert all((tmp_path / f"front-from-recording-{k}.png").exists() for k in range(4))
    assert not (tmp_path / "store").exists()
