"""What the exporter writes: INT8, close to FP32, without paths, the same every time."""

import platform

import numpy as np
import onnx
import pytest

from export.bundle import export_bundle
from export.checkpoint import load_checkpoint
from export.gates import ExportError
from export.onnx import engines, export_engine
from export.origin import CHECKPOINT, load_recipe, samples_path
from export.plan import Plan
from export.quantise import left_in_float, quantise
from export.text import ngrams
from runtime.bundle import Bundle
from runtime.engines.onnx import centred_cosine
from sim.tasks import INSTRUCTIONS


def test_int8_stays_close_to_fp32(exported):
    engines = exported[1]["engines"]
    assert engines["world_model"]["parity"]["future"]["cosine"] >= 0.98
    assert engines["world_model"]["parity"]["tokens"]["cosine"] >= 0.95
    assert engines["predictive"]["parity"]["chunk"]["cosine"] >= 0.99
    assert engines["fast"]["parity"]["heat"]["cosine"] >= 0.98


def test_layers_really_are_int8(bundle_path):
    for name, least in (("world_model", 30), ("fast", 8), ("predictive", 3)):
        model = onnx.load(bundle_path / "onnx" / f"{name}.onnx")
        made = {o: n for n in model.graph.node for o in n.output}
        kinds = {i.name: i.data_type for i in model.graph.initializer}
        int8 = 0
        for n in model.graph.node:
            if n.op_type == "Conv" and all(
                made.get(x) is not None and made[x].op_type == "DequantizeLinear" for x in n.input[:2]
            ):
                int8 += kinds.get(made[n.input[1]].input[0]) == onnx.TensorProto.INT8
        assert int8 >= least, name


def test_the_runtime_computes_in_int8_what_the_recipe_says(bundle_path, tmp_path):
    """With int8 activations, ONNX Runtime leaves a layer in float when another layer reads its input, too. A bundle
    with such layers is refused."""
    for file in sorted((bundle_path / "onnx").glob("*.onnx")):
        assert left_in_float(file) == [], file.name
    model, inputs, outputs = engines(load_checkpoint(CHECKPOINT)[0])["fast"]
    export_engine(model, inputs, outputs, tmp_path / "fp32.onnx")
    feeds = [
        {
            i.name: np.ones([d.dim_value for d in i.type.tensor_type.shape.dim], np.float32)
            for i in onnx.load(tmp_path / "fp32.onnx").graph.input
        }
    ]
    recipe = {**load_recipe("tensorrt"), "quantise": {"fast": [r"gate\.(wrist|front)\."]}}
    quantise(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", "fast", recipe, feeds)
    left = left_in_float(tmp_path / "int8.onnx")
    assert platform.machine() != "x86_64" or any("gate.front" in name for name in left)  # ARM has kernels for int8


def test_no_paths_and_no_names_of_machines_in_the_bundle(bundle_path):
    for file in bundle_path.rglob("*"):
        if file.is_file() and file.suffix in (".onnx", ".json"):
            raw = file.read_bytes()
            assert (
                b"/home/" not in raw and b"site-packages" not in raw and str(bundle_path.parent).encode() not in raw
            ), file.name


def test_the_bundle_knows_its_tasks_cameras_and_recipe(bundle_path):
    m = Bundle.load(bundle_path).manifest
    assert set(m.tasks) == set(INSTRUCTIONS)
    assert m.quantization["recipe"] == load_recipe()
    assert m.cameras["front"]["T_base_from_cam"] is not None and m.cameras["wrist"]["T_base_from_cam"] is None


def test_without_real_observations_there_is_no_export(tmp_path):
    with pytest.raises(ExportError, match="random data is never used"):
        export_bundle(Plan(samples=tmp_path / "none.npz"), tmp_path / "b")


def test_the_shipped_files_are_small():
    assert CHECKPOINT.stat().st_size <= 20e6
    assert samples_path(CHECKPOINT).stat().st_size <= 5e6
    with np.load(samples_path(CHECKPOINT)) as raw:
        assert len(raw["pose"]) == 256


def test_cosine_ignores_a_shared_offset():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 4))
    assert centred_cosine(a + 100, a + 100) == pytest.approx(1)
    assert abs(centred_cosine(a + 100, rng.normal(size=(50, 4)) + 100)) < 0.5


def test_instructions_differ_in_their_ngrams():
    red, blue = ngrams("put the red cube on the plate", 512), ngrams("put the blue cube on the plate", 512)
    assert np.linalg.norm(red) == pytest.approx(1) and red @ blue < 0.95
    a, b = (
        ngrams(f"stack the {x} cube on the {y} cube", 512) for x, y in (("red", "blue"), ("blue", "red"))
    )  # the same words in another order
    assert a @ b < 0.95
    assert np.array_equal(red, ngrams("  Put the RED cube on the  plate", 512))


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes(bundle_path, tmp_path):
    export_bundle(Plan(), tmp_path / "again.bundle", timed=False)
    assert (tmp_path / "again.bundle" / "manifest.json").read_bytes() == (bundle_path / "manifest.json").read_bytes()
