"""Checkpoint to bundle: ONNX, explicit INT8 calibrated on real observations, parity against FP32, manifest."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.gates import ExportError, joint_error, missed, not_faster, parity, race, weight_bytes
from export.half import to_half
from export.lint import lint
from export.manifest import manifest_for
from export.observations import JUDGED, SHOWN, engine_feeds
from export.onnx import Specs, export_engine
from export.plan import Opened, Plan, Precise
from export.precision import modules, reasons
from export.quantise import Feeds, left_in_float, quantise
from export.tensorrt.gate import Judged, budgets, judged
from export.tensorrt.stored import write_plan
from export.tensorrt.sums import RoundedSums
from runtime.bundle import check_replaceable, save_bundle
from runtime.engines.onnx import OrtEngine
from runtime.engines.plan import PLAN
from runtime.manifest import Chunk, Gate, Manifest, Reactive
from runtime.policies.harmowam import fixed_noise
from sim.tasks import ARM

Say = Callable[[str], None]
DONE = 0.9  # calibrated P(done) above which a policy says that it is done


def float_engines(specs: Specs, work: Path, say: Say = lambda line: None) -> dict[str, Path]:
    """Every engine as an FP32 ONNX file in folder `work`."""
    files = {name: work / f"{name}.fp32.onnx" for name in specs}
    for name, (module, inputs, outputs) in specs.items():
        say(f"{name}: torch to ONNX")
        export_engine(module, inputs, outputs, files[name])
    return files


def noise_of(specs: Specs) -> dict[str, np.ndarray]:
    """The fixed noise from which the flow of each engine starts, by engine name."""
    return fixed_noise({name: inputs for name, (_, inputs, _) in specs.items()})


@dataclass(frozen=True)
class Shipped:
    """The ONNX file of each engine as it will run, and how many of its layers are INT8."""

    files: dict[str, Path]
    layers: dict[str, dict[str, Any]]

    def in_float(self, names: Sequence[str], floats: Mapping[str, Path]) -> Shipped:
        """The same with the float form of the engines `names`."""
        layers = {name: {**self.layers[name], "int8_layers": 0} for name in names}
        return Shipped({**self.files, **{n: floats[n] for n in names}}, {**self.layers, **layers})


def shrink(plan: Precise, floats: dict[str, Path], feeds: dict[str, list[Feeds]], work: Path, say: Say) -> Shipped:
    """The engines at the plan's precision, as files in `work`; raises ExportError for a recipe that does not fit
    them."""
    shipped, counts = dict(floats), {}
    recipe = plan.recipe_or_committed()
    for name in floats if plan.int8 else ():
        if name not in recipe["quantise"]:
            raise ExportError(
                f"the recipe does not know the engine '{name}': take one that `harmowam search-recipe` wrote."
            )
        if not recipe["quantise"][name]:  # the search that wrote the recipe found no layer worth quantising
            counts[name] = {"int8_layers": 0}
            continue
        say(f"{name}: INT8 from {len(feeds[name][SHOWN])} observations")
        shipped[name] = work / f"{name}.int8.onnx"
        try:
            counts[name] = quantise(floats[name], shipped[name], name, recipe, feeds[name][SHOWN])
        except ValueError as e:
            raise ExportError(f"the recipe cannot be used: {e}. Take one that `harmowam search-recipe` wrote.") from e
    for name, path in list(shipped.items()) if plan.half else ():
        say(f"{name}: FP16")
        shipped[name] = work / f"{name}.half.onnx"
        to_half(path, shipped[name])
    return Shipped(shipped, counts)


def refuse_what_it_would_not_run(plan: Precise, shipped: Shipped) -> None:
    """Raises ExportError where the linter objects, or where ONNX Runtime would compute INT8 layers in float."""
    complaints = [f"{name}: {c}" for name, path in shipped.files.items() for c in lint(path, plan.target)]
    if complaints:
        raise ExportError(f"{complaints[0]} ({len(complaints)} complaints in all): mend the model or the recipe.")
    if plan.int8 and plan.target == "onnxruntime":
        idle = [layer for path in shipped.files.values() for layer in left_in_float(path)]
        if idle:
            raise ExportError(
                f"ONNX Runtime would compute {idle[0]} ({len(idle)} layers in all) in float: leave them out of the "
                "recipe."
            )


def compiled(plan: Plan, shipped: Shipped, steps: Mapping[str, int], say: Say) -> Judged | None:
    """What NVIDIA's builder makes of the engines; None for another target. Raises ExportError where one does not
    build."""
    if plan.target != "tensorrt":
        return None
    return judged(shipped.files, budgets(plan.recipe_or_committed(), plan.precision, steps), say)


def compared(
    reference: dict[str, OrtEngine],
    candidate: dict[str, OrtEngine],
    floats: dict[str, Path],
    shipped: Shipped,
    feeds: dict[str, list[Feeds]],
    say: Say,
) -> dict[str, Any]:
    """Size, agreement and time of every engine in `candidate` compared with its FP32 form."""
    rows = {}
    for name in candidate:
        path = shipped.files[name]
        say(f"{name}: compared with FP32")
        rows[name] = {
            **shipped.layers.get(name, {}),
            "megabytes": round(path.stat().st_size / 1e6, 2),
            "fp32_megabytes": round(floats[name].stat().st_size / 1e6, 2),
            "weight_bytes": weight_bytes(path),
            "fp32_weight_bytes": weight_bytes(floats[name]),
            "parity": parity(reference[name], candidate[name], feeds[name][JUDGED]),
            "time": race(reference[name], candidate[name], feeds[name][0]),
        }
    return rows


def with_rounded_sums(
    reference: dict[str, OrtEngine], shipped: Shipped, feeds: dict[str, list[Feeds]], say: Say
) -> dict[str, Any]:
    """Agreement of every FP16 engine with FP32 where its sums are rounded to FP16, as TensorRT may do; on a few
    observations."""
    say("FP16 sums emulated")
    few = {name: feeds[name][JUDGED][::8] for name in shipped.files}
    return {name: parity(reference[name], RoundedSums(path), few[name]) for name, path in shipped.files.items()}


def quantisation(plan: Precise, shipped: Shipped, failed: bool) -> dict[str, Any]:
    """What the manifest says about quantisation. Times differ from run to run, so the hashed manifest holds only what
    repeats exactly."""
    how: dict[str, Any] = {"format": "fp16" if plan.half else "fp32"}
    if plan.int8 and any(row["int8_layers"] for row in shipped.layers.values()):
        how = {
            "format": "int8 qdq",
            "target": plan.target,
            "recipe": plan.recipe_or_committed(),
            "layers": shipped.layers,
        }
        how["float"] = "float16" if plan.half else "float32"
    how["origin"] = plan.origin()
    return how | ({"failed": True} if failed else {})


def harmowam_manifest(opened: Opened, how: dict[str, Any]) -> Manifest:
    """The manifest of a HarmoWAM bundle. `how`: what was quantised (`quantisation`)."""
    model, c = opened.model, opened.model.cfg
    spread = model.action_mean.double().tolist(), model.action_std.double().tolist()
    return manifest_for(
        f"harmowam-{ARM.NAME}",
        ARM,
        opened.cameras,
        opened.tasks,
        {name: (inputs, outputs) for name, (_, inputs, outputs) in opened.specs.items()},
        c.image,
        chunk=Chunk(c.chunk, round(c.chunk_dt_s * 1000), *spread),
        gate=Gate(on=0.5, off=0.2, done=DONE if c.form == "one_step" else None),
        reactive=Reactive(c.heatmap),
        quantization=how,
    )


def judged_poses(observations: Path) -> np.ndarray:
    """Tool poses float64[n, 6] of the judged observations."""
    with np.load(observations) as stored:
        poses: np.ndarray = stored["pose"][JUDGED]
    return poses


def refuse_missed(missed: list[str]) -> None:
    """Raises ExportError with the first of the missed gates."""
    if missed:
        raise ExportError(
            f"{missed[0]} ({len(missed)} gates missed, nothing was written): find another recipe with "
            "`harmowam search-recipe`, or write it marked as failed with --force."
        )


def export_bundle(
    plan: Plan, out: Path, say: Say = lambda line: None, *, force: bool = False, timed: bool = True
) -> dict[str, Any]:
    """Write the bundle `out`; returns the report.

    For TensorRT, NVIDIA's builder compiles every engine (`export.tensorrt`), and the plans become a report. Engines
    that are no faster in INT8 on this machine are shipped in float; the report says which ("float"). With `timed` False
    they stay in INT8: what a test compares must not depend on how busy the machine is. Raises ExportError and writes
    nothing when a gate of `export.gates` is missed, `export.lint` objects or an engine does not build; with `force` a
    bundle that misses gates is written anyway, and its manifest lists what failed.
    """
    began = time.monotonic()
    check_replaceable(out)
    opened = plan.opened()
    config = opened.model.cfg
    report: dict[str, Any] = {
        "checkpoint": opened.note,
        "observations": len(opened.observations),
        "target": plan.target,
        "steps": {"world": config.world_steps, "action": config.action_steps},
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        floats = float_engines(opened.specs, work, say)
        reference = {name: OrtEngine(path) for name, path in floats.items()}
        feeds = engine_feeds(reference["world_model"], opened.observations, noise_of(opened.specs))
        shipped = shrink(plan, floats, feeds, work, say)
        refuse_what_it_would_not_run(plan, shipped)
        verdict = compiled(plan, shipped, report["steps"], say)
        if verdict is not None:
            report["tensorrt"] = verdict.summary()
            if plan.int8 and plan.half:
                report["tensorrt"] |= {"why": reasons(verdict.plans, floats), "predicted_for": modules()}
        candidate = reference if plan.precision == "fp32" else {n: OrtEngine(path) for n, path in shipped.files.items()}
        report["engines"] = compared(reference, candidate, floats, shipped, feeds, say)
        if plan.half:
            report["rounded_sums"] = with_rounded_sums(reference, shipped, feeds, say)
        if timed and plan.int8 and plan.target == "onnxruntime":
            slow = not_faster(report["engines"])
            report["float"] = {name: report["engines"][name]["time"] for name in slow}
            shipped, candidate = shipped.in_float(slow, floats), candidate | {n: reference[n] for n in slow}
            again = {name: reference[name] for name in slow}
            report["engines"] |= compared(reference, again, floats, shipped, feeds, say)
        chain = feeds["world_model"][JUDGED], feeds["predictive"][JUDGED]
        report["joints_deg"] = joint_error(reference, candidate, *chain, judged_poses(plan.observations))
        report["missed"] = missed(report)
        if not force:
            refuse_missed(report["missed"])
        files = {f"onnx/{name}.onnx": path for name, path in shipped.files.items()}
        files["samples.npz"] = work / "samples.npz"
        shutil.copy(plan.observations, files["samples.npz"])
        report["seconds"] = round(time.monotonic() - began, 1)
        reports = {"parity.json": work / "parity.json"}
        reports["parity.json"].write_text(json.dumps(report, indent=1, sort_keys=True))
        if verdict is not None and verdict.plans:
            reports[PLAN] = write_plan(verdict, work / PLAN)
        manifest = harmowam_manifest(opened, quantisation(plan, shipped, bool(report["missed"])))
        save_bundle(out, manifest, files, reports)
    return report
