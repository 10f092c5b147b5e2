"""TensorRT engines from a bundle, on the machine that will run them: strongly typed, cached, compared with ONNX
Runtime and with the exported plan, listed.

`engines/<module>-sm<capability>-<multiprocessors>mp-trt<version>/` holds `<name>.engine`, `timing.cache` and
`engines.json`, which says what each was made from.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.schema import Malformed
from runtime.bundle import Bundle, sha256
from runtime.engines.built import LISTING, URGENT, Board, this_board
from runtime.engines.inspector import Inspected, compared, layers_of
from runtime.engines.listed import add, require_writable
from runtime.engines.onnx import EngineError, OrtEngine, centred_cosine
from runtime.engines.plan import Plans, exported_plans
from runtime.engines.tensorrt import TensorRTEngine, tensorrt
from runtime.policies import kind_of

COSINE = 0.99  # against ONNX Runtime, node by node
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to build. `memory_mb` bounds the builder's workspace: 1 GiB leaves memory to the rest of an 8 GB board.
    `tf32`: float32 layers on the tensor cores, as `export/roofline.py` assumes; it is TensorRT's default, but
    Polygraphy turns it off unless asked."""

    memory_mb: int = 1024
    builds: int = 2
    version_compatible: bool = False
    tf32: bool = True


def refuse_unfit(bundle: Bundle) -> None:
    """Raises EngineError for a bundle whose Q/DQ placement TensorRT does not take."""
    q = bundle.manifest.quantization
    if q.get("format") not in ("fp32", "fp16") and q.get("target") != "tensorrt":
        raise EngineError(
            f"{bundle.path} was quantised for ONNX Runtime: on the workstation run `harmowam export --target tensorrt "
            f"--out {bundle.path}`."
        )


def plan(bundle: Bundle, options: Options, board: Board | None) -> list[dict[str, Any]]:
    """What a build would do, engine by engine; `board` None where there is no GPU."""
    key = board.key(options.version_compatible) if board else "<module>-sm<capability>-<multiprocessors>mp-trt<version>"
    folder = bundle.path / "engines" / key
    return [
        {
            "engine": name,
            "onnx": files.file,
            "onnx_sha256": bundle.manifest.files[files.file],
            "file": str(folder / f"{name}.engine"),
            "inputs": files.inputs,
            "outputs": files.outputs,
            "stream": "high priority" if name in URGENT else "low priority",
            **asdict(options),
        }
        for name, files in bundle.manifest.engines.items()
    ]


def build_engine(source: Path, cache: Path, options: Options) -> bytes:
    """One serialised engine by Polygraphy. Strongly typed: precision comes from the Q/DQ nodes, no flag can change
    it."""
    trt = tensorrt()
    try:
        from polygraphy.backend.trt import create_config, engine_bytes_from_network, network_from_onnx_path
        from polygraphy.exception import PolygraphyException
    except ImportError as e:
        raise EngineError("Polygraphy is not installed: run `pip install 'harmowam-edge[jetson]'`.") from e
    try:
        network = network_from_onnx_path(str(source), strongly_typed=True)
        builder, definition = network[0], network[1]
        config = create_config(
            builder,
            definition,
            memory_pool_limits={trt.MemoryPoolType.WORKSPACE: options.memory_mb << 20},
            load_timing_cache=str(cache) if cache.exists() else None,
            version_compatible=options.version_compatible,
            exclude_lean_runtime=False if options.version_compatible else None,
            tf32=options.tf32,
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,  # or the inspector tells names and no types
        )
        return bytes(engine_bytes_from_network(network, config=config, save_timing_cache=str(cache)))
    except (PolygraphyException, MemoryError) as e:
        raise EngineError(
            f"TensorRT could not build {source.name} ({str(e).splitlines()[0][:200]}): close other programs, or lower "
            f"--memory-mb (now {options.memory_mb})."
        ) from e


def observations(bundle: Bundle, count: int = 16) -> dict[str, list[dict[str, np.ndarray]]]:
    """Feeds of every engine from the bundle's stored observations, by the ONNX files on the CPU; raises EngineError
    without any."""
    try:
        with np.load(bundle.path / "samples.npz") as stored:
            raw = {k: stored[k] for k in stored.files}
        rows = np.linspace(0, len(next(iter(raw.values()))) - 1, count).astype(int)
        return kind_of(bundle).feeds(bundle, {k: v[rows] for k, v in raw.items()})
    except (OSError, ValueError, KeyError, StopIteration) as e:
        raise EngineError(
            f"{bundle.path} holds no observations that its engines could be compared on ({e}): export it again."
        ) from e


@dataclass(frozen=True)
class Trial:
    """An engine as it ran: `cosines` of its outputs (centred) against ONNX Runtime, the median `ms` of a pass, and how
    many kernels a pass launches, and what its inspector says (`TensorRTEngine.inspected`)."""

    cosines: dict[str, float]
    ms: float
    kernels: int
    said: str
    activation_bytes: int


def compare(path: Path, source: Path, feeds: list[dict[str, np.ndarray]], version_compatible: bool = False) -> Trial:
    """Run the engine at `path` and the ONNX file that it was made from on `feeds`."""
    engine = TensorRTEngine(path, version_compatible=version_compatible)
    reference = OrtEngine(source, literal=True)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {k: [] for k in reference.outputs}
    times = []
    for feed in feeds:
        wanted = {k: v.copy() for k, v in reference.run(feed).items()}
        for _ in range(10):
            began = time.perf_counter()
            made = engine.run(feed)
            times.append(1e3 * (time.perf_counter() - began))
        for k, both in pairs.items():
            both.append((wanted[k], made[k].copy()))
    kernels, said = engine.kernels, engine.inspected()
    engine.close()
    cosines = {k: round(centred_cosine(*map(np.stack, zip(*both, strict=True))), 6) for k, both in pairs.items()}
    return Trial(cosines, float(np.median(times)), kernels, *said)


def beside_exported(name: str, exported: Plans, trial: Trial, plan_bytes: int) -> dict[str, Any]:
    """What differs between the plan of the engine `name` that was exported and the one that was built here, or
    {"missing": why nothing can be compared}: a report, for which no build fails."""
    if name not in exported.plans:
        return {"missing": exported.missing or f"it holds none of {name}"}
    try:
        here = Inspected(layers_of(trial.said), trial.kernels, plan_bytes, trial.activation_bytes)
    except Malformed as e:
        return {"missing": f"TensorRT's inspector cannot be understood here: {e}"}
    return compared(exported.plans[name], here)


def fastest(
    row: dict[str, Any], source: Path, folder: Path, feeds: list[dict[str, np.ndarray]], options: Options, say: Say
) -> Trial:
    """Build the engine of the plan's `row` as often as asked for, and leave the fastest in `folder`. Raises
    EngineError where one strays from ONNX Runtime."""
    name, best = row["engine"], None
    for attempt in range(options.builds):
        say(f"{name}: build {attempt + 1} of {options.builds}")
        file = folder / f"{name}.trial"
        # A build that reads a cache repeats its tactics: only the last build writes the cache that is kept.
        cache = folder / ("timing.cache" if attempt == options.builds - 1 else f"{name}.{attempt}.cache")
        file.write_bytes(build_engine(source, cache, options))
        trial = compare(file, source, feeds, options.version_compatible)
        if low := {k: v for k, v in trial.cosines.items() if not v >= COSINE}:
            raise EngineError(
                f"the TensorRT engine {name} strays from ONNX Runtime (cosine {low}): report this with its "
                "timing.cache."
            )
        if best is None or trial.ms < best.ms:
            best = trial
            file.replace(folder / f"{name}.engine")
        file.unlink(missing_ok=True)
        if cache.name != "timing.cache":
            cache.unlink(missing_ok=True)
    assert best is not None
    return best


def build(bundle: Bundle, options: Options, say: Say = lambda line: None) -> dict[str, Any]:
    """Build all engines beside their place, then put them there, and list them where the bundle's trust says; returns
    the listing. Raises EngineError, leaving nothing behind."""
    refuse_unfit(bundle)
    if bundle.trust is not None:
        require_writable(bundle.trust)
    board = this_board()
    target = bundle.path / "engines" / board.key(options.version_compatible)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if (target / "timing.cache").exists():
            shutil.copy(target / "timing.cache", partial / "timing.cache")
        feeds, exported = observations(bundle), exported_plans(bundle.path)
        listing: dict[str, Any] = {"board": asdict(board), "options": asdict(options), "engines": {}}
        for row in plan(bundle, options, board):
            name, built = row["engine"], partial / f"{row['engine']}.engine"
            trial = fastest(row, bundle.path / row["onnx"], partial, feeds[name], options, say)
            listing["engines"][name] = {
                "onnx_sha256": row["onnx_sha256"],
                "sha256": sha256(built),
                "cosine": trial.cosines,
                "median_ms": round(trial.ms, 3),
                "plan": beside_exported(name, exported, trial, built.stat().st_size),
            }
        (partial / LISTING).write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")
        for file in partial.iterdir():
            with open(file, "rb+") as f:
                os.fsync(f.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        # The engines that were built last run: remove those of the other kind.
        shutil.rmtree(target.with_name(board.key(not options.version_compatible)), ignore_errors=True)
        if bundle.trust is not None and bundle.trust.engines is not None:
            add(bundle.trust.engines, listing["engines"])
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return listing
