"""FP16 sums as a tensor core with FP16 accumulators rounds them, against the same sums in float32."""

import numpy as np
import pytest
from onnx import helper

from export.gates import missed
from export.half import to_half
from export.tensorrt.sums import RoundedSums, product
from runtime.engines.onnx import OrtEngine
from tests.onnx_files import FLOAT, save


def test_a_sum_of_many_small_products_stops_growing():
    """2048 + 1 is 2048 in half precision."""
    ones, column = np.ones((1, 70_000), np.float16), np.full((70_000, 1), 0.0625, np.float16)
    assert product(ones[:, :160], column[:160])[0, 0] == 10.0
    assert product(ones, column)[0, 0] == 2048.0 and (ones.astype(np.float32) @ column)[0, 0] == 4375.0
    assert product(ones.astype(np.float32), column.astype(np.float32))[0, 0] == 4375.0


@pytest.fixture
def graph(tmp_path):
    """A strided 3x3 convolution with a bias, then a Gemm with a transposed weight and a MatMul, in float32."""
    rng = np.random.default_rng(0)
    shapes = {"w": (24, 8, 3, 3), "b": (24,), "g": (40, 24 * 25), "c": (40,), "m": (40, 6)}
    weights = [(k, rng.standard_normal(s).astype(np.float32) * 0.1) for k, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "c"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "m"], ["z"]),
    ]
    return save(tmp_path / "g.onnx", nodes, [("x", FLOAT, [1, 8, 9, 9])], [("z", FLOAT, [1, 6])], weights)


def test_an_engine_with_rounded_sums_is_near_the_one_without_and_no_more(graph, tmp_path):
    to_half(graph, tmp_path / "half.onnx")
    feed = {"x": np.random.default_rng(1).standard_normal((1, 8, 9, 9)).astype(np.float32)}
    exact, half, rounded = (
        e.run(feed)["z"].copy()
        for e in (OrtEngine(graph), OrtEngine(tmp_path / "half.onnx"), RoundedSums(tmp_path / "half.onnx"))
    )
    assert np.allclose(RoundedSums(graph).run(feed)["z"], exact, atol=1e-5), "float32 is left alone"
    off = [float(np.abs(x - exact).max()) for x in (half, rounded)]
    assert 0 < off[0] < off[1] < 0.02


def test_a_layer_that_does_not_survive_rounded_sums_is_a_missed_gate():
    joints = dict.fromkeys(("p99", "max", "jaw_p99"), 0.0)
    rows = {"world_model": {"tokens": {"cosine": 0.98}, "latent": {"cosine": 1.0}}}
    (said,) = missed({"engines": {}, "joints_deg": joints, "rounded_sums": rows})
    assert said.startswith("world_model: cosine of tokens is 0.9800 where TensorRT rounds sums to FP16, 0.99 is needed")
