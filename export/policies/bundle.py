"""A LeRobot policy's folder to a bundle of kind chunk: ONNX, INT8 calibrated on recorded observations, gates."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from calibration.camera import Camera
from export.bundle import Say, Shipped, compared, float_engines, quantisation, refuse_what_it_would_not_run, shrink
from export.gates import ExportError, missed, not_faster
from export.lerobot import Raw, raw_observations
from export.manifest import manifest_for
from export.observations import JUDGED
from export.plan import Precision, Target, refuse_precision
from export.policies.folder import WEIGHTS
from export.policies.opened import Opened, open_folder
from export.policies.units import Units
from export.quantise import Feeds
from firmware_bridge.arms import Family
from runtime.bundle import check_replaceable, save_bundle, sha256
from runtime.engines.onnx import Engine, OrtEngine
from runtime.manifest import Chunk, Gate, Manifest, PolicyKind, Preprocess, Reactive
from runtime.policies.chunk import ENGINE
from runtime.policies.diffusion import DENOISE, ENCODE, diffused

OBSERVATIONS = 96  # drawn from a dataset: every fourth calibrates, every second judges
LEAST = 32
KEPT = 8  # observations that the bundle keeps, on which engines built from it are compared
MIN_CHANNELS = 16
INT8 = {  # by engine, the layers that are worth it (docs/policies.md)
    ENGINE: [r"network\.(backbone|picture)\.", r"network\.encoder\.\d+\.(wide|narrow)\."],
    ENCODE: [r"network\.looks\."],
    DENOISE: [r"network\.unet\."],
}
TASK = "follow the policy"
STILL, BEYOND = 0.07, 1.6  # rad; joint values in other units are 57 times as large or as small


@dataclass(frozen=True)
class Order:
    """What to export, and how. `rate_hz`: of the actions. `dataset`: where observations come from; without one there is
    no INT8. `tasks`: the instructions under which it is run."""

    folder: Path
    arm: Family
    units: Units
    rate_hz: float
    target: Target = "onnxruntime"
    precision: Precision = "int8"
    dataset: Path | None = None
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ExportError for a precision that the target cannot compute or that needs observations."""
        refuse_precision(self.precision, self.target)
        if self.int8 and self.dataset is None:
            raise ExportError(
                "INT8 is calibrated on recorded observations: name the dataset that the policy was trained on with "
                "--dataset, or export with --precision fp32."
            )
        dt_ms = 1000 / self.rate_hz
        if not 5 <= dt_ms <= 1000:
            raise ExportError(f"--rate {self.rate_hz:g} is no rate of actions: give one from 1 to 200 Hz.")

    @property
    def int8(self) -> bool:
        return self.precision.startswith("int8")

    @property
    def half(self) -> bool:
        return self.precision.endswith("fp16")

    def recipe_or_committed(self) -> dict[str, Any]:
        """Convolutions and feed-forward products; attention, statistics, and first and last layers stay in float."""
        return {
            "target": self.target,
            "calibration": "minmax",
            "min_channels": MIN_CHANNELS,
            "quantise": INT8,
        }

    def origin(self) -> dict[str, Any]:
        text = json.dumps([self.units.scale.tolist(), self.units.offset.tolist()])
        return {
            "checkpoint": sha256(_weights(self.folder)),
            "units": f"{self.units.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}",
            "precision": self.precision,
        }


def _weights(folder: Path) -> Path:
    inside = folder / "pretrained_model" / WEIGHTS
    return inside if inside.is_file() else folder / WEIGHTS


def export_policy(
    order: Order, out: Path, say: Say = lambda line: None, *, force: bool = False, timed: bool = True
) -> dict[str, Any]:
    """Write the bundle `out`; returns the report. Raises, and treats gates and slow engines, as
    `export.bundle.export_bundle` does; PolicyFolderError for the folder, DataError for the dataset."""
    began = time.monotonic()
    check_replaceable(out)
    opened = open_folder(order.folder, order.arm, order.units)
    seen = _observations(order, opened)
    report: dict[str, Any] = {"source": opened.does, "observations": len(seen.state), "target": order.target}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        floats = float_engines(opened.specs, work, say)
        reference = {name: OrtEngine(path) for name, path in floats.items()}
        first = _feeds(opened, seen)
        report["torch"] = _against_torch(opened, reference, first)
        feeds = _all_feeds(opened, reference, first)
        shipped = shrink(order, floats, feeds, work, say)
        refuse_what_it_would_not_run(order, shipped)
        report["engines"], candidate = _compared(reference, floats, shipped, feeds, say)
        if timed and order.int8 and order.target == "onnxruntime" and (slow := not_faster(report["engines"])):
            report["float"] = {name: report["engines"][name]["time"] for name in slow}
            shipped = shipped.in_float(slow, floats)
            report["engines"], candidate = _compared(reference, floats, shipped, feeds, say)
        report["joints_deg"] = _apart(opened, reference, candidate, first[JUDGED])
        report["missed"] = missed(report)
        if report["missed"] and not force:
            raise ExportError(
                f"{report['missed'][0]} ({len(report['missed'])} gates missed, nothing was written): export with "
                "--precision fp32, or write it marked as failed with --force."
            )
        report["seconds"] = round(time.monotonic() - began, 1)
        samples, said = work / "samples.npz", work / "parity.json"
        samples.write_bytes(_stored(opened, seen, order))
        said.write_text(json.dumps(report, indent=1, sort_keys=True))
        manifest = _manifest(order, opened, seen, quantisation(order, shipped, bool(report["missed"])))
        files = {**{f"onnx/{name}.onnx": path for name, path in shipped.files.items()}, "samples.npz": samples}
        save_bundle(out, manifest, files, reports={"parity.json": said})
    return report


def _compared(
    reference: dict[str, OrtEngine],
    floats: dict[str, Path],
    shipped: Shipped,
    feeds: dict[str, list[Feeds]],
    say: Say,
) -> tuple[dict[str, Any], dict[str, OrtEngine]]:
    candidate = {
        name: reference[name] if path == floats[name] else OrtEngine(path) for name, path in shipped.files.items()
    }
    return compared(reference, candidate, floats, shipped, feeds, say), candidate


def _runner(engines: Mapping[str, Engine]) -> Callable[[str, Feeds], Feeds]:
    return lambda name, feed: engines[name].run(feed)


def _against_torch(opened: Opened, engines: Mapping[str, Engine], feeds: list[Feeds]) -> dict[str, float]:
    """The largest difference between the ONNX files and the networks in torch, rad, and its share of the actions'
    range. Raises ExportError where that is beyond 1e-4."""

    def in_torch(name: str, feed: Feeds) -> Feeds:
        module, inputs, outputs = opened.specs[name]
        with torch.no_grad():
            made = module(*(torch.from_numpy(feed[k]) for k in inputs))
        made = made if isinstance(made, tuple) else (made,)
        return {k: x.numpy() for k, x in zip(outputs, made, strict=True)}

    worst, values = 0.0, []
    for feed in feeds[:2]:
        wanted = opened.answer(in_torch, feed)["chunk"]
        worst = max(worst, float(np.abs(opened.answer(_runner(engines), feed)["chunk"] - wanted).max()))
        values.append(wanted)
    share = worst / max(float(np.ptp(np.stack(values))), 1e-9)
    if not share <= 1e-4:  # also catches NaN
        raise ExportError(
            f"the ONNX file differs from the network by {share:.1e} of the actions' range, 1e-4 is allowed: report "
            "this with the policy's config.json."
        )
    return {"max_rad": worst, "share_of_range": share}


def _all_feeds(opened: Opened, engines: Mapping[str, Engine], first: list[Feeds]) -> dict[str, list[Feeds]]:
    """Inputs of every engine, one an observation. Those of a denoiser come from steps all along the way to a plan."""
    if opened.plan.denoising is None:
        return {ENGINE: first}
    count, rows = opened.plan.denoising.count, []
    for k, feed in enumerate(first):
        passes: list[Feeds] = []

        def noted(name: str, x: Feeds, passes: list[Feeds] = passes) -> Feeds:
            if name == DENOISE:
                passes.append({key: value.copy() for key, value in x.items()})
            return engines[name].run(x)

        diffused(noted, feed, opened.sample, count, until=k * 7 % count + 1)
        rows.append(passes[-1])
    return {ENCODE: first, DENOISE: rows}


def _apart(
    opened: Opened, reference: Mapping[str, Engine], candidate: Mapping[str, Engine], feeds: list[Feeds]
) -> dict[str, float]:
    """Degrees between the joint targets of both, over all targets: {"p50", "p99", "max"}, and of the jaw {"jaw_p99",
    "jaw_max"}."""
    feeds = feeds if opened.plan.denoising is None else feeds[:4]
    both = [[opened.answer(_runner(e), f)["chunk"].copy() for e in (reference, candidate)] for f in feeds]
    apart = np.degrees(np.abs(np.concatenate([a - b for a, b in both])))
    arm, jaw = apart[..., :-1], apart[..., -1]
    figures = {"p50": np.percentile(arm, 50), "p99": np.percentile(arm, 99), "max": arm.max()}
    figures |= {"jaw_p99": np.percentile(jaw, 99), "jaw_max": jaw.max()}
    return {k: round(float(v), 4) for k, v in figures.items()}


def _observations(order: Order, opened: Opened) -> Raw:
    """Recorded ones or, without a dataset, a few drawn ones, on which two forms of one engine can be compared and
    nothing more."""
    width, height = opened.size
    if order.dataset is None:
        rng = np.random.default_rng(0)
        low, high = order.arm.LOWER, order.arm.UPPER
        coarse = {c: rng.integers(0, 256, (KEPT, 3, -(-height // 16), -(-width // 16))) for c in opened.cameras}
        pictures = {
            c: np.repeat(np.repeat(x, 16, 2), 16, 3)[:, :, :height, :width].astype(np.uint8) for c, x in coarse.items()
        }
        return Raw(pictures, rng.uniform(low, high, (KEPT, len(low))).astype(np.float32), [TASK] * KEPT, {})
    raw = raw_observations(order.dataset, opened.cameras, order.arm, order.rate_hz, OBSERVATIONS)
    if len(raw.state) < LEAST:
        raise ExportError(
            f"{order.dataset} holds {len(raw.state)} observations, {LEAST} are the least that an INT8 range can be "
            "taken from: record more."
        )
    for name, x in raw.pictures.items():
        if x.shape[2:] != (height, width):
            raise ExportError(
                f"camera '{name}' of {order.dataset} stored {x.shape[3]}x{x.shape[2]}, and the policy takes "
                f"{width}x{height}: name the dataset that it was trained on."
            )
    state = order.units.to_rad(raw.state).astype(np.float32)
    _check_units(order, raw.state)
    return Raw(raw.pictures, state, raw.instructions, raw.cameras)


def _check_units(order: Order, state: np.ndarray) -> None:
    """Raises ExportError where a dataset's joints turn much further than the arm's do, or hardly at all."""
    q = order.units.to_rad(state)
    beyond = np.maximum(order.arm.LOWER - q, q - order.arm.UPPER).max()
    if np.abs(q - order.arm.middle)[:, :-1].max() < STILL:
        raise ExportError(
            f"with --units {order.units.name} no joint of {order.dataset} turns {np.degrees(STILL):.0f} degrees: give "
            "the units that it was recorded in."
        )
    if beyond > BEYOND:
        raise ExportError(
            f"with --units {order.units.name} joints of {order.dataset} turn {np.degrees(beyond):.0f} degrees beyond "
            "the arm's limits: give the units that it was recorded in."
        )


def _whole(ms: float) -> float:
    """30 Hz is 33.333 ms: a plan of 100 targets at 33 ms would end 33 ms early."""
    return int(ms) if ms == int(ms) else round(ms, 6)


def _feeds(opened: Opened, seen: Raw) -> list[Feeds]:
    """Inputs of the first engine; an observation stands for its own past."""
    inputs = next(iter(opened.specs.values()))[1]

    def row(i: int) -> Feeds:
        have = {c: seen.pictures[c][i][None].astype(np.float32) / 255 for c in opened.cameras}
        have["state"] = seen.state[i][None]
        return {name: have[name if name in have else name.rpartition("-")[0]] for name in inputs}

    return [row(i) for i in range(len(seen.state))]


def _stored(opened: Opened, seen: Raw, order: Order) -> bytes:
    rows = np.linspace(0, len(seen.state) - 1, min(KEPT, len(seen.state))).astype(int)
    stored, texts = io.BytesIO(), order.tasks or (TASK,)
    pictures: dict[str, Any] = {c: seen.pictures[c][rows] for c in opened.cameras}
    np.savez_compressed(stored, state=seen.state[rows], instruction=np.array([texts[0]] * len(rows)), **pictures)
    return stored.getvalue()


def _manifest(order: Order, opened: Opened, seen: Raw, how: dict[str, Any]) -> Manifest:
    """Pictures of calibrated cameras are re-projected to them; all others are taken pixel for pixel."""
    width, height = opened.size
    known = {c: seen.cameras[c] for c in opened.cameras if c in seen.cameras and not np.any(seen.cameras[c].D)}
    straight = len(known) < len(opened.cameras)
    flat = np.array([[width, 0.0, (width - 1) / 2], [0.0, width, (height - 1) / 2], [0.0, 0.0, 1.0]])
    cameras = {c: Camera(c, width, height, flat, np.zeros(0)) for c in opened.cameras} if straight else known
    policy, mean, std = opened.plan, [0.0] * 3, [1.0] * 3
    made = manifest_for(
        f"lerobot-{opened.folder.kind}-{order.arm.NAME}",
        order.arm,
        cameras,
        {text: np.zeros(1) for text in order.tasks or (TASK,)},
        {name: (inputs, outputs) for name, (_, inputs, outputs) in opened.specs.items()},
        Preprocess([width, height], mean, std, straight),
        chunk=Chunk(policy.steps, _whole(1000 / order.rate_hz), first=0, use=policy.use, ensemble=policy.ensemble),
        gate=Gate(on=1.0, off=1.0),
        reactive=Reactive(),
        quantization=how,
        policy=PolicyKind(opened.kind, dict(opened.does)),
    )
    return msgspec.structs.replace(made, licence=str(opened.folder.config.get("license") or "not said"))
