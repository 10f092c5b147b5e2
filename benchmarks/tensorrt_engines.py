"""TensorRT engines of a bundle on this GPU: parity and time. `python -m benchmarks.tensorrt_engines out/so101.bundle`.

Builds the engines as `harmowam build` does, then, engine by engine, on the bundle's recorded observations: parity with
ONNX Runtime on the CPU (cosine of the centred outputs, largest difference and largest value); milliseconds of `run`
with the CUDA graph and without; and of its halves, `start` (the processor is busy) and `wait` (it is free). Then the
fast engine alone and beside the slow ones, which run without pause in threads of their own, on streams of low priority:
once on a stream of high priority, as on the robot, and once on one of low priority, which shows what the priority
gains. On a GPU that these engines do not fill, the last two hardly differ. Exit code 1 when an engine differs from ONNX
Runtime or cannot be built.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.build import COSINE, Options, build, observations
from runtime.bundle import Bundle, BundleError
from runtime.engines.built import URGENT, built_engine, this_board
from runtime.engines.onnx import EngineError, OrtEngine, centred_cosine
from runtime.engines.tensorrt import TensorRTEngine

Feeds = list[dict[str, np.ndarray]]
WARM = 20


def parity(engine: TensorRTEngine, reference: OrtEngine, feeds: Feeds) -> dict[str, tuple[float, float, float]]:
    """Of each output: cosine around the mean of the reference, largest difference, largest value of the reference."""
    wanted: dict[str, list[np.ndarray]] = {k: [] for k in reference.outputs}
    made: dict[str, list[np.ndarray]] = {k: [] for k in reference.outputs}
    for feed in feeds:
        for into, outputs in ((wanted, reference.run(feed)), (made, engine.run(feed))):
            for k in into:
                into[k].append(outputs[k].astype(float))  # a copy: the engine's arrays are its own until the next run
    out = {}
    for k in wanted:
        a, b = np.stack(wanted[k]), np.stack(made[k])
        out[k] = (centred_cosine(a, b), float(np.abs(a - b).max()), float(np.abs(a).max()))
    return out


def timed(run: Callable[[], Any], rounds: int) -> np.ndarray:
    """Milliseconds of each round, the first ones left out."""
    times = []
    for _ in range(rounds + WARM):
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return np.array(times[WARM:])


def halves(engine: TensorRTEngine, feed: dict[str, np.ndarray], rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of `start` and of `wait`."""
    times = []
    for _ in range(rounds + WARM):
        a = time.perf_counter()
        engine.start(feed)
        b = time.perf_counter()
        engine.wait()
        times.append((1e3 * (b - a), 1e3 * (time.perf_counter() - b)))
    both = np.array(times[WARM:])
    return both[:, 0], both[:, 1]


@contextmanager
def busy(engines: list[tuple[TensorRTEngine, dict[str, np.ndarray]]]) -> Iterator[list[int]]:
    """The engines, each in a thread of its own, one pass after the other; yields how many passes each has made."""
    stop, passes, failed = threading.Event(), [0] * len(engines), []

    def work(i: int) -> None:
        engine, feed = engines[i]
        try:
            while not stop.is_set():
                engine.run(feed)
                passes[i] += 1
        except EngineError as e:
            failed.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(engines))]
    for t in threads:
        t.start()
    try:
        yield passes
    finally:
        stop.set()
        for t in threads:
            t.join()
    if failed:
        raise failed[0]


def percentiles(times: np.ndarray) -> dict[str, float]:
    return {"p50": round(float(np.median(times)), 4), "p99": round(float(np.percentile(times, 99)), 4)}


def priority(paths: dict[str, Path], feeds: dict[str, Feeds], rounds: int) -> dict[str, Any]:
    """The fast engine on either priority, alone and beside all engines that may be slow."""
    slow = [
        (TensorRTEngine(p), feeds[n][0])
        for n, p in paths.items()
        if n not in URGENT and n in ("world_model", "predictive")
    ]
    rows: dict[str, Any] = {}
    for label, urgent in (("high priority", True), ("low priority", False)):
        fast = TensorRTEngine(paths["fast"], urgent=urgent)
        run = functools.partial(fast.run, feeds["fast"][0])
        rows[f"{label}, alone"] = percentiles(timed(run, rounds))
        with busy(slow) as passes:
            began, before = time.perf_counter(), sum(passes)
            rows[f"{label}, beside slow"] = percentiles(timed(lambda: fast.run(feeds["fast"][0]), rounds))  # noqa: B023
            rate = (sum(passes) - before) / (time.perf_counter() - began)
        rows[f"{label}, beside slow"]["slow_passes_per_s"] = round(rate, 1)
        fast.close()
    for engine, _ in slow:
        engine.close()
    return rows


def measure(bundle: Bundle, options: Options, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Build, compare and time. Raises EngineError when an engine cannot be built or loaded, or strays while it is
    built."""
    began = time.perf_counter()
    listing = build(bundle, options, say)
    out: dict[str, Any] = {
        "board": listing["board"],
        "quantization": bundle.manifest.quantization.get("format"),
        "build_s": round(time.perf_counter() - began, 1),
        "rounds": rounds,
        "engines": {},
    }
    board, feeds = this_board(), observations(bundle)
    paths = {
        name: built_engine(bundle.path, name, bundle.manifest.files[bundle.manifest.engines[name].file], board)[0]
        for name in bundle.manifest.engines
    }
    for name, path in paths.items():
        feed = feeds[name][0]
        graph, plain = TensorRTEngine(path, urgent=name in URGENT), TensorRTEngine(path, name in URGENT, graph=False)
        compared = parity(graph, OrtEngine(bundle.path / bundle.manifest.engines[name].file, literal=True), feeds[name])
        start, wait = halves(graph, feed, rounds)
        out["engines"][name] = {
            "mb": round(path.stat().st_size / 1e6, 2),
            "parity": {k: {"cosine": round(c, 6), "max_error": e, "max_value": m} for k, (c, e, m) in compared.items()},
            "graph_ms": percentiles(timed(lambda: graph.run(feed), rounds)),  # noqa: B023  (called at once)
            "plain_ms": percentiles(timed(lambda: plain.run(feed), rounds)),  # noqa: B023
            "start_ms": percentiles(start),
            "wait_ms": percentiles(wait),
        }
        graph.close()
        plain.close()
    out["fast_ms"] = priority(paths, feeds, rounds)
    return out


def show(found: dict[str, Any]) -> None:
    b = found["board"]
    print(
        f"{b['gpu']}, sm{b['capability']}, TensorRT {b['tensorrt']}, {found['quantization']}, built in "
        f"{found['build_s']} s"
    )
    print(f"\n{'engine, output':24}{'cosine':>10}{'max error':>12}{'of max':>10}")
    for name, e in found["engines"].items():
        for k, p in e["parity"].items():
            print(f"{name + ', ' + k:24}{p['cosine']:10.6f}{p['max_error']:12.3g}{p['max_value']:10.3g}")
    columns = ("graph_ms", "plain_ms", "start_ms", "wait_ms")
    print(f"\n{'ms, p50 / p99':14}" + "".join(f"{c.removesuffix('_ms'):>18}" for c in columns))
    for name, e in found["engines"].items():
        print(f"{name:14}" + "".join(f"{e[c]['p50']:9.3f} /{e[c]['p99']:7.3f}" for c in columns))
    print(f"\n{'fast, ms':30}{'p50':>9}{'p99':>9}{'slow passes/s':>16}")
    for label, row in found["fast_ms"].items():
        print(f"{label:30}{row['p50']:9.3f}{row['p99']:9.3f}{row.get('slow_passes_per_s', ''):>16}")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", type=Path, help="exported with --target tensorrt or --fp32")
    p.add_argument("--builds", type=int, default=Options.builds)
    p.add_argument("--memory-mb", type=int, default=Options.memory_mb)
    p.add_argument("--rounds", type=int, default=500)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    try:
        options = Options(memory_mb=a.memory_mb, builds=a.builds)
        found = measure(Bundle.load(a.bundle), options, a.rounds, lambda line: print(line, file=sys.stderr))
    except (BundleError, EngineError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    if a.json:
        a.json.write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    low = [
        f"{n}, {k}" for n, e in found["engines"].items() for k, p in e["parity"].items() if not p["cosine"] >= COSINE
    ]
    if low:
        print(f"failed: {'; '.join(low)} strays from ONNX Runtime (cosine below {COSINE})", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
