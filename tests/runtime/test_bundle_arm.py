"""The arm that a bundle was made for: which robots it drives, and between which ends of their joints."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from calibration.camera import Camera
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.arms.viperx import FAMILY as viperx
from runtime.bundle import Bundle, BundleError
from runtime.contracts import Observation
from runtime.policies.decode import five_axis
from runtime.policies.harmowam import FastStep, SlowStep
from tests.tiny import TASK, edit_manifest, tiny_bundle

S = 1_000_000_000


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def changed(bundle_path, folder, change):
    copy = folder / "copy.bundle"
    shutil.copytree(bundle_path, copy)
    edit_manifest(copy, change)
    return copy


def test_a_robot_of_another_family_is_refused(bundle_path):
    bundle = Bundle.load(bundle_path)
    bundle.check_arm("so101", Path("my.toml"))
    with pytest.raises(
        BundleError, match=r"made for arms of the family 'so101', my\.toml is one of 'viperx': name another"
    ):
        bundle.check_arm("viperx", Path("my.toml"))


def of_a_viperx(manifest):
    rows = zip(viperx.JOINTS, viperx.LOWER, viperx.UPPER, strict=True)
    joints = [{"name": n, "lower": float(a), "upper": float(b)} for n, a, b in rows]
    manifest.update(arm_family="viperx", links={}, joints=joints)


def test_harmowam_drives_five_axes_only(bundle_path, tmp_path):
    copy = changed(bundle_path, tmp_path, of_a_viperx)
    with pytest.raises(BundleError, match="HarmoWAM drives arms of five axes"):
        five_axis(Bundle.load(copy))


def test_link_lengths_that_the_family_does_not_have_are_damage(bundle_path, tmp_path):
    copy = changed(bundle_path, tmp_path, lambda m: m["links"].update(tail=0.1))
    with pytest.raises(BundleError, match=r"'links\.tail' is no link of this arm"):
        Bundle.load(copy)


def commands(bundle_path, limits):
    """Joint targets float32[40, 6] of a second and a half from the same pose."""
    bundle = Bundle.load(bundle_path)
    cameras = {k: Camera.from_json(c) for k, c in bundle.manifest.cameras.items()}
    frames = {k: np.zeros((c.height, c.width, 3), np.uint8) for k, c in cameras.items()}
    slow, fast = SlowStep(bundle, TASK, cameras), FastStep(bundle, cameras, ends=limits)
    q, _ = so101.inverse(np.array([0.2, 0.05, 0.09, 1.0, 0.0, 0.5]), so101.LOWER, so101.UPPER)
    out, now = [], S
    for _ in range(40):
        obs = Observation(now, frames, q.astype(np.float32), np.zeros(6, np.float32))
        command, _ = fast.step(now, obs, slow.step(now, obs))
        assert command is not None
        out.append(command.q_rad)
        now += S // 25
    return np.array(out)


def test_joint_targets_stay_between_the_ends_of_this_robots_joints(bundle_path):
    """Which may be nearer than the maker's: those of the robot file and its joint calibration. Without any, the
    bundle's."""
    free = commands(bundle_path, None)
    assert np.array_equal(free, commands(bundle_path, (so101.LOWER, so101.UPPER)))
    lower, upper = so101.LOWER.copy(), so101.UPPER.copy()
    upper[3] = 0.5 * (free[:, 3].min() + free[:, 3].max())
    kept = commands(bundle_path, (lower, upper))
    assert free[:, 3].max() > upper[3] + 0.02 and kept[:, 3].max() <= upper[3] + 1e-6
