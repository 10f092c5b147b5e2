"""What a calibration does to the record in use: when it replaces it, and when a pose stays or is dropped."""

import dataclasses

import cv2
import numpy as np
import pytest

from calibration import intrinsics
from calibration.hand_eye_job import finish_hand_eye
from calibration.intrinsics_job import find_views, run_intrinsics
from calibration.records import compare_records
from calibration.store import Store, load_camera, new_record
from calibration.views import ArmNoise
from firmware_bridge.arms.so101 import FAMILY as so101
from sim.calibration_rig import ArmBench, webcam
from tests.calibration.verbs import BOARD, SHEET


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
