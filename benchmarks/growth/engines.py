"""Wider networks: bundles of random weights, opened and stepped as on the robot, on ONNX Runtime with one thread."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.growth.apart import apart, peak_mb, spread, timed
from benchmarks.growth.table import Row, Table
from calibration.camera import Camera
from common.clock import prefer
from common.timing import SLOW_PRIORITY
from runtime.bundle import Bundle, save_bundle
from runtime.contracts import Observation
from runtime.manifest import EngineFiles
from runtime.observe.trace import StageTrace
from runtime.policies import open_policy
from tests.tiny import FRONT, TASK, WRIST, tiny_bundle

WIDTHS = (1.0, 1.8, 3.4, 6.1)  # 1, 3, 9 and 30 times the parameters
SLOW_HZ, FAST_HZ = 8.0, 50.0
TICK = ("world_model", "predictive", "fast")  # engines of the loops; the decoder is for people
NOTE = (
    "Layers of the shipped architecture made wider, random weights, float32, ONNX Runtime on one thread. The reactive "
    "expert and the gate keep their width, so the fast step grows by its encoder alone. Weights beyond the processor's "
    "last cache are read from memory at every step, and channels that are no multiple of 16, as the shipped ones are, "
    "cost ONNX Runtime's convolutions more. Memory is about three times the engines' bytes. `both loops`: processors "
    f"that {SLOW_HZ:g} slow and {FAST_HZ:g} fast steps a second need."
)


def export(width: float, folder: str) -> dict[str, float]:
    """A bundle in float32 with layers `width` times as wide as the shipped policy's."""
    import torch

    from export.config import Config
    from export.models import HarmoWam
    from export.onnx import engines, export_engine

    def wider(n: int) -> int:
        return 8 * round(n * width / 8)  # eight groups, four heads

    c, out = Config(), Path(folder)
    a, b, last = (wider(n) for n in c.encoder_channels)
    one, two = (wider(n) for n in c.unet_channels)
    config = dataclasses.replace(
        c,
        encoder_channels=(a, b, last),
        unet_channels=(one, two),
        token_channels=wider(c.token_channels),
        condition=wider(c.condition),
        width=wider(c.width),
    )
    torch.manual_seed(0)
    model = HarmoWam(config).eval()
    tiny = Bundle.load(tiny_bundle(out / "tiny"))
    kept, files = {"decoder": tiny.manifest.engines["decoder"]}, {"samples.npz": tiny.path / "samples.npz"}
    files["onnx/decoder.onnx"] = tiny.path / "onnx/decoder.onnx"
    seconds = 0.0
    for name in TICK:
        module, inputs, outputs = engines(model)[name]
        path = out / f"{name}.onnx"
        seconds += timed(export_engine, module, inputs, outputs, path)[1]
        kept[name] = EngineFiles(f"onnx/{name}.onnx", {k: list(s) for k, s in inputs.items()}, outputs)
        files[kept[name].file] = path
    save_bundle(out / "wide.bundle", msgspec.structs.replace(tiny.manifest, name="wide", engines=kept, files={}), files)
    return {
        "million parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "export, s": seconds,
        "peak MB": peak_mb(),
    }


def point(folder: str, seconds: float) -> dict[str, float]:
    """Open the bundle, then slow and fast steps for so long each."""
    slow_trace, fast_trace = StageTrace(), StageTrace()
    cameras = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
    began = time.perf_counter()
    bundle = Bundle.load(Path(folder) / "wide.bundle")
    policy = open_policy(bundle, TASK, cameras, slow_trace=slow_trace, fast_trace=fast_trace)
    opened = time.perf_counter() - began
    loaded = peak_mb()
    rng, size = np.random.default_rng(0), (96, 96, 3)
    obs = Observation(
        0,
        {n: rng.integers(0, 255, size, np.uint8) for n in cameras},
        np.zeros(6, np.float32),
        np.zeros(6, np.float32),
        1,
    )
    slow, fast = list[float](), list[float]()
    prior = policy.slow.step(0, obs)
    policy.fast.step(0, obs, prior)
    slow_trace.clear()
    fast_trace.clear()
    prefer(SLOW_PRIORITY)
    used, began = time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds or len(slow) < 10:
        slow_trace.begin()
        prior, took, _ = timed(policy.slow.step, 0, obs)
        slow.append(1e3 * took)
    of_slow = (time.process_time() - used) / len(slow)
    used, began = time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds or len(fast) < 10:
        fast_trace.begin()
        _, took, _ = timed(policy.fast.step, 1000 * len(fast), obs, prior)
        fast.append(1e3 * took)
    prefer(0)
    of_fast = (time.process_time() - used) / len(fast)
    stages = {k: float(np.median(v)) for t in (slow_trace, fast_trace) for k, v in t.durations_ms().items()}
    (slow50, slow99), (fast50, fast99) = spread(slow), spread(fast)
    return {
        "slow step p50, ms": slow50,
        "p99, ms": slow99,
        "world model p50, ms": stages["slow.world_model"],
        "predictive p50, ms": stages["slow.predictive"],
        "slow steps/s": 1e3 / slow50,
        "fast step p50, ms": fast50,
        "fast p99, ms": fast99,
        "fast steps/s": 1e3 / fast50,
        "both loops, cores": SLOW_HZ * of_slow + FAST_HZ * of_fast,
        "open, s": opened,
        "peak memory opened, MB": loaded,
        "peak memory, MB": peak_mb(),
    }


def tables(small: bool) -> list[Table]:
    """One row a width: export, then steps in another process."""
    exported, stepped = list[Row](), list[Row]()
    for width in WIDTHS[: 2 if small else None]:
        with tempfile.TemporaryDirectory() as folder:
            made = apart("engines", "export", width=width, folder=folder)
            work = made.pop("million parameters")
            files = sum(f.stat().st_size for f in Path(folder, "wide.bundle").rglob("*.onnx")) / 1e6
            name = f"{work / (exported[0].work if exported else work):.1f} x"
            exported.append(Row(name, work, {"engines, MB": files, **made}))
            stepped.append(Row(name, work, apart("engines", folder=folder, seconds=0.5 if small else 6.0)))
    watched = (
        *("slow step p50, ms", "world model p50, ms", "predictive p50, ms", "fast step p50, ms"),
        *("both loops, cores", "open, s", "peak memory opened, MB", "peak memory, MB"),
    )
    asked = {"slow steps/s": SLOW_HZ, "fast steps/s": FAST_HZ}
    return [
        Table("Steps of a wider policy", "million parameters", tuple(stepped), watched, NOTE, asked),
        Table(
            "Export of a wider policy",
            "million parameters",
            tuple(exported),
            ("engines, MB", "export, s", "peak MB"),
            "torch to ONNX, the three engines of the loops, without quantisation and checks.",
        ),
    ]
