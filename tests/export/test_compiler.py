"""NVIDIA's own builder: which plan its compiler makes of an ONNX file, and how it refuses one, in plain words."""

import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from export.gates import ExportError
from export.tensorrt.builder import BuilderMissing, compiled
from export.tensorrt.gate import left_in_float
from export.tensorrt.work import role
from tests.onnx_files import FLOAT, HALF, quantised_conv, save

FOUR, SQUARE = [1, 4], [4, 4]


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    """A quantised convolution and its plan."""
    source = quantised_conv(tmp_path_factory.mktemp("conv") / "conv.onnx")
    return source, compiled(source)


def test_a_plan_lists_its_kernels_in_order_with_nodes_types_and_shapes(conv):
    _, plan = conv
    rounding, product, _ = plan.launched
    assert rounding.nodes == ("quantise",) and role(rounding) == "quantisation"
    assert set(product.nodes) == {"conv", "dequantise", "weight"} and role(product) == "product"
    assert [t.dtype for t in product.inputs] == ["Int8"] and product.inputs[0].shape == (1, 16, 8, 8)
    assert product.int8 and not rounding.int8
    assert plan.plan_bytes > plan.weight_bytes > 16 * 16 * 9 and plan.activation_bytes > 0
    assert plan.capabilities == ("SM86", "SM80", "SM89")


def test_a_kernel_does_the_arithmetic_of_its_nodes_and_moves_each_tensor_once(conv):
    _, plan = conv
    product = next(k for k in plan.launched if k.int8)
    assert product.operations - 5 * 1024 == 2 * 64 * 16 * 16 * 9
    assert product.bytes == 1024 + 4 * 1024 + 16 * 16 * 9 + sum(t.bytes for t in product.constants[1:])


def test_a_scale_with_a_dimension_leaves_the_product_in_float(conv, tmp_path):
    assert left_in_float(*conv) == []
    source = quantised_conv(tmp_path / "shaped.onnx", scale_shape=(1,))
    assert left_in_float(source, compiled(source)) == ["conv"]


def test_a_product_that_is_made_twice_is_computed_once_and_not_missed(tmp_path):
    source = quantised_conv(tmp_path / "net.onnx")
    model = onnx.load(source)
    again = onnx.NodeProto()
    again.CopyFrom(model.graph.node[-1])
    again.name, again.output[0] = "again", "second"
    model.graph.node.extend(
        [again, helper.make_node("Sub", ["y", "second"], ["apart"]), helper.make_node("Add", ["apart", "y"], ["sum"])]
    )
    model.graph.output[0].name = "sum"
    onnx.save(model, source)
    plan = compiled(source)
    (product,) = [k for k in plan.launched if k.int8]
    assert len({"conv", "again"} & set(product.nodes)) == 1 and left_in_float(source, plan) == []


def test_nodes_without_names_are_not_overlooked(tmp_path):
    source = quantised_conv(tmp_path / "net.onnx", scale_shape=(1,))
    model = onnx.load(source)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, source)
    plan = compiled(source)
    assert left_in_float(source, plan) == ["node_of_y"]
    assert max(k.operations for k in plan.launched) > 2 * 64 * 16 * 16 * 9


def det(path):
    return save(
        path, [helper.make_node("Det", ["x"], ["y"], name="volume")], [("x", FLOAT, [1, 4, 4])], [("y", FLOAT, [1])]
    )


def foreign(path):
    node = helper.make_node("Grow", ["x"], ["y"], name="grow", domain="garden")
    return save(path, [node], [("x", FLOAT, FOUR)], [("y", FLOAT, FOUR)])


def mixed_sum(path):
    node = helper.make_node("Add", ["x", "h"], ["y"], name="sum")
    return save(path, [node], [("x", FLOAT, FOUR), ("h", HALF, FOUR)], [("y", FLOAT, FOUR)])


def mixed_product(path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return save(path, [node], [("x", FLOAT, SQUARE)], [("y", FLOAT, SQUARE)], [("w", np.eye(4, dtype=np.float16))])


def misfit(path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return save(path, [node], [("x", FLOAT, SQUARE)], [("y", FLOAT, SQUARE)], [("w", np.zeros((5, 4), np.float32))])


def asymmetric(path):
    return quantised_conv(path, zero=3)


def dynamic(path):
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    return save(path, [node], [("x", FLOAT, ["batch", 4])], [("y", FLOAT, ["batch", 4])])


def no_model(path):
    path.write_bytes(b"no protobuf at all")
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (det, "'volume' .* is of the operator Det, which TensorRT's parser lacks: write it with other operators"),
        (foreign, "'grow' .* is of the operator Grow, which TensorRT's parser lacks"),
        (mixed_sum, r"'sum' \(Add\) mixes data types \(.*types Float and Half\): put a Cast before it"),
        (mixed_product, r"'product' \(MatMul\) mixes data types \(.*Float and .* Half\): put a Cast before it"),
        (misfit, r"'product' \(MatMul\) is refused .*last dimension of input0 = 4 .* input1 = 5 .*: mend this node"),
        (asymmetric, "'quantise' .* has a zero point other than 0.*: quantise with zero point 0"),
        (dynamic, "the input 'x' has no fixed shape.*: export it with a number for every dimension"),
        (no_model, "TensorRT's parser cannot read it as an ONNX model: export it again"),
    ],
)
def test_what_the_builder_refuses_is_said_in_one_sentence_with_the_node_and_what_to_change(tmp_path, make, says):
    with pytest.raises(ExportError, match=says) as refused:
        compiled(make(tmp_path / "net.onnx"))
    said = str(refused.value)
    assert "\n" not in said and "cudaError" not in said and "/_src/" not in said and "net.onnx" in said


def python(code):
    return [sys.executable, "-c", code]


def test_a_crash_of_the_compiler_is_an_error_of_the_export_alone(tmp_path):
    with pytest.raises(ExportError, match=r"crashed on net\.onnx \(exit code -6: it said nothing\)"):
        compiled(det(tmp_path / "net.onnx"), child=python("import os; os.abort()"))


def test_a_compiler_that_never_ends_is_stopped(tmp_path):
    with pytest.raises(ExportError, match=r"did not finish net\.onnx within 0\.2 s"):
        compiled(det(tmp_path / "net.onnx"), limit_s=0.2, child=python("import time; time.sleep(60)"))


def test_without_the_builder_the_error_says_how_to_install_it(tmp_path):
    hidden = "import sys; sys.modules['tensorrt_rtx_bindings'] = None; from export.tensorrt.child import main; "
    with pytest.raises(BuilderMissing, match=r"pip install 'harmowam-edge\[tensorrt-check\]'"):
        compiled(det(tmp_path / "net.onnx"), child=python(hidden + "main(*sys.argv[1:])"))
