"""Reads the kernels of a compiled engine from the message in which the builder lists them.

The builder logs it once per build, at its most detailed level: `Layers:`, then one line for each kernel in the order of
launching, an empty line, and the engine's inputs and outputs. A line that does not have this form raises
UnreadablePlan: a kernel that is overlooked would pass every budget.
"""

from __future__ import annotations

import math
import re
from typing import Literal, cast

import msgspec

from export.gates import ExportError

BITS = {
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "Int8": 8,
    "UInt8": 8,
    "FP8": 8,
    "Bool": 8,
    "Int4": 4,
    "FP4": 4,
    "Int32": 32,
    "Int64": 64,
}
DataType = Literal["Float", "Half", "BFloat16", "Int8", "UInt8", "FP8", "Bool", "Int4", "FP4", "Int32", "Int64"]
SYNCHRONISES = ("signal", "wait")  # orders streams, launches nothing
HEAD = "Layers:\n"
TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\], Strides: \[[-\d,]*\], StrideOrder: \[[-\d,]*\], "
    r"Datatype: (?P<dtype>\w+), Format: (?P<format>[^{}]*?)\s*\}"
)
LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: (?P<stream>\d+)(, EventId: \d+)?, "
    r"Metadata: (?P<nodes>.*)"
)
NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]+)\](__\w+)?")  # the compiler marks what it rewrote: __gemm_from_conv1x1
BETWEEN = "\x1f"  # stands between the nodes of a kernel


class UnreadablePlan(ExportError):
    """The builder describes its plan in words that this version does not know."""


class Tensor(msgspec.Struct, frozen=True):
    """`dtype`: TensorRT's word ("Half", "Int8"). `format`: its memory layout. A shape may be a view of a larger
    tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: DataType
    format: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BITS[self.dtype] // 8


class Kernel(msgspec.Struct, frozen=True):
    """One line of the plan. `kind`: TensorRT's word (kgen = generated arithmetic, gemm, correlation = convolution,
    runtime_fusion, signal, wait). `nodes`: names of the ONNX nodes behind it, in the message's order. `operations`: its
    arithmetic (`export.tensorrt.work`)."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str
    stream: int
    nodes: tuple[str, ...]
    operations: float = 0.0

    @property
    def launches(self) -> bool:
        """Whether it is launched: False for what only orders streams."""
        return self.kind not in SYNCHRONISES

    @property
    def bytes(self) -> int:
        """Bytes of what it reads and writes, each tensor once."""
        return sum(t.bytes for t in {t.name: t for t in (*self.inputs, *self.constants, *self.outputs)}.values())

    @property
    def int8(self) -> bool:
        """Whether it multiplies INT8 values: its first input and one more tensor (weights or the other factor) are."""
        factors = [t.dtype == "Int8" for t in (*self.inputs, *self.constants)]
        return bool(self.inputs) and factors[0] and sum(factors) > 1


def _unreadable(what: str) -> UnreadablePlan:
    return UnreadablePlan(
        f"the builder lists its kernels in a form that is not known ({' '.join(what[:160].split())}): install the "
        "version of tensorrt-rtx-cu13-bindings that constraints/ names."
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    """The tensors of a list without its brackets. Raises UnreadablePlan."""
    out, at = [], 0
    while rest := text[at:].strip(" ,"):
        at += text[at:].index(rest)
        found = TENSOR.match(text, at)
        if found is None or found["dtype"] not in BITS:
            raise _unreadable(rest)
        shape = tuple(int(n) for n in found["shape"].split(",") if n)
        out.append(Tensor(found["name"], shape, cast(DataType, found["dtype"]), found["format"]))
        at = found.end()
    return tuple(out)


def _kernel(line: str) -> Kernel:
    found = LINE.fullmatch(line)
    if found is None:
        raise _unreadable(line)
    nodes = (
        [NODE.fullmatch(part) for part in found["nodes"].strip(" ").split(BETWEEN)] if found["nodes"].strip() else []
    )
    if not all(nodes):
        raise _unreadable(found["nodes"])
    return Kernel(
        found["name"],
        found["kind"],
        _tensors(found["inputs"]),
        _tensors(found["constants"]),
        _tensors(found["outputs"]),
        found["tactic"],
        int(found["stream"]),
        tuple(node[1] for node in nodes if node),
    )


def kernels_of(message: str) -> tuple[Kernel, ...]:
    """The kernels that a message of the builder lists, with what orders streams between them.

    Raises UnreadablePlan for a message of another form, and for one that lists no kernel.
    """
    if not message.startswith(HEAD):
        raise _unreadable(message)
    listed, _, _ = message.removeprefix(HEAD).partition("\n\n")
    out = tuple(_kernel(line) for line in listed.splitlines() if line.strip())
    if not any(k.launches for k in out):
        raise _unreadable("it lists no kernel")
    return out
