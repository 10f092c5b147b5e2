"""Hand-eye by one AprilTag: four corners a picture, from files and with a moving arm, and the second pose that four
corners may have."""

import json

import cv2
import numpy as np
import pytest

from calibration import hand_eye
from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.store import Store, new_record
from calibration.transforms import distance, transform
from calibration.views import ArmView, View, board_pose, second_pose
from firmware_bridge.arms.so101 import FAMILY as so101
from harmowam.live_hand_eye import Rig, _first_guess
from runtime.robot import load_robot
from sim.boards import render
from sim.calibration_rig import ArmBench, webcam
from tests.calibration.verbs import calibrate
from tests.once import once

TAG = "apriltag:0.05:7"
CAMERA = webcam(None).scaled(640, 360)


def bench(mount="arm"):
    return ArmBench(mount, np.random.default_rng(3), camera=CAMERA, board=Board.parse(TAG))


def picture(b, q):
    return render(CAMERA, b.cam_from_board(so101.tool(q + b.offsets)), b.board, b.rng)


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    """Folder of 12 pictures and joints.json, a row for each."""

    def make(folder):
        b, rows = bench(), []
        for k, q in enumerate(b.poses(12)):
            cv2.imwrite(str(folder / f"{k}.png"), picture(b, q))
            rows.append({"picture": f"{k}.png", **dict(zip(so101.JOINTS[:-1], q.tolist(), strict=True))})
        (folder / "joints.json").write_text(json.dumps(rows))

    return once(tmp_path_factory, "tag-shots", make)


def test_pictures_of_one_tag_give_the_camera_s_place_to_millimetres(shots, tmp_path):
    store = Store(tmp_path / "store")
    seen = {"width": 640, "height": 360}
    record = new_record("camera", "wrist", CAMERA.to_json(), identity=seen, parents=[], uncertainty={}, evidence={})
    store.set_current("wrist", store.put(record), "test")
    files = ("--images", shots, "--poses", shots / "joints.json", "--report", tmp_path / "p.html")
    out = ("--store", store.root, "--json", tmp_path / "out.json")
    done = calibrate("hand-eye", "--camera", "wrist", "--mount", "arm", "--board", TAG, *files, *out)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "out.json").read_text())
    degrees, metres = distance(np.array(said["X"]), bench().X)
    assert metres < 0.004 and degrees < 0.5 and 1000 * metres < 3 * said["sd_mm"]
    assert said["poses_used"] >= 10


def test_a_moving_arm_with_a_tag_gets_a_first_guess_good_enough_to_plan_by():
    b = bench("base")
    b.offsets[:] = 0
    at = [b.poses(8)[0]]

    def move(q):
        at[0] = q
        return q

    robot = load_robot("so101", calibrated=False)
    rig = Rig(move, lambda: picture(b, at[0]), at[0])
    X, _ = _first_guess(rig, at[0], CAMERA, b.board, robot, "base")
    degrees, metres = distance(X, b.X)
    assert degrees < 5 and metres < 0.05


def small_tag(rng, noise=0.2):
    """View of a tag of 2 cm at half a metre or more, and where it is."""
    board = Board.parse("apriltag:0.02")
    T = transform(rng.uniform(-0.5, 0.5, 3), np.append(rng.uniform(-0.1, 0.1, 2), rng.uniform(0.5, 1.0)))
    uv = cv2.projectPoints(board.points(), cv2.Rodrigues(T[:3, :3])[0], T[:3, 3], CAMERA.K, CAMERA.D)[0][:, 0]
    return View("far", board.points(), uv + rng.normal(0, noise, uv.shape)), T


def test_a_tag_that_fits_two_poses_is_told_from_one_that_does_not():
    """A tag of 10 to 20 pixels: where the second pose fits clearly worse, the first one is right."""
    rng, theta = np.random.default_rng(0), bench().theta
    clear, unclear, flipped = 0, 0, 0
    for _ in range(60):
        view, T = small_tag(rng)
        wrong = distance(board_pose(view, theta, "rational"), T)[0] > 20
        if second_pose(view, theta, "rational", 0.2):
            unclear, flipped = unclear + 1, flipped + wrong
        else:
            clear += 1
            assert not wrong
    assert unclear > 20 and flipped > 5
    near, T = small_tag(rng, 0.0)
    board = Board.parse("apriltag:0.05")
    T[:3, 3] *= 0.4 / T[2, 3]
    uv = cv2.projectPoints(board.points(), cv2.Rodrigues(T[:3, :3])[0], T[:3, 3], CAMERA.K, CAMERA.D)[0][:, 0]
    assert second_pose(View("near", board.points(), uv), theta, "rational", 0.2) == 0


def test_views_with_two_poses_are_left_out_with_the_reason_and_too_many_of_them_end_in_what_to_do():
    b = bench()
    views = [b.view(f"pose-{k}", q) for k, q in enumerate(b.poses(10))]
    far, _ = small_tag(np.random.default_rng(4))
    assert second_pose(far, b.theta, "rational", 0.2)
    unclear = [ArmView(f"far-{k}", far.points, far.pixels, v.q) for k, v in enumerate(views)]
    line = ArmView("line", Board.parse("chessboard:9x6:0.02").points()[:5], np.arange(10.0).reshape(5, 2), views[0].q)
    done = hand_eye.solve("arm", [*views, unclear[0], line], b.theta, "rational", so101.tool, sigma=0.2)
    reasons = dict(done.rejected)
    assert "its corners fit two poses of the board, " in reasons["far-0"] and "degrees apart" in reasons["far-0"]
    assert reasons["line"] == "its corners do not tell the board's pose"
    with pytest.raises(CalibrationError, match=r"6 of 6 left out: its corners fit two poses .* tilt the board more"):
        hand_eye.solve("arm", [*views[:4], *unclear[:6]], b.theta, "rational", so101.tool, sigma=0.2)
