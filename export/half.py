"""Half precision for what stays float: on an Orin's tensor cores float16 runs at twice the rate of TF32 and moves half
of the bytes.

Strongly typed, so TensorRT computes what the file says. Inputs and outputs stay float32, and so do normalisations and
softmax: their sums overflow or round away (a LayerNormalization in half precision has ruined published models). ONNX
Runtime on a CPU has hardly a kernel for it and casts back and forth: such a file is for TensorRT, and for judging its
numbers.
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
    """Write `target`, `source` with float16 in place of float32 but for `KEPT` and the borders; scales of Q/DQ pairs,
    too."""
    with quiet():
        model = convert_float_to_float16(
            onnx.load(source), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEPT]
        )
        sorted_model = OnnxModel(model)  # the library puts its casts last
        sorted_model.topological_sort()
    onnx.checker.check_model(sorted_model.model, full_check=True)
    onnx.save(clean(sorted_model.model), str(target))
