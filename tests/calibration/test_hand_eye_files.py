"""`harmowam calibrate hand-eye --images FOLDER --poses FILE`: pictures and arm poses that somebody else recorded."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.camera import CalibrationError
from calibration.pose_file import MATRIX, read_poses, tool_pose
from calibration.store import Store, new_record
from calibration.transforms import distance, inverse, log
from firmware_bridge.arms.so101 import FAMILY as so101
from sim.boards import render
from sim.calibration_rig import ArmBench, webcam
from tests.calibration.verbs import calibrate
from tests.once import once

ARM = so101.JOINTS[:-1]
CAMERA = webcam(None).scaled(640, 360)
PLACE = ["x", "y", "z", "qx", "qy", "qz", "qw"]


def bench():
    """A camera on an arm whose joint zeros are off, and a board on the table."""
    return ArmBench("arm", np.random.default_rng(3), camera=CAMERA)


def quaternion(T):
    """x y z w of the rotation in T."""
    r = log(T)[:3]
    angle = np.linalg.norm(r)
    return [*(np.sin(angle / 2) * r / angle), np.cos(angle / 2)]


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    """Folder of 10 pictures, joints.json with the joint angles at each, and poses.json with the tool's true poses."""

    def make(folder):
        b, angles, poses = bench(), {}, {}
        for k, q in enumerate(b.poses(10)):
            tool = so101.tool(q + b.offsets)
            cv2.imwrite(str(folder / f"{k}.png"), render(CAMERA, b.cam_from_board(tool), b.board, b.rng))
            angles[f"{k}.png"], poses[f"{k}.png"] = q.tolist(), tool.tolist()
        (folder / "joints.json").write_text(json.dumps(angles))
        (folder / "poses.json").write_text(json.dumps(poses))

    return once(tmp_path_factory, "arm-shots", make)


def joint_rows(shots):
    read = json.loads((shots / "joints.json").read_text())
    return [{"picture": name, **dict(zip(ARM, q, strict=True))} for name, q in read.items()]


def tool_poses(shots):
    return {name: np.array(T) for name, T in json.loads((shots / "poses.json").read_text()).items()}


def pose_rows(poses):
    return [
        {"picture": name, **dict(zip(PLACE, [*T[:3, 3], *quaternion(T)], strict=True))} for name, T in poses.items()
    ]


def write(path, rows):
    """The rows as CSV or JSON, by the path's ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with open(path, "w", newline="") as f:
            table = csv.DictWriter(f, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
    return path


@dataclass(frozen=True)
class Verb:
    store: Store
    shots: Path
    out: Path
    page: Path

    def __call__(self, table, *more, images=None):
        where = ("--store", self.store.root, "--report", self.page, "--json", self.out)
        what = ("--camera", "wrist", "--mount", "arm", "--images", images or self.shots, "--poses", table)
        return calibrate("hand-eye", *what, *where, *more)


@pytest.fixture
def hand_eye(shots, tmp_path):
    """The verb on the pictures and a table; the store holds the camera's lens."""
    store = Store(tmp_path / "store")
    seen = {"width": 640, "height": 360}
    record = new_record("camera", "wrist", CAMERA.to_json(), identity=seen, parents=[], uncertainty={}, evidence={})
    store.set_current("wrist", store.put(record), "test")

    return Verb(store, shots, tmp_path / "out.json", tmp_path / "page.html")


def test_joint_angles_give_the_camera_s_place_in_spite_of_joint_zeros_that_are_off(hand_eye, shots, tmp_path):
    rows = [{**row, "gripper": 0.3} for row in joint_rows(shots)]
    done = hand_eye(write(tmp_path / "table.csv", rows))
    assert done.exit_code == 0 and "stored as" in done.output, done.output
    record = hand_eye.store.get("wrist")
    degrees, metres = distance(np.array(record["result"]["T_tool_from_cam"]), bench().X)
    said = json.loads(hand_eye.out.read_text())
    assert metres < 0.004 and degrees < 0.5 and 1000 * metres < 3 * said["sd_mm"]
    assert said["poses_used"] == 10 and len(said["joint_offsets_deg"]) == len(ARM)
    assert record["evidence"]["views"][0]["q"] == list(joint_rows(shots)[0].values())[1:]
    named = re.findall(r"<th>offset of (\w+), degrees</th>", hand_eye.page.read_text())
    assert named == list(so101.JOINTS[:5])


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_tool_s_poses_give_it_without_a_word_on_joints(ending, hand_eye, shots, tmp_path):
    done = hand_eye(write(tmp_path / f"table.{ending}", pose_rows(tool_poses(shots))), "--precision", "0.1,0.3")
    assert done.exit_code == 0, done.output
    record = hand_eye.store.get("wrist")
    degrees, metres = distance(np.array(record["result"]["T_tool_from_cam"]), bench().X)
    assert metres < 0.0005 and degrees < 0.1
    assert json.loads(hand_eye.out.read_text())["joint_offsets_deg"] == []
    assert "offset of" not in hand_eye.page.read_text()
    held = np.array(record["evidence"]["views"][0]["T_base_from_tool"])
    assert np.allclose(held, tool_poses(shots)["0.png"], atol=1e-9)


def test_the_report_lists_each_pose_with_the_arm_s_error_there_and_each_limit(hand_eye, shots, tmp_path):
    said = hand_eye(write(tmp_path / "table.csv", joint_rows(shots)))
    assert said.exit_code == 0, said.output
    page = hand_eye.page.read_text()
    rows = re.findall(r"<td>(\d\.png)</td><td>(\d+)</td>" + r"<td>([\d.]+)</td>" * 3, page)
    assert [name for name, *_ in rows] == [f"{k}.png" for k in range(10)]
    corners, pixels, mm, degrees = np.array([row[1:] for row in rows], float).T
    overall = re.search(r"<td>([\d.]+) mm, ([\d.]+) degrees \(chi2 a degree of freedom [\d.]+, at most 16\)", page)
    assert corners.min() >= 6 and pixels.max() < 1
    assert abs(np.sqrt((mm**2).mean()) - float(overall[1])) < 0.1
    assert abs(np.sqrt((degrees**2).mean()) - float(overall[2])) < 0.01
    assert "standard deviations, at most 4)" in page and "10 used (at least 8)" in page


def test_three_ways_to_write_a_pose_are_read_as_the_same_pose(shots, tmp_path):
    poses = tool_poses(shots)
    matrices = [{"picture": name, "T_base_from_tool": T.tolist()} for name, T in poses.items()]
    cells = [{"picture": name, **dict(zip(MATRIX, T.ravel(), strict=True))} for name, T in poses.items()]
    negative = [{k: -v if k[0] == "q" else v for k, v in row.items()} for row in pose_rows(poses)]
    for name, rows in (("m.json", matrices), ("m.csv", cells), ("q.csv", pose_rows(poses)), ("n.csv", negative)):
        read = read_poses(write(tmp_path / name, rows), so101.JOINTS)
        assert read.of_tool and read.pictures == tuple(poses)
        assert np.allclose([tool_pose(q) for q in read.q], list(poses.values()), atol=1e-9), name


def test_poses_that_are_inverted_and_poses_of_another_arm_are_told_apart(hand_eye, shots, tmp_path):
    poses = tool_poses(shots)
    table = write(tmp_path / "i.csv", pose_rows({name: inverse(T) for name, T in poses.items()}))
    done = hand_eye(table)
    assert done.exit_code == 2 and "agree with each pose inverted" in done.stderr, done.output
    table = write(tmp_path / "o.csv", pose_rows(dict(zip(poses, reversed(poses.values()), strict=True))))
    done = hand_eye(table)
    assert done.exit_code == 2 and "do not belong together" in done.stderr, done.output


def changed(rows, k, **values):
    return [{**row, **values} if at == k else row for at, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: [{**row, "sholder_pan": 0.1} for row in r], "a column 'sholder_pan', where picture, shoulder_pan"),
        (lambda r: [{k: v for k, v in row.items() if k != "wrist_roll"} for row in r], "no column 'wrist_roll'"),
        (lambda r: [{"picture": "0.png", "tx": 1.0}], "the columns of no pose: beside picture shoulder_pan"),
        (lambda r: changed(r, 2, wrist_roll="nan"), "'2.png' has no number in column 'wrist_roll'"),
        (lambda r: changed(r, 2, wrist_roll=90.0), "'2.png' has a joint angle of 90.0 rad, more than a turn"),
        (lambda r: changed(r, 2, picture="1.png"), "picture '1.png' has two rows"),
        (lambda r: changed(r, 2, picture=""), "row 3 names no picture"),
    ],
)
def test_a_table_of_joint_angles_that_is_wrong_is_refused_with_the_place(change, says, shots, tmp_path):
    with pytest.raises(CalibrationError, match=says) as e:
        read_poses(write(tmp_path / "table.csv", change(joint_rows(shots))), so101.JOINTS)
    assert str(e.value).endswith(": correct it.")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"qw": 3.0}, r"'1.png' has a quaternion of length 3\.\d+, where 1 is needed"),
        ({"x": 250.0}, "a tool 250 m from the base, more than 10 m"),
        ({"shoulder_pan": 0.0}, "a column 'shoulder_pan', where picture, x, y, z, qx"),
    ],
)
def test_a_pose_that_is_none_is_refused_with_its_picture(values, says, shots, tmp_path):
    table = write(tmp_path / "table.json", changed(pose_rows(tool_poses(shots)), 1, **values))
    with pytest.raises(CalibrationError, match=says):
        read_poses(table, so101.JOINTS)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", "it has no rows"),
        ("a.json", "{}", "it is not a list of objects"),
        ("a.json", '[{"picture": "0.png", "T_base_from_tool": [1, 2]}]', "not 4 rows of 4 numbers"),
        ("a.csv", "picture," + ",".join(MATRIX) + "\n0.png" + ",2" * 16, "has no pose: a rotation and a place"),
        (
            "a.csv",
            "picture," + ",".join(PLACE) + "\n0.png,0,0,0,0,0,0,1,9",
            "row 1 has more cells than the first line has columns",
        ),
    ],
)
def test_a_file_that_is_no_table_is_refused(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CalibrationError, match=says):
        read_poses(tmp_path / name, so101.JOINTS)


def test_what_does_not_fit_together_is_one_sentence_and_leaves_the_store_as_it_was(hand_eye, shots, tmp_path):
    rows = joint_rows(shots)
    before = hand_eye.store.current_hash("wrist")
    table = write(tmp_path / "table.csv", rows)
    (tmp_path / "0.png").write_text("no picture")
    (tmp_path / "small").mkdir()
    cv2.imwrite(str(tmp_path / "small" / "0.png"), np.zeros((180, 320), np.uint8))
    few = write(tmp_path / "few.csv", rows[:5])
    tools = write(tmp_path / "tools.csv", pose_rows(tool_poses(shots)))
    for done, says in (
        (hand_eye(table, images=tmp_path / "nowhere"), "0.png does not exist: correct its name in the table"),
        (hand_eye(table, images=tmp_path), "0.png cannot be read: give a PNG or JPEG file"),
        (hand_eye(table, images=tmp_path / "small"), "is for width 640, this camera has 320"),
        (hand_eye(few), "usable arm poses, at least 8 are needed"),
        (hand_eye(15), "15 does not exist: name the file of the arm's poses with --poses"),
        (hand_eye(table, "--seed", 1), "--seed means nothing with --images"),
        (hand_eye(tools, "--offsets", 1), "--offsets means nothing with poses of the tool"),
        (calibrate("hand-eye", "--poses", table), "add --images FOLDER for a file of poses"),
    ):
        assert done.exit_code == 2 and says in done.stderr, done.output
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
            done.stderr.splitlines()[-1]
        ]
    assert hand_eye.store.current_hash("wrist") == before
