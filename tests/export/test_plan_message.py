"""The builder's list of kernels: read strictly, because a kernel that is overlooked would pass every budget."""

import pytest

from export.tensorrt.message import UnreadablePlan, kernels_of

TENSOR = (
    "{ Name: %s, Dimensions: [1,16,8,8], Strides: [1024,1,128,16], StrideOrder: [3,0,2,1], Datatype: %s, "
    "Format: (NHWC) Channel major format }"
)
PRODUCT = (
    f"Name: conv_myl0_1, LayerType: correlation, Inputs: [ {TENSOR % ('x', 'Int8')}], Constants: ["
    f" {TENSOR % ('w', 'Int8')}, {TENSOR % ('b', 'Half')}], Outputs: [ {TENSOR % ('y', 'Half')}], TacticName: __stub, "
    "StreamId: 2, Metadata: [ONNX Layer: conv]\x1f[ONNX Layer: relu]"
)
SIGNAL = (
    "Name: s_myl0_0, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, "
    "Metadata: "
)
MESSAGE = f"Layers:\n{SIGNAL}\n{PRODUCT}\n\nI/O Tensors:\n Name: x, IOMode: Input\n"


def test_each_line_is_one_kernel_and_a_signal_launches_nothing():
    signal, product = kernels_of(MESSAGE)
    assert not signal.launches and signal.inputs == () and signal.nodes == ()
    assert product.launches and product.nodes == ("conv", "relu") and product.stream == 2
    assert [t.dtype for t in (*product.inputs, *product.constants, *product.outputs)] == [
        "Int8",
        "Int8",
        "Half",
        "Half",
    ]
    assert product.int8 and product.bytes == 1024 * (1 + 1 + 2 + 2)


def test_a_mark_of_the_compiler_is_no_part_of_a_node_s_name():
    rewritten = MESSAGE.replace("[ONNX Layer: relu]", "[ONNX Layer: relu]__gemm_from_conv1x1")
    assert kernels_of(rewritten)[1].nodes == ("conv", "relu")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Layers:", "Kernels:"),
        ("LayerType: correlation", "Type: correlation"),
        ("Datatype: Half", "Datatype: Float12"),
        ("StreamId: 2", "StreamId: two"),
        ("[ONNX Layer: relu]", "[Torch Layer: relu]"),
        (PRODUCT, ""),
    ],
)
def test_another_form_is_an_error_and_not_a_plan_without_kernels(before, after):
    assert before in MESSAGE
    with pytest.raises(UnreadablePlan, match=r"in a form that is not known .*: install the version"):
        kernels_of(MESSAGE.replace(before, after))
