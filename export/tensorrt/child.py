"""A process of its own that lets TensorRT for RTX parse and build one ONNX file: the compiler may crash, never end, and
takes one logger for the life of a process.

`python -m export.tensorrt.child SOURCE OUT CAPABILITY...` writes what was said as JSON (`Said`) into OUT.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec


class ParserError(msgspec.Struct, frozen=True):
    """What the ONNX parser objects to. `code`: TensorRT's name of the error."""

    text: str
    node: str
    operator: str
    code: str


class Said(msgspec.Struct, frozen=True):
    """`missing`: why the bindings do not load. `refused`: errors of the parser. `errors`: what the builder logged as an
    error. `layers`: the messages that list kernels. `memory`: lines with sizes. `plan_bytes` is 0 where nothing was
    built."""

    version: str = ""
    missing: str = ""
    refused: tuple[ParserError, ...] = ()
    errors: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    plan_bytes: int = 0
    seconds: float = 0.0


def build(trt: Any, source: bytes, capabilities: list[str]) -> Said:
    """Parse and build an ONNX file for all `capabilities` ("SM86") at once."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((severity, text))

    log, began = Log(), time.monotonic()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(source):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        refused = [ParserError(e.desc(), e.node_name(), e.node_operator(), e.code().name) for e in found]
        return Said(trt.__version__, refused=tuple(refused))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), i)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    errors = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
    return Said(
        trt.__version__,
        errors=tuple(text for severity, text in log.lines if severity in errors),
        layers=tuple(text for _, text in log.lines if text.startswith("Layers:")),
        memory=tuple(text for _, text in log.lines if text.startswith("Total ") and "Memory:" in text),
        plan_bytes=0 if plan is None else plan.nbytes,
        seconds=round(time.monotonic() - began, 2),
    )


def main(source: str, out: str, *capabilities: str) -> None:
    try:
        import tensorrt_rtx_bindings as trt
    except (ImportError, OSError) as e:
        said = Said(missing=str(e).splitlines()[0])
    else:
        said = build(trt, Path(source).read_bytes(), list(capabilities))
    Path(out).write_bytes(msgspec.json.encode(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
