"""Explicit Q/DQ INT8 from real observations, by a committed recipe of weight names; strongly typed by construction.

Symmetric int8 on both sides is what TensorRT accepts and what ONNX Runtime's int8 kernels run. The recipe is an allow list:
whatever it does not name (normalisation, softmax, skip additions, heads, the action transformer) stays in float.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.onnx import clean

Feeds = dict[str, np.ndarray]


class Observations(CalibrationDataReader):
    def __init__(self, feeds: Iterable[Feeds]):
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


RECIPE = Path(__file__).parent / "recipe.json"
LAYERS = ("Conv", "Gemm", "MatMul")
CALIBRATORS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


def load_recipe(target: str = "onnxruntime", path: Path = RECIPE) -> dict[str, Any]:
    """The committed recipe for one inference engine: {"target", "calibration", "min_channels", "quantise": {engine: patterns}}.

    Raises ValueError for a target that the file does not know.
    """
    raw = json.loads(path.read_text())
    if target not in raw["targets"]:
        raise ValueError(f"{path.name} has no recipe for '{target}': it knows {', '.join(raw['targets'])}")
    return {**{k: v for k, v in raw.items() if k != "targets"}, "target": target, "quantise": raw["targets"][target]}


def layer_weights(model: onnx.ModelProto) -> dict[str, str]:
    """Node name -> weight name of every Conv, Gemm and MatMul that has constant weights."""
    weights = {i.name for i in model.graph.initializer}
    return {n.name: n.input[1] for n in model.graph.node if n.op_type in LAYERS and n.input[1] in weights}


def chosen_nodes(model: onnx.ModelProto, patterns: list[str], min_channels: int) -> list[str]:
    """Names of the layers whose weight matches a pattern and has at least `min_channels` channels on both sides."""
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    wanted = re.compile("|".join(patterns) or "$^")
    return [n for n, w in layer_weights(model).items() if wanted.search(w) and min(shapes[w][:2]) >= min_channels]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library advises, through the root logger, pre-processing that was just done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def quantise(source: Path, target: Path, engine: str, recipe: dict[str, Any], feeds: list[Feeds]) -> dict[str, Any]:
    """Write `target`, the INT8 Q/DQ form of `source`; returns how many layers became int8 and how many there were.

    Raises ValueError when there are no feeds or the recipe matches no layer.
    """
    if not feeds:
        raise ValueError("quantisation needs calibration observations; random data is never used")
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        nodes = chosen_nodes(model, recipe["quantise"][engine], recipe["min_channels"])
        total = len(layer_weights(model))
        if not nodes:
            raise ValueError(f"recipe quantises nothing in engine '{engine}': its patterns match no weight")
        quantize_static(
            str(prepared), str(target), Observations(feeds), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=nodes, per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            calibrate_method=CALIBRATORS[recipe["calibration"]],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "CalibMovingAverage": False,
                           "QuantizeBias": recipe["target"] == "onnxruntime"},
        )  # fmt: skip
    onnx.save(clean(onnx.load(target)), str(target))
    return {"int8_layers": len(nodes), "layers": total}
