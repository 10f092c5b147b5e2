"""Converts the float layers of an engine to float16: on an Orin's tensor cores float16 runs at twice the rate of TF32
and moves half the bytes.

The file is strongly typed, so TensorRT computes what it says. Inputs and outputs stay float32, and so do normalisations
and softmax: in half precision their sums overflow or lose small terms, and a half-precision LayerNormalization has
ruined published models. ONNX Runtime on a CPU has few float16 kernels and casts back and forth, so such a file is for
TensorRT and for checking its numbers.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.onnx import clean
from export.quantise import quiet

KEPT = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "Softmax")


def to_half(source: Path, target: Path) -> None:
    """Write `target`: `source` with float16 instead of float32, except `KEPT`, inputs and outputs. Scales of Q/DQ pairs
    become float16, too."""
    with quiet():
        model = convert_float_to_float16(
            onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEPT]
        )
        sorted_model = OnnxModel(model)  # the library appends its casts at the end
        sorted_model.topological_sort()
    onnx.checker.check_model(sorted_model.model, full_check=True)
    onnx.save(clean(sorted_model.model), str(target))
