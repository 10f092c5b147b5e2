"""The store never loses a calibration: immutable records, one atomic pointer, refusals by name."""

import errno
import json
import os

import numpy as np
import pytest

from benchmarks.fuzz_calibration import fuzz, made
from calibration.camera import CalibrationError, Camera
from calibration.store import Store, content_hash, load_camera, new_record, refuse_other_camera

K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])


def record(fx=300.0, parents=(), pose=None, **identity):
    k = K.copy()
    k[0, 0] = fx
    return new_record(
        "camera",
        "front",
        Camera("front", 320, 240, k, np.zeros(5), pose).to_json(),
        identity={"width": 320, "height": 240, "mount": "base", **identity},
        parents=list(parents),
        uncertainty={"heldout_px": 0.1},
        evidence={},
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "calibration")


def use(store, r):
    digest = store.put(r)
    store.set_current("front", digest, "test")
    return digest


def test_a_record_is_named_by_its_content_and_cannot_be_written_to(store):
    digest = use(store, record())
    path = store.root / "front" / f"{digest}.json"
    assert digest == content_hash(json.loads(path.read_text())) and not path.stat().st_mode & 0o222
    assert store.get("front")["result"]["K"][0][0] == 300.0


def test_rollback_goes_back_in_time_and_not_in_circles(store):
    a, b, c = (use(store, record(fx)) for fx in (300.0, 301.0, 302.0))
    assert store.rollback("front") == b
    assert store.rollback("front") == a
    with pytest.raises(CalibrationError, match="no earlier"):
        store.rollback("front")
    assert store.rollback("front", c[:8]) == c
    assert [r["hash"] for r in store.history("front") if r["current"]] == [c]


def test_rollback_passes_over_a_damaged_record(store):
    a, b, _ = (use(store, record(fx)) for fx in (300.0, 301.0, 302.0))
    path = store.root / "front" / f"{b}.json"
    path.chmod(0o644)
    path.write_text(path.read_text()[:100])
    assert store.rollback("front") == a


def test_a_power_cut_in_the_middle_of_a_log_line_costs_that_line_only(store):
    a = use(store, record(300.0))
    log = store.root / "front" / "log.jsonl"
    with open(log, "a") as f:
        f.write('{"at": "2026-01-01T00:00:00+00:00", "to": "3f')
    b = use(store, record(301.0))
    assert [m["to"] for m in store.moves("front")] == [a, b] and log.read_text().endswith("}\n")
    assert store.rollback("front") == a


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe\x00", b"7", b"[]", b'{"to": 7}', b'{"at": "2026"}', b"null", b'{"to": "a", "from": [], "why": ""}'],
)
def test_a_damaged_line_of_the_log_is_passed_over(store, line):
    a = use(store, record(300.0))
    with open(store.root / "front" / "log.jsonl", "ab") as f:
        f.write(line + b"\n")
    b = use(store, record(301.0))
    assert [m["to"] for m in store.moves("front")] == [a, b] and store.rollback("front") == a


DAMAGED_POINTERS = [b"\xff\xfe\x00", b"", b"\n", b"3f9a", b"0" * 63 + b"\n", b"\x00" * 65, b"../../x"]


@pytest.mark.parametrize("pointer", DAMAGED_POINTERS)
def test_a_damaged_pointer_is_mended_by_what_its_refusal_advises(store, pointer):
    """The records are whole: rollback puts back the one that was in use, and only then goes further back."""
    a, b = (use(store, record(fx)) for fx in (300.0, 301.0))
    (store.root / "front" / "current").write_bytes(pointer)
    with pytest.raises(CalibrationError, match=r"pointer .* is damaged .*run `harmowam calibrate rollback front`"):
        store.get("front")
    rows = store.history("front")
    assert {r["hash"] for r in rows} == {a, b} and not any(r["current"] or r["error"] for r in rows)
    assert store.rollback("front") == b == store.current_hash("front")
    assert store.rollback("front") == a


def test_behind_a_damaged_pointer_a_damaged_record_is_passed_over(store):
    a, b = (use(store, record(fx)) for fx in (300.0, 301.0))
    path = store.root / "front" / f"{b}.json"
    path.chmod(0o644)
    path.write_text("{")
    (store.root / "front" / "current").write_bytes(b"")
    assert store.rollback("front") == a


def test_a_pointer_that_is_lost_or_names_what_never_was_in_use_is_mended_too(store):
    a = use(store, record(300.0))
    pointer = store.root / "front" / "current"
    pointer.unlink()
    assert store.rollback("front") == a
    pointer.write_text("0" * 64 + "\n")
    assert store.rollback("front") == a


def test_a_new_calibration_or_a_named_one_mends_a_damaged_pointer(store):
    a = use(store, record(300.0))
    pointer = store.root / "front" / "current"
    pointer.write_bytes(b"\xff")
    assert use(store, record(301.0)) == store.current_hash("front") and store.moves("front")[-1]["from"] is None
    pointer.write_bytes(b"\xff")
    assert store.rollback("front", a[:8]) == a == store.current_hash("front")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda t: t[: len(t) // 2], "missing or damaged"),
        (lambda t: t.replace("300.0", "310.0"), "hash does not fit"),
        (lambda t: t.replace('"schema": 1,\n "uncertainty"', '"schema": 2,\n "uncertainty"'), "upgrade harmowam"),
        (lambda t: "[]", "no calibration record"),
    ],
)
def test_what_is_damaged_or_newer_is_refused(store, damage, sentence):
    digest = use(store, record())
    path = store.root / "front" / f"{digest}.json"
    path.chmod(0o644)
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(CalibrationError, match=sentence):
        store.get("front")
    assert store.history("front")[0]["error"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_stored_calibration_in_use(store, monkeypatch, step):
    digest = use(store, record())
    before = sorted(p.name for p in (store.root / "front").iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(CalibrationError, match=r"No space left.*untouched"):
        store.put(record(305.0))
    monkeypatch.undo()
    assert store.current_hash("front") == digest and sorted(p.name for p in (store.root / "front").iterdir()) == before


def test_another_camera_resolution_or_focus_is_refused():
    r = record(serial="A1", focus=30)
    refuse_other_camera(r, {"serial": "A1", "width": 320, "height": 240})
    for other in ({"serial": "B2"}, {"width": 640}, {"height": 480}, {"focus": 31}):
        with pytest.raises(CalibrationError, match="set the camera back or calibrate it again"):
            refuse_other_camera(r, other)


def test_the_runtime_loads_the_record_in_use_and_refuses_one_without_a_pose(store):
    use(store, record())
    with pytest.raises(CalibrationError, match=r"no pose yet.*hand-eye --camera front`"):
        load_camera(store.root / "front")
    use(store, record(301.0, pose=np.eye(4), serial="A1"))
    assert load_camera(store.root / "front", {"serial": "A1"}).K[0, 0] == 301.0
    with pytest.raises(CalibrationError, match="for camera A1"):
        load_camera(store.root / "front", {"serial": "B2"})


@pytest.mark.parametrize("text", ["[]", "7", '"camera"', '{"schema": "new"}', "{}"])
def test_a_camera_file_that_holds_something_else_is_refused(tmp_path, text):
    (tmp_path / "front.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"front\.json is not a camera calibration .*restore the file"):
        load_camera(tmp_path / "front.json")


POSE = np.array([[0, 0.73991, -0.67271, 0.5], [1, 0, 0, 0], [0, -0.67271, -0.73991, 0.36], [0, 0, 0, 1]])  # rounded
SCALED, MIRRORED, SHEARED = POSE.copy(), POSE.copy(), POSE.copy()
SCALED[:3, :3] *= 3
MIRRORED[:3, 0] *= -1
SHEARED[3, 0] = 0.5
WHOLE = Camera("front", 320, 240, K, np.zeros(5), POSE).to_json()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        *(
            ({key: pose.tolist()}, f"a {key} that is no pose")
            for key in ("T_base_from_cam", "T_tool_from_cam")
            for pose in (POSE * 0, SCALED, MIRRORED, SHEARED)
        ),
        ({"model": "fishy"}, "an unknown lens model .'fishy'."),
        ({"D": [0.1, 0, 0]}, "3 numbers of distortion"),
        ({"D": [0.0] * 5, "model": "fisheye"}, "5 numbers of distortion, which the fisheye model does not take"),
        ({"K": [[-300, 0, 160], [0, 300, 120], [0, 0, 1]]}, "impossible intrinsics"),
        ({"K": [[0.1, 0, 160], [0, 300, 120], [0, 0, 1]]}, "impossible intrinsics"),
        ({"K": [[300, 50, 160], [0, 300, 120], [0, 0, 1]]}, "impossible intrinsics"),
        ({"K": [[300, 0, 160], [0, 300, 120], [0, 0, 7]]}, "impossible intrinsics"),
        ({"K": [[300, 0, 160], [0, 300, 9000], [0, 0, 1]]}, "impossible intrinsics"),
    ],
)
def test_a_camera_that_cannot_be_is_refused(spoil, what):
    with pytest.raises(CalibrationError, match=rf"^front.json holds {what}.*: calibrate the camera again or restore"):
        Camera.from_json({**WHOLE, **spoil}, "front.json")


@pytest.mark.parametrize(
    "fields",
    [{"D": [0.0] * n} for n in (0, 4, 5, 8)]
    + [{"D": [0.0] * 4, "model": "fisheye"}, {"T_base_from_cam": None, "T_tool_from_cam": POSE.tolist()}],
)
def test_a_camera_that_can_be_comes_back_as_it_went_out(fields):
    camera = Camera.from_json({**WHOLE, **fields})
    assert Camera.from_json(camera.to_json()).to_json() == camera.to_json() == {**WHOLE, **fields}


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_names_cannot_leave_the_store(store, name):
    with pytest.raises(CalibrationError, match="no name"):
        store.current_hash(name)


def test_damaged_stores_are_refused_in_a_sentence_or_read_as_what_they_were(tmp_path):
    """The same as `python -m benchmarks.fuzz_calibration`, which plays 3,000 and more."""
    found = fuzz(made(tmp_path / "store"), 200, seed=0)
    assert (found.accepted, found.failed, found.slow) == ([], [], [])
    assert found.refused > 80 and found.same > 40


def test_a_record_of_another_name_is_refused(store):
    digest = use(store, record())
    (store.root / "wrist").mkdir()
    for file in (f"{digest}.json", "current"):
        (store.root / "wrist" / file).write_bytes((store.root / "front" / file).read_bytes())
    with pytest.raises(CalibrationError, match=r"is a calibration of 'front', not of 'wrist': run .*rollback wrist"):
        load_camera(store.root / "wrist")


@pytest.mark.parametrize("file", ["current", "log.jsonl", "record"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(store, file):
    digest = use(store, record())
    path = store.root / "front" / (f"{digest}.json" if file == "record" else file)
    path.unlink()
    os.mkfifo(path)
    if file == "log.jsonl":
        assert store.moves("front") == []
    else:
        with pytest.raises(CalibrationError, match="damaged"):
            store.get("front")
