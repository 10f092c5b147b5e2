"""TensorRT engines from a bundle, on the machine that will run them: strongly typed, cached, compared with ONNX Runtime, listed.

`engines/<gpu>-<capability>-trt<version>/` holds `<name>.engine`, `timing.cache` and `engines.json`, which says what each was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle, sha256
from runtime.cuda import Cuda, CudaError
from runtime.decode import proprio
from runtime.engine import EngineError, OrtEngine, centred_cosine
from runtime.steps import fixed_noise
from runtime.tensorrt_engine import TensorRTEngine, tensorrt

URGENT = ("fast",)
CONVOLUTIONAL = ("decoder",)  # what a DLA could take: no attention, no normalisation over the picture
COSINE = 0.99  # against ONNX Runtime, node by node
LISTING = "engines.json"


@dataclass(frozen=True)
class Board:
    """What an engine depends on."""

    gpu: str
    capability: str
    tensorrt: str
    jetpack: str

    @property
    def key(self) -> str:
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{gpu}-sm{self.capability}-trt{self.tensorrt}"


@dataclass(frozen=True)
class Options:
    """How to build. `memory_mb` bounds the builder's workspace: 1 GiB leaves an 8 GB board room to live."""

    memory_mb: int = 1024
    builds: int = 2
    dla: bool = False
    version_compatible: bool = False


def this_board() -> Board:
    """Raises EngineError without TensorRT or without a GPU."""
    version = str(tensorrt().__version__)
    try:
        cuda = Cuda()
    except CudaError as e:
        raise EngineError(str(e)) from e
    release = Path("/etc/nv_tegra_release")
    found = re.search(r"R(\d+).*REVISION: ([\d.]+)", release.read_text()) if release.exists() else None
    jetpack = f"L4T {found.group(1)}.{found.group(2)}" if found else "none"
    return Board(cuda.name(), "".join(map(str, cuda.capability())), version, jetpack)


def refuse_unfit(bundle: Bundle) -> None:
    """Raises EngineError for a bundle whose Q/DQ placement TensorRT does not take."""
    q = bundle.manifest.quantization
    if q.get("format") != "fp32" and q.get("target") != "tensorrt":
        raise EngineError(
            f"{bundle.path} was quantised for ONNX Runtime: on the workstation run `harmowam export --target tensorrt --out {bundle.path}`."
        )


def plan(bundle: Bundle, options: Options, board: Board | None) -> list[dict[str, Any]]:
    """What a build would do, engine by engine; `board` None where there is no GPU."""
    folder = bundle.path / "engines" / (board.key if board else "<gpu>-<capability>-trt<version>")
    return [
        {
            "engine": name, "onnx": files.file, "onnx_sha256": bundle.manifest.files[files.file],
            "file": str(folder / f"{name}.engine"), "inputs": files.inputs, "outputs": files.outputs,
            "stream": "high priority" if name in URGENT else "low priority", "dla": options.dla and name in CONVOLUTIONAL,
            **{k: v for k, v in asdict(options).items() if k != "dla"},
        }
        for name, files in bundle.manifest.engines.items()
    ]  # fmt: skip


def build_engine(source: Path, cache: Path, options: Options, dla: bool) -> bytes:
    """One serialised engine by Polygraphy. Strongly typed: precision comes from the Q/DQ nodes, no flag can change it."""
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
            use_dla=dla,
            allow_gpu_fallback=dla,
        )
        return bytes(engine_bytes_from_network(network, config=config, save_timing_cache=str(cache)))
    except (PolygraphyException, MemoryError) as e:
        raise EngineError(
            f"TensorRT could not build {source.name} ({str(e).splitlines()[0][:200]}): close other programs, or lower "
            f"--memory-mb (now {options.memory_mb})."
        ) from e


def observations(bundle: Bundle, count: int = 16) -> dict[str, list[dict[str, np.ndarray]]]:
    """Feeds of every engine from the bundle's stored observations, by the FP32-bordered ONNX on the CPU."""
    with np.load(bundle.path / "samples.npz") as stored:
        raw = {k: stored[k] for k in ("front", "wrist", "pose", "instruction")}
    m = bundle.manifest
    mean, std = (np.array(m.preprocess[k], np.float32).reshape(3, 1, 1) for k in ("mean", "std"))
    noise = fixed_noise(*(tuple(m.engines[k].inputs["noise"]) for k in ("world_model", "predictive")))
    world = OrtEngine(bundle.path / m.engines["world_model"].file)
    out: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in m.engines}
    for i in np.linspace(0, len(raw["pose"]) - 1, count).astype(int):
        views = {
            k: ((raw[k][i][None].astype(np.float32) / 255 - mean) / std).astype(np.float32) for k in ("front", "wrist")
        }
        have = {
            **views,
            "proprio": proprio(raw["pose"][i])[None],
            "text": bundle.task(str(raw["instruction"][i]))[None],
        }
        made = world.run({k: {**have, "noise": noise["world_model"]}[k] for k in world.inputs})
        have |= {k: v.copy() for k, v in made.items()}
        for name, files in m.engines.items():
            out[name].append({k: noise[name] if k == "noise" else have[k] for k in files.inputs})
    return out


def compare(path: Path, source: Path, feeds: list[dict[str, np.ndarray]]) -> tuple[dict[str, float], float]:
    """Cosine of each output (centred) against ONNX Runtime, and the median milliseconds of a pass."""
    engine, reference = TensorRTEngine(path), OrtEngine(source, literal=True)
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
    engine.close()
    cosines = {k: round(centred_cosine(*map(np.stack, zip(*both, strict=True))), 6) for k, both in pairs.items()}
    return cosines, float(np.median(times))


def build(bundle: Bundle, options: Options, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Build all engines beside their place, then put them there; returns the listing. Raises EngineError, leaving nothing behind."""
    refuse_unfit(bundle)
    board = this_board()
    target = bundle.path / "engines" / board.key
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if (target / "timing.cache").exists():
            shutil.copy(target / "timing.cache", partial / "timing.cache")
        feeds = observations(bundle)
        listing: dict[str, Any] = {"board": asdict(board), "options": asdict(options), "engines": {}}
        for row in plan(bundle, options, board):
            name, source = row["engine"], bundle.path / row["onnx"]
            best = partial / f"{name}.engine"
            kept = float("inf")
            for attempt in range(options.builds):
                say(f"{name}: build {attempt + 1} of {options.builds}")
                trial = partial / f"{name}.trial"
                # A cache that is read back repeats its choice of tactics: only the last build writes it.
                cache = partial / ("timing.cache" if attempt == options.builds - 1 else f"{name}.{attempt}.cache")
                trial.write_bytes(build_engine(source, cache, options, row["dla"]))
                cosines, ms = compare(trial, source, feeds[name])
                low = {k: v for k, v in cosines.items() if not v >= COSINE}
                if low:
                    raise EngineError(
                        f"the TensorRT engine {name} strays from ONNX Runtime (cosine {low}): report this with its timing.cache."
                    )
                if ms < kept:
                    kept = ms
                    trial.replace(best)
                    listing["engines"][name] = {
                        "onnx_sha256": row["onnx_sha256"], "sha256": sha256(best), "cosine": cosines, "median_ms": round(ms, 3),
                    }  # fmt: skip
                trial.unlink(missing_ok=True)
                if cache.name != "timing.cache":
                    cache.unlink(missing_ok=True)
        (partial / LISTING).write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")
        for file in partial.iterdir():
            with open(file, "rb+") as f:
                os.fsync(f.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return listing


def built_engine(bundle: Bundle, name: str, board: Board) -> Path:
    """The engine file for `board`. Raises EngineError, with the command that mends it, when it is absent, stale or damaged."""
    mend = f"run `harmowam build {bundle.path}` on this machine."
    folder = bundle.path / "engines" / board.key
    if not (folder / LISTING).is_file():
        others = sorted(p.name for p in (bundle.path / "engines").glob("*") if p.is_dir())
        was = f" (it has them for {', '.join(others)})" if others else ""
        raise EngineError(f"{bundle.path} has no TensorRT engines for {board.key}{was}: {mend}")
    try:
        listing = json.loads((folder / LISTING).read_text())
        entry = listing["engines"][name]
        from_onnx, digest, jetpack = entry["onnx_sha256"], entry["sha256"], listing["board"]["jetpack"]
    except (ValueError, KeyError, TypeError) as e:
        raise EngineError(f"{folder / LISTING} is damaged: {mend}") from e
    path = folder / f"{name}.engine"
    if jetpack != board.jetpack:
        raise EngineError(f"the engines of {bundle.path} were built under {jetpack}, this is {board.jetpack}: {mend}")
    if from_onnx != bundle.manifest.files[bundle.manifest.engines[name].file]:
        raise EngineError(f"{path} was built from another {name}.onnx: {mend}")
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise EngineError(f"{path} is truncated or damaged: {mend}")
    return path
