"""The gates of an export: does the INT8 model behave like the FP32 model? And which engines are faster in INT8?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from common.errors import Mendable
from export.quantise import Feeds
from runtime.engines.onnx import Engine, centred_cosine
from runtime.policies.decode import absolute_chunk, heatmap_peak
from sim.tasks import ARM

# Least cosine after subtracting the mean over observations. The Prior's tensors feed other networks; the chunk moves
# the arm.
COSINE = {
    "latent": 0.99,
    "tokens": 0.99,
    "future": 0.99,
    "chunk": 0.995,
    "heat": 0.99,
    "reach": 0.99,
    "gate": 0.99,
    "frames": 0.99,
}
# World model and predictive expert together. 2 degrees at a joint are up to 10 mm at the fingers of a stretched SO-101.
JOINT_P99_DEG = 2.0
JOINT_MAX_DEG = 5.0
# the jaw is commanded open or shut: near the switch, the two models may differ by one step of the chunk
JAW_P99_DEG = 5.0
# Share of observations on which the gate may choose another expert or command the jaw otherwise.
FLIPS = 0.02
THRESHOLD = 0.5
CELL_MM = 7.0  # side of a cell of the heat map on the table
# Cells between the two aims: the bound at p99, and the distance from which another thing is meant (at most FLIPS of
# these).
AIM_P99_CELLS = 0.5
ASTRAY_CELLS = 3.0
SLOWEST = 0.9  # FP32 time over INT8 time of one engine: a lower ratio cannot come from the noise of a shared machine


class ExportError(Mendable):
    """An export that must not be used; the text says why and what to do next."""


def parity(reference: Engine, candidate: Engine, feeds: list[Feeds]) -> dict[str, dict[str, float]]:
    """Agreement of two outputs, per tensor: cosine, largest absolute error, root mean square error; for the gate also
    the share of flipped decisions.

    Heat maps are compared as probabilities: the logits of cells that are never aimed at stand near -10000 and would
    make up nearly all of the variance. For them the distance between the two peaks is given as well ("aim_p99" in
    cells; "astray": share beyond the limit).
    """
    pairs: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {k: ([], []) for k in reference.outputs}
    for feed in feeds:
        a, b = reference.run(feed), candidate.run(feed)
        for k, (x, y) in pairs.items():
            x.append(a[k].copy())
            y.append(b[k].copy())
    out = {}
    for k, (x, y) in pairs.items():
        p, q = np.stack(x), np.stack(y)
        if k == "heat":
            apart = aims_apart(p, q)
            p, q = probabilities(p), probabilities(q)
        out[k] = {
            "cosine": round(centred_cosine(p, q), 6),
            "max_abs": round(float(np.abs(p - q).max()), 6),
            "rms": round(float(np.sqrt(((p - q) ** 2).mean())), 6),
        }
        if k == "gate":
            out[k]["flips"] = round(float(((p > THRESHOLD) != (q > THRESHOLD)).mean()), 4)
        if k == "heat":
            out[k]["aim_p99"] = round(float(np.percentile(apart, 99)), 4)
            out[k]["astray"] = round(float((apart > ASTRAY_CELLS).mean()), 4)
    return out


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over all but the first axis."""
    p = np.exp(logits - logits.max(axis=tuple(range(1, logits.ndim)), keepdims=True))
    return p / p.sum(axis=tuple(range(1, logits.ndim)), keepdims=True)


def aims_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances float64[N] in cells between the peaks of two stacks of square heat maps [N, ...]."""
    side = math.isqrt(a[0].size)
    return np.array(
        [np.linalg.norm(heatmap_peak(x, side)[0] - heatmap_peak(y, side)[0]) for x, y in zip(a, b, strict=True)]
    )


def weight_bytes(path: Path) -> int:
    """Bytes of all stored weights and constants of an ONNX file."""
    return sum(numpy_helper.to_array(i).nbytes for i in onnx.load(path).graph.initializer)


def joint_error(
    reference: Mapping[str, Engine],
    candidate: Mapping[str, Engine],
    world: list[Feeds],
    predictive: list[Feeds],
    poses: np.ndarray,
) -> dict[str, float]:
    """Degrees between the joint goals of both models, through world model, predictive expert and inverse kinematics:
    {"p50", "p99", "max"}.

    Each expert is fed by its own world model, as on the robot. `poses` float[N, 6]. The jaw has its own entries:
    {"jaw_p99", "jaw_max"}.
    """
    goals = []
    for side in (reference, candidate):
        joints = []
        for w, p, pose in zip(world, predictive, poses, strict=True):
            made = side["world_model"].run(w)
            feed = {**p, "latent": made["latent"].copy(), "tokens": made["tokens"].copy()}
            chunk = absolute_chunk(pose.astype(float), side["predictive"].run(feed)["chunk"][0].astype(float), ARM)
            joints.append([ARM.inverse(target, ARM.LOWER, ARM.UPPER)[0] for target in chunk])
        goals.append(np.array(joints))
    # Roll and pan may differ by a whole turn and mean the same.
    apart = np.degrees(np.abs((goals[0] - goals[1] + np.pi) % (2 * np.pi) - np.pi))
    arm, jaw = apart[..., :-1], apart[..., -1]
    figures = {"p50": np.percentile(arm, 50), "p99": np.percentile(arm, 99), "max": arm.max()}
    figures |= {"jaw_p99": np.percentile(jaw, 99), "jaw_max": jaw.max()}
    return {k: round(float(v), 4) for k, v in figures.items()}


def race(reference: Engine, candidate: Engine, feed: Feeds, rounds: int = 40) -> dict[str, float]:
    """Milliseconds of both models in one thread each, taken in turns so that a busy machine slows both. The fastest
    round counts."""
    times: tuple[list[float], list[float]] = ([], [])
    for engine in (reference, candidate):
        engine.run(feed)
    for _ in range(rounds):
        for engine, taken in zip((reference, candidate), times, strict=True):
            began = time.perf_counter()
            engine.run(feed)
            taken.append(1e3 * (time.perf_counter() - began))
    fp32, shipped = min(times[0]), min(times[1])
    # measure again and longer before it is called slow
    if shipped >= fp32 and rounds < 200 and candidate is not reference:
        return race(reference, candidate, feed, 200)
    return {"fp32_ms": round(fp32, 3), "ms": round(shipped, 3), "speedup": round(fp32 / shipped, 3)}


def not_faster(engines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the engines whose INT8 form is no faster than FP32 on this machine. `engines`: rows with "time" (of
    `race`) and, where an engine has INT8 layers, "int8_layers".

    An engine is named when it is clearly slower; where those that are left are no faster together, every engine that is
    not faster by itself is.
    """
    times = {name: row["time"] for name, row in engines.items() if row.get("int8_layers")}
    slow = [name for name, t in times.items() if t["speedup"] < SLOWEST]
    left = [t for name, t in times.items() if name not in slow and name != "decoder"]
    if sum(t["ms"] for t in left) < sum(t["fp32_ms"] for t in left):
        return slow
    return [name for name, t in times.items() if name in slow or t["ms"] >= t["fp32_ms"]]


def missed(report: dict[str, Any]) -> list[str]:
    """One sentence for each gate that `report` misses."""
    out = []
    for name, engine in report["engines"].items():
        for tensor, row in engine["parity"].items():
            least = COSINE.get(tensor, 0.99)
            if not row["cosine"] >= least:  # also catches NaN
                out.append(f"{name}: cosine of {tensor} is {row['cosine']:.4f}, {least} is needed")
            if row.get("flips", 0.0) > FLIPS:
                out.append(f"{name}: {row['flips']:.1%} of the gate's decisions flip, {FLIPS:.0%} may")
            if not row.get("aim_p99", 0.0) <= AIM_P99_CELLS:
                apart, most = (CELL_MM * cells for cells in (row["aim_p99"], AIM_P99_CELLS))
                out.append(f"{name}: 1 % of the aims are {apart:.1f} mm apart or more, {most} mm are allowed")
            if row.get("astray", 0.0) > FLIPS:
                far = f"{CELL_MM * ASTRAY_CELLS:.0f} mm away or more"
                out.append(f"{name}: {row['astray']:.1%} of the aims mean another thing ({far}), {FLIPS:.0%} may")
    for name, rows in report.get("rounded_sums", {}).items():
        for tensor, row in rows.items():
            least = COSINE.get(tensor, 0.99)
            if not row["cosine"] >= least:
                said = f"{row['cosine']:.4f} where TensorRT rounds sums to FP16, {least} is needed"
                out.append(f"{name}: cosine of {tensor} is {said} (--precision int8 keeps them in float32)")
    joints = report["joints_deg"]
    for key, which, most in (
        ("p99", "1 % of the joint goals are", JOINT_P99_DEG),
        ("max", "the worst joint goals are", JOINT_MAX_DEG),
        ("jaw_p99", "1 % of the jaw's goals are", JAW_P99_DEG),
    ):
        if not joints[key] <= most:
            out.append(f"{which} {joints[key]:.2f} degrees apart or more, {most} degrees are allowed")
    return [*out, *report.get("tensorrt", {}).get("wrong", [])]
