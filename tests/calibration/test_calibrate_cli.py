"""`harmowam calibrate` on pictures: record and report out, and what the user can mend refused in one sentence."""

import json
import re

import numpy as np
import pytest

from calibration.hand_eye_job import finish_hand_eye
from calibration.store import Store, load_camera
from calibration.transforms import distance
from calibration.views import ArmNoise
from firmware_bridge.arms.so101 import FAMILY as so101
from harmowam.calibrate_hand_eye import next_of
from runtime.robot import SHIPPED, load_robot
from sim.calibration_rig import ArmBench
from tests.calibration.verbs import BOARD, calibrate


def test_from_pictures_to_a_camera_that_the_runtime_loads(pictures, tmp_path):
    store, out = tmp_path / "store", tmp_path / "out.json"
    options = ("--store", store, "--report", tmp_path / "r.html", "--board", BOARD)
    done = calibrate("intrinsics", "--images", pictures / "*.png", *options, "--json", out)
    assert done.exit_code == 0, done.output
    said = json.loads(out.read_text())
    assert {"K", "D", "model", "rms_px", "heldout_px", "crossval_px", "views_used", "views_rejected"} <= set(said)
    assert abs(said["K"][0][0] / 920 - 1) < 0.001
    page = (tmp_path / "r.html").read_text()
    assert "Accepted" in page and page.count("<svg") == 7 and "<script" not in page and "http" not in page
    rows = re.findall(r"<td>(\d\d\.png)</td><td>\d+ of \d+</td><td>([\d.]+)</td><td>([\d.]+)</td>", page)
    assert len(rows) == said["views_used"] and all(float(rms) <= float(most) for _, rms, most in rows)
    assert [rms for _, rms, _ in rows] == sorted((rms for _, rms, _ in rows), reverse=True)
    judged = re.findall(r"<th>([A-Za-z0-9, -]+)</th><td>[\d.]+ \(at most ([\d.]+)\)</td>", page)
    limit = round(1.5 * said["rms_px"] + 0.1, 3)
    assert {k: float(v) for k, v in judged} == {
        "residuals, RMS, px": 1.0,
        "held-out residuals, RMS, px": limit,
        "two halves differ, median, px": 0.3,
        "two halves differ, 90th percentile, px": 1.0,
    }
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


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("intrinsics", "--images", "/nowhere/*.png"), "no picture fits"),
        (("intrinsics", "--board", "charuco:1"), "is not understood"),
        (("intrinsics",), "show no board"),
        (("hand-eye", "--precision", "x"), "is not two numbers"),
        (("check",), "calibrate check --learn|show no board"),
        (("history",), "run `harmowam calibrate intrinsics --store .*`"),
        (("rollback", "front"), "no earlier"),
        (("board", "x.jpg"), "neither .pdf nor .png"),
        (("board", "x.pdf", "--board", "chessboard:9x6:25"), "give it in metres"),
        (("check", "--learn", "--marker", "chessboard:8x6:0.02"), "looks the same upside down"),
        (("joints",), "needs no joint calibration"),
        (("joints", "--check"), "needs no joint calibration"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(args, sentence, tmp_path):
    extra = () if args[0] == "board" else ("--store", tmp_path / "store")
    result = calibrate(*args, *extra)
    assert result.exit_code == 2, result.output
    assert re.search(sentence, result.stderr) and result.stderr.startswith("error: ")


@pytest.mark.parametrize("args", [("history",), ("intrinsics",), ("check",), ("check", "--learn")], ids=" ".join)
def test_on_the_simulated_robot_the_next_step_is_a_rehearsal(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = calibrate(*args)
    assert result.exit_code == 2 and "`harmowam rehearse`" in result.stderr
    assert "sim_so101.toml" not in result.stderr


ARM_FILE = (SHIPPED / "so101.toml").read_text()
MARKED = ARM_FILE.replace("[camera.front]", '[camera.front]\nmarker = "chessboard:6x5:0.015"')


@pytest.mark.parametrize(
    ("text", "camera", "mount", "next_step"),
    [
        (MARKED, "front", "base", "next: `harmowam calibrate check --camera front --learn`"),
        (ARM_FILE, "front", "base", "`harmowam calibrate check --camera front --learn --marker chessboard:6x5:0.015`"),
        (ARM_FILE, "wrist", "arm", "next: `harmowam doctor`"),
        (
            None,
            "front",
            "base",
            'the simulated robot\'s own runs do not use this calibration: .* \\(calibration = "sim"',
        ),
    ],
)
def test_after_hand_eye_a_marker_is_named_where_a_camera_can_look_at_one(text, camera, mount, next_step, tmp_path):
    file = tmp_path / "robot.toml"
    if text is not None:
        file.write_text(text)
    said = next_of(load_robot(str(file) if text is not None else "sim_so101"), camera, mount)
    assert re.search(next_step, said) and ("--learn" in said) == (text is not None and mount == "base")


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


def test_a_marker_that_would_not_be_looked_at_is_refused(tmp_path):
    for option in ("--marker", "--arm-marker"):
        result = calibrate("check", "--images", "x.png", option, "chessboard:6x5:0.015", "--store", tmp_path)
        assert result.exit_code == 2 and "are learnt: add --learn" in result.stderr


def test_nothing_is_calibrated_for_a_shipped_robot_file():
    done = calibrate("intrinsics", "--robot", "so101", "--images", "x.png")
    assert done.exit_code == 2 and "write your arm's own with `harmowam setup`" in done.stderr


def test_a_report_that_cannot_be_written_leaves_the_store_as_it_was(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    where = ("--store", tmp_path / "store", "--board", BOARD, "--report", tmp_path / "file" / "r.html")
    done = calibrate("intrinsics", "--images", pictures / "*.png", *where)
    assert done.exit_code == 2 and "cannot be written" in done.stderr and "untouched" in done.stderr
    assert not (tmp_path / "store").exists()
