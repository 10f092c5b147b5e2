"""Each rule is broken on the shipped graph, one at a time."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.lint import lint


@pytest.fixture(scope="module")
def real(exported):
    return onnx.load(exported[0] / "onnx" / "fast.onnx")


def first(graph, kind, **wanted):
    constants = {i.name for i in graph.initializer}
    for n in graph.node:
        if n.op_type == kind and (not wanted or (n.input[0] in constants) == wanted["weight"]):
            return n
    raise AssertionError(kind)


def quantised_conv(graph):
    between = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return next(n for n in graph.node if n.op_type == "Conv" and set(n.input[:2]) <= between)


def replace(graph, name, array):
    stored = next(i for i in graph.initializer if i.name == name)
    stored.CopyFrom(numpy_helper.from_array(array, name))


def value(graph, name):
    return numpy_helper.to_array(next(i for i in graph.initializer if i.name == name))


def zero_point(m):
    weight = quantised_conv(m.graph).input[1]
    dq = next(n for n in m.graph.node if n.output[0] == weight)
    replace(m.graph, dq.input[2], np.full_like(value(m.graph, dq.input[2]), 3))


def signed(m):
    q = first(m.graph, "QuantizeLinear")
    replace(m.graph, q.input[2], np.zeros((), np.int8))


def one_scale(m):
    weight = quantised_conv(m.graph).input[1]
    dq = next(n for n in m.graph.node if n.output[0] == weight)
    replace(m.graph, dq.input[1], value(m.graph, dq.input[1])[:1])


def half_quantised(m):
    conv = quantised_conv(m.graph)
    dq = next(n for n in m.graph.node if n.output[0] == conv.input[0])
    q = next(n for n in m.graph.node if n.output[0] == dq.input[0])
    conv.input[0] = q.input[0]


def lonely(m):
    q = first(m.graph, "QuantizeLinear")
    for n in m.graph.node:
        if n.op_type == "DequantizeLinear" and n.input[0] == q.output[0]:
            n.input[0] = q.input[0]


def apart(m):
    x = m.graph.input[0].name
    m.graph.node.extend(
        [
            helper.make_node("ReduceMean", [x], ["lint.mean"]),
            helper.make_node("Sub", [x, "lint.mean"], ["lint.less"]),
            helper.make_node("Mul", ["lint.less", "lint.less"], ["lint.square"]),
            helper.make_node("ReduceMean", ["lint.square"], ["lint.var"]),
        ]
    )


def added(kind, inputs, **attributes):
    return lambda m: m.graph.node.append(helper.make_node(kind, inputs, ["lint.y"], name="added", **attributes))


def constants_only(m):
    weight = next(i.name for i in m.graph.initializer if i.name.startswith("m.gate.head.0"))
    m.graph.node.append(helper.make_node("MatMul", [weight, weight], ["lint.y"], name="added"))


def scale_with_a_dimension(m):
    q = first(m.graph, "QuantizeLinear")
    replace(m.graph, q.input[1], value(m.graph, q.input[1]).reshape(1))


def unknown(m):
    m.graph.node.append(helper.make_node("NonMaxSuppression", ["a", "b"], ["c"], name="nms"))


def foreign(m):
    m.graph.node.append(helper.make_node("FusedConv", ["a"], ["c"], domain="com.microsoft"))


def loose(m):
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def metadata(m):
    p = m.metadata_props.add()
    p.key, p.value = "source", "/home/someone/model.py"


BREAKS = [
    (zero_point, "zero point other than 0"),
    (signed, "is not uint8"),
    (one_scale, "one scale for|one for each output channel"),
    (half_quantised, "one quantised input"),
    (lonely, "not followed by a Dequantize|follows no Quantize"),
    (apart, "taken apart"),
    (added("InstanceNormalization", ["x", "s", "b"]), "a GroupNorm .*WholeNorm"),
    (added("Transpose", ["x"], perm=[2, 0, 3, 1, 4]), "five dimensions.*SplitAttention"),
    (constants_only, "multiplies constants.*StepBlock"),
    (scale_with_a_dimension, "scale has no dimension"),
    (unknown, "NonMaxSuppression .* not among"),
    (foreign, "com.microsoft.FusedConv"),
    (loose, "no fixed shape"),
    (metadata, "metadata"),
    (lambda m: setattr(m.opset_import[0], "version", 17), "opset 17"),
]


def test_what_ships_has_no_complaints(exported):
    for file in sorted((exported[0] / "onnx").glob("*.onnx")):
        assert lint(file, "onnxruntime") == [], file.name


@pytest.mark.parametrize(("spoil", "says"), BREAKS, ids=[s for _, s in BREAKS])
def test_a_broken_rule_is_found(real, tmp_path, spoil, says):
    model = onnx.ModelProto()
    model.CopyFrom(real)
    spoil(model)
    onnx.save(model, tmp_path / "spoilt.onnx")
    assert any(re.search(says, c) for c in lint(tmp_path / "spoilt.onnx", "onnxruntime"))


def test_int32_biases_and_uint8_activations_are_for_onnxruntime_only(exported):
    complaints = lint(exported[0] / "onnx" / "fast.onnx", "tensorrt")
    biases = [c for c in complaints if "--target tensorrt" in c]
    activations = [c for c in complaints if c.endswith("is not int8")]
    assert biases and activations and len(biases) + len(activations) == len(complaints)


def test_layer_normalisation_is_whole_and_weights_are_int8(exported):
    for name in ("world_model", "predictive"):
        graph = onnx.load(exported[0] / "onnx" / f"{name}.onnx").graph
        assert any(n.op_type == "LayerNormalization" for n in graph.node)
        assert any(i.data_type == TensorProto.INT8 and len(i.dims) == 4 for i in graph.initializer)
