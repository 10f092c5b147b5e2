"""Computes an FP16 engine as a tensor core with FP16 accumulators would: every sum of products is rounded to FP16 after
each 16 of them.

TensorRT may choose such kernels, and ONNX Runtime on a CPU adds up in float32, so its outputs say nothing about these
sums. Everything else is ONNX's reference implementation, node by node. INT8 products add up in int32 and are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from runtime.engines.onnx import TensorSpec

EVERY = 16  # products that one instruction of a tensor core adds up (mma.m16n8k16)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b; float16 factors [..., M, K] and [..., K, N] with sums rounded after every 16 products, others as they
    are."""
    if a.dtype != np.float16:
        return a @ b
    first, second = a.astype(np.float32), b.astype(np.float32)
    total: np.ndarray = np.zeros((), np.float16)
    for k in range(0, a.shape[-1], EVERY):
        part = first[..., k : k + EVERY] @ second[..., k : k + EVERY, :]
        total = (total.astype(np.float32) + part).astype(np.float16)
    return total


class MatMul(OpRun):
    def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        return (product(a, b),)


class Gemm(OpRun):
    def _run(
        self,
        a: np.ndarray,
        b: np.ndarray,
        c: np.ndarray | None = None,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> tuple[np.ndarray]:
        y = product(a.T if transA else a, b.T if transB else b)
        return ((alpha * y + (0 if c is None else beta * c)).astype(a.dtype),)


class Conv(OpRun):
    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        b: np.ndarray | None = None,
        auto_pad: str = "NOTSET",
        dilations: list[int] | None = None,
        group: int = 1,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        """Two dimensions, one group, no dilation. The products are added in the order of channels-last tensors."""
        top, left, bottom, right = pads or [0, 0, 0, 0]
        down, across = strides or [1, 1]
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        seen = sliding_window_view(padded, (1, 1, *w.shape[2:]))[:, :, ::down, ::across, 0, 0]
        n, c, height, width, *_ = seen.shape
        rows = seen.transpose(0, 2, 3, 4, 5, 1).reshape(n * height * width, -1)
        y = product(rows, w.transpose(2, 3, 1, 0).reshape(-1, len(w)))
        y = y.reshape(n, height, width, -1).transpose(0, 3, 1, 2)
        return (y if b is None else (y + b[:, None, None]).astype(x.dtype),)


def specs(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorSpec]:
    return {v.name: TensorSpec(tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values}


class RoundedSums:
    """The engine in an ONNX file with float32 inputs and outputs; an `Engine`."""

    def __init__(self, path: Path):
        model = onnx.load(path)
        self.inputs, self.outputs = specs(model.graph.input), specs(model.graph.output)
        self.evaluator = ReferenceEvaluator(model, new_ops=[MatMul, Gemm, Conv])

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):  # the reference's sigmoid overflows on its way to 0
            return dict(zip(self.outputs, self.evaluator.run(None, feeds), strict=True))
