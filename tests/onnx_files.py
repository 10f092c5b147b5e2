"""ONNX files that tests share: tiny graphs made by hand, and engines exported once per test run."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.once import once

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: Sequence[tuple] = ()) -> Path:
    """Write a graph: `inputs` and `outputs` are (name, element type, shape), `weights` (name, array)."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def quantised_conv(path: Path, zero: int = 0, scale_shape: tuple[int, ...] = ()) -> Path:
    """A 3x3 convolution between Q/DQ pairs, 16 to 16 channels on 8x8 pixels."""
    weight = np.arange(16 * 16 * 9).reshape(16, 16, 3, 3) % 7
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="quantise"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dequantise"),
        helper.make_node("DequantizeLinear", ["w", "s", "z0"], ["wd"], name="weight"),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    weights = [
        ("w", weight.astype(np.int8)),
        ("s", np.full(scale_shape, 0.1, np.float32)),
        ("z", np.full(scale_shape, zero, np.int8)),
        ("z0", np.zeros(scale_shape, np.int8)),
    ]
    return save(path, nodes, [("x", FLOAT, [1, 16, 8, 8])], [("y", FLOAT, [1, 16, 8, 8])], weights)


def exporter(factory: pytest.TempPathFactory) -> Callable[..., None]:
    """`export_engine` that makes each file once per test run: it takes seconds, and equal weights give an equal
    file."""
    from export.onnx import export_engine

    def export(module, inputs, outputs, path):
        about = repr((type(module), getattr(module, "steps", None), inputs, outputs)).encode()
        weights = b"".join(v.contiguous().numpy().tobytes() for v in module.state_dict().values())
        key = hashlib.sha256(about + weights).hexdigest()[:16]
        made = once(factory, f"onnx-{key}", lambda folder: export_engine(module, inputs, outputs, folder / "e.onnx"))
        shutil.copyfile(made / "e.onnx", path)

    return export
