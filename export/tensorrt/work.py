"""What the kernels of a plan do: their role, and arithmetic operations, told from the ONNX nodes behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from runtime.engines.plan import Kernel

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
PRODUCT_KINDS = ("gemm", "correlation", "runtime_fusion")
PER_ELEMENT = 5.0  # operations per result of a kernel that multiplies no matrices
# Words of which the compiler makes a kernel's name; the first pattern that matches gives the role.
ROLES = (
    ("attention", re.compile(r"mha")),
    ("softmax", re.compile(r"Maxr\w*Exp")),
    ("normalisation", re.compile(r"MeanSub|SubMulMean|AddSqrtDiv|Inor|Gnor|Lnor|Norm")),
    ("product", re.compile(r"MulSum|Fc|Corr|Dot")),
    ("quantisation", re.compile(r"Roun")),
    ("resizing", re.compile(r"Resi|avgpool|maxpool|[Pp]ool")),
    ("movement", re.compile(r"Tran|^(Move|Resh|Slic|Conc|Cast|Repl)+$")),
)
WHY = {
    "attention": "scores, softmax and the product with the values are one kernel",
    "softmax": "the softmax stays alone: the compiler did not recognise attention here (it does in FP16 with Q or K "
    "scaled before their product)",
    "normalisation": "a mean over a row must be known before its values are scaled, so a product cannot follow in the "
    "same kernel",
    "product": "one product; what follows it element by element is part of it where more nodes are named",
    "quantisation": "rounding to INT8 or back: the compiler joins it to its neighbours, not to the product",
    "resizing": "a pooling or resizing has a kernel of its own",
    "movement": "data changes its order or type between two kernels that want it differently",
    "arithmetic": "element by element, between kernels that could not take it in",
}


def short_name(kernel: Kernel) -> str:
    """Its name without the compiler's prefix and number: equal for equal kernels."""
    return re.sub(r"_myl\d+_\d+$", "", kernel.name).removeprefix("__myl_")


def role(kernel: Kernel) -> str:
    """What a kernel is for: a key of WHY."""
    name = short_name(kernel)
    if kernel.kind in ("gemm", "correlation"):
        return "product"
    return next((r for r, pattern in ROLES if pattern.search(name)), "arithmetic")


def node_name(node: onnx.NodeProto) -> str:
    """What the compiler calls a node: one without a name is called after its first output."""
    return node.name or f"node_of_{node.output[0]}"


def product_operations(model: onnx.ModelProto) -> dict[str, float]:
    """Node name -> operations of every matrix product and convolution, a multiply-add counting as two."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for v in (*graph.input, *graph.output, *graph.value_info):
        shapes[v.name] = tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
    out = {}
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        first, second = (shapes.get(i, ()) for i in node.input[:2])
        result = math.prod(shapes.get(node.output[0], ()))
        if node.op_type == "ConvTranspose":
            out[node_name(node)] = 2.0 * math.prod(first) * math.prod(second[1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            row = second[1:] if node.op_type == "Conv" else first[:1] if transposed else first[-1:]
            out[node_name(node)] = 2.0 * result * math.prod(row)
    return out


def counted(source: Path, kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The kernels with their operations. A node that several kernels name belongs to the one that multiplies
    matrices: the others prepare its input or finish its output."""
    total = [
        PER_ELEMENT * max((math.prod(t.shape) for t in k.outputs), default=0) if k.launches else 0.0 for k in kernels
    ]
    named: dict[str, list[int]] = {}
    for i, kernel in enumerate(kernels):
        for node in kernel.nodes:
            named.setdefault(node, []).append(i)
    for node, operations in product_operations(onnx.load(source)).items():
        if places := named.get(node):  # a product of constants is folded: no kernel names it
            total[min(places, key=lambda i: _unlikely(kernels[i]))] += operations
    return tuple(msgspec.structs.replace(k, operations=n) for k, n in zip(kernels, total, strict=True))


def _unlikely(kernel: Kernel) -> int:
    """How unlikely it is that a kernel computes the product of a node that several kernels name."""
    if kernel.kind in PRODUCT_KINDS:
        return 0
    return 1 if role(kernel) in ("attention", "product") else 2
