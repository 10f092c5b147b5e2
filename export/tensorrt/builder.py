"""Compiles an ONNX file with TensorRT for RTX in a process of its own, and returns the plan that its compiler made."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from common.python import module_command
from export.gates import ExportError
from export.tensorrt.child import Said
from export.tensorrt.message import UnreadablePlan, kernels_of
from export.tensorrt.words import explained
from export.tensorrt.work import counted
from runtime.engines.plan import EnginePlan

# Orin is SM87, for which the builder has no target: SM86 is its nearest. All three are compiled in one build.
CAPABILITIES = ("SM86", "SM80", "SM89")
LIMIT_S = 300.0
CHILD = tuple(module_command("export.tensorrt.child"))


class BuilderMissing(ExportError):
    """TensorRT for RTX is not installed, or does not load."""


def compiled(
    source: Path, capabilities: Sequence[str] = CAPABILITIES, limit_s: float = LIMIT_S, child: Sequence[str] = CHILD
) -> EnginePlan:
    """Build the ONNX file `source` for `capabilities`; `child` is the command that does it.

    Raises BuilderMissing without TensorRT for RTX, and ExportError where the parser or the builder refuses the file
    (with the node and what to change), crashes, or takes longer than `limit_s`.
    """
    said = _said(source, capabilities, limit_s, child)
    if said.missing:
        raise BuilderMissing(
            f"TensorRT for RTX cannot be loaded ({said.missing}): run `pip install 'harmowam-edge[tensorrt-check]'`."
        )
    if said.refused or not said.plan_bytes:
        raise ExportError(explained(source, said))
    if len(said.layers) != 1:
        raise UnreadablePlan(
            f"the builder listed the kernels of {source.name} {len(said.layers)} times: install the version of "
            "tensorrt-rtx-cu13-bindings that constraints/ names."
        )
    return EnginePlan(
        said.version,
        tuple(capabilities),
        counted(source, kernels_of(said.layers[0])),
        said.plan_bytes,
        _size("Weights", said),
        _size("Activation", said),
        said.seconds,
    )


def _said(source: Path, capabilities: Sequence[str], limit_s: float, child: Sequence[str]) -> Said:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "said.json"
        command = [*child, str(source.resolve()), str(out), *capabilities]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired as e:
            raise ExportError(
                f"TensorRT for RTX did not finish {source.name} within {limit_s:g} s: close other programs and export "
                "again, or make the graph smaller."
            ) from e
        if not out.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ExportError(
                f"TensorRT for RTX crashed on {source.name} (exit code {done.returncode}: {last[:200]}): check the "
                "file with `python -m onnx.checker`, and leave out the layers that were changed last."
            )
        return msgspec.json.decode(out.read_bytes(), type=Said)


def _size(what: str, said: Said) -> int:
    """Bytes that a memory line tells; raises UnreadablePlan where there is none."""
    for line in said.memory:
        if found := re.fullmatch(rf"Total {what} Memory: (\d+) bytes", line.strip()):
            return int(found[1])
    raise UnreadablePlan(
        f"the builder does not say its {what.lower()} memory: install the version of tensorrt-rtx-cu13-bindings that "
        "constraints/ names."
    )
