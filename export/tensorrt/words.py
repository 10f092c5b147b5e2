"""The builder's words as one sentence: which ONNX node, what is wrong with it, and what to change."""

from __future__ import annotations

import re
from pathlib import Path

import onnx

from export.tensorrt.child import ParserError, Said

UNSUPPORTED = "UNSUPPORTED_NODE"
DYNAMIC = re.compile(r"dynamic or shape inputs|no optimization profile")
ZERO = re.compile(r"[Nn]on-zero zero point|shiftIsAllZeros")
TYPES = re.compile(r"same (input )?types?\b|must have same type|be of same type")
ABSENT = re.compile(r"Plugin not found|was not found in plugin registry|No importer registered")
UNREAD = re.compile(r"Failed to parse the ONNX model|ParseFromCodedStream")
PLACE = re.compile(r"\s*In \w+ at /\S+")
NOISE = re.compile(r"cudaError|checkMacros")  # a build without a GPU says this beside every error


def said_plainly(text: str) -> str:
    """The reason in a text of TensorRT, without the places in its source and the lack of a driver."""
    lines = [line for line in text.splitlines() if line.strip() and not NOISE.search(line)]
    reasons = [found[1] for line in lines if (found := re.search(r"Error Code \d+: [\w ]+\((.*)\)\s*$", line))]
    return PLACE.sub("", (reasons or lines or [text])[0]).strip().rstrip(".")


def _advice(error: ParserError) -> str:
    if ZERO.search(error.text):
        return "has a zero point other than 0, and TensorRT computes symmetric INT8 only: quantise with zero point 0"
    if error.code == UNSUPPORTED or ABSENT.search(error.text):
        return f"is of the operator {error.operator}, which TensorRT's parser lacks: write it with other operators"
    reason = said_plainly(error.text).removeprefix(f"{error.node}: ")
    if TYPES.search(error.text):
        return f"mixes data types ({reason}): put a Cast before it, for a strongly typed engine converts nothing itself"
    return f"is refused by TensorRT's parser ({reason}): mend this node where the model is exported"


def explained(source: Path, said: Said) -> str:
    """One sentence about the file `source`, which was not built."""
    if said.refused and UNREAD.search(said.refused[0].text):
        return f"{source.name}: TensorRT's parser cannot read it as an ONNX model: export it again."
    if said.refused:
        first = said.refused[0]
        more = f" ({len(said.refused)} nodes are refused)" if len(said.refused) > 1 else ""
        return f"{source.name}: the node '{first.node}' ({first.operator}) {_advice(first)}{more}."
    reasons = [t for t in said.errors if not NOISE.search(t)] or ["it gave no reason"]
    if any(DYNAMIC.search(t) for t in reasons):
        values = onnx.load(source).graph.input
        loose = [v.name for v in values if not all(d.dim_value > 0 for d in v.type.tensor_type.shape.dim)]
        return (
            f"{source.name}: the input '{', '.join(loose)}' has no fixed shape, and an engine is built for one shape: "
            "export it with a number for every dimension."
        )
    return f"{source.name}: TensorRT's builder refused it ({said_plainly(reasons[0])}): mend the model or the recipe."
