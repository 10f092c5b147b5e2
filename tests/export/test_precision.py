"""Which plan of an engine is faster on every module, and what an export says of its INT8 layers."""

import numpy as np
import pytest
from onnx import helper

from export.precision import MODULES, least_gain, milliseconds, modules, reasons
from export.tensorrt.builder import BuilderMissing, compiled
from runtime.engines.plan import EnginePlan, Kernel, Tensor
from tests.onnx_files import FLOAT, quantised_conv, save

SMALL, LARGE = (1, 16, 8, 8), (1, 1024, 64, 64)


def kernel(shape, dtype, operations):
    x, w = Tensor("x", shape, dtype, "NHWC"), Tensor("w", (16, 16), dtype, "NHWC")
    return Kernel(
        "conv", "correlation", (x,), (w,), (Tensor("y", shape, "Half", "NHWC"),), "t", 0, ("conv",), operations
    )


def plan(*kernels):
    return EnginePlan("1.7", ("SM86",), kernels, 1, 1, 1, 0.0)


def test_the_modules_are_a_small_one_a_slow_one_and_a_large_one():
    assert modules() == "Orin Nano 8GB 25W / Orin NX 16GB 25W / AGX Orin 64GB MAXN"


def test_a_kernel_whose_launch_decides_is_hardly_faster_in_int8():
    half, int8 = (plan(kernel(SMALL, dtype, 1e5)) for dtype in ("Half", "Int8"))
    assert 1.0 < least_gain(half, int8) < 1.01
    assert least_gain(half, plan(*int8.kernels, kernel(SMALL, "Half", 0))) < 0.6, "a kernel more costs a launch"


def test_a_kernel_that_arithmetic_bounds_is_faster_in_int8_and_the_least_gain_counts():
    half, int8 = (plan(kernel(LARGE, dtype, 1e11)) for dtype in ("Half", "Int8"))
    gains = [milliseconds(half, board) / milliseconds(int8, board) for board in MODULES]
    assert least_gain(half, int8) == min(gains) > 1.9


def test_the_export_says_why_an_engine_has_int8_layers_or_none(tmp_path):
    weight = np.ones((16, 16, 3, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])]
    floats = save(tmp_path / "f.onnx", nodes, [("x", FLOAT, [*SMALL])], [("y", FLOAT, [*SMALL])], [("w", weight)])
    try:
        int8 = compiled(quantised_conv(tmp_path / "q.onnx"), ("SM86",))
    except BuilderMissing:
        pytest.skip("no TensorRT for RTX")
    said = reasons({"slow": int8, "plain": plan(kernel(SMALL, "Half", 1e5))}, {"slow": floats})
    assert said["slow"].startswith("INT8 (1 kernels) is ") and " ms, FP16 alone " in said["slow"]
    assert said["plain"] == "FP16: the recipe names no layer that is faster in INT8"
