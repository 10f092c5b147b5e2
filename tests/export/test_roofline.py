"""Predicted latency: arithmetic and traffic are counted correctly, and the fit is as good as stated."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.roofline import (
    BOARDS,
    MEASURED_ON,
    Board,
    Layer,
    calibration_errors,
    fitted,
    layers_of,
    predicted,
    resnet50,
    seconds,
    vit_b16,
)


def test_the_published_networks_have_their_known_size():
    assert sum(x.flops for x in resnet50("int8")) == pytest.approx(
        2 * 4.09e9, rel=0.03
    )  # torchvision: 4.09 G multiply-adds
    assert sum(x.flops for x in vit_b16("int8", "int8")) == pytest.approx(2 * 17.6e9, rel=0.03)


def test_the_fit_is_within_a_quarter_of_every_published_time():
    errors = calibration_errors()
    assert len(errors) == 5 and max(abs(e) for e in errors.values()) < 0.25


def test_more_clock_more_processors_and_more_memory_never_cost_time():
    work = [Layer(1e9, 1e6, "int8"), Layer(1e6, 4e6, "float32")]
    nano, agx = (
        next(b for b in BOARDS if b.name.startswith(n) and b.mode.startswith("MAXN")) for n in ("Orin Nano", "AGX")
    )
    slow = next(b for b in BOARDS if b.mode == "7W")
    assert seconds(work, agx, fitted()) < seconds(work, nano, fitted()) < seconds(work, slow, fitted())
    assert nano is MEASURED_ON


def test_an_orin_nx_in_the_modes_of_its_super_configuration():
    """From nvpmodel_p3767_0000_super.conf: TPC mask 252 in 10 and 15 W, memory at 2133 MHz in 10 W, GPU at 1173 MHz in
    40 W."""
    name = "Orin NX 16GB"
    modes = {b.mode: b for b in BOARDS if b.name == name}
    assert modes["10W"] == Board(name, "10W", 4, 0.612, 68)
    assert modes["15W"] == Board(name, "15W", 4, 0.612, 102)
    assert modes["40W"] == Board(name, "40W", 8, 1.173, 102)
    assert modes["MAXN_SUPER"] == Board(name, "MAXN_SUPER", 8, 1.173, 102)


def graph(tmp_path, quantised):
    """A 3x3 convolution from 8 to 16 channels on 10x10 pixels, and a Relu that is fused with it."""
    weight = helper.make_tensor(
        "w", TensorProto.INT8 if quantised else TensorProto.FLOAT, (16, 8, 3, 3), np.ones(1152, int).tolist()
    )
    nodes, inputs, extra = [], ["x", "w"], []
    if quantised:
        extra = [
            helper.make_tensor("s", TensorProto.FLOAT, (), [0.1]),
            helper.make_tensor("z", TensorProto.INT8, (), [0]),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        ]
        inputs = ["xd", "wd"]
    nodes += [helper.make_node("Conv", inputs, ["y"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["y"], ["out"])]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "main",
        [value("x", TensorProto.FLOAT, (1, 8, 10, 10))],
        [value("out", TensorProto.FLOAT, (1, 16, 10, 10))],
        [weight, *extra],
    )
    path = tmp_path / f"{quantised}.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize(("quantised", "kind", "size"), [(False, "float32", 4), (True, "int8", 1)])
def test_a_convolution_is_one_kernel_of_the_type_it_computes_in(tmp_path, quantised, kind, size):
    layers = layers_of(graph(tmp_path, quantised))
    assert layers == [Layer(2.0 * 1600 * 8 * 9, float(size * (800 + 1152 + 1600)), kind)]
    rows = predicted({"net": graph(tmp_path, quantised)})
    assert len(rows) == len(BOARDS) and all(0 < float(row["net"]) < 1 for row in rows)
