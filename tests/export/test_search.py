"""The search for a recipe and the TensorRT form, on a toy model."""

import json
import shutil

import onnx
import pytest
import torch

from export.bundle import export_bundle
from export.certify import certify, refuse_strangers
from export.checkpoint import load_checkpoint, save_checkpoint
from export.gates import COSINE, ExportError
from export.lint import lint
from export.onnx import engines
from export.origin import load_recipe, samples_path
from export.plan import Plan
from export.search import groups, search
from export.tensorrt.stored import read_plan
from runtime.bundle import Bundle

ENGINES = {"world_model", "predictive", "fast", "decoder"}
pytestmark = pytest.mark.usefixtures("export_once")


def test_the_tensorrt_form_follows_tensorrts_rules(untrained, tmp_path):
    """Exported with --force, because gates are meaningless for an untrained model; the recipe's budget of kernels is
    that of the shipped checkpoint's widths."""
    recipe = {k: v for k, v in load_recipe("tensorrt").items() if k != "kernels"}
    report = export_bundle(Plan(untrained, "tensorrt", recipe=recipe), tmp_path / "b", force=True)
    assert {name: p.launched != () for name, p in read_plan(tmp_path / "b").plans.items()} == dict.fromkeys(
        ENGINES, True
    )
    assert set(report["tensorrt"]["engines"]) == ENGINES and report["tensorrt"]["wrong"] == []
    manifest = Bundle.load(tmp_path / "b").manifest
    assert manifest.quantization["target"] == "tensorrt"
    int8 = set()
    for name, engine in manifest.engines.items():
        model = onnx.load(tmp_path / "b" / engine.file)
        kinds = {i.data_type for i in model.graph.initializer}
        assert onnx.TensorProto.INT32 not in kinds and lint(tmp_path / "b" / engine.file, "tensorrt") == []
        int8 |= {name} if onnx.TensorProto.INT8 in kinds else set()
    assert int8 == {name for name, patterns in manifest.quantization["recipe"]["quantise"].items() if patterns}


@pytest.mark.slow
def test_only_the_int8_form_of_the_same_model_with_as_many_steps_is_certified(untrained, tmp_path):
    export_bundle(Plan(untrained, precision="fp32"), tmp_path / "fp32", force=True)
    with pytest.raises(ExportError, match="is FP32 itself"):
        certify(Plan(untrained), tmp_path / "fp32", 4)
    fp32 = Bundle.load(tmp_path / "fp32")
    refuse_strangers(fp32, fp32, {})
    with pytest.raises(ExportError, match="was not made from this checkpoint"):  # equal except for its training
        refuse_strangers(fp32, fp32, {"train_minutes": 3})
    torch.manual_seed(1)
    model, cameras, instructions, note = load_checkpoint(untrained)
    for p in model.parameters():
        p.data += 0.01 * torch.randn_like(p)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, model, cameras, instructions, note)
    shutil.copyfile(samples_path(untrained), samples_path(other))
    for checkpoint, steps in ((other, None), (untrained, 3)):
        export_bundle(Plan(checkpoint, precision="fp32", world_steps=steps), tmp_path / "stranger", force=True)
        with pytest.raises(ExportError, match="was not made from this checkpoint: name the one"):
            refuse_strangers(Bundle.load(tmp_path / "stranger"), fp32, note)


def test_a_search_whose_result_cannot_be_written_does_not_begin(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "opened", lambda plan: pytest.fail("it measures"))
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot be made .*: name another --out"):
        search(Plan(untrained), tmp_path / "file" / "s")


def test_the_search_names_groups_measures_them_and_writes_a_recipe_that_export_takes(untrained, tmp_path):
    found = search(Plan(untrained), tmp_path / "s", observations=8)
    assert found == json.loads((tmp_path / "s" / "search.json").read_text())
    recipe = load_recipe("onnxruntime", tmp_path / "s" / "recipe.json")
    for name, engine in found["engines"].items():
        assert engine["groups"], name
        for row in engine["groups"].values():
            assert row["layers"] > 0 and row["speedup"] > 0 and set(row["cosine"]) <= set(COSINE) | set(row["cosine"])
        assert set(engine["chosen"]) <= set(engine["groups"])
        assert len(recipe["quantise"][name]) == len(engine["chosen"])


@pytest.mark.parametrize("name", ["world_model", "predictive"])
def test_every_layer_belongs_to_a_group_that_says_where_it_is(name, untrained, export_once, tmp_path):
    module, inputs, outputs = engines(load_checkpoint(untrained)[0])[name]
    export_once(module, inputs, outputs, tmp_path / "e.onnx")
    named = groups(onnx.load(tmp_path / "e.onnx"))
    assert named and all(g.startswith(("tokeniser.", "world.", "predictive.")) for g in named), named
