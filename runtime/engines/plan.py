"""What a compiler of TensorRT makes of an engine: its kernels, from first to last, and the memory that they need. The
plans that were exported with a bundle lie among its reports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

from common.schema import Malformed, read_bounded

PLAN = "plan.json"
MOST_BYTES = 64 << 20
BITS = {
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "Int8": 8,
    "UInt8": 8,
    "FP8": 8,
    "Bool": 8,
    "Int4": 4,
    "FP4": 4,
    "Int32": 32,
    "Int64": 64,
}
DataType = Literal["Float", "Half", "BFloat16", "Int8", "UInt8", "FP8", "Bool", "Int4", "FP4", "Int32", "Int64"]
SYNCHRONISES = ("signal", "wait")  # orders streams, launches nothing


class Tensor(msgspec.Struct, frozen=True):
    """`dtype`: TensorRT's word ("Half", "Int8"). `format`: its memory layout. A shape may be a view of a larger
    tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: DataType
    format: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BITS[self.dtype] // 8


class Kernel(msgspec.Struct, frozen=True):
    """One line of the plan. `kind`: TensorRT's word (kgen = generated arithmetic, gemm, correlation = convolution,
    runtime_fusion, signal, wait). `nodes`: names of the ONNX nodes behind it, in the compiler's order. `operations`:
    its arithmetic (`export.tensorrt.work`)."""

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str
    stream: int
    nodes: tuple[str, ...]
    operations: float = 0.0

    @property
    def launches(self) -> bool:
        """Whether it is launched: False for what only orders streams."""
        return self.kind not in SYNCHRONISES

    @property
    def bytes(self) -> int:
        """Bytes of what it reads and writes, each tensor once."""
        return sum(t.bytes for t in {t.name: t for t in (*self.inputs, *self.constants, *self.outputs)}.values())

    @property
    def int8(self) -> bool:
        """Whether it multiplies INT8 values: its first input and one more tensor (weights or the other factor) are."""
        factors = [t.dtype == "Int8" for t in (*self.inputs, *self.constants)]
        return bool(self.inputs) and factors[0] and sum(factors) > 1


class EnginePlan(msgspec.Struct, frozen=True):
    """What TensorRT for RTX made of one engine. `plan_bytes` is the size of the file; `weight_bytes` and
    `activation_bytes` are what it needs on the device."""

    builder: str
    capabilities: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    plan_bytes: int
    weight_bytes: int
    activation_bytes: int
    seconds: float

    @property
    def launched(self) -> tuple[Kernel, ...]:
        """The kernels without what only orders streams."""
        return tuple(k for k in self.kernels if k.launches)


class Plans(msgspec.Struct, frozen=True):
    """Plans by engine, as `reports/plan.json` holds them, empty where `missing` says why there are none."""

    plans: dict[str, EnginePlan] = {}
    missing: str = ""


def exported_plans(bundle: Path) -> Plans:
    """The plans in the reports of the bundle at `bundle`; `missing` says why there are none, a damaged file included:
    nothing that a robot runs depends on a report."""
    path = bundle / "reports" / PLAN
    try:
        return msgspec.json.decode(read_bounded(path, MOST_BYTES), type=Plans)
    except FileNotFoundError:
        return Plans(missing=f"{bundle} holds no plan of the exporter's compiler")
    except (OSError, Malformed, msgspec.DecodeError, RecursionError) as e:
        return Plans(missing=f"{path} cannot be read ({e})")
