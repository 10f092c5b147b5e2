"""`harmowam calibrate` as a user meets it: pictures in, record and report out; refusals in one sentence; the check
before a run."""

import dataclasses
import itertools
import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from calibration import intrinsics
from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.guide import Guide
from calibration.hand_eye_job import finish_hand_eye
from calibration.intrinsics_job import find_views, run_intrinsics
from calibration.records import compare_records
from calibration.store import Store, load_camera, new_record
from calibration.transforms import distance
from calibration.views import ArmNoise
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.endings import Exit, exit_code
from firmware_bridge.motion.messages import SafetyState
from harmowam.calibration_rig import LiveRig, refuse_moved
from harmowam.capture_page import CapturePage
from harmowam.cli import main
from runtime.cameras.sources import open_camera
from runtime.robot import load_robot
from sim.boards import look_at_board, render
from sim.calibration_rig import ArmBench, webcam

BOARD = "charuco:11x8:0.030:0.022:4x4_50"
SHEET = Board.parse(BOARD)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for k in range(14):
        cv2.imwrite(
            str(folder / f"{k:02d}.png"), render(webcam(None), look_at_board(rng, SHEET, webcam(None)), SHEET, rng)
        )
    return folder


def calibrate(*args):
    return CliRunner().invoke(main, ["calibrate", *map(str, args)])


@pytest.fixture(scope="module")
def solved(pictures):
    """The views in the pictures, and the lens that they give; solved once."""
    named = [(p.name, cv2.imread(str(p), cv2.IMREAD_GRAYSCALE)) for p in sorted(pictures.iterdir())]
    views, size, _ = find_views(named, SHEET)
    return views, intrinsics.calibrate(views, size)


@pytest.fixture
def new_lens(solved, monkeypatch, tmp_path):
    """`run_intrinsics` on those pictures, as a function of store and mount."""
    views, done = solved
    monkeypatch.setattr(intrinsics, "calibrate", lambda *_: done)
    page = tmp_path / "i.html"
    return lambda store, mount: run_intrinsics(
        store, "front", views, (1280, 720), [], "rational", mount, BOARD, {}, page
    )


def test_from_pictures_to_a_camera_that_the_runtime_loads(pictures, tmp_path):
    store, out = tmp_path / "store", tmp_path / "out.json"
    options = ("--store", store, "--report", tmp_path / "r.html", "--board", BOARD)
    done = calibrate("intrinsics", "--images", pictures / "*.png", *options, "--json", out)
    assert done.exit_code == 0, done.output
    said = json.loads(out.read_text())
    assert {"K", "D", "model", "rms_px", "heldout_px", "crossval_px", "views_used", "views_rejected"} <= set(said)
    assert abs(said["K"][0][0] / 920 - 1) < 0.001
    page = (tmp_path / "r.html").read_text()
    assert "Accepted" in page and page.count("<svg") == 5 and "<script" not in page and "http" not in page
    # Fewer views of the same lens are no better: what is stored stays.
    first = Store(store).current_hash("front")
    again = calibrate("intrinsics", "--images", pictures / "0*.png", *options)
    assert again.exit_code == 1 and "refused" in again.output and Store(store).current_hash("front") == first
    # The pose makes it complete.
    rig = ArmBench("base", np.random.default_rng(0))
    views = [rig.view(str(k), q) for k, q in enumerate(rig.poses(15))]
    finish_hand_eye(
        Store(store),
        "front",
        Store(store).get("front"),
        views,
        "base",
        ArmNoise(),
        tmp_path / "h.html",
        False,
        "x",
        so101.tool,
    )
    camera = load_camera(store / "front")
    assert camera.T_base_from_cam is not None
    assert distance(camera.T_base_from_cam, rig.X)[1] < 0.01
    assert (tmp_path / "h.html").read_text().count("<svg") == 3
    listed = calibrate("history", "front", "--store", store)
    assert listed.exit_code == 0 and listed.output.count("front") == 2 and "pose_sd_mm" in listed.output
    assert "pose" not in calibrate("diff", "front", first[:10], "--store", store).output.split("projection")[0]
    assert (
        calibrate("rollback", "front", "--store", store).exit_code == 0 and Store(store).current_hash("front") == first
    )


def test_the_hand_eye_result_must_be_better_than_what_is_stored(tmp_path):
    store, rig = Store(tmp_path), ArmBench("base", np.random.default_rng(0))
    many = [rig.view(str(k), q) for k, q in enumerate(rig.poses(30))]
    old = new_record(
        "camera", "front", webcam(None).to_json(), identity={"mount": "base"}, parents=[], uncertainty={}, evidence={}
    )
    job = (ArmNoise(), tmp_path / "h.html", False, "x", so101.tool)
    first = finish_hand_eye(store, "front", old, many, "base", *job)
    second = finish_hand_eye(store, "front", store.get("front"), many[:12], "base", *job)
    assert first["accepted"] and not second["accepted"] and store.current_hash("front") == first["hash"]


def test_a_dry_run_of_a_lens_stores_nothing(solved, tmp_path):
    store, (views, done) = Store(tmp_path / "store"), solved
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(intrinsics, "calibrate", lambda *_: done)
        lens = run_intrinsics(
            store, "front", views, (1280, 720), [], "rational", "base", BOARD, {}, tmp_path / "i.html", dry_run=True
        )
    assert lens["accepted"] and lens["hash"] is None and not store.root.exists()


def test_a_dry_run_of_a_pose_stores_nothing(tmp_path):
    store = Store(tmp_path / "store")
    rig = ArmBench("base", np.random.default_rng(0))
    seen = [rig.view(str(k), q) for k, q in enumerate(rig.poses(15))]
    old = new_record(
        "camera", "front", webcam(None).to_json(), identity={"mount": "base"}, parents=[], uncertainty={}, evidence={}
    )
    job = (ArmNoise(), tmp_path / "h.html", True, "x", so101.tool)
    pose = finish_hand_eye(store, "front", old, seen, "base", *job)
    assert pose["accepted"] and pose["hash"] is None and not store.root.exists()


def store_pose(store, mount, pose, fx=1.0, sd_mm=0.5):
    """A camera in use whose pose is known to `sd_mm`; its lens is `fx` times as long sideways as the true one."""
    true = webcam(pose if mount == "base" else None)
    camera = dataclasses.replace(true, K=true.K * [[fx, 1, 1], [1, 1, 1], [1, 1, 1]])
    result = camera.to_json() | ({"T_tool_from_cam": pose.tolist()} if mount == "arm" else {})
    quality = {"pose_sd_mm": sd_mm, "pose_sd_deg": 0.05, "halves_mm": 0.4, "halves_deg": 0.04, "halves_sigma": 1.0}
    record = new_record(
        "camera",
        "front",
        result,
        identity={"width": 1280, "height": 720, "mount": mount},
        parents=[],
        uncertainty={"heldout_px": 0.3, **quality},
        evidence={},
    )
    store.set_current("front", store.put(record), "test")
    return quality


@pytest.mark.parametrize(("mount", "key"), [("base", "T_base_from_cam"), ("arm", "T_tool_from_cam")])
def test_a_new_lens_that_agrees_keeps_the_pose_and_how_exactly_it_was_known(mount, key, new_lens, tmp_path):
    store, rig = Store(tmp_path / "store"), ArmBench(mount, np.random.default_rng(0))
    known = store_pose(store, mount, rig.X, fx=1.001)
    lens = new_lens(store, None)
    assert lens["accepted"] and not any("next:" in line for line in lens["said"])
    new = store.get("front")
    assert new["hash"] == lens["hash"] and new["result"][key] == rig.X.tolist()
    assert known.items() <= new["uncertainty"].items() and new["uncertainty"]["heldout_px"] < 0.3
    # So a hand-eye calibration that knows less does not replace it.
    seen = [rig.view(str(k), q) for k, q in enumerate(rig.poses(12))]
    job = (ArmNoise(), tmp_path / "h.html", False, "x", so101.tool)
    worse = finish_hand_eye(store, "front", new, seen, mount, *job)
    assert worse["sd_mm"] > known["pose_sd_mm"] and worse["refused"] == [
        "it fits these views as well, and was known more exactly"
    ]
    assert store.current_hash("front") == lens["hash"]


@pytest.mark.parametrize(
    ("before", "fx", "mount"), [("base", 1.02, "base"), ("arm", 1.02, "arm"), ("base", 1.001, "arm")]
)
def test_a_pose_that_no_longer_holds_is_dropped_and_hand_eye_named_next(before, fx, mount, new_lens, tmp_path):
    """Another lens, or a camera that was put elsewhere."""
    store = Store(tmp_path / "store")
    store_pose(store, before, ArmBench(before, np.random.default_rng(0)).X, fx)
    lens = new_lens(store, mount)
    assert lens["accepted"] and f"next: harmowam calibrate hand-eye --camera front --mount {mount}" in lens["said"]
    new = store.get("front")
    assert new["result"]["T_base_from_cam"] is None and "T_tool_from_cam" not in new["result"]
    assert not any(k.startswith(("pose_sd_", "halves_")) for k in new["uncertainty"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("intrinsics", "--images", "/nowhere/*.png"), "no picture fits"),
        (("intrinsics", "--board", "charuco:1"), "is not understood"),
        (("intrinsics",), "show no board"),
        (("hand-eye", "--precision", "x"), "is not two numbers"),
        (("check",), "calibrate check --learn|show no board"),
        (("history",), "run `harmowam calibrate intrinsics`"),
        (("rollback", "front"), "no earlier"),
        (("board", "x.jpg"), "neither .pdf nor .png"),
        (("joints",), "needs no joint calibration"),
        (("joints", "--check"), "needs no joint calibration"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(args, sentence, tmp_path):
    import re

    extra = () if args[0] == "board" else ("--store", tmp_path / "store")
    result = calibrate(*args, *extra)
    assert result.exit_code == 2, result.output
    assert re.search(sentence, result.stderr) and result.stderr.startswith("error: ")


def test_pictures_of_which_none_can_be_read_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    mine = ("--images", tmp_path / "*.png", "--store", tmp_path / "store")
    for args in (
        ("intrinsics", *mine),
        ("check", *mine),
        ("check", *mine, "--learn", "--marker", "chessboard:6x5:0.015"),
    ):
        result = calibrate(*args)
        assert result.exit_code == 2 and result.stderr.startswith("error: no picture"), result.output
        assert "can be read: give PNG or JPEG files" in result.stderr


@pytest.mark.parametrize("args", [("hand-eye", "--seed", -1), ("intrinsics", "--page", 70000)])
def test_a_number_out_of_range_is_named_with_its_option(args, tmp_path):
    result = calibrate(*args, "--store", tmp_path / "store")
    assert result.exit_code == 2 and f"Invalid value for '{args[1]}'" in result.stderr


def test_a_page_whose_port_is_taken_is_refused_in_one_sentence(bench, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ("--robot", bench.robot_file, "--store", tmp_path / "store")
        result = calibrate("intrinsics", *options, "--page", port)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    assert f"port {port}" in result.stderr and "give another --page, or 0 for none" in result.stderr


def test_a_run_is_refused_when_the_marker_is_not_where_it_was(bench):
    """The robot file names a marker; the bench's cameras show a bar instead."""
    from calibration.check import Reference

    store = Store(bench.folder / "calibration")
    for name in ("front", "wrist"):
        r = json.loads((bench.folder / f"{name}.json").read_text())
        mount = "base" if name == "front" else "arm"
        record = new_record(
            "camera",
            name,
            r,
            identity={"width": 320, "height": 240, "mount": mount},
            parents=[],
            uncertainty={},
            evidence={},
        )
        store.set_current(name, store.put(record), "test")
    text = bench.robot_file.read_text().replace(
        'calibration = "front.json"', 'calibration = "calibration/front"\nmarker = "chessboard:6x5:0.015"'
    )
    bench.robot_file.write_text(text)
    robot = load_robot(str(bench.robot_file))
    cameras = {"front": open_camera(robot.cameras["front"], bench.folder)}
    with pytest.raises(CalibrationError, match="no calibration"):
        refuse_moved(robot, cameras, print)
    seen = Reference("chessboard:6x5:0.015", 320, 240, np.arange(30), np.full((30, 2), 100.0), 0.02)
    parents = [store.current_hash("front") or ""]
    reference = new_record(
        "reference", "front.reference", seen.to_json(), identity={}, parents=parents, uncertainty={}, evidence={}
    )
    store.set_current("front.reference", store.put(reference), "test")
    with pytest.raises(CalibrationError, match=r"must not be used.*hidden"):
        refuse_moved(robot, cameras, print)
    for c in cameras.values():
        c.close()


def test_the_arm_is_driven_through_guard_and_motor_process_and_put_down(bench, tmp_path):
    robot = load_robot(str(bench.robot_file))
    with LiveRig(robot, tmp_path / "slots") as rig:
        start = rig.state().q_rad[:-1].astype(float)
        goal = start + np.array([0.2, 0.1, 0, -0.1, 0.2])
        assert not any(bench.torque())  # limp until it is asked
        rig.arm()
        assert np.abs(rig.move_to(goal, velocity=1.5) - goal).max() < 0.02
        time.sleep(
            robot.arm.stop_after_s + 0.4
        )  # looking for a board may take longer than the motor process waits for a command
        assert rig.state().safety == SafetyState.ACTIVE
        assert all(bench.torque())
    assert not any(bench.torque())


def test_a_motor_process_that_dies_is_noticed_while_calibrating_and_the_guards_words_are_shown(bench, tmp_path, capfd):
    with LiveRig(load_robot(str(bench.robot_file)), tmp_path / "slots") as rig:
        rig.arm()
        keeper = rig.session.keeper.pid
        (motor,) = [int(p) for p in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
        os.kill(motor, signal.SIGKILL)
        with pytest.raises(CalibrationError, match="the motor process is silent: check the adapter"):
            rig.move_to(rig.state().q_rad[:-1] + 0.3, velocity=0.1)
    said = capfd.readouterr().err
    assert "guard: motor process died (signal 9): holding" in said and "error: the arm lost its motor process" in said
    assert exit_code(Exit.REFUSED) == Exit.GUARD
    assert not any(bench.torque())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_calibration_that_is_told_to_end_puts_the_arm_down(bench, tmp_path, number):
    with pytest.raises(KeyboardInterrupt), LiveRig(load_robot(str(bench.robot_file)), tmp_path / "slots") as rig:
        rig.arm()
        signal.raise_signal(number)
    assert rig.session.close().code == Exit.REST and not any(bench.torque())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("joints", "--import-lerobot", "a", "--export-lerobot", "b"),
            "--import-lerobot means nothing with --export-lerobot",
        ),
        (("joints", "--check", "--import-lerobot", "a"), "--check means nothing with --import-lerobot"),
        (("intrinsics", "--images", "x.png", "--views", 9), "--views means nothing with --images"),
        (("hand-eye", "--port", "/dev/ttyACM0"), "--port means nothing with a simulated robot"),
        (("check", "--learn", "--images", "x.png", "--arm-marker", "chessboard:6x5:0.015"), "are learnt together"),
        (("check", "--learn", "--images", "x.png", "--report", "r.html"), "--report means nothing with --learn"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(args, said, tmp_path):
    done = calibrate(*args, "--store", tmp_path)
    assert done.exit_code == 2 and said in done.stderr, done.output


def test_a_shipped_robot_file_is_to_be_copied_before_anything_is_calibrated_for_it():
    done = calibrate("intrinsics", "--robot", "so101", "--images", "x.png")
    assert done.exit_code == 2 and "copy it first (`mkdir my_arm && cp" in done.stderr


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("resolution", "for width 1280, this camera has 320"),
        ("camera", "for camera A1, this camera has B2"),
        ("focus", "for focus 30, this camera has 31"),
        ("autofocus", "focuses by itself.*focus_automatic_continuous=0"),
        ("name", "has no camera 'side': give one of front, wrist"),
        ("pictures", "gives 320x240, the robot file says 640x480"),
        ("board", "did not see the board .board not found.: hold the arm so that it does"),
    ],
)
def test_hand_eye_refuses_another_camera_than_the_lens_was_calibrated_with_or_an_unseen_board_before_the_arm_stiffens(
    bench, case, sentence, monkeypatch, tmp_path
):
    import re

    from harmowam import calibration_rig

    name = "side" if case == "name" else "front"
    if case == "pictures":
        bench.robot_file.write_text(
            bench.robot_file.read_text().replace("width = 320", "width = 640").replace("height = 240", "height = 480")
        )
    size = {"resolution": (1280, 720), "pictures": (640, 480)}.get(case, (320, 240))
    store = Store(tmp_path / "store")
    record = new_record(
        "camera",
        name,
        webcam(None).scaled(*size).to_json(),
        identity={"width": size[0], "height": size[1], "serial": "A1", "focus": 30, "mount": "base"},
        parents=[],
        uncertainty={},
        evidence={},
    )
    store.set_current(name, store.put(record), "test")
    monkeypatch.setattr(calibration_rig, "serial", lambda source: "B2" if case == "camera" else "A1")
    focus = {"focus": 31, "autofocus": "auto"}.get(case, 30)
    monkeypatch.setattr(calibration_rig, "focus", lambda source: focus)
    monkeypatch.setattr("harmowam.live_hand_eye.SEEK_S", 0.3)
    stood = bench.servos.plant.position.copy()
    result = calibrate("hand-eye", "--robot", bench.robot_file, "--camera", name, "--store", store.root)
    assert result.exit_code == 2 and re.search(sentence, result.stderr), result.output
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: ") and len(before) == (case == "board")  # by then it has said what to do
    assert (bench.servos.plant.position == stood).all() and not any(bench.torque())


def test_guided_capture_keeps_what_helps_and_says_what_to_do():
    rng, guide = np.random.default_rng(2), Guide(SHEET, wanted=6)
    camera = webcam(None)
    blank = np.full((720, 1280), 90, np.uint8)
    assert guide.add(blank) == "board not found"
    T = look_at_board(rng, SHEET, camera)
    sharp = render(camera, T, SHEET, rng)
    assert "moving" in guide.add(sharp) and guide.add(sharp) == "kept"
    assert "like one" in guide.add(sharp)
    assert guide.add(cv2.GaussianBlur(sharp, (0, 0), 4)).startswith(("blurred", "too few", "board"))
    for _ in range(4):
        image = render(camera, look_at_board(rng, SHEET, camera), SHEET, rng)
        guide.add(image)
        guide.add(image)
    assert len(guide.views) == 5 and guide.coverage.any() and not guide.done
    assert guide.next_step().startswith(("tilt", "move", "close-ups"))
    page = CapturePage(0)
    page.show(image, guide, "kept")
    with urllib.request.urlopen(page.address + "status") as got:
        assert json.load(got)["kept"] == 5
    with urllib.request.urlopen(page.address + "picture") as got:
        assert cv2.imdecode(np.frombuffer(got.read(), np.uint8), 1).shape == (540, 960, 3)
    page.close()


def test_parallax_of_the_homography_is_nothing_on_the_table_and_grows_with_height():
    from calibration.camera import parallax
    from sim.calibration_rig import look_at

    target = np.array([0.2, 0, 0.0])
    a, b = (webcam(look_at(np.array(eye), target)) for eye in ([0.62, 0.0, 0.45], [0.62, 0.03, 0.45]))
    assert parallax(a, b, 0.0) < 1e-9 and parallax(a, a) == 0.0
    assert 0.002 < parallax(a, b, 0.05) < 0.006 and parallax(a, b, 0.05) > 1.5 * parallax(a, b, 0.025)


def test_a_camera_on_the_arm_keeps_its_place_and_tells_how_far_it_sits_from_training(tmp_path):
    """Through the store and the training geometry; one that does not know its place is not called moved."""
    from calibration.camera import Camera, moved_mount, policy_camera
    from calibration.store import load_camera

    store, X = Store(tmp_path / "store"), ArmBench("arm", np.random.default_rng(0)).X
    store_pose(store, "arm", X)
    here = load_camera(tmp_path / "store" / "front")
    trained = Camera.from_json(policy_camera(here).to_json())
    assert trained.T_tool_from_cam is not None and np.allclose(trained.T_tool_from_cam, X)
    assert moved_mount(here, trained) == pytest.approx((0, 0), abs=1e-6)
    turned = np.eye(4)
    turned[:3, :3] = cv2.Rodrigues(np.array([0.0, 0.1, 0.0]))[0]
    turned[:3, 3] = 0.003, 0.0, 0.004
    elsewhere = dataclasses.replace(here, T_tool_from_cam=X @ turned)
    assert moved_mount(elsewhere, trained) == pytest.approx((0.005, 0.1), abs=1e-6)
    assert moved_mount(elsewhere, dataclasses.replace(trained, T_tool_from_cam=None)) == (0.0, 0.0)


def test_how_far_a_camera_on_the_arm_has_moved_stands_in_the_difference(tmp_path):
    store, X = Store(tmp_path / "store"), ArmBench("arm", np.random.default_rng(0)).X
    store_pose(store, "arm", X)
    before, moved = store.get("front"), np.eye(4)
    moved[2, 3] = 0.004
    store_pose(store, "arm", X @ moved)
    found = compare_records(before, store.get("front"))
    assert found["pose_mm"] == pytest.approx(4) and found["pose_deg"] == pytest.approx(0, abs=1e-4)


def test_a_marker_that_would_not_be_looked_at_is_refused(tmp_path):
    for option in ("--marker", "--arm-marker"):
        result = calibrate("check", "--images", "x.png", option, "chessboard:6x5:0.015", "--store", tmp_path)
        assert result.exit_code == 2 and "are learnt: add --learn" in result.stderr


def test_joints_are_calibrated_by_moving_the_limp_arm(bench, tmp_path, monkeypatch):
    """A hand moves the virtual servos from stop to stop once it is told to; the result is compared with their
    EEPROM."""
    import os
    import sys

    from calibration import joints
    from harmowam import calibration_joints

    read, write = os.pipe()
    typed = os.fdopen(read)
    monkeypatch.setattr(sys, "stdin", typed)
    plant, look = bench.servos.plant, joints.reported_steps
    told: list[str] = []
    shares = iter([*np.linspace(0, 1, 12), *np.linspace(1, 0, 12)])

    def moved_by_hand(arm):
        """One step of the hand before every look at the joints: a machine that is late misses no end of the range."""
        if any("move every joint" in text for text in told):
            share = next(shares, None)
            if share is None:
                os.write(write, b"\n")
            else:
                plant.position[:] = 900 + 2300 * share
        return look(arm)

    monkeypatch.setattr(joints, "reported_steps", moved_by_hand)
    plant.position[:] = 2048
    robot, store, page = load_robot(str(bench.robot_file)), Store(tmp_path / "store"), tmp_path / "joints.html"
    done = calibration_joints.guided(robot, store, robot.port, page, print, told.append, poll_s=0.005, sign_check=False)
    typed.close()
    os.close(write)
    assert all(
        abs(j["zero_step"] - zero) < 3 and j["range_min"] < 950 and j["range_max"] > 3150
        for j, zero in zip(done["joints"], [2048] * 5 + [2048 + 114], strict=True)
    )
    assert "shoulder_pan" in page.read_text() and "<svg" in page.read_text()
    assert calibration_joints.compare_eeprom(robot, store, robot.port)["differs"] == []
    bench.servos.put(2, "homing_offset", 55)
    assert "servo 2" in calibration_joints.compare_eeprom(robot, store, robot.port)["said"]
    bench.servos.put(4, "torque_enable", 1)
    with pytest.raises(CalibrationError, match="energised"):
        calibration_joints.guided(robot, store, robot.port, page, print, print)
    # The robot file may name it.
    bench.robot_file.write_text(
        bench.robot_file.read_text().replace("[arm]", f'[arm]\ncalibration = "{store.root}/joints"')
    )
    measured = load_robot(str(bench.robot_file))
    assert measured.joints_measured and measured.arm.zero_step == tuple(j["zero_step"] for j in done["joints"])
    # Naming one that is still to be made stops whoever would drive with it, and nobody who makes it.
    calibration_joints.export_lerobot(store, tmp_path / "lerobot.json")
    bench.robot_file.write_text(bench.robot_file.read_text().replace(str(store.root), str(tmp_path / "fresh")))
    with pytest.raises(CalibrationError, match="run `harmowam calibrate joints`"):
        load_robot(str(bench.robot_file))
    options = ["--robot", str(bench.robot_file), "--store", str(tmp_path / "fresh"), "--report", str(page)]
    made = CliRunner().invoke(
        main, ["calibrate", "joints", *options, "--import-lerobot", str(tmp_path / "lerobot.json")]
    )
    assert made.exit_code == 0 and load_robot(str(bench.robot_file)).joints_measured


def test_only_what_moves_the_arm_waits_for_the_joint_calibration_that_the_robot_file_names(bench, tmp_path):
    bench.robot_file.write_text(
        bench.robot_file.read_text().replace("[arm]", '[arm]\ncalibration = "calibration/joints"')
    )
    options = ("--robot", bench.robot_file, "--store", tmp_path / "store", "--report", tmp_path / "r.html")
    moves = calibrate("hand-eye", *options)
    assert moves.exit_code == 2 and "run `harmowam calibrate joints`" in moves.stderr
    for looks in ("intrinsics", "check"):
        assert "no picture fits" in calibrate(looks, *options, "--images", tmp_path / "*.png").stderr


def test_a_report_that_cannot_be_written_leaves_the_store_as_it_was(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    where = ("--store", tmp_path / "store", "--board", BOARD, "--report", tmp_path / "file" / "r.html")
    done = calibrate("intrinsics", "--images", pictures / "*.png", *where)
    assert done.exit_code == 2 and "cannot be written" in done.stderr and "untouched" in done.stderr
    assert not (tmp_path / "store").exists()


def test_the_cameras_focus_is_part_of_its_identity(monkeypatch, tmp_path):
    import fcntl
    import os

    from runtime.cameras import v4l2 as cameras

    controls = {cameras.FOCUS_ABSOLUTE: 30, cameras.FOCUS_AUTO: 1}

    def ioctl(device, request, packed):
        assert request == cameras.VIDIOC_G_CTRL
        number = cameras.CONTROL.unpack(packed)[0]
        if number not in controls:
            raise OSError(22, "Invalid argument")
        return cameras.CONTROL.pack(number, controls[number])

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "open", lambda path, flags: 99)
    monkeypatch.setattr(os, "close", lambda device: None)
    assert cameras.focus("/dev/video7") == "auto"
    controls[cameras.FOCUS_AUTO] = 0
    assert cameras.focus("7") == 30
    controls.clear()
    assert cameras.focus("/dev/video7") is None and cameras.focus("slot:x") is None and cameras.focus("sim") is None


def test_a_camera_that_changes_its_resolution_while_capturing_is_refused(tmp_path):
    from harmowam.capture_page import capture
    from runtime.cameras.frames import FrameWriter
    from runtime.cameras.sources import CameraSource
    from runtime.robot import CameraConfig

    writer, stop = FrameWriter(tmp_path / "slot", 256, 192), threading.Event()
    camera = CameraSource(CameraConfig("front", f"slot:{writer.path}", 128, 96, 30.0, "x"), writer.path)

    def write():
        for k in itertools.count():
            writer.write(k, np.zeros((96, 128, 3) if k % 2 else (192, 256, 3), np.uint8))
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(CalibrationError, match=r"changed from (128x96 to 256x192|256x192 to 128x96)"):
            capture(camera, SHEET, 50, 0, lambda line: None)
    finally:
        stop.set()
        thread.join()
