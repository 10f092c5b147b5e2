"""Explicit Q/DQ INT8 from recorded observations, by a committed recipe of weight names; strongly typed by construction.

TensorRT accepts only symmetric int8, for weights and activations. ONNX Runtime on a CPU would silently run a quarter of
such layers in float: its kernels want uint8 activations, it converts int8 to them only where a tensor is read by a
single layer, and it leaves the other layers between Q and DQ. For ONNX Runtime, activations are therefore uint8 over
each tensor's whole range. Its weights use 7 bits, because a processor without VNNI adds products in pairs of 16 bits
and saturates (docs/export.md). The recipe is an allow list: whatever it does not name (normalisation, softmax, skip
additions, heads) stays in float.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.onnx import clean

Feeds = dict[str, np.ndarray]


class Observations(CalibrationDataReader):
    def __init__(self, feeds: Iterable[Feeds]):
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


LAYERS = ("Conv", "Gemm", "MatMul")
CALIBRATORS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}


def layer_weights(model: onnx.ModelProto) -> dict[str, str]:
    """Node name -> weight name of every Conv, Gemm and MatMul that has constant weights."""
    weights = {i.name for i in model.graph.initializer}
    return {n.name: n.input[1] for n in model.graph.node if n.op_type in LAYERS and n.input[1] in weights}


def chosen_nodes(model: onnx.ModelProto, patterns: list[str], min_channels: int) -> list[str]:
    """Names of the layers whose weight matches a pattern and has at least `min_channels` channels on both sides."""
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    try:
        wanted = re.compile("|".join(patterns) or "$^")
    except re.error as e:
        raise ValueError(f"{patterns} is no pattern ({e})") from e
    return [n for n, w in layer_weights(model).items() if wanted.search(w) and min(shapes[w][:2]) >= min_channels]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the quantisation library's advice in the root logger to pre-process the model, which was just done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def quantise(source: Path, target: Path, engine: str, recipe: dict[str, Any], feeds: list[Feeds]) -> dict[str, Any]:
    """Write `target`, the INT8 Q/DQ form of `source`; returns the number of INT8 layers and of all layers.

    Raises ValueError when there are no observations, or when no pattern of the recipe matches a layer.
    """
    if not feeds:
        raise ValueError("quantisation needs calibration observations; random data is never used")
    runtime = recipe["target"] == "onnxruntime"
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        nodes = chosen_nodes(model, recipe["quantise"][engine], recipe["min_channels"])
        total = len(layer_weights(model))
        if not nodes:
            raise ValueError(f"it quantises nothing in engine '{engine}': its patterns match no weight")
        quantize_static(
            str(prepared),
            str(target),
            Observations(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=runtime,
            activation_type=QuantType.QUInt8 if runtime else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CALIBRATORS[recipe["calibration"]],
            extra_options={
                "ActivationSymmetric": not runtime,
                "WeightSymmetric": True,
                "CalibMovingAverage": False,
                "QuantizeBias": runtime,
                # TensorRT rounds where Q stands: an output that is rounded and then rounded again as the next layer's
                # input loses accuracy and costs a kernel.
                "OpTypesToExcludeOutputQuantization": [] if runtime else list(LAYERS),
            },
        )
    onnx.save(clean(onnx.load(target)), str(target))
    return {"int8_layers": len(nodes), "layers": total}


def left_in_float(path: Path) -> list[str]:
    """Names of int8 weights in the file at `path` that ONNX Runtime converts back to float at every start: their layers
    lose accuracy and do not run in INT8. Only the graph that it has optimised shows this."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 4  # it warns that an optimised file fits this kind of processor only
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    int8 = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1}
    return sorted({n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in int8})
