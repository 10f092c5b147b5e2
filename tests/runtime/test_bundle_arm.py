"""The arm that a bundle was made for: which robots it drives, and between which ends of their joints."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from calibration.camera import Camera
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.arms.viperx import FAMILY as viperx
from firmware_bridge.motion.messages import JointState
from runtime.bundle import Bundle, BundleError
from runtime.contracts import Observation
from runtime.observe.log_reader import read_log
from runtime.policies.decode import five_axis
from runtime.policies.harmowam import FastStep, SlowStep
from runtime.robot import SHIPPED, load_robot
from tests.command import drive, harmowam, refusal
from tests.rig import START
from tests.tiny import CHUNK_INPUTS, JOINTS, TASK, edit_manifest, of_arm, tiny_bundle, tiny_chunk_bundle

S = 1_000_000_000


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def changed(bundle_path, folder, change):
    copy = folder / "copy.bundle"
    shutil.copytree(bundle_path, copy)
    edit_manifest(copy, change)
    return copy


MY_ARM = Path("my.toml")


@pytest.fixture(scope="module")
def arm():
    return load_robot("so101").arm


def limited(arm, name, lower, upper):
    """`arm` with other limits (rad) of one joint."""
    k = arm.joints.index(name)
    return dataclasses.replace(
        arm, lower=(*arm.lower[:k], lower, *arm.lower[k + 1 :]), upper=(*arm.upper[:k], upper, *arm.upper[k + 1 :])
    )


def ends(arm, name):
    k = arm.joints.index(name)
    return arm.lower[k], arm.upper[k]


def joint(name, **differs):
    """A change of a manifest: other limits of one joint."""
    return lambda m: next(j for j in m["joints"] if j["name"] == name).update(differs)


def test_a_robot_of_another_family_is_refused(bundle_path, arm):
    bundle = Bundle.load(bundle_path)
    assert bundle.check_arm(arm, MY_ARM) == arm
    with pytest.raises(
        BundleError, match=r"made for arms of the family 'so101', my\.toml is one of 'viperx': name another"
    ):
        bundle.check_arm(load_robot("viperx").arm, MY_ARM)


@pytest.mark.parametrize("name", sorted(p.stem for p in SHIPPED.glob("*.toml")))
def test_every_shipped_robot_keeps_its_limits_with_a_bundle_of_its_family(name, tmp_path):
    robot = load_robot(name)
    inputs = {**CHUNK_INPUTS, "state": [1, len(robot.arm.joints)]}
    targets = np.tile(robot.arm.rest, (2, 1))
    bundle = Bundle.load(tiny_chunk_bundle(tmp_path, targets, inputs=inputs, **of_arm(robot.family)))
    assert bundle.check_arm(robot.arm, robot.path) == robot.arm


def test_the_tighter_limit_wins_whoever_has_it(bundle_path, arm, tmp_path):
    path = changed(bundle_path, tmp_path, lambda m: (joint("elbow_flex", upper=1.5)(m), joint("gripper", lower=0.0)(m)))
    own = limited(arm, "shoulder_pan", -0.4, 1.0)  # of a robot in a corner: all of its range is the bundle's, too
    fits = Bundle.load(path).check_arm(limited(own, "elbow_flex", -1.2, 1.69), MY_ARM)
    assert ends(fits, "elbow_flex") == (-1.2, 1.5)
    assert ends(fits, "gripper") == (0.0, ends(arm, "gripper")[1])
    assert ends(fits, "shoulder_pan") == (-0.4, 1.0)
    assert dataclasses.replace(fits, lower=arm.lower, upper=arm.upper) == arm


NOTHING_IN_COMMON = {
    "nothing": (0.2, 1.9, -1.9, 0.1),
    "hardly anything": (-0.05, 1.9, -1.9, 0.05),
    "less than half": (-0.5, 1.9, -1.9, 0.5),
    "a bundle that holds it still": (0.0, 0.01, -1.9, 1.9),
    "a robot that holds it still": (-1.9, 1.9, 0.0, 0.01),
    "of a joint that is measured the wrong way round": (-1.9, 0.17, -0.17, 1.9),
}


@pytest.mark.parametrize("case", NOTHING_IN_COMMON)
def test_limits_that_have_too_little_in_common_are_refused_with_the_joints_name(bundle_path, arm, tmp_path, case):
    lower, upper, low, high = NOTHING_IN_COMMON[case]
    bundle = Bundle.load(changed(bundle_path, tmp_path, joint("shoulder_pan", lower=lower, upper=upper)))
    said = (
        rf"moves shoulder_pan from {lower:.2f} to {upper:.2f} rad, my\.toml from {low:.2f} to {high:.2f}, and they have"
    )
    with pytest.raises(BundleError, match=said):
        bundle.check_arm(limited(arm, "shoulder_pan", low, high), MY_ARM)


def test_a_robot_whose_rest_pose_the_bundle_does_not_reach_is_refused(bundle_path, arm, tmp_path):
    bundle = Bundle.load(changed(bundle_path, tmp_path, joint("elbow_flex", upper=1.4)))
    with pytest.raises(
        BundleError, match=r"my\.toml puts elbow_flex at 1\.45 rad to rest, and .*from -1\.69 to 1\.40 only"
    ):
        bundle.check_arm(arm, MY_ARM)


def test_links_of_another_arm_are_refused(bundle_path, arm, tmp_path):
    """By how far the tool is off: differences of several links add up."""
    near = changed(bundle_path, tmp_path / "a", lambda m: m["links"].update(wrist_to_tcp=0.1592 + 0.004))
    Bundle.load(near).check_arm(arm, MY_ARM)
    far = changed(bundle_path, tmp_path / "b", lambda m: m["links"].update(wrist_to_tcp=0.1592 - 0.008))
    with pytest.raises(
        BundleError, match=r"tool may be 8 mm .*'links.wrist_to_tcp' is 0\.1512 m there, 0\.1592 m here"
    ):
        Bundle.load(far).check_arm(arm, MY_ARM)
    both = {"upper_up": 0.11257 + 0.003, "lower_forward": 0.1349 + 0.003}
    with pytest.raises(BundleError, match="tool may be 6 mm from where this robot's is"):
        Bundle.load(changed(bundle_path, tmp_path / "c", lambda m: m["links"].update(both))).check_arm(arm, MY_ARM)


@pytest.mark.parametrize("verb", ["run", "profile"])
def test_a_bundle_that_does_not_fit_the_robot_is_refused_before_anything_starts(bundle_path, tmp_path, verb):
    path = changed(bundle_path, tmp_path, joint("elbow_flex", upper=1.4))
    assert "puts elbow_flex at 1.45 rad to rest" in refusal(verb, "--bundle", path)


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


def test_the_motor_process_keeps_the_bundles_tighter_limit(bench, tmp_path):
    """It is the motor process that holds limits: what a policy asks for beyond them is clipped there."""
    wanted = np.tile(START, (4, 1))
    wanted[:, JOINTS.index("wrist_flex")] = 1.25
    path = tiny_chunk_bundle(tmp_path, wanted)
    edit_manifest(path, joint("wrist_flex", upper=1.15))
    log = tmp_path / "run.mcap"
    done = harmowam(*drive(bench, path, "--log", log))
    assert done.exit_code == 0, done.output
    goals = np.array([r.goal_rad for r in read_log(log) if isinstance(r, JointState)])[:, JOINTS.index("wrist_flex")]
    assert 1.1 < goals.max() <= 1.15 + 1e-3
