"""What TensorRT on this machine made of an engine, as its inspector tells it, beside the plan that was exported with
the bundle.

Source: NVIDIA TensorRT documentation, "Engine Inspector" (10.16, inference-library/engine-tools; the same from 8.2 on).
TensorRT 11 gives type and layout of a tensor apart. No inspector of a board has been read by this yet.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.schema import Malformed
from runtime.engines.plan import EnginePlan

NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[_ ]|$)")
TYPES = (("Int8", r"int8"), ("Half", r"half|fp16"), ("BFloat16", r"bfloat16|bf16"), ("Float", r"float|fp32"))
INT8_SUMS = "i8i32"  # in the name of a tactic: products of INT8 values, added up in int32


@dataclass(frozen=True)
class Layer:
    """`dtype`: of its first input, as `runtime.engines.plan` spells it. `int8`: whether it
    multiplies INT8 values. `nodes`: the ONNX nodes behind it."""

    dtype: str
    int8: bool
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Inspected:
    """An engine of this machine. `kernels`: how many its CUDA graph launches; a layer may launch none or several.
    `activation_bytes`: what an execution context needs on the device."""

    layers: tuple[Layer, ...]
    kernels: int
    plan_bytes: int
    activation_bytes: int


def _dtype(tensor: Mapping[str, Any]) -> str:
    said = str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))
    return next((name for name, words in TYPES if re.search(rf"\b(?:{words})\b", said, re.IGNORECASE)), said)


def _layer(said: Mapping[str, Any]) -> Layer:
    factors = [_dtype(t) for t in (*said["Inputs"], *said.get("Constants", ()))]
    weights = said.get("Weights", {}).get("Type", "")
    int8 = factors[:1] == ["Int8"] and (
        factors.count("Int8") > 1 or weights == "Int8" or INT8_SUMS in said.get("TacticName", "")
    )
    nodes = NODE.findall(said.get("Metadata", "")) or said["Name"].split(" + ")
    return Layer(factors[0] if factors else "", int8, tuple(nodes))


def layers_of(text: str) -> tuple[Layer, ...]:
    """The layers in an inspector's JSON about an engine that was built with detailed verbosity. Raises Malformed for
    another form: a layer that is overlooked would make a plan look smaller than it is."""
    try:
        said = json.loads(text, strict=False)  # the characters between the nodes' names may stand there as they are
        out = tuple(_layer(layer) for layer in said["Layers"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Malformed(f"a layer is described in a form that is not known ({type(e).__name__}: {e})") from None
    if not out:
        raise Malformed("it lists no layer")
    return out


def compared(exported: EnginePlan, here: Inspected) -> dict[str, Any]:
    """Pairs of figures, exported and of this machine, and under "not_int8" the ONNX nodes that the exported plan
    multiplies in INT8 and this machine in another type, with that type."""
    products = [k for k in exported.launched if k.int8]
    named = Counter(node for k in products for node in set(k.nodes))  # the steps of an engine share their weights
    in_int8 = {node for layer in here.layers if layer.int8 for node in layer.nodes}
    other = {}
    for kernel in products:
        own = [node for node in kernel.nodes if named[node] == 1] or list(kernel.nodes)
        if not in_int8.intersection(own):
            types = {layer.dtype for layer in here.layers if own[0] in layer.nodes}
            other[own[0]] = " and ".join(sorted(types)) or "no layer of its own"
    return {
        "kernels": [len(exported.launched), here.kernels],
        "int8_kernels": [len(products), sum(layer.int8 for layer in here.layers)],
        "plan_megabytes": [round(n / 1e6, 2) for n in (exported.plan_bytes, here.plan_bytes)],
        "activation_megabytes": [round(n / 1e6, 2) for n in (exported.activation_bytes, here.activation_bytes)],
        "not_int8": other,
    }


def difference_lines(record: Mapping[str, Any], most: int = 3) -> list[str]:
    """What `compared` found, for a terminal; `record` may also be {"missing": why there is nothing to compare}."""
    if "missing" in record:
        return [f"not compared with the exported plan: {record['missing']}"]
    figures = (("kernels", "kernels"), ("INT8 kernels", "int8_kernels"), ("plan MB", "plan_megabytes"))
    pairs = [(name, *record[key]) for name, key in (*figures, ("activation MB", "activation_megabytes"))]
    out = ["exported -> here: " + ", ".join(f"{name} {a:g} -> {b:g}" for name, a, b in pairs)]
    if other := record["not_int8"]:
        out.append(f"INT8 by the exported plan, but not here: {_some(other, most)}")
    return out


def _some(other: Mapping[str, str], most: int) -> str:
    shown: Sequence[str] = [f"{node} ({dtype})" for node, dtype in list(other.items())[:most]]
    return ", ".join(shown) + (f" and {len(other) - most} more" if len(other) > most else "")
