"""Recordings of other people are read as they lie, or say everything that stands against it at once."""

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from calibration.camera import Camera
from export.lerobot import DataError, finish, write_part
from export.lerobot.layout import POINTER
from export.recordings import How, examine, read
from export.recordings.clock import linear, nearest, times_at
from firmware_bridge.arms.koch import FAMILY as koch
from firmware_bridge.arms.so101 import FAMILY as so101
from tests.dataset import CAMERAS, FPS, edit_json, episode
from tests.recordings import (
    OLD,
    POSITIONS,
    Spec,
    edit_rows,
    encode,
    films,
    kinds,
    like,
    said,
    shown,
    smooth,
    truth,
    write,
)

PLAIN = Spec()
DATA_2, DATA_3 = "data/chunk-000/episode_000000.parquet", "data/chunk-000/file-000.parquet"
FILM_2 = "videos/chunk-000/observation.images.front/episode_000000.mp4"
FILM_3 = "videos/observation.images.front/chunk-000/file-000.mp4"


def shape(*numbers: int | None) -> Any:
    return {"features.observation.images.cam.shape": list(numbers) if numbers[0] else None}


# The headers of 18 public recordings: versions, rates, arms, names, cameras, sizes, codecs
SMALL, TWO = (64, 48, "h264"), {"top": (64, 48, "av1"), "wrist": (64, 48, "av1")}
FOUR = dict.fromkeys(("Camera_01", "external", "head", "wrist"), (32, 32, "h264"))
MOTORS = [f"motor_{k}" for k in range(1, 7)]
LONG: dict[str, Any] = {"told": "rad", "lengths": (20,)}
HEADERS: dict[str, Spec] = {
    "early, without features": Spec("v2.0", 30, "so100", OLD, {"laptop": SMALL}, info={"features": "absent"}),
    "v2.0, main_ names, av1": Spec("v2.0", 30, "so100", OLD, {"laptop": (64, 48, "av1"), "phone": (48, 64, "av1")}),
    "v2.0, koch, motors by number, mp4v": Spec("v2.0", 30, "koch", MOTORS, {"webcam": (64, 48, "mpeg4")}),
    "v2.1 written as 2.1, pictures": Spec("2.1", 10, "so101", None, {"image0": (64, 48, "png")}),
    "v2.1, names in a dict, square": Spec("v2.1", 15, "so101_follower", {"motors": OLD}, {"side": (50, 50, "h264")}),
    "v2.1, names as lists in a list": Spec("v2.1", 5, "so100_follower", [OLD], {"top": (96, 54, "h264")}),
    "v3, two cameras, av1, normalised": Spec("v3.0", 30, "so101_follower", cameras=TWO, told="normalised"),
    "v3, so_follower, four cameras": Spec("v3.0", 30, "so_follower", cameras=FOUR),
    "v3, portrait": Spec("v3.0", 30, "so101_follower", cameras={"phone": (54, 96, "h264")}),
    "v3, rad": Spec("v3.0", 15, "so101_follower", cameras={"external": (512, 256, "h264")}, **LONG),
    "v3, pictures in the table": Spec("v3.0", 10, "so101_follower", cameras={"top": (64, 48, "png")}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_public_recordings_are_read(case, tmp_path):
    spec = HEADERS[case]
    folder = write(tmp_path / "set", spec)
    front = next(iter(spec.cameras))
    found = examine(folder, How(cameras={"front": front}))
    assert found.accepted, [str(p) for p in found.problems]
    assert found.units.joints == spec.told and len(found.takes) == len(spec.lengths) and found.fps == spec.fps
    stored = found.cameras[front]
    assert (stored.width, stored.height, stored.codec) == spec.cameras[front]
    data, after = read(found, 20.0, workers=1)
    assert after is found and data.fps == 20.0 and data.tasks == [spec.tasks[n % 2] for n in range(len(spec.lengths))]
    arm = koch if spec.robot == "koch" else so101
    for n, (rows, true) in enumerate(zip(spec.lengths, truth(spec))):
        mine = data.episode == n
        t = np.arange(rows) / spec.fps
        at = times_at(t, 20.0)
        expected = linear(t, true, at)
        expected[:, :-1] += arm.middle[:-1]
        assert np.allclose(data.state[mine][:, :-1], expected[:, :-1], atol=2e-5)
        assert data.arm is arm and mine.sum() == len(at)
        numbers = shown(data.images["front"][mine])
        assert np.array_equal(numbers, nearest(t, at))


@pytest.mark.parametrize("written", [[3, 48, 64], None, [48, 64]])
def test_what_a_header_says_of_a_cameras_size_is_not_needed(copy, written):
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.images.front"]["shape"] = written
    (copy / "meta/info.json").write_text(json.dumps(info))
    found = examine(copy)
    assert found.accepted and (found.cameras["front"].width, found.cameras["front"].height) == (64, 48)


def test_an_episode_whose_film_is_short_is_left_out_by_name(copy, copy_3):
    encode(copy / FILM_2, films(PLAIN, "front", 0, 44), 30, "h264")
    pictures = [p for n in (0, 1) for p in films(PLAIN, "front", n, PLAIN.lengths[n])][:-1]
    encode(copy_3 / FILM_3, pictures, 30, "h264")
    for folder, lost in ((copy, 0), (copy_3, 1)):
        found = examine(folder)
        assert found.accepted and f"episode {lost}: the video of camera 'front' lacks 1 of its" in said(
            found, "pictures"
        )
        data = read(found, 20.0)[0]
        assert data.tasks == [PLAIN.tasks[1 - lost]]


def test_an_episode_whose_pictures_do_not_decode_is_left_out(copy):
    raw = bytearray((copy / FILM_2).read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 400] = bytes(400)
    (copy / FILM_2).write_bytes(raw)
    data, found = read(examine(copy), 20.0)
    assert data.tasks in ([PLAIN.tasks[1]], list(PLAIN.tasks))
    assert len(data.tasks) == 2 or "cannot be decoded" in said(found, "pictures")


def test_a_pointer_of_git_lfs_is_named(copy):
    for path in copy.rglob("*.mp4"):
        path.write_bytes(POINTER + b"v1\noid sha256:0\nsize 1\n")
    found = examine(copy)
    assert not found.accepted and "git lfs pull" in said(found, "lfs")


def test_two_tasks_in_an_episode_become_two(copy):
    edit_rows(copy / DATA_2, "task_index", lambda rows: [0] * 20 + [1] * 25)
    found = examine(copy)
    assert "has 2 instructions one after the other" in said(found, "tasks")
    data = read(found, 30.0)[0]
    assert data.tasks == [PLAIN.tasks[0], PLAIN.tasks[1], PLAIN.tasks[1]]
    assert [int((data.episode == n).sum()) for n in range(3)] == [20, 25, 40]


def test_one_table_of_several_is_damaged_and_costs_its_episode(copy):
    (copy / DATA_2).write_bytes(b"PAR1 no table")
    found = examine(copy)
    assert found.accepted and [t.number for t in found.takes] == [1]


def test_a_number_that_is_none_costs_its_episode(copy_3):
    edit_rows(copy_3 / DATA_3, "action", lambda rows: [[float("nan")] * 6, *rows[1:]])
    found = examine(copy_3)
    assert found.accepted and "'action' in row 0 is not a number" in said(found, "rows")


def test_cameras_are_mapped_or_asked_for_with_the_line_to_type(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, cameras={"side": (32, 32, "h264"), "top": (32, 32, "h264")}))
    found = examine(folder)
    assert not found.accepted and "--camera front=side --camera wrist=top" in said(found, "cameras")
    assert examine(folder, How(cameras={"front": "top", "wrist": "side"})).views == {"front": "top", "wrist": "side"}
    assert "the recording's cameras side, top" in said(examine(folder, How(cameras={"front": "tip"})), "cameras")


def test_a_camera_that_is_no_view_costs_no_episode(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, cameras={"front": (32, 32, "h264"), "side": (32, 32, "h264")}))
    next(folder.rglob("*side/episode_000001.mp4")).unlink()
    found = examine(folder)
    assert len(found.takes) == 2 and set(found.cameras) == {"front"}
    assert "camera 'side', which is no view of the policy, is left aside" in said(found, "cameras")
    assert len(examine(folder, How(cameras={"wrist": "side"})).takes) == 1


def test_a_view_that_is_missing_and_a_camera_without_calibration_say_what_they_cost(plain):
    found = examine(plain)
    assert "there is no wrist view: ACT looks through the front camera alone" in said(found, "cameras")
    assert "our model cannot be trained" in said(found, "calibration") and found.accepted
    K = np.array([[70.0, 0, 31.5], [0, 70, 23.5], [0, 0, 1]])
    known = examine(plain, How(calibration={"front": Camera("front", 64, 48, K, np.zeros(0))}))
    assert "calibration" not in kinds(known) and read(known, 20.0)[0].uncalibrated == ()
    wrong = examine(plain, How(calibration={"front": Camera("front", 640, 480, K, np.zeros(0))}))
    assert "stored 64x48 and its calibration is for 640x480" in said(wrong, "calibration") and not wrong.accepted


BI = [f"{side}_{n}.pos" for side in ("left", "right") for n in POSITIONS]


@pytest.mark.parametrize(
    ("robot", "names"), [("bi_so100", BI), ("unitree_g1", ["a", "b"]), (None, ["x", "y", "z", "gripper"])]
)
def test_other_arms_are_refused_in_one_sentence(copy, robot, names):
    info = json.loads((copy / "meta/info.json").read_text())
    for key in ("action", "observation.state"):
        info["features"][key] |= {"names": names, "shape": [len(names)]}
    (copy / "meta/info.json").write_text(json.dumps(info | {"robot_type": robot}))
    found = examine(copy)
    assert not found.accepted and kinds(found, fatal=True).count("arm") == 1
    assert "this tool drives one koch, so101, viperx" in said(found, "arm")


def test_an_unknown_robot_with_known_joints_is_taken_and_said(copy):
    edit_json(copy / "meta/info.json", robot_type="my_arm")
    found = examine(copy)
    assert found.accepted and "names no arm that is known here: a so101 is believed" in said(found, "arm")
    assert examine(copy, How(arm=koch)).arm is koch


def test_everything_is_found_at_once(copy):
    edit_json(copy / "meta/info.json", fps=20)
    smooth(copy)
    (copy / FILM_2).unlink()
    edit_rows(copy / "data/chunk-000/episode_000001.parquet", "task_index", lambda rows: [0] * 20 + [1] * 20)
    found = examine(copy)
    assert {"rate", "video", "tasks", "units", "cameras", "calibration"} <= set(kinds(found))
    with pytest.raises(DataError, match=r"cannot be used: the joints reach .*`harmowam data check .*` shows all") as e:
        read(found, 20.0)
    assert "\n" not in str(e.value)


def test_episodes_may_be_left_out_by_number(plain):
    found = examine(plain, How(leave_out=(0, 7)))
    assert [t.number for t in found.takes] == [1] and "there is no episode 7" in said(found, "left out")


@pytest.mark.parametrize("version", ["v1.6", None, "v4.0"])
def test_other_versions_are_refused(copy, version):
    edit_json(copy / "meta/info.json", codebase_version=version)
    found = examine(copy)
    assert not found.accepted and "v2.0, v2.1 and v3 are read" in said(found, "version")


def test_our_own_datasets_are_examined_too(tmp_path):
    e = episode(0, 23)
    calm = [dataclasses.replace(e, state=0.1 * e.state, action=0.1 * e.action)]
    write_part(tmp_path, 0, calm, FPS, so101.JOINTS)
    finish(tmp_path, FPS, "so101_follower", so101.JOINTS, CAMERAS)
    found = examine(tmp_path)
    assert found.accepted and found.units.joints == "rad" and found.arm is so101
    assert "calibration" not in kinds(found) and found.views == {"front": "front", "wrist": "wrist"}
    assert "says rad, asked for are degrees" in said(examine(tmp_path, How(units="degrees")), "units")


def test_the_record_is_json_and_frozen(plain):
    found = examine(plain)
    told = json.loads(json.dumps(found.to_json()))
    assert told["version"] == "v2.1" and told["episodes"] == 2 and told["rows"] == 85 and told["accepted"]
    assert told["cameras"] == {"front": {"width": 64, "height": 48, "codec": "h264"}}
    assert set(told["problems"][0]) == {"kind", "episode", "detail", "fix"}
    with pytest.raises(AttributeError):
        setattr(found, "fps", 20.0)  # noqa: B010


def test_a_table_with_the_wrong_number_of_rows_costs_its_episode(copy):
    pq.write_table(pq.read_table(copy / DATA_2).slice(0, 30), copy / DATA_2)
    assert "has 30 rows of it where its list says 45" in said(examine(copy), "rows")
