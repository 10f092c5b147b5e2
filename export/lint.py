"""Finds on the workstation what TensorRT would refuse or silently compute otherwise: rules for an exported ONNX file.

Sources: TensorRT's operators page (supported ONNX operators, normalisation with float inputs only) and its
explicit-quantisation rules (symmetric int8, zero point 0, DequantizeLinear never on int32), as far as 10.3 (JetPack
6.2) and 11.x agree.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

LEAST_OPSET, MOST_OPSET = (
    19,
    22,
)  # the opset of TensorRT 10.3's parser; newer opsets do not change the operators below
# The operators of our graphs that the parser of 10.3 knows. Look up any other one before adding it here.
SUPPORTED = {
    "Add",
    "AveragePool",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Einsum",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GroupNormalization",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Shape",
    "Sigmoid",
    "Sin",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
}
TYPES = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
}
LAYERS = {"Conv", "Gemm", "MatMul"}
PATHS = re.compile(rb"(/(home|root|tmp|usr|work|opt|mnt|Users)/[\w.-]+|site-packages|[A-Z]:\\\\Users)")


def lint(path: Path, target: str = "tensorrt") -> list[str]:
    """Complaints about the model at `path`; empty if it may ship. For "onnxruntime", int32 biases between Q/DQ are
    allowed, and activations are uint8 with any zero point (reason: `export.quantise`)."""
    model = onnx.load(path)
    graph = model.graph
    out = [*_header(model, path), *_nodes(graph)]
    return [*out, *_quantisation(graph, target == "onnxruntime")]


def _header(model: onnx.ModelProto, path: Path) -> list[str]:
    out = []
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    if not LEAST_OPSET <= opsets.get("ai.onnx", 0) <= MOST_OPSET:
        out.append(f"opset {opsets.get('ai.onnx')} is outside {LEAST_OPSET} to {MOST_OPSET}")
    found = PATHS.search(path.read_bytes())
    if found or model.metadata_props or model.doc_string:
        out.append(f"metadata was left in it ({found.group().decode() if found else 'properties or texts'})")
    for value in (*model.graph.input, *model.graph.output):
        if not all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim):
            out.append(f"'{value.name}' has no fixed shape")
        if value.type.tensor_type.elem_type not in TYPES:
            out.append(f"'{value.name}' is of a type that TensorRT lacks")
    return out


def _nodes(graph: onnx.GraphProto) -> list[str]:
    out = []
    users: dict[str, list[str]] = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            users[value].append(node.op_type)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in SUPPORTED:
            out.append(
                f"operation {node.domain + '.' if node.domain else ''}{node.op_type} ({node.name}) is not among "
                "TensorRT's"
            )
    return [*out, *_forms(graph)]


def _forms(graph: onnx.GraphProto) -> list[str]:
    """Complaints about what computes right, and badly or in many kernels: it has another form in `export.forms`."""
    out = []
    made = {o: n for n in graph.node for o in n.output}
    constants = {i.name for i in graph.initializer}
    for node in graph.node:
        # mean((x - mean(x)) ** 2) is a normalisation split into single operators: it overflows in half precision
        square = made.get(node.input[0]) if node.op_type == "ReduceMean" else None
        if square is not None and square.op_type in ("Pow", "Mul"):
            less = made.get(square.input[0])
            if less is not None and less.op_type == "Sub":
                out.append(f"a LayerNormalization was taken apart ({node.name}): export it whole, opset >= 17")
        if node.op_type == "InstanceNormalization":
            out.append(f"a GroupNorm became an {node.op_type} ({node.name}): export it as `WholeNorm`")
        if node.op_type == "Transpose" and any(len(a.ints) > 4 for a in node.attribute if a.name == "perm"):
            out.append(f"{node.name} moves five dimensions: split heads as `SplitAttention` does")
        if node.op_type in LAYERS and constants.issuperset(node.input):
            out.append(f"{node.op_type} {node.name} multiplies constants: fold it into weights as `StepBlock` does")
    return out


def _quantisation(graph: onnx.GraphProto, runtime: bool) -> list[str]:
    out = []
    constants = {i.name: i for i in graph.initializer}
    made = {o: n for n in graph.node for o in n.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            users[value].append(node)
    outputs = {o.name for o in graph.output}
    weights = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            out += _pair(node, constants, made, users, outputs, runtime)
        elif node.op_type in LAYERS:
            between = [(m := made.get(v)) is not None and m.op_type == "DequantizeLinear" for v in node.input[:2]]
            if any(between) and not all(between):
                out.append(f"{node.op_type} {node.name} has one quantised input and one that is not")
            if node.input[1] in weights:
                scale = constants.get(made[node.input[1]].input[1])
                if scale is None or int(np.prod(scale.dims)) < 2:
                    out.append(f"the weight of {node.name} has one scale: it needs one for each output channel")
        elif node.op_type.endswith("Normalization") and any(
            (m := made.get(v)) is not None and m.op_type == "DequantizeLinear" for v in node.input[1:]
        ):
            out.append(f"{node.op_type} {node.name} has quantised parameters")
    return out


def _pair(
    node: onnx.NodeProto,
    constants: dict[str, TensorProto],
    made: dict[str, onnx.NodeProto],
    users: dict[str, list[onnx.NodeProto]],
    outputs: set[str],
    runtime: bool,
) -> list[str]:
    """Complaints about one QuantizeLinear or DequantizeLinear."""
    out = []
    name = f"{node.op_type} {node.name}"
    stored = constants.get(node.input[0])
    bias = node.op_type == "DequantizeLinear" and stored is not None and stored.data_type == TensorProto.INT32
    if bias and not runtime:
        return [f"{name} dequantises an int32 bias: TensorRT wants biases in float (export with --target tensorrt)"]
    scale = constants.get(node.input[1])
    if stored is None and scale is not None and len(scale.dims):
        # TensorRT silently computes the layers after such a scale in float
        out.append(f"{name} has a scale of shape {list(scale.dims)}: an activation's scale has no dimension")
    if scale is None or not (numpy_helper.to_array(scale) > 0).all():
        out.append(f"{name} has no constant, positive scale")
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    unsigned = runtime and stored is None  # an activation
    if not bias and (zero is None or zero.data_type != (TensorProto.UINT8 if unsigned else TensorProto.INT8)):
        out.append(f"{name} is not {'uint8' if unsigned else 'int8'}")
    elif zero is not None and not unsigned and numpy_helper.to_array(zero).any():
        out.append(f"{name} has a zero point other than 0")
    if node.op_type == "QuantizeLinear":
        if any(u.op_type != "DequantizeLinear" for u in users[node.output[0]]) or not users[node.output[0]]:
            out.append(f"{name} is not followed by a DequantizeLinear")
    else:
        before = made.get(node.input[0])
        if stored is None and (before is None or before.op_type != "QuantizeLinear"):
            out.append(f"{name} follows no QuantizeLinear")
        if not users[node.output[0]] and node.output[0] not in outputs:
            out.append(f"{name} is used by nothing")
    return out
