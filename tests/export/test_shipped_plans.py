"""The plans that NVIDIA's compiler makes of the shipped checkpoint: what is INT8, how many kernels there are, and what
an export and its reports say of it."""

from types import SimpleNamespace

import pytest

from export.bundle import float_engines, noise_of, shrink
from export.gates import missed
from export.observations import engine_feeds
from export.origin import load_recipe
from export.plan import Plan, Precision
from export.tensorrt import gate
from export.tensorrt.builder import BuilderMissing
from export.tensorrt.gate import between_pairs, budgets, judged, lines
from export.tensorrt.stored import read_plan, write_plan
from export.tensorrt.work import product_operations
from runtime.engines.onnx import OrtEngine
from runtime.engines.plan import PLAN
from tests.once import once
from tests.onnx_files import exporter, quantised_conv

SHIPPED: Precision = "int8-fp16"
STEPS = {"world": 2, "action": 4}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The engines of the shipped checkpoint as they ship for TensorRT, calibrated on a few observations, and their
    plans."""

    def make(folder):
        plan = Plan(target="tensorrt", precision=SHIPPED)
        opened = plan.opened()
        floats = float_engines(opened.specs, folder)
        feeds = engine_feeds(OrtEngine(floats["world_model"]), opened.observations[:16], noise_of(opened.specs))
        files = shrink(plan, floats, feeds, folder, lambda line: None).files
        (folder / "reports").mkdir()
        write_plan(judged(files, budgets(load_recipe("tensorrt"), SHIPPED, STEPS)), folder / "reports" / PLAN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.bundle.export_engine", exporter(tmp_path_factory))
        folder = once(tmp_path_factory, "shipped-tensorrt", make)
    return SimpleNamespace(folder=folder, judged=read_plan(folder))


def test_every_engine_builds_and_what_was_meant_to_be_int8_is(shipped):
    found = shipped.judged
    assert set(found.plans) == {"world_model", "predictive", "fast", "decoder"} and found.wrong == ()
    for name, plan in found.plans.items():
        source = shipped.folder / f"{name}.half.onnx"
        int8 = {node for k in plan.launched if k.int8 for node in k.nodes}
        assert set(between_pairs(source)) <= int8, name
    assert sum(k.int8 for k in found.plans["world_model"].launched) == 12, "six blocks, two steps"


def test_the_recipe_allows_as_many_kernels_as_there_are_and_no_more(shipped):
    assert {name: len(p.launched) for name, p in shipped.judged.plans.items()} == load_recipe("tensorrt")["kernels"][
        SHIPPED
    ]


def test_each_product_of_the_graph_is_counted_in_one_kernel(shipped):
    import onnx

    for name, plan in shipped.judged.plans.items():
        wanted = sum(product_operations(onnx.load(shipped.folder / f"{name}.half.onnx")).values())
        assert wanted < sum(k.operations for k in plan.launched) < 1.05 * wanted, name


def test_a_plan_with_more_kernels_than_allowed_is_a_missed_gate(tmp_path):
    source = quantised_conv(tmp_path / "conv.onnx", scale_shape=(1,))
    found = judged({"fast": source}, {"fast": 3})
    joints = dict.fromkeys(("p99", "max", "jaw_p99"), 0.0)
    said = missed({"engines": {}, "joints_deg": joints, "tensorrt": found.summary()})
    assert len(said) == 2 and said[0].startswith("fast: TensorRT computes conv in float though its factors are INT8")
    assert said[1].startswith("fast: TensorRT's plan has 4 kernels, 3 are allowed")


def test_more_steps_than_the_recipe_knows_may_have_more_kernels():
    recipe = {
        "kernels": {"steps": {"world": 2, "action": 4}, "int8": {"world_model": 100, "predictive": 200, "fast": 30}}
    }
    assert budgets(recipe, "int8", {"world": 3, "action": 1}) == {"world_model": 150, "predictive": 200, "fast": 30}
    assert budgets(recipe, "fp16", STEPS) == {} and budgets({}, "int8", STEPS) == {}


def test_without_the_builder_the_report_says_so_and_nothing_fails(tmp_path, monkeypatch):
    def missing(source):
        raise BuilderMissing("TensorRT for RTX cannot be loaded (no module): run `pip install x`.")

    monkeypatch.setattr(gate, "compiled", missing)
    found = judged({"fast": tmp_path / "fast.onnx"}, {})
    assert found.plans == {} and found.wrong == () and "cannot be loaded" in found.summary()["missing"]
    (line,) = lines(found.summary())
    assert "did not judge" in line and "pip install" in line
