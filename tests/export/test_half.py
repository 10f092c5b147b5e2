"""FP16 for the layers that stay float: which tensors change their type, and how little the outputs change."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from export.gates import COSINE
from export.half import KEPT, to_half
from export.lint import lint
from export.roofline import layers_of
from harmowam.cli import main
from runtime.build import observations
from runtime.bundle import Bundle
from runtime.engines.onnx import OrtEngine, centred_cosine

ROBOTS = ("world_model", "predictive", "fast")


@pytest.fixture(scope="module")
def halves(bundle_path, tmp_path_factory):
    """Engine -> (the shipped INT8 file, its FP16 form)."""
    folder = tmp_path_factory.mktemp("half")
    out = {}
    for name in ROBOTS:
        out[name] = (bundle_path / "onnx" / f"{name}.onnx", folder / f"{name}.onnx")
        to_half(*out[name])
    return out


@pytest.mark.parametrize("name", ROBOTS)
def test_the_borders_and_sums_stay_float32_and_the_rest_is_float16(halves, name):
    model = onnx.shape_inference.infer_shapes(onnx.load(halves[name][1]))
    graph = model.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {i.name: i.data_type for i in graph.initializer}
    assert {kinds[v.name] for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    found = {"half": 0, "kept": 0}
    for node in graph.node:
        if node.op_type in KEPT:
            assert kinds[node.input[0]] == TensorProto.FLOAT, node.name
            found["kept"] += 1
        elif node.op_type in ("Conv", "MatMul", "Gemm"):
            assert {kinds[node.input[0]], kinds[node.input[1]], kinds[node.output[0]]} == {TensorProto.FLOAT16}, (
                node.name
            )
            found["half"] += 1
    assert found["half"] >= 15 and found["kept"] >= 1


@pytest.mark.parametrize("name", ROBOTS)
def test_tensorrts_rules_still_hold(halves, name):
    assert lint(halves[name][1], "onnxruntime") == lint(halves[name][0], "onnxruntime") == []


def test_the_outputs_pass_the_gates_of_an_export(halves, bundle_path):
    """Compared with INT8 plus float32, with graph optimisation off: a last bit of half precision sometimes moves an
    INT8 step."""
    feeds = observations(Bundle.load(bundle_path), 8)
    for name, (source, half) in halves.items():
        engines = [OrtEngine(path, literal=True) for path in (source, half)]
        made = [[{k: v.copy() for k, v in e.run(f).items()} for f in feeds[name]] for e in engines]
        for tensor in engines[0].outputs:
            if tensor == "heat":  # logits of cells that are never aimed at make up nearly all of its variance
                continue
            a, b = (np.stack([m[tensor] for m in side]) for side in made)
            assert np.isfinite(b).all() and centred_cosine(a, b) > COSINE[tensor], (name, tensor)


def test_the_same_file_gives_the_same_bytes_and_half_of_the_float_ones(halves, tmp_path):
    source, half = halves["predictive"]
    to_half(source, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == half.read_bytes()

    def floats(path):
        kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
        stored = onnx.load(path).graph.initializer
        return sum(onnx.numpy_helper.to_array(i).nbytes for i in stored if i.data_type in kinds)

    assert floats(half) < 0.55 * floats(source)


def test_the_predicted_time_on_an_orin_counts_float16(halves):
    source, half = ([x.kind for x in layers_of(path)] for path in halves["predictive"])
    assert "float16" not in source and "float16" in half
    assert half.count("int8") == source.count("int8") > 0, "what is INT8 stays so"


@pytest.mark.parametrize("precision", ["int8-fp16", "fp16"])
def test_on_the_workstations_runtime_it_is_refused(precision, tmp_path):
    done = CliRunner().invoke(main, ["export", "--precision", precision, "--out", str(tmp_path / "b")])
    assert done.exit_code == 2 and f"--precision {precision} is for TensorRT" in done.output
    assert not (tmp_path / "b").exists()
