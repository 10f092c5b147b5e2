"""The builder's words as one sentence: which ONNX node, what is wrong with it, and what to change."""

from __future__ import annotations

import re
from pathlib import Path

from export.tensorrt.child import ParserError, Said

OP, NODE = "UNSUPPORTED_NODE", "INVALID_NODE"
DYNAMIC = re.compile(r"dynamic or shape inputs|no optimization profile")
ZERO = re.compile(r"[Nn]on-zero zero point|shiftIsAllZeros")
TYPES = re.compile(r"same (input )?types?\b|must have same type|be of same type")
ABSENT = re.compile(r"Plugin not found|was not found in plugin registry|No importer registered")
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
    if error.code == OP or ABSENT.search(error.text):
        return f"is of the operator {error.operator}, which TensorRT's parser lacks: write it with other operators"
    reason = said_plainly(error.text).removeprefix(f"{error.node}: ")
    if TYPES.search(error.text):
        return f"mixes data types ({reason}): put a Cast before it, for a strongly typed engine converts nothing itself"
    return f"is refused by TensorRT's parser ({reason}): mend this node where the model is exported"


def explained(source: Path, said: Said) -> str:
    """One sentence about the file `source`, which was not built."""
    if said.refused:
        first = said.refused[0]
        more = f" ({len(said.refused)} nodes are refused)" if len(said.refused) > 1 else ""
        return f"{source.name}: the node '{first.node}' ({first.operator}) {_advice(first)}{more}."
    reasons = [t for t in said.errors if not NOISE.search(t)] or ["it gave no reason"]
    if any(DYNAMIC.search(t) for t in reasons):
        return f"{source.name} has inputs without fixed shapes: export it with a number for every dimension."
    return f"{source.name}: TensorRT's builder refused it ({said_plainly(reasons[0])}): mend the model or the recipe."
