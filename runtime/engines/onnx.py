"""Inference engines: one interface, ONNX Runtime behind it here, TensorRT on the robot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.errors import Mendable


class EngineError(Mendable):
    """An engine that cannot be loaded or fed; the text says what was expected, what came and what to do."""


@dataclass(frozen=True)
class TensorSpec:
    """Fixed shape and dtype of one input or output."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class Engine(Protocol):
    """Named tensors in, named tensors out. Outputs belong to the caller until the next `run`."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def centred_cosine(wanted: np.ndarray, made: np.ndarray) -> float:
    """Cosine of two stacks [N, ...] after subtracting the first one's mean over N: what all observations have in common
    says nothing."""
    a, b = wanted.astype(float), made.astype(float)
    x, y = (a - a.mean(0)).ravel(), (b - a.mean(0)).ravel()
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))


def check_feeds(inputs: dict[str, TensorSpec], feeds: dict[str, np.ndarray]) -> None:
    """Raises EngineError for a missing, misshapen, mistyped or unknown input."""
    for name, spec in inputs.items():
        given = feeds.get(name)
        if given is None or given.shape != spec.shape or given.dtype != spec.dtype:
            got = "nothing" if given is None else f"{given.dtype}{list(given.shape)}"
            raise EngineError(
                f"input '{name}' must be {spec.dtype}{list(spec.shape)}, got {got}: export the bundle again."
            )
    if len(feeds) != len(inputs):
        extra = sorted(set(feeds) - set(inputs))[0]
        raise EngineError(f"'{extra}' is no input ({', '.join(inputs)} are): export the bundle again.")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise EngineError("no inference engine is installed: run `pip install 'harmowam-edge[cpu]'` (or [gpu]).") from e
    return onnxruntime


def providers() -> list[str]:
    """What ONNX Runtime can run on here; raises EngineError where it is not installed."""
    return list(_onnxruntime().get_available_providers())


def unchanged(path: Path, digest: str) -> bytes:
    """The bytes of an engine's file. Raises EngineError unless they have the SHA-256 `digest`, by which they were
    checked before: between two looks at a file it may be exchanged."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise EngineError(f"{path} was exchanged while it was opened: copy the bundle again, or build it again.")
    return data


_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int8)": "int8", "tensor(int64)": "int64"}


class OrtEngine:
    """ONNX Runtime session. Waiting threads sleep instead of spinning: on a small board the other loops need the core.

    `literal`: run every node as the file has it, as a reference. Otherwise ONNX Runtime fuses Q/DQ nodes into integer
    kernels, which round differently than the nodes say. `digest`: the SHA-256 that the file must have, "" for any.
    """

    def __init__(
        self,
        path: Path,
        threads: int = 1,
        provider: str = "CPUExecutionProvider",
        literal: bool = False,
        digest: str = "",
    ):
        ort = _onnxruntime()
        model = unchanged(path, digest) if digest else str(path)
        if provider == "CUDAExecutionProvider" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # where pip brought CUDA's libraries, the loader does not find them by itself
        options = ort.SessionOptions()
        if literal:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(model, options, providers=[provider])
        except Exception as e:  # the library raises bare exceptions of many types here
            raise EngineError(
                f"engine {Path(path).name} cannot be loaded ({str(e).splitlines()[0][:200]}): export the bundle again."
            ) from e
        running = self._session.get_providers()
        if running[0] != provider:  # ONNX Runtime only warns and falls back to the CPU
            raise EngineError(
                f"engine {Path(path).name} was asked to run on {provider} and runs on {running[0]}: install "
                "onnxruntime for this board."
            )
        self.inputs = {
            i.name: TensorSpec(tuple(i.shape), _TYPES.get(i.type, i.type)) for i in self._session.get_inputs()
        }
        self.outputs = {
            o.name: TensorSpec(tuple(o.shape), _TYPES.get(o.type, o.type)) for o in self._session.get_outputs()
        }
        self._names = list(self.outputs)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises EngineError for a missing, misshapen, mistyped or unknown input."""
        check_feeds(self.inputs, feeds)
        return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
