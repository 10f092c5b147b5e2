"""The bundle: the only thing that goes to the robot. Reading it checks everything; writing it is atomic and repeatable.

Layout: `manifest.json`, `onnx/*.onnx`, `samples.npz` (all hashed), `reports/` (measurements, outside the hashes).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import math
import os
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import Mendable
from firmware_bridge.arms.so101 import FAMILY
from runtime.engines.onnx import Engine, EngineError, OrtEngine

SCHEMA = 2  # 2: the mean and spread of action chunks, which plans are gone on from


class BundleError(Mendable):
    """A bundle that must not be used; one sentence and the next step."""


@dataclass(frozen=True)
class EngineFiles:
    """Where an engine lies in the bundle and what it takes and gives (fixed shapes, float32)."""

    file: str
    inputs: dict[str, list[int]]
    outputs: list[str]


@dataclass(frozen=True)
class Manifest:
    """See `docs/ARCHITECTURE.md`, "The bundle". SI units; cameras are the training geometry (`Camera.to_json`)."""

    name: str
    licence: str
    arm_family: str
    engines: dict[str, EngineFiles]
    preprocess: dict[str, Any]
    cameras: dict[str, dict[str, Any]]
    joints: list[dict[str, Any]]
    links: dict[str, float]
    tasks: dict[str, list[float]]
    rates: dict[str, float]
    chunk: dict[str, Any]
    proprio: list[str]
    gate: dict[str, float]
    reactive: dict[str, Any]
    quantization: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbers(values: Any, count: int | None = None) -> bool:
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
    )


def _rows(values: Any, rows: int, columns: int) -> bool:
    return isinstance(values, list) and len(values) == rows and all(_numbers(row, columns) for row in values)


_KEYS = {  # what the loops look up in the free-form parts
    "preprocess": {"size", "mean", "std"}, "chunk": {"steps", "dt_ms"}, "gate": {"on", "off"},
}  # fmt: skip
_FAST_KEYS = {"reactive": {"heatmap"}, "cameras": {"front"}}  # and where there is a fast engine: a baseline has none


def _wrong_field(manifest: Manifest) -> str:
    """The first field that does not hold what the loops count on, or nothing."""
    m: dict[str, Any] = vars(manifest)
    for f in dataclasses.fields(manifest):
        kind = {"str": str, "int": int, "list": list, "dict": dict}[str(f.type).partition("[")[0]]
        if not isinstance(m[f.name], kind):
            return f.name
    for name, keys in {**_KEYS, **(_FAST_KEYS if "fast" in m["engines"] else {})}.items():
        if not keys <= set(m[name]):
            return name
    sizes = {len(t) if isinstance(t, list) else -1 for t in m["tasks"].values()}
    p, chunk = m["preprocess"], m["chunk"]
    checks = {
        "tasks": len(sizes) == 1 and all(_numbers(t) for t in m["tasks"].values()),
        "links": _numbers(list(m["links"].values())),
        "preprocess": _numbers(p["size"], 2) and _numbers(p["mean"], 3) and _numbers(p["std"], 3),
        "chunk": _numbers([chunk["steps"], chunk["dt_ms"]])
        and ("predictive" not in m["engines"] or all(_rows(chunk.get(k), chunk["steps"], 6) for k in ("mean", "std"))),
        "reactive": _numbers([m["reactive"].get("heatmap", 0)]),
        "gate": _numbers(list(m["gate"].values())),
        "cameras": all(isinstance(c, dict) for c in m["cameras"].values()),
        "joints": all(isinstance(j, dict) and _numbers([j.get("lower"), j.get("upper")]) for j in m["joints"]),
        "engines": all(isinstance(e.file, str) and isinstance(e.inputs, dict) for e in m["engines"].values()),
        "files": all(isinstance(d, str) for d in m["files"].values())
        and not any(Path(n).is_absolute() or ".." in Path(n).parts for n in m["files"]),
    }
    return next((name for name, good in checks.items() if not good), "")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Raises BundleError when `path` is absent, damaged, incomplete or from a newer schema."""
        path = Path(path)
        if not (path / "manifest.json").is_file():
            if not path.exists() and (_old(path) / "manifest.json").is_file():
                raise BundleError(
                    f"{path} is missing, for its replacement was interrupted: put the one before back with "
                    f"`mv {shlex.quote(str(_old(path)))} {shlex.quote(str(path))}`."
                )
            raise BundleError(
                f"{path} is not a bundle (no manifest.json): make one with `harmowam export --out out/so101.bundle`, "
                "or name another with --bundle."
            )
        again = "copy it again from the workstation, or export it again."
        try:
            raw = json.loads((path / "manifest.json").read_text())
            schema = raw["schema"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BundleError(f"{path}/manifest.json is damaged: {again}") from e
        if schema != SCHEMA:
            mend = (
                "upgrade harmowam on this machine."
                if isinstance(schema, int) and schema > SCHEMA
                else "export it again with this version."
            )
            raise BundleError(f"{path} has bundle schema {schema}, this version reads {SCHEMA}: {mend}")
        try:
            raw["engines"] = {k: EngineFiles(**v) for k, v in raw["engines"].items()}
            manifest = Manifest(**raw)
        except (TypeError, AttributeError, KeyError) as e:
            raise BundleError(f"{path}/manifest.json lacks or adds fields ({e}): {again}") from e
        wrong = _wrong_field(manifest)
        if wrong:
            raise BundleError(f"{path}/manifest.json is damaged ('{wrong}' does not hold what it should): {again}")
        if manifest.arm_family != FAMILY:
            raise BundleError(
                f"{path} is for arms of the family '{manifest.arm_family}', this version drives {FAMILY}: "
                "name another with --bundle, or upgrade harmowam on this machine."
            )
        for name, digest in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise BundleError(f"{path} is incomplete, {name} is missing: {again}")
            if sha256(file) != digest:
                raise BundleError(f"{path} is damaged, {name} does not match its hash: {again}")
        unhashed = [e.file for e in manifest.engines.values() if e.file not in manifest.files]
        if unhashed:
            raise BundleError(f"{path}/manifest.json names {unhashed[0]} without a hash: {again}")
        if manifest.quantization.get("failed"):
            logging.getLogger("harmowam").warning(
                "WARNING: %s FAILED the gates of its export and was written with --force: keep it off a real arm "
                "(what failed is in reports/parity.json under 'missed').", path,
            )  # fmt: skip
        return cls(path, manifest)

    def task(self, text: str) -> np.ndarray:
        """Embedding float32[E] of an instruction; raises BundleError for a text the bundle was not exported with."""
        if text not in self.manifest.tasks:
            near = difflib.get_close_matches(text, self.manifest.tasks, n=1, cutoff=0.0)
            known = sorted(self.manifest.tasks, key=lambda t: t not in near)
            raise BundleError(
                f"this bundle does not know the task '{text}': use one of " + ", ".join(f"'{t}'" for t in known) + "."
            )
        return np.array(self.manifest.tasks[text], np.float32)

    def engine(self, name: str, threads: int = 1, backend: str | None = None) -> Engine:
        """Load an engine; raises BundleError when it is absent or does not have the manifest's tensors.

        `backend`: "cpu" or "cuda" (ONNX Runtime), or "tensorrt" (engines of `harmowam build`); by default what the environment
        variable HARMOWAM_ENGINE names, else "cpu". What is asked for runs, or an error says why not: nothing falls back.
        """
        spec = self.manifest.engines.get(name)
        if spec is None:
            raise BundleError(f"{self.path} holds no engine '{name}': export the bundle again.")
        try:
            engine = self._open(name, spec, threads, backend or default_backend())
        except EngineError as e:
            raise BundleError(f"{self.path}: {e}") from e
        # TensorRT promises no order of an engine's tensors.
        found = {k: list(v.shape) for k, v in engine.inputs.items()}
        if found != spec.inputs or sorted(engine.outputs) != sorted(spec.outputs):
            raise BundleError(
                f"{self.path}/{spec.file} does not have the tensors that its manifest names: export the bundle again."
            )
        return engine

    def _open(self, name: str, spec: EngineFiles, threads: int, backend: str) -> Engine:
        if backend == "tensorrt":
            from runtime.engines.built import URGENT, built_engine, this_board
            from runtime.engines.tensorrt import TensorRTEngine

            path, compatible = built_engine(self.path, name, self.manifest.files[spec.file], this_board())
            return TensorRTEngine(path, urgent=name in URGENT, version_compatible=compatible)
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if backend not in providers:
            raise EngineError(f"HARMOWAM_ENGINE={backend} is unknown: use cpu, cuda or tensorrt.")
        return OrtEngine(self.path / spec.file, threads, providers[backend])


def default_backend() -> str:
    """What engines run on unless told otherwise: "cpu", "cuda" or "tensorrt"."""
    return os.environ.get("HARMOWAM_ENGINE", "cpu")


def _old(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def check_replaceable(out: Path) -> None:
    """Raise BundleError unless `out` is free, an empty folder or a bundle: `save_bundle` takes away what is there."""
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} is there and is no bundle: name another --out, for it would be replaced.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BundleError(f"{out} cannot be made ({e.strerror}): name another --out.") from e


def save_bundle(out: Path, manifest: Manifest, files: dict[str, Path], reports: dict[str, Path] | None = None) -> None:
    """Write a bundle beside `out`, then put it in its place; equal inputs give equal bytes (reports excepted).

    Killed between two renames it leaves no bundle at `out`: the one before is at `out.old` then, and `Bundle.load` says how to
    put it back. Raises BundleError when something else is at `out`.
    """
    out = Path(out)
    check_replaceable(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, source in {**files, **{f"reports/{k}": v for k, v in (reports or {}).items()}}.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial / name)
    hashed = dataclasses.replace(manifest, files={name: sha256(partial / name) for name in sorted(files)})
    (partial / "manifest.json").write_text(json.dumps(dataclasses.asdict(hashed), indent=1, sort_keys=True) + "\n")
    for file in partial.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as f:
                os.fsync(f.fileno())
    old = _old(out)
    if out.exists():  # else what an interrupted write left at `old` is all there is
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
