"""Calibration files that are well written JSON and still hold what no camera, servo or store has; and what is no JSON
at all."""

import json
from typing import Any

import numpy as np
import pytest

from calibration.camera import CalibrationError, Camera
from calibration.check import Reference
from calibration.joints import JointCalibration
from calibration.joints_lerobot import from_lerobot
from calibration.store import Store, content_hash, load_camera, new_record
from tests.firmware_bridge.so101 import KNOWN as CONFIG

POSE = np.array([[0, 0.73991, -0.67271, 0.5], [1, 0, 0, 0], [0, -0.67271, -0.73991, 0.36], [0, 0, 0, 1]])  # rounded
FAR = POSE.copy()
FAR[0, 3] = np.inf
K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
WHOLE = Camera("front", 320, 240, K, np.zeros(5), POSE).to_json()


def record(**changes):
    identity = {"width": 320, "height": 240, "mount": "base"}
    made = new_record("camera", "front", WHOLE, identity=identity, parents=[], uncertainty={}, evidence={})
    return {**made, **changes}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "calibration")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        *(
            ({key: pose.tolist()}, rf"'{key}\[0\]\[[03]\]' must be a number from -10 to 10, not {value}")
            for key in ("T_base_from_cam", "T_tool_from_cam")
            for pose, value in ((POSE * np.nan, "NaN"), (FAR, "Infinity"))
        ),
        ({"T_base_from_cam": [1, 2, 3]}, "'T_base_from_cam' must be a pose: 4 rows of 4 numbers"),
        ({"width": 0}, "'width' must be a whole number from 8 to 16384, not 0"),
        ({"width": 10**6}, "'width' must be a whole number from 8 to 16384, not 1000000"),
        ({"height": -5}, "'height' must be a whole number from 8 to 16384, not -5"),
        ({"D": [0.0] * 100}, "'D' must be a list of 0 to 8"),
        ({"D": [np.nan] * 5}, r"'D\[0\]' must be a number"),
        ({"K": [[300, 0, np.nan], [0, 300, 120], [0, 0, 1]]}, r"'K\[0\]\[2\]' must be a number"),
        ({"K": [[300, 0, 160], [0, 300], [0, 0, 1]]}, r"'K\[1\]' must be a list of 3"),
        ({"name": "a\nb"}, "'name' must be text in one line"),
        ({"T_base": None}, "'T_base' is no key that is known here"),
        ({"schema": -1}, "'schema' must be a whole number from 0 to 1"),
    ],
)
def test_numbers_that_no_camera_has_are_refused_by_name(spoil, what):
    with pytest.raises(
        CalibrationError, match=rf"^front.json is not a camera calibration .{what}.*: calibrate the camera"
    ):
        Camera.from_json({**WHOLE, **spoil}, "front.json")


DEEP = '{"schema": 1, "name": ' + "[" * 100_000


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (DEEP, "nested more than 32 deep"),
        ('{"width": 1, "width": 2}', "'width' is given twice"),
        ('{"width": 1' + "0" * 400 + "}", "'width' is a whole number of more than 64 bits"),
        ('{"width": NaN}', "'width' must be a finite number, not nan"),
        ('{"name": "\\ud800"}', "'name' is no text"),
        ('{"' + "n" * 300 + '": 1}', "is longer than 255 characters"),
        (" " * 2_000_000, "it is larger than 1024 KiB"),
        ("\xff", "it is no JSON"),
    ],
    ids=["deep", "twice", "400-digits", "nan", "surrogate", "name", "large", "bytes"],
)
def test_a_camera_file_that_no_program_can_work_with_is_refused(tmp_path, text, what):
    (tmp_path / "front.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CalibrationError, match=rf"front\.json is damaged .*{what}.*: restore it or calibrate"):
        load_camera(tmp_path / "front.json")


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "\ud800"])
def test_a_camera_file_of_an_impossible_name_is_refused(tmp_path, name):
    with pytest.raises(CalibrationError, match=r"cannot be read .*check the path in the robot file"):
        load_camera(tmp_path / name)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"kind": "lens"}, "'kind' must be camera or joints or reference, not 'lens'"),
        ({"identity": {"colour": "red"}}, "'identity.colour' is no key that is known here"),
        ({"identity": {"width": 10**9}}, "'identity.width' must be a whole number from 8 to 16384"),
        ({"parents": "none"}, "'parents' must be a list of 0 to 16"),
        ({"result": None}, "'result' must be a table"),
        ({"evidence": {"q": float("nan")}}, "not JSON compliant"),
        ({"more": 1}, "'more' is no key that is known here"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_record_that_could_not_be_read_is_not_stored(store, spoil, what):
    store.set_current("front", store.put(record()), "test")
    with pytest.raises(
        CalibrationError, match=rf"cannot be stored .*{what}.*the stored one is untouched; calibrate again"
    ):
        store.put(record(**spoil))
    assert len(store.history("front")) == 1


def written(store, text):
    """A record as another program would leave it: in use, and with a hash that fits where it can have one."""
    folder = store.root / "front"
    folder.mkdir(parents=True)
    digest = "0" * 64
    if text != DEEP:
        digest = content_hash(json.loads(text))
        text = json.dumps({**json.loads(text), "hash": digest})
    (folder / f"{digest}.json").write_text(text)
    (folder / "current").write_text(digest)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (DEEP, "nested more than 32 deep"),
        (json.dumps(record(kind=None)), "'kind' must be camera or joints or reference, not null"),
        (json.dumps(record(uncertainty=[1])), "'uncertainty' must be a table"),
        (json.dumps({k: v for k, v in record().items() if k != "created"}), "'created' is missing"),
        (json.dumps(record(schema=0)), "'schema' must be a whole number from 1 to 1, not 0"),
        (json.dumps(record(name="x" * 300)), "'name' must be a name of at most 64 letters"),
    ],
    ids=["deep", "kind", "uncertainty", "created", "schema", "name"],
)
def test_a_record_of_another_shape_is_refused_and_listed_as_such(store, text, what):
    written(store, text)
    with pytest.raises(CalibrationError, match=rf"{what}.*run `harmowam calibrate rollback front`"):
        load_camera(store.root / "front")
    assert what in store.history("front")[0]["error"]


def test_a_log_line_nested_without_end_is_passed_over(store):
    digest = store.put(record())
    store.set_current("front", digest, "test")
    with open(store.root / "front" / "log.jsonl", "a") as f:
        f.write("[" * 100_000 + "\n")
    assert [m["to"] for m in store.moves("front")] == [digest]


JOINTS: dict[str, Any] = {
    "angles": "maker",
    "joints": [
        {"name": n, "id": i, "zero_step": 2048, "direction": 1, "range_min": 800, "range_max": 3290, "homing_offset": 0}
        for n, i in zip(CONFIG.joints, CONFIG.ids, strict=True)
    ],
}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"zero_step": 100_000}, r"'joints\[2\]': 'zero_step' must be a whole number from 0 to 4095, not 100000"),
        ({"zero_step": 2048.5}, r"'joints\[2\].zero_step' must be a whole number"),
        ({"zero_step": True}, r"'joints\[2\].zero_step' must be a whole number .* not true"),
        ({"direction": 0}, r"'joints\[2\].direction' must be 1 or -1, not 0"),
        ({"homing_offset": 9000}, r"'joints\[2\]': 'homing_offset' must be a whole number from -2047 to 2047"),
        ({"range_max": 5000}, r"'joints\[2\]': 'range_max' must be a whole number from 0 to 4095"),
        ({"id": 300}, r"'joints\[2\].id' must be a whole number from 0 to 252"),
        ({"zero": 1}, r"'joints\[2\].zero' is no key that is known here"),
    ],
)
def test_steps_that_no_servo_has_are_refused_by_name(spoil, what):
    rows = [{**j, **(spoil if k == 2 else {})} for k, j in enumerate(JOINTS["joints"])]
    with pytest.raises(
        CalibrationError, match=rf"^arm is damaged .{what}.*: restore it or run `harmowam calibrate joints`"
    ):
        JointCalibration.from_json({**JOINTS, "joints": rows}, "arm")


def test_a_joint_calibration_comes_back_as_it_went_out():
    assert JointCalibration.from_json(JOINTS).to_json() == JOINTS


@pytest.mark.parametrize("data", [7, None, [], {"angles": "maker"}, {"angles": "maker", "joints": []}])
def test_what_is_no_joint_calibration_is_refused(data):
    with pytest.raises(CalibrationError, match=r"^arm is damaged .*: restore it"):
        JointCalibration.from_json(data, "arm")


def test_a_lerobot_file_without_end_is_refused(tmp_path):
    for text in ("[" * 100_000, " " * 1_000_000, '{"a": 1, "a": 2}'):
        (tmp_path / "arm.json").write_text(text)
        with pytest.raises(
            CalibrationError, match=r"is no LeRobot calibration .*: give the JSON that lerobot-calibrate wrote"
        ):
            from_lerobot(tmp_path / "arm.json", CONFIG)


REFERENCE = {"board": "b", "width": 320, "height": 240, "ids": [0, 1], "corners": [[1.5, 2], [3, 4]], "noise": 0.05}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"noise": float("nan")}, "'noise' must be a number from 0 to 1000, not NaN"),
        ({"noise": -1}, "'noise' must be a number from 0 to 1000, not -1"),
        ({"corners": [[1, 2]]}, "'ids' and 'corners' must be equally many"),
        ({"corners": [[1, 2], [1e9, 2]]}, r"'corners\[1\]\[0\]' must be a number"),
        ({"ids": [0, 10**9]}, r"'ids\[1\]' must be a whole number"),
        ({"arm_ids": [1]}, "'arm_ids' and 'arm_corners' must be equally many"),
        ({"width": 10**6}, "'width' must be a whole number from 8 to 16384"),
    ],
)
def test_a_drift_reference_that_no_camera_gave_is_refused(spoil, what):
    assert Reference.from_json(REFERENCE).to_json() == REFERENCE
    with pytest.raises(CalibrationError, match=rf"{what}.*: run `harmowam calibrate check --learn`"):
        Reference.from_json({**REFERENCE, **spoil})
