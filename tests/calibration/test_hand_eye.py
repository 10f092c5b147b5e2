"""Hand-eye calibration with the errors of a real SO-101, and everything that must be refused."""

import numpy as np
import pytest

from calibration import hand_eye, pose_planning
from calibration.camera import CalibrationError
from calibration.hand_eye_fit import Setup, adjust
from calibration.transforms import distance, inverse, log, transform
from calibration.views import ArmNoise, ArmView
from firmware_bridge.arms.so101 import FAMILY as so101
from sim.calibration_rig import ArmBench, ServoRig


def shots(bench, count=15):
    return [bench.view(f"pose-{k}", q) for k, q in enumerate(bench.poses(count))]


def solve(bench, views, **kw):
    return hand_eye.calibrate(bench.mount, views, bench.theta, "rational", so101.tool, sigma=0.1, **kw)


@pytest.mark.parametrize("mount", ["base", "arm"])
def test_a_cheap_arm_gives_millimetres_and_says_how_many(mount):
    rows: list[list[float]] = []
    for seed in range(4):
        bench = ArmBench(mount, np.random.default_rng(seed))
        done, _ = solve(bench, shots(bench))
        degrees, metres = distance(done.X, bench.X)
        error = log(inverse(done.X) @ bench.X)
        rows.append([1000 * metres, degrees, float(error @ np.linalg.solve(done.covariance, error)) / 6])
    mm, degrees, nees = np.median(rows, axis=0)
    assert mm < 2.5 and degrees < 0.5 and 0.3 < nees < 2.0


def test_a_perfect_arm_gives_the_exact_pose():
    bench = ArmBench("base", np.random.default_rng(0), ArmNoise(1e-9, 1e-12, 0.0), corner_noise=0.0)
    done, _ = solve(bench, shots(bench), noise=ArmNoise(0.1, 0.0005, 0.0))
    degrees, metres = distance(done.X, bench.X)
    assert degrees < 1e-3 and metres < 1e-5


def test_the_simulated_arm_drives_through_safety_to_each_pose():
    bench = ArmBench("base", np.random.default_rng(3))
    rig = ServoRig(bench, 3)
    for q in bench.poses(8)[:2]:
        said = rig.move_to(q)
        assert np.abs(said - q).max() < 0.05
        assert np.abs(rig.world.q[:5] - bench.offsets - said).max() < 0.01
        assert len(bench.board.detect(rig.picture()).ids) >= 6
    rig.world.close()


@pytest.mark.parametrize("mount", ["base", "arm"])
@pytest.mark.parametrize("turned", [(0,), (1,), (2,), (3,), (4,), (0, 4)])
def test_a_joint_that_turns_the_other_way_is_named(mount, turned):
    """(0, 4): shoulder_pan and wrist_roll together, as a robot file of mirrored angles has them."""
    bench = ArmBench(mount, np.random.default_rng(2))
    sign = np.ones(5)
    sign[list(turned)] = -1
    views = [ArmView(v.name, v.points, v.pixels, v.q * sign) for v in shots(bench)]
    names = ", ".join(so101.JOINTS[k] for k in turned)
    with pytest.raises(CalibrationError, match=f"^{names} turned the other way than the angle says"):
        solve(bench, views, joints=so101.JOINTS)


def test_planar_motion_and_too_few_poses_are_refused():
    bench = ArmBench("base", np.random.default_rng(1))
    q = bench.poses(8)[0]
    turned = [bench.view(f"{k}", q + np.array([0.03 * k, 0, 0, 0, 0])) for k in range(10)]
    with pytest.raises(CalibrationError, match="one axis only"):
        solve(bench, turned)
    with pytest.raises(CalibrationError, match="only 5 usable arm poses"):
        solve(bench, shots(bench, 8)[:5])


def test_a_wrong_square_size_is_found():
    bench = ArmBench("base", np.random.default_rng(2))
    wrong = [ArmView(v.name, v.points * 1.1, v.pixels, v.q) for v in shots(bench)]
    with pytest.raises(CalibrationError, match=r"0\.9.. times as large|do not belong together"):
        solve(bench, wrong)


@pytest.mark.parametrize(
    ("mount", "focal", "says"),
    [
        ("arm", 1.03, r"0\.9\d\d times as large as described, or .* measure a square with a ruler and correct"),
        ("base", 0.9, "arm contradicts the pictures"),
        ("arm", 0.5, "do not belong together"),
    ],
)
def test_a_focal_length_that_is_not_the_stored_one_is_named_with_focus_and_resolution(mount, focal, says):
    """Another focus or another resolution than at the lens calibration; the board's size and the arm are right."""
    bench = ArmBench(mount, np.random.default_rng(2))
    views = shots(bench)
    bench.theta = bench.theta * [focal, focal, *[1] * (len(bench.theta) - 2)]
    mend = "focus and resolution are those at which its lens was calibrated .*`harmowam calibrate intrinsics` again"
    with pytest.raises(CalibrationError, match=f"{says}.*{mend}"):
        solve(bench, views)


def test_a_view_whose_board_would_be_behind_the_camera_is_left_out_by_name():
    """By half of the focal length, the others put the board of three views there, where it has no pixels."""
    bench = ArmBench("base", np.random.default_rng(7))
    views = shots(bench)
    theta = bench.theta * [0.5, 0.5, *[1] * (len(bench.theta) - 2)]
    done = hand_eye.solve("base", views, theta, "rational", so101.tool, sigma=0.1)
    behind = "contradicts the others: by them its board is behind the camera"
    assert done.rejected == tuple((f"pose-{k}", behind) for k in (3, 7, 10))
    bench.theta = theta
    with pytest.raises(CalibrationError, match="contradicts the pictures"):
        solve(bench, views)


def test_an_adjustment_does_not_start_with_a_board_behind_the_camera():
    bench = ArmBench("base", np.random.default_rng(5))
    views, round_about = shots(bench, 8), transform(np.array([0, np.pi, 0]), np.zeros(3))
    setup = Setup("base", bench.theta, "rational", so101.tool, ArmNoise(), 0.1)
    with pytest.raises(CalibrationError, match=r"board behind the camera in pose-0, pose-1, .*: leave that out"):
        adjust(setup, views, bench.X @ round_about, bench.Z, free_scale=False)


def test_one_moved_picture_is_left_out_and_a_moved_board_refused():
    bench = ArmBench("base", np.random.default_rng(4))
    views = shots(bench)
    Z = bench.Z
    bench.Z = Z @ transform(np.array([0, 0, 0.5]), np.array([0.02, 0.02, 0]))
    moved = [bench.view(v.name, v.q) for v in views]
    done, _ = solve(bench, [*views[:7], moved[7], *views[8:]])
    without, _ = solve(bench, [*views[:7], *views[8:]])
    assert [n for n, _ in done.rejected] == ["pose-7"] and distance(done.X, without.X)[1] < 1e-4
    with pytest.raises(CalibrationError, match=r"do not belong together|disagree|moved|contradicts"):
        solve(bench, [*views[:8], *moved[8:]])


def test_two_halves_that_disagree_by_more_than_the_arm_explains_are_refused(monkeypatch):
    bench = ArmBench("base", np.random.default_rng(4))
    views, half, moved = shots(bench), hand_eye._half, iter((0.0, 0.05))

    def second_is_elsewhere(*arguments):
        X, spread = half(*arguments)
        return X @ transform(np.zeros(3), np.array([0, 0, next(moved)])), spread

    monkeypatch.setattr(hand_eye, "_half", second_is_elsewhere)
    with pytest.raises(CalibrationError, match=r"two halves of the poses disagree by [45]\d\.. mm .*nothing moved"):
        solve(bench, views)


def test_proposed_poses_keep_their_distance_from_limits_and_table():
    bench = ArmBench("base", np.random.default_rng(5))

    poses = bench.poses(15)
    assert (poses > so101.LOWER[:5] + 0.05).all() and (poses < so101.UPPER[:5] - 0.05).all()
    assert min(so101.tool(q)[2, 3] for q in poses) > 0.09
    assert hand_eye.rotation_spread([so101.tool(q) for q in poses])[1] > hand_eye.MIN_ROTATION
    with pytest.raises(CalibrationError, match="safe arm poses"):
        pose_planning.propose(bench.rng, so101.tool, so101.LOWER[:5], so101.UPPER[:5], lambda q: False, tries=200)


@pytest.mark.parametrize("seed", [2, 4])
def test_proposed_poses_turn_about_a_second_axis_by_more_than_is_needed(seed):
    """Some of them will show no board."""
    poses = ArmBench("arm", np.random.default_rng([seed, 2])).poses(8)
    assert hand_eye.rotation_spread([so101.tool(q) for q in poses])[1] > 1.3 * hand_eye.MIN_ROTATION


def test_poses_that_can_turn_about_one_axis_only_are_refused_before_the_arm_moves():
    lower, upper = so101.LOWER[:5].copy(), so101.UPPER[:5].copy()
    lower[[0, 4]], upper[[0, 4]] = -0.01, 0.01  # pan and roll are blocked
    with pytest.raises(CalibrationError, match=r"turn about one axis only .* place the board where"):
        pose_planning.propose(np.random.default_rng(0), so101.tool, lower, upper, lambda q: True, 8, tries=1000)
