"""A bundle that must not be used is refused, with one sentence and the next step."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz_bundle import fuzz
from runtime.bundle import Bundle, BundleError, flow_steps, save_bundle
from runtime.engines.onnx import EngineError
from tests.tiny import edit_manifest, tiny_bundle


@pytest.fixture
def copy(bundle_path, tmp_path):
    return shutil.copytree(bundle_path, tmp_path / "copy.bundle")


def damage(path):
    file = path / "onnx" / "fast.onnx"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (shutil.rmtree, "is not a bundle"),
    "one bit turned": (damage, "does not match its hash"),
    "a file missing": (lambda p: (p / "onnx" / "predictive.onnx").unlink(), "is missing"),
    "manifest cut short": (lambda p: (p / "manifest.json").write_text('{"schema": 1, "na'), "is damaged"),
    "from the future": (lambda p: edit_manifest(p, lambda m: m.update(schema=99)), "upgrade harmowam"),
    "from the past": (lambda p: edit_manifest(p, lambda m: m.update(schema=1)), "export it again"),
    "for another arm": (
        lambda p: edit_manifest(p, lambda m: m.update(arm_family="panda")),
        "family 'panda', this version drives koch, so101, viperx",
    ),
    "a field missing": (lambda p: edit_manifest(p, lambda m: m.pop("tasks")), "'tasks' is missing"),
    "no size of the heat map": (
        lambda p: edit_manifest(p, lambda m: m["reactive"].pop("heatmap")),
        "'reactive.heatmap' is missing",
    ),
    "a heat map of no size": (
        lambda p: edit_manifest(p, lambda m: m["reactive"].update(heatmap="48")),
        "'reactive.heatmap' must be a whole number",
    ),
    "no front camera": (lambda p: edit_manifest(p, lambda m: m["cameras"].pop("front")), "'cameras.front' is missing"),
    "no mean of the chunks": (
        lambda p: edit_manifest(p, lambda m: m["chunk"].pop("mean")),
        "'mean' and 'std' must hold 16 rows",
    ),
    "a spread of too few steps": (
        lambda p: edit_manifest(p, lambda m: m["chunk"]["std"].pop()),
        "'std' must hold 16 rows",
    ),
    "a chunk without numbers": (
        lambda p: edit_manifest(p, lambda m: m["chunk"].update(dt_ms="50")),
        "'chunk.dt_ms' must be a whole",
    ),
    "an engine without a hash": (
        lambda p: edit_manifest(p, lambda m: m["files"].pop("onnx/fast.onnx")),
        "without a hash",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_must_not_be_used_is_refused(copy, case):
    spoil, sentence = CASES[case]
    spoil(copy)
    with pytest.raises(BundleError, match=sentence) as e:
        Bundle.load(copy)
    assert str(copy) in str(e.value) and "\n" not in str(e.value)


def test_an_unknown_task_names_the_known_ones_closest_first(bundle_path):
    with pytest.raises(BundleError, match="use one of 'put the red cube on the plate'"):
        Bundle.load(bundle_path).task("put the red cube on a plate")


def test_engines_have_the_tensors_of_the_manifest_and_refuse_others(bundle_path):
    engine = Bundle.load(bundle_path).engine("fast")
    feeds = {k: np.zeros(s.shape, s.dtype) for k, s in engine.inputs.items()}
    assert set(engine.run(feeds)) == {"heat", "reach", "gate"}
    with pytest.raises(EngineError, match="'wrist' must be"):
        engine.run({**feeds, "wrist": feeds["wrist"].astype(np.float64)})
    with pytest.raises(EngineError, match="got nothing"):
        engine.run({k: v for k, v in feeds.items() if k != "proprio"})


def test_an_engine_may_list_its_outputs_in_any_order(tmp_path, monkeypatch):
    bundle = Bundle.load(tiny_bundle(tmp_path))
    engine = bundle.engine("fast")
    outputs = dict(reversed(engine.outputs.items()))
    assert list(outputs) != bundle.manifest.engines["fast"].outputs
    monkeypatch.setattr(engine, "outputs", outputs)
    monkeypatch.setattr(Bundle, "_open", lambda *args: engine)
    assert bundle.engine("fast") is engine
    outputs.popitem()
    with pytest.raises(BundleError, match="does not have the tensors"):
        bundle.engine("fast")


def test_saving_is_repeatable_and_replaces_whole(bundle_path, tmp_path):
    bundle = Bundle.load(bundle_path)
    files = {name: bundle.path / name for name in bundle.manifest.files}
    for name in ("a", "b"):
        save_bundle(tmp_path / name, bundle.manifest, files)
    save_bundle(tmp_path / "a", bundle.manifest, files)
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    Bundle.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ('{"steps": {"world": 2, "action": 4}}', {"world": 2, "action": 4}),
        ('{"steps": {"world": "2", "action": 0}}', {}),
        ('{"steps": [2, 4]}', {}),
        ("[]", {}),
        ("{", {}),
        (None, {}),
    ],
)
def test_flow_steps_come_from_the_export_report_or_from_nowhere(tmp_path, said, steps):
    if said is not None:
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "parity.json").write_text(said)
    assert flow_steps(tmp_path) == steps


def test_what_a_baseline_does_not_have_is_not_asked_for(copy):
    edit_manifest(copy, lambda m: (m["engines"].pop("fast"), m["reactive"].clear()))
    Bundle.load(copy)


def test_a_manifest_of_schema_2_is_read_without_what_nobody_reads(copy):
    edit_manifest(
        copy, lambda m: m.update(schema=2, rates={"fast_hz": 50.0}, proprio=["z", "pitch", "roll", "gripper"])
    )
    file = copy / "manifest.json"
    old = json.loads(file.read_text())
    del old["digest"]
    file.write_text(json.dumps(old))
    assert Bundle.load(copy).manifest.schema == 3
    old["digest"] = "0" * 64  # a schema 3 whose number was damaged
    file.write_text(json.dumps(old))
    with pytest.raises(BundleError, match="has bundle schema 2"):
        Bundle.load(copy)


def test_a_changed_manifest_without_a_hash_that_fits_is_damaged(copy):
    file = copy / "manifest.json"
    text = file.read_text()
    for changed in (text.replace("0.11257", "0.11258"), re.sub(r'\n "digest": "[0-9a-f]*",', "", text)):
        assert changed != text
        file.write_text(changed)
        with pytest.raises(BundleError, match=r"does not match its own hash.*copy it again"):
            Bundle.load(copy)
    file.write_text(json.dumps(json.loads(text)))  # another layout, the same meaning
    Bundle.load(copy)


def test_no_damaged_bundle_is_taken_for_another_one(copy):
    """The same as `python -m benchmarks.fuzz_bundle`, which plays 3,000 and more."""
    found = fuzz(copy, 200, seed=0)
    assert found.accepted == [] and found.failed == [] and found.slow == []
    assert found.refused > 150


def test_a_write_that_is_killed_between_its_renames_leaves_the_bundle_before(bundle_path, tmp_path, monkeypatch):
    bundle, out = Bundle.load(bundle_path), tmp_path / "my bundle"
    files = {name: bundle.path / name for name in bundle.manifest.files}
    save_bundle(out, bundle.manifest, files)
    rename = Path.rename

    def killed(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    for _ in range(2):  # nor does another one that is killed there take it away
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(Path, "rename", killed)
            save_bundle(out, bundle.manifest, files)
        with pytest.raises(BundleError, match="its replacement was interrupted") as e:
            Bundle.load(out)
    subprocess.run(str(e.value).split("`")[1], shell=True, check=True)
    Bundle.load(out)


def test_nothing_but_a_bundle_is_ever_replaced(bundle_path, tmp_path):
    bundle = Bundle.load(bundle_path)
    files = {name: bundle.path / name for name in bundle.manifest.files}
    run = tmp_path / "run"
    run.mkdir()
    save_bundle(run, bundle.manifest, files)  # an empty folder is free
    Bundle.load(run)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "state.safetensors").write_text("an hour of training")
    with pytest.raises(BundleError, match="is there and is no bundle: name another --out"):
        save_bundle(mine, bundle.manifest, files)
    with pytest.raises(BundleError, match="is no bundle"):
        save_bundle(mine / "state.safetensors", bundle.manifest, files)
    with pytest.raises(BundleError, match="cannot be made"):
        save_bundle(mine / "state.safetensors" / "x.bundle", bundle.manifest, files)
    assert [p.name for p in tmp_path.rglob("*.safetensors")] == ["state.safetensors"]
