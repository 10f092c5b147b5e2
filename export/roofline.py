"""Predicts the time of an engine on a Jetson Orin without the board: a roofline over the ONNX graph.

Every layer takes the longer of its arithmetic and its memory traffic, each at a share of the board's peak, plus one
kernel launch. Element-wise operations belong to the layer before them, as TensorRT fuses them. The three unknowns
(share of the arithmetic peak, share of the bandwidth, time of a launch) are fitted to published TensorRT times of
ResNet-50 and ViT-B/16 on an Orin Nano; `calibration_errors` gives the errors of the fit. The figures are an order of
magnitude, not a measurement.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

# Operations per clock of one streaming multiprocessor on its tensor cores (sm_87, dense). float32 is computed as TF32.
PER_CLOCK = {"int8": 4096, "float16": 2048, "float32": 1024}
BYTES = {"int8": 1, "float16": 2, "float32": 4}
FUSED = {
    "Add",
    "Mul",
    "Sub",
    "Div",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Gelu",
    "Clip",
    "Cast",
    "Sqrt",
    "Exp",
    "Sin",
    "Cos",
    "Pow",
    "QuantizeLinear",
    "DequantizeLinear",
    "Constant",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Shape",
    "Identity",
    "Expand",
    "Slice",
    "Split",
    "Concat",
    "Gather",
    "Transpose",
}


@dataclass(frozen=True)
class Board:
    """A module in one of its power modes: streaming multiprocessors, GPU clock (GHz), memory (GB/s).

    The modes of Orin Nano and Orin NX are those of nvpmodel's "super" configuration (JetPack 6.2 and later). Only the
    NX's MAXN comes from the plain configuration; 10, 15 and 25 W of an NX are equal in both.
    """

    name: str
    mode: str
    sms: int
    ghz: float
    gb_s: float


# Jetson Linux Developer Guide, "Supported Modes and Power Efficiency"; Orin NX: nvpmodel_p3767_0000_super.conf and, for
# MAXN, nvpmodel_p3767_0000.conf (TPC mask 252: two of four TPCs, 4 multiprocessors). `nvpmodel -q --verbose` prints the
# values of a board.
BOARDS = (
    Board("Orin Nano 8GB", "7W", 8, 0.408, 68),
    Board("Orin Nano 8GB", "15W", 8, 0.612, 68),
    Board("Orin Nano 8GB", "25W", 8, 0.918, 102),
    Board("Orin Nano 8GB", "MAXN_SUPER", 8, 1.020, 102),
    Board("Orin NX 16GB", "10W", 4, 0.612, 68),
    Board("Orin NX 16GB", "15W", 4, 0.612, 102),
    Board("Orin NX 16GB", "25W", 8, 0.408, 102),
    Board("Orin NX 16GB", "MAXN", 8, 0.918, 102),
    Board("Orin NX 16GB", "40W", 8, 1.173, 102),
    Board("Orin NX 16GB", "MAXN_SUPER", 8, 1.173, 102),
    Board("AGX Orin 64GB", "15W", 6, 0.420, 136),
    Board("AGX Orin 64GB", "30W", 8, 0.624, 204),
    Board("AGX Orin 64GB", "50W", 16, 0.828, 204),
    Board("AGX Orin 64GB", "MAXN", 16, 1.301, 204),
)
MEASURED_ON = BOARDS[3]


@dataclass(frozen=True)
class Layer:
    """One kernel: a multiply-add counts as two operations. `kind` is the type it computes in."""

    flops: float
    bytes: float
    kind: str


@dataclass(frozen=True)
class Shares:
    """The fitted unknowns: share of the arithmetic peak, share of the bandwidth, and the least seconds of a kernel (at
    the clock of MEASURED_ON; a slower clock makes it longer)."""

    arithmetic: float
    bandwidth: float
    launch_s: float


def _bounds(layer: Layer, board: Board) -> tuple[float, float]:
    """Seconds of arithmetic and of memory traffic at the board's peaks."""
    return layer.flops / (PER_CLOCK[layer.kind] * board.sms * board.ghz * 1e9), layer.bytes / (board.gb_s * 1e9)


def seconds(layers: Iterable[Layer], board: Board, shares: Shares) -> float:
    """Predicted time of one inference pass."""
    total = 0.0
    for layer in layers:
        compute, traffic = _bounds(layer, board)
        total += max(compute / shares.arithmetic, traffic / shares.bandwidth)
        total += shares.launch_s * MEASURED_ON.ghz / board.ghz
    return total


# -- published times (onnxsim, scripts/nvidia/README.md: TensorRT 10.3, batch 1, Orin Nano at MAXN_SUPER)
# ----------------


def _conv(side: int, i: int, o: int, k: int, kind: str) -> Layer:
    pixels = side * side
    return Layer(2.0 * pixels * i * o * k * k, BYTES[kind] * (i * o * k * k + pixels * (i + o)), kind)


def resnet50(kind: str) -> list[Layer]:
    """He et al. 2015 at 224x224, with the stride in the 3x3 layer as it is usually built."""
    out = [_conv(112, 3, 64, 7, kind)]
    width, before = 64, 56
    for blocks, inner, side in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)):
        for b in range(blocks):
            out += [_conv(side if b else before, width, inner, 1, kind), _conv(side, inner, inner, 3, kind)]
            out += [_conv(side, inner, 4 * inner, 1, kind)]
            out += [_conv(side, width, 4 * inner, 1, kind)] if b == 0 else []
            width = 4 * inner
        before = side
    return [*out, _linear(1, 2048, 1000, kind)]


def _linear(rows: int, i: int, o: int, kind: str) -> Layer:
    return Layer(2.0 * rows * i * o, BYTES[kind] * (i * o + rows * (i + o)), kind)


def vit_b16(linear: str, rest: str) -> list[Layer]:
    """Dosovitskiy et al. 2020, 224x224; `linear` is the type of layers with weights, `rest` of the others."""
    n, d = 197, 768
    glue = Layer(10.0 * n * d, 2 * BYTES[rest] * n * d, rest)
    attention = Layer(4.0 * n * n * d, BYTES[rest] * 4 * n * d, rest)
    block = [
        glue,
        _linear(n, d, 3 * d, linear),
        attention,
        _linear(n, d, d, linear),
        glue,
        _linear(n, d, 4 * d, linear),
        _linear(n, 4 * d, d, linear),
    ]
    return [_linear(n, d, d, rest), *(block * 12)]


PUBLISHED = (
    ("ResNet-50 FP16", resnet50("float16"), 1.81e-3),
    ("ResNet-50 INT8", resnet50("int8"), 1.19e-3),
    ("ViT-B/16 FP32", vit_b16("float32", "float32"), 13.3e-3),
    ("ViT-B/16 FP16", vit_b16("float16", "float16"), 5.63e-3),
    ("ViT-B/16 INT8 Linear", vit_b16("int8", "float16"), 4.92e-3),
)


@functools.cache
def fitted() -> Shares:
    """The shares that explain the published times with the smallest worst error, searched on a grid."""
    arithmetic, bandwidth, launch = np.meshgrid(
        np.linspace(0.1, 0.9, 33), np.linspace(0.3, 0.9, 13), np.linspace(0, 20e-6, 21), indexing="ij"
    )
    worst = np.zeros(arithmetic.shape)
    for _, layers, published in PUBLISHED:
        predicted = len(layers) * launch
        for x in layers:
            compute, traffic = _bounds(x, MEASURED_ON)
            predicted = predicted + np.maximum(compute / arithmetic, traffic / bandwidth)
        worst = np.maximum(worst, np.abs(np.log(predicted / published)))
    best = worst.argmin()
    return Shares(*(float(v.ravel()[best]) for v in (arithmetic, bandwidth, launch)))


def calibration_errors() -> dict[str, float]:
    """Published case -> predicted over published time, minus 1."""
    return {name: round(seconds(layers, MEASURED_ON, fitted()) / t - 1, 3) for name, layers, t in PUBLISHED}


# -- our own graphs ----------------------------------------------------------------------------------------------------


def layers_of(path: Path) -> list[Layer]:
    """The kernels of an ONNX file with fixed shapes; a layer between Q/DQ pairs computes in int8, others in their own
    type."""
    half = onnx.TensorProto.FLOAT16
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    shapes: dict[str, tuple[int, ...]] = {i.name: tuple(i.dims) for i in graph.initializer}
    halves = {i.name for i in graph.initializer if i.data_type == half}
    for v in (*graph.input, *graph.output, *graph.value_info):
        if v.type.tensor_type.elem_type == half:
            halves.add(v.name)
        shapes[v.name] = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
    made = {o: n.op_type for n in graph.node for o in n.output}
    out = []
    for node in graph.node:
        if node.op_type in FUSED:
            continue
        int8 = [made.get(i) == "DequantizeLinear" for i in node.input[:2]]
        own = "float16" if node.output[0] in halves else "float32"
        kind = "int8" if len(int8) == 2 and all(int8) else own
        elements = [math.prod(shapes.get(t, ())) for t in (*node.input, node.output[0]) if t]
        first = shapes.get(node.input[0], ())
        result = math.prod(shapes.get(node.output[0], ()))
        if node.op_type == "Conv":
            weight = shapes.get(node.input[1], ())
            flops = 2.0 * result * math.prod(weight[1:])
        elif node.op_type in ("MatMul", "Gemm"):
            flops = 2.0 * result * (first[-1] if first else 1)
        else:
            flops = 5.0 * result
        out.append(Layer(flops, float(BYTES[kind] * sum(elements)), kind))
    return out


def predicted(engines: dict[str, Path], boards: Iterable[Board] = BOARDS) -> list[dict[str, float | str]]:
    """One row per board for the engines (name -> ONNX file): board, mode, and milliseconds of each engine."""
    layers = {name: layers_of(path) for name, path in engines.items()}
    return [
        {"board": b.name, "mode": b.mode, **{n: round(1e3 * seconds(x, b, fitted()), 3) for n, x in layers.items()}}
        for b in boards
    ]


def table(rows: Iterable[dict[str, float | str]]) -> list[str]:
    """The predictions as lines for a terminal."""
    rows = list(rows)
    names = [k for k in rows[0] if k not in ("board", "mode")]
    head = f"{'predicted, ms':16}{'mode':12}" + "".join(f"{n:>13}" for n in names)
    return [head, *(f"{r['board']:16}{r['mode']:12}" + "".join(f"{r[n]:13.2f}" for n in names) for r in rows)]
