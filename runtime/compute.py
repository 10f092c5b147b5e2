"""What engines and pre-processing run on: chosen from what a robot file or the command line asks for and what this
machine and the bundle have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from common.errors import Mendable
from common.schema import Shape
from runtime.bundle import Bundle
from runtime.engines.built import built_engine, this_board
from runtime.engines.listed import UntrustedEngine
from runtime.engines.onnx import EngineError, providers
from runtime.policies import kind_of

Engine = Literal["auto", "tensorrt", "cuda", "cpu"]
Core = Annotated[int, Meta(ge=0, le=1023)]
REPORTED = {"cpu": "onnxruntime", "cuda": "onnxruntime (cuda)", "tensorrt": "tensorrt"}  # in reports
ON_CPU = "engines run on the CPU (ONNX Runtime)"
NVIDIA = ("etc/nv_tegra_release", "dev/nvgpu", "dev/nvidia0")  # a Jetson; its GPU in a container; a driver elsewhere


class ComputeError(Mendable):
    """What was asked for to compute with is not there; one sentence and the next step."""


class Compute(Shape, frozen=True):
    """What is asked for: `[compute]` of a robot file. `cores`: the processor cores that the loops and their engines may
    use, by number; none leaves it to the kernel."""

    engine: Engine = "auto"
    preprocess: Literal["auto", "cpu", "gpu"] = "auto"
    cores: Annotated[tuple[Core, ...], Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        if len(set(self.cores)) < len(self.cores):
            raise ValueError("'cores' must name each processor core once")


@dataclass(frozen=True)
class Chosen:
    """What runs. `engine`: "tensorrt", "cuda" or "cpu"; `gpu`: pre-process there; `note`: one line for the user where
    "auto" took the CPU, with what TensorRT lacks on a machine that could run it; "" else."""

    engine: str = "cpu"
    gpu: bool = False
    note: str = ""


def _require_tensorrt(bundle: Bundle) -> None:
    """Raises EngineError, with what mends it, unless `bundle` has engines for this board of all that its policy
    runs; UntrustedEngine for one that its trust does not list."""
    board = this_board()
    for name in kind_of(bundle).engines:
        onnx = bundle.manifest.files[bundle.manifest.engines[name].file]
        built_engine(bundle.path, name, onnx, board, bundle.trust)


def choose(bundle: Bundle, asked: Compute, root: Path = Path("/")) -> Chosen:
    """What `bundle` runs on here. "auto" takes TensorRT where its engines are built for this board, else the CPU, and
    says so. `root`: of the files that tell of a GPU; another folder in tests.

    Pre-processing by "auto" is on the CPU: no GPU has been measured to be faster (docs/runtime.md). Raises ComputeError
    for an engine that was asked for and is not there, or that is there and must not be loaded; PolicyError for a bundle
    of an unknown kind.
    """
    gpu = asked.preprocess == "gpu"
    if asked.engine == "cuda" and "CUDAExecutionProvider" not in providers():
        raise ComputeError(
            "the engine 'cuda' is not there, for ONNX Runtime has no CUDA on this machine: install onnxruntime-gpu "
            "for it "
            "(docs/jetson.md), or choose --engine auto."
        )
    if asked.engine in ("cuda", "cpu"):
        return Chosen(asked.engine, gpu)
    try:
        _require_tensorrt(bundle)
    except UntrustedEngine as e:  # whoever exchanged it: no run goes on as if nothing had been
        raise ComputeError(str(e)) from e
    except EngineError as e:
        if asked.engine == "tensorrt":
            raise ComputeError(f"the engine 'tensorrt' is not there: {e}") from e
        could = any((root / name).exists() for name in NVIDIA)
        return Chosen("cpu", gpu, f"{ON_CPU}; TensorRT would be faster, but {e}" if could else ON_CPU)
    return Chosen("tensorrt", gpu)


@contextmanager
def on_cores(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, on `cores` (none: wherever the kernel likes).

    Raises ComputeError for cores that this process may not use.
    """
    before = os.sched_getaffinity(0)
    if missing := sorted(set(cores) - before):
        usable = ", ".join(map(str, sorted(before)))
        raise ComputeError(
            f"[compute] cores names core {missing[0]}, which this process may not use: name some of {usable} in the "
            "robot file."
        )
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)
