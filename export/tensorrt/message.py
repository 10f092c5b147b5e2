"""Reads the kernels of a compiled engine from the message in which the builder lists them.

The builder logs it once per build, at its most detailed level: `Layers:`, then one line for each kernel in the order of
launching, an empty line, and the engine's inputs and outputs. A line that does not have this form raises
UnreadablePlan: a kernel that is overlooked would pass every budget.
"""

from __future__ import annotations

import re
from typing import cast

from export.gates import ExportError
from runtime.engines.plan import BITS, DataType, Kernel, Tensor

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
