"""Predicts the time of an engine on a Jetson Orin without the board: a roofline over the kernels that NVIDIA's compiler
made of it (`export.tensorrt`).

Every kernel takes the longer of its arithmetic and its memory traffic, each at a share of the board's peak, plus one
launch. The three unknowns (share of the arithmetic peak, share of the bandwidth, time of a launch) are fitted to
published TensorRT times of networks that were compiled for it here (`roofline_cases.json`, written by `python -m
benchmarks.roofline`); `calibration_errors` and `left_out_errors` say how well that goes. Where an engine has no plan,
its kernels are guessed from the ONNX graph: element-wise operations belong to the layer before them, which the compiler
often does not manage, so such a figure is too small rather than too large.

TensorRT for RTX computes what follows an INT8 convolution (scale, sum, ReLU, rounding) in a kernel of its own. TensorRT
10.3 of JetPack 6 has it inside the convolution: published INT8 times are met that way only. `plan_layers` counts both.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export.tensorrt.work import role
from runtime.engines.plan import EnginePlan, Kernel

CASES = Path(__file__).parent / "roofline_cases.json"
# Operations per clock of one streaming multiprocessor on its tensor cores (sm_87, dense). float32 is computed as TF32.
PER_CLOCK = {"int8": 4096, "float16": 2048, "float32": 1024}
# The same without tensor cores: 128 lanes, a multiply-add each, float16 in pairs.
PLAIN_PER_CLOCK = {"int8": 512, "float16": 512, "float32": 256}
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
    """One kernel, or `count` equal ones: a multiply-add counts as two operations. `kind` is the type it computes in,
    `plain` says that it does so without tensor cores."""

    flops: float
    bytes: float
    kind: str
    plain: bool = False
    count: int = 1


@dataclass(frozen=True)
class Shares:
    """The fitted unknowns: share of the arithmetic peak, share of the bandwidth, and the least seconds of a kernel (at
    the clock of MEASURED_ON; a slower clock makes it longer)."""

    arithmetic: float
    bandwidth: float
    launch_s: float


def _bounds(layer: Layer, board: Board) -> tuple[float, float]:
    """Seconds of arithmetic and of memory traffic at the board's peaks."""
    per_clock = (PLAIN_PER_CLOCK if layer.plain else PER_CLOCK)[layer.kind]
    return layer.flops / (per_clock * board.sms * board.ghz * 1e9), layer.bytes / (board.gb_s * 1e9)


def seconds(layers: Iterable[Layer], board: Board, shares: Shares) -> float:
    """Predicted time of one inference pass."""
    total = 0.0
    for layer in layers:
        compute, traffic = _bounds(layer, board)
        once = max(compute / shares.arithmetic, traffic / shares.bandwidth)
        total += layer.count * (once + shares.launch_s * MEASURED_ON.ghz / board.ghz)
    return total


# -- published times ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network with a published time on MEASURED_ON, and the kernels that it was compiled to, with rounding inside
    INT8 convolutions; `apart` has them as compiled, `guessed` as `layers_of` takes them. INT8 ones are not fitted."""

    name: str
    published_s: float
    layers: tuple[Layer, ...]
    apart: tuple[Layer, ...]
    guessed: tuple[Layer, ...]

    @property
    def fitted(self) -> bool:
        return not self.name.endswith("INT8")


@functools.cache
def cases() -> tuple[Case, ...]:
    """The published cases."""
    rows = json.loads(CASES.read_text())["cases"]
    kinds = ("kernels", "apart", "guessed")
    return tuple(Case(r["name"], 1e-3 * r["ms"], *(tuple(Layer(*k) for k in r[kind]) for kind in kinds)) for r in rows)


GRID = (np.linspace(0.3, 0.9, 61), np.linspace(0.3, 1.0, 71), np.linspace(0.0, 20e-6, 81))


@functools.cache
def _squares() -> np.ndarray:
    """Squared logarithmic errors of every fitted case over GRID: float64[cases, 61, 71, 81]."""
    arithmetic, bandwidth, launch = GRID
    out = []
    for case in (c for c in cases() if c.fitted):
        work = np.zeros((len(arithmetic), len(bandwidth)))
        for layer in case.layers:
            compute, traffic = _bounds(layer, MEASURED_ON)
            work += layer.count * np.maximum(compute / arithmetic[:, None], traffic / bandwidth)
        launches = sum(layer.count for layer in case.layers) * launch
        out.append(np.log((work[..., None] + launches) / case.published_s) ** 2)
    return np.stack(out)


def _best(squares: np.ndarray) -> Shares:
    """The shares with the least sum of `squares` float64[61, 71, 81]."""
    at = np.unravel_index(squares.argmin(), squares.shape)
    return Shares(*(float(values[i]) for values, i in zip(GRID, at)))


@functools.cache
def fitted() -> Shares:
    """The shares that explain the published times best: least sum of squared logarithmic errors on a grid."""
    return _best(_squares().sum(axis=0))


def _error(case: Case, shares: Shares, layers: tuple[Layer, ...] | None = None) -> float:
    return round(seconds(layers or case.layers, MEASURED_ON, shares) / case.published_s - 1, 3)


def calibration_errors() -> dict[str, float]:
    """Published case -> predicted over published time, minus 1."""
    return {c.name: _error(c, fitted()) for c in cases()}


def other_errors() -> dict[str, dict[str, float]]:
    """The same, with these shares, for kernels as compiled ("apart") and as guessed from ONNX nodes ("guessed")."""
    return {kind: {c.name: _error(c, fitted(), getattr(c, kind)) for c in cases()} for kind in ("apart", "guessed")}


def least_time_errors() -> tuple[float, dict[str, float]]:
    """Another reading of a launch: a kernel takes a certain time at least, in place of that much more. That time in
    seconds, fitted with the other two shares as they are, and the errors."""
    shares, best = fitted(), (math.inf, 0.0, dict[str, float]())
    for least in GRID[2]:
        errors = {}
        for case in cases():
            times = ((x.count, *_bounds(x, MEASURED_ON)) for x in case.layers)
            took = sum(n * max(least, c / shares.arithmetic, t / shares.bandwidth) for n, c, t in times)
            errors[case.name] = round(took / case.published_s - 1, 3)
        squares = sum(math.log1p(errors[c.name]) ** 2 for c in cases() if c.fitted)
        best = min(best, (squares, float(least), errors), key=lambda b: b[0])
    return best[1], best[2]


def left_out_errors(whole: bool = True) -> dict[str, float]:
    """The same with shares that were fitted without it: without all precisions and batches of its network, or without
    the case alone (`whole` False). No INT8 case is ever fitted."""
    squares, kept = _squares(), [c.name for c in cases() if c.fitted]
    total = squares.sum(axis=0)
    out = {}
    for case in cases():
        left = [i for i, n in enumerate(kept) if (n.split()[0] == case.name.split()[0] if whole else n == case.name)]
        out[case.name] = _error(case, _best(total - squares[left].sum(axis=0)))
    return out


# -- kernels of a plan -------------------------------------------------------------------------------------------------


def _layer(kernel: Kernel, moved: int) -> Layer:
    halves = any(t.dtype in ("Half", "BFloat16") for t in kernel.inputs)
    kind = "int8" if kernel.int8 else "float16" if halves else "float32"
    weight = kernel.constants[0].shape if kernel.constants else ()
    depthwise = kernel.kind == "correlation" and len(weight) == 4 and weight[1] == 1
    return Layer(kernel.operations, float(moved), kind, depthwise or role(kernel) not in ("product", "attention"))


def plan_layers(plan: EnginePlan, inside: bool = False) -> list[Layer]:
    """The kernels of a plan. With `inside`, what rescales and rounds the result of an INT8 convolution is part of it,
    as TensorRT 10.3 computes it."""
    kernels = plan.launched
    moved = [k.bytes for k in kernels]
    readers: dict[str, int] = {}
    for kernel in kernels:
        for name in {t.name for t in kernel.inputs}:
            readers[name] = readers.get(name, 0) + 1
    made: dict[str, int] = {}  # results of INT8 convolutions that one kernel reads -> index of the convolution
    joined = set()
    for i, kernel in enumerate(kernels):
        source = next((t for t in kernel.inputs if t.name in made), None)
        if inside and source is not None and role(kernel) == "quantisation":
            moved[made.pop(source.name)] += kernel.bytes - 2 * source.bytes
            joined.add(i)
        if kernel.int8 and kernel.kind == "correlation":
            made |= {t.name: i for t in kernel.outputs if readers.get(t.name) == 1}
    return [_layer(k, moved[i]) for i, k in enumerate(kernels) if i not in joined]


# -- without a plan ----------------------------------------------------------------------------------------------------


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


Row = dict[str, float | str]


def spelt(board: Board) -> str:
    """A board and its mode as an option spells it: orin-nano-8gb-25w."""
    return f"{board.name} {board.mode}".lower().replace(" ", "-").replace("_", "-")


def predicted(
    engines: Mapping[str, Path], plans: Mapping[str, EnginePlan] | None = None, inside: bool = False
) -> list[Row]:
    """One row per board for the engines (name -> ONNX file): board, mode, and milliseconds of each engine, from its
    plan where there is one. `inside`: see `plan_layers`."""
    made = plans or {}
    layers = {n: plan_layers(made[n], inside) if n in made else layers_of(path) for n, path in engines.items()}
    return [
        {"board": b.name, "mode": b.mode, **{n: round(1e3 * seconds(x, b, fitted()), 3) for n, x in layers.items()}}
        for b in BOARDS
    ]


def described(plans: Mapping[str, EnginePlan]) -> str:
    """How far off predictions from these plans are on published figures, for people; another sentence without plans."""
    worst = max(abs(e) for name, e in left_out_errors().items() if not name.endswith("INT8"))
    if plans:
        return f"from the compiled plans, up to {100 * worst:.0f} % off on published networks that it was not fitted to"
    return (
        "estimated from the ONNX graph and therefore too short "
        "(for better ones run `pip install 'harmowam-edge[tensorrt-check]'` and export again)"
    )


def _slower(rows: list[Mapping[str, float | str]]) -> Iterator[str]:
    """Why a mode of a board is slower than the mode of less power before it, where one is."""
    for (less, before), (more, row) in itertools.pairwise(zip(BOARDS, rows, strict=True)):
        names = [n for n, ms in row.items() if isinstance(ms, float)]
        if less.name == more.name and any(float(row[n]) > float(before[n]) for n in names):
            yield (
                f"{more.name}: {more.mode} is slower than {less.mode}, for its GPU has {more.sms} multiprocessors "
                f"(not {less.sms}) but only {more.ghz} GHz (not {less.ghz}), and most of the time of a small kernel is "
                "its launch, which is taken to need a fixed number of clocks"
            )


def table(rows: Iterable[Mapping[str, float | str]]) -> list[str]:
    """The predictions, one row for each of BOARDS, as lines for a terminal, with a note on a mode of more power that is
    slower."""
    rows = list(rows)
    names = [k for k in rows[0] if k not in ("board", "mode")]
    head = f"{'predicted, ms':16}{'mode':12}" + "".join(f"{n:>13}" for n in names)
    return [
        head,
        *(f"{r['board']:16}{r['mode']:12}" + "".join(f"{r[n]:13.2f}" for n in names) for r in rows),
        *_slower(rows),
    ]
