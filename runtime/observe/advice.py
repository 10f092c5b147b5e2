"""What limits the rate or the latency of a run, and what to type next: a short list from the run's report.

Every rule is a pure function of the report and of what the report does not hold (`Facts`). A predicted gain follows
from figures of the report, or quotes the roofline of docs/export.md; where neither says anything it is NOT_PREDICTED.
"""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NOT_PREDICTED = "not predicted"
MOST = 5  # pieces of advice
MISSED = 0.001  # share of the deadlines, and of the processors' time that other machines took
REPEATED = 0.01  # share of the fast steps that had no new frame
LATE_MS = 1.0  # start of a motor tick, p99
OLD_MS = 550.0  # age of a Prior, p99: the predictive expert is switched off for older ones
FULL = 0.9  # share of a period that a loop's stages may fill
BUSY = 0.95  # share of the processors' time
ENGINES = {  # stage -> column of ROOFLINE
    "slow.world_model": 0,
    "slow.predictive": 1,
    "fast.engine": 2,
}
# Board -> mode, and ms of world model, predictive expert and fast engine by precision: docs/export.md, "What TensorRT's
# compiler makes of it".
ROOFLINE: dict[str, tuple[str, dict[str, tuple[float, float, float]]]] = {
    "Orin Nano": (
        "25 W",
        {
            "fp32": (1.33, 2.09, 0.33),
            "fp16": (0.94, 1.45, 0.26),
            "int8": (1.19, 2.09, 0.33),
            "int8-fp16": (0.91, 1.45, 0.26),
        },
    ),
    "AGX Orin": (
        "MAXN",
        {
            "fp32": (0.80, 1.40, 0.20),
            "fp16": (0.59, 0.99, 0.16),
            "int8": (0.73, 1.40, 0.20),
            "int8-fp16": (0.58, 0.99, 0.16),
        },
    ),
}


@dataclass(frozen=True)
class Advice:
    """`binds`: the stage or part that limits, with its figures. `gain`: what the next step saves, or NOT_PREDICTED.
    `command`: what to type, or the line to set in the robot file."""

    binds: str
    gain: str
    command: str


@dataclass(frozen=True)
class Facts:
    """What a report does not hold. `bundle`: its folder. `robot`: the robot file. `camera_hz`: of its slowest
    camera. `quantization`: the manifest's.
    `steps`: stage -> flow steps of its engine, empty where the bundle does not say. `note`: why `auto` took no TensorRT
    (`runtime.compute.Chosen`). `mends`: name of a check of `harmowam doctor` that did not pass -> what it names."""

    bundle: str
    robot: str
    camera_hz: float
    simulated: bool = False
    quantization: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    mends: Mapping[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """As `harmowam export --precision` names it."""
        name = str(self.quantization.get("format", "fp32")).partition(" ")[0]
        return f"{name}-fp16" if name == "int8" and self.quantization.get("float") == "float16" else name

    @property
    def target(self) -> str:
        """As `harmowam export --target` names it; FP32 runs on both, FP16 under TensorRT alone."""
        other = "tensorrt" if self.precision == "fp16" else "onnxruntime"
        return str(self.quantization.get("target", other))


@dataclass(frozen=True)
class Bound:
    """A loop, or a part of one, that misses its budget. `stage`: the stage that limits it, "" where the stages fit and
    the time is lost between them. `said`: with figures."""

    stage: str
    said: str


Figures = Mapping[str, Any]
Bounds = Mapping[str, Bound]


def _stages(report: Figures, loop: str) -> dict[str, Mapping[str, float]]:
    return {s: row for s, row in report["stages"].items() if s.startswith(f"{loop}.")}


def _over(rows: Mapping[str, Mapping[str, float]]) -> bool:
    return any(row["p99_ms"] > row["budget_ms"] for row in rows.values())


def _fast(report: Figures) -> Iterator[Bound]:
    rows = _stages(report, "fast")
    missed = report["deadline_misses"] / max(report["ticks"], 1)
    if not rows or (missed <= MISSED and not _over(rows)):
        return
    stage = max(rows, key=lambda s: rows[s]["p99_ms"])
    total, period = sum(row["p99_ms"] for row in rows.values()), rows[stage]["budget_ms"]
    ended = f"{missed:.2%} of the deadlines missed"
    if total > FULL * period:
        yield Bound(stage, f"{stage}: {rows[stage]['p99_ms']:.1f} ms at p99 of a period of {period:.1f} ms; {ended}")
    else:
        yield Bound(
            "", f"waiting: {ended}, while the fast stages take {total:.1f} ms at p99 of a period of {period:.1f} ms"
        )


def _slow(report: Figures) -> Iterator[Bound]:
    rows = _stages(report, "slow")
    if not rows:
        return
    stage = max(rows, key=lambda s: rows[s]["p50_ms"])
    total, period = sum(row["p50_ms"] for row in rows.values()), rows[stage]["budget_ms"]
    old = report["prior_age_ms"]["p99"]
    late = f"Priors are {old:.0f} ms old at p99, and the predictive expert is off above {OLD_MS:.0f} ms"
    if total > FULL * period or _over(rows):
        said = f"{stage}: {rows[stage]['p50_ms']:.1f} ms of a slow step of {total:.1f} ms (p50), period {period:.1f} ms"
        yield Bound(stage, f"{said}; {late}" if old > OLD_MS else said)
    elif old > OLD_MS:
        yield Bound("", f"waiting: {late}, while a slow step takes {total:.1f} ms of a period of {period:.1f} ms")


def _motor(report: Figures) -> Iterator[Bound]:
    rows = _stages(report, "motor")
    wake = rows.get("motor.wake")
    if wake is not None and wake["p99_ms"] > LATE_MS:
        yield Bound("motor.wake", f"motor.wake: motor ticks start {wake['p99_ms']:.1f} ms late at p99")
    elif _over(rows):
        yield _single(max(rows, key=lambda s: rows[s]["p99_ms"] / rows[s]["budget_ms"]), report)


def _single(stage: str, report: Figures) -> Bound:
    row = report["stages"][stage]
    return Bound(stage, f"{stage}: {row['p99_ms']:.1f} ms at p99 of a period of {row['budget_ms']:.1f} ms")


def _part(stage: str, report: Figures) -> Iterator[Bound]:
    if stage in report["stages"] and _over({stage: report["stages"][stage]}):
        yield _single(stage, report)


def _frames(report: Figures) -> Iterator[Bound]:
    rate = report["fast_hz"] + report["repeat_hz"]
    if report["repeat_hz"] > REPEATED * rate:
        yield Bound("frames", f"cameras: new frames for {report['fast_hz']:.1f} of {rate:.1f} fast steps a second")


def bounds(report: Figures) -> dict[str, Bound]:
    """Loop or part -> what limits it, the loop that drives the arm first; empty where every budget is kept."""
    looks: dict[str, Callable[[Figures], Iterator[Bound]]] = {
        "fast": _fast,
        "motor": _motor,
        "wire": functools.partial(_part, "wire"),
        "slow": _slow,
        "frames": _frames,
        "pictures": functools.partial(_part, "observation.age"),
    }
    return {name: bound for name, look in looks.items() for bound in look(report)}


def _engine(found: Bounds) -> Bound | None:
    """The limit that is an engine, the fast loop's first."""
    return next((found[k] for k in ("fast", "slow") if k in found and found[k].stage in (*ENGINES, "slow.chunk")), None)


def _roofline(report: Figures, stage: str, precision: str, now: str) -> str:
    """The quoted prediction for `stage` in `precision`, beside `now`."""
    model = str(report.get("board", {}).get("model", ""))
    board = next((name for name in ROOFLINE if name in model), None)
    if board is None or stage not in ENGINES or report.get("kind") != "harmowam":
        return NOT_PREDICTED
    mode, table = ROOFLINE[board]
    if precision not in table:
        return NOT_PREDICTED
    before = f"{table[now][ENGINES[stage]]:.2f} ms" if now in table else now
    after = table[precision][ENGINES[stage]]
    return f"{stage} from {before} to {after:.2f} ms (roofline of the shipped networks, {board} at {mode})"


# -- rules, in the order of RULES below --------------------------------------------------------------------------------


def _host(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    stolen = report.get("processors", {}).get("stolen", 0.0)
    if stolen > MISSED:
        yield Advice(
            f"the host: {stolen:.1%} of the processors' time went to other machines, so stalls are also its own",
            NOT_PREDICTED,
            f"{_ours('profile', facts)}  # when it is quiet",
        )


def _rights(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    bound = next((found[k] for k in ("motor", "fast", "wire") if k in found), None)
    if bound is None or report.get("real_time", {}).get("sched_fifo", True):
        return
    late = f"at most {report['stages']['motor.wake']['p99_ms']:.1f} ms of a motor tick at p99"
    gain = late if bound.stage == "motor.wake" else NOT_PREDICTED
    yield Advice(bound.said, gain, facts.mends.get("real-time scheduling") or _doctor(facts))


def _clocks(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    bound = next((found[k] for k in ("fast", "slow") if k in found and found[k].stage), None)
    gpu = report.get("engine") != "onnxruntime" and _engine(found) is not None
    for check in ("power mode", *(("GPU clock",) if gpu else ()), "CPU clock"):
        if bound is not None and check in facts.mends:
            yield Advice(bound.said, NOT_PREDICTED, facts.mends[check])


def _build(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    bound = _engine(found)
    if bound is None or not facts.note:
        return
    now = f"{report['stages'][bound.stage]['p50_ms']:.2f} ms on the CPU"
    gain = _roofline(report, bound.stage, facts.precision, now)
    if "harmowam build" in facts.note and facts.target != "tensorrt" and facts.precision == "int8":
        # INT8 for ONNX Runtime has uint8 activations, which TensorRT does not take
        exported = "harmowam export CHECKPOINT --target tensorrt --out trt.bundle"
        yield Advice(bound.said, gain, f"{exported} && harmowam build trt.bundle --robot {shlex.quote(facts.robot)}")
    elif "harmowam build" in facts.note:
        yield Advice(bound.said, gain, f"harmowam build {shlex.quote(facts.bundle)} --robot {shlex.quote(facts.robot)}")
    elif "Jetson" in str(report.get("board", {}).get("model", "")) and (named := re.search("`(.+?)`", facts.note)):
        yield Advice(bound.said, gain, named[1])


def _flow_steps(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    """Of n flow steps all but one are saved. A stage also encodes pictures, so a step takes at most 1/n of it."""
    many = {s: n for s, n in facts.steps.items() if n > 1 and s in report["stages"]}
    if "slow" not in found or found["slow"].stage not in many:
        return
    saved = sum(report["stages"][s]["p50_ms"] * (n - 1) / n for s, n in many.items())
    parts = ", ".join(f"{s} {n} to 1" for s, n in many.items())
    how = f"--target {facts.target} --precision {facts.precision} --out student.bundle"
    yield Advice(
        found["slow"].said,
        f"at most {saved:.1f} ms of a slow step (flow steps: {parts})",
        f"harmowam distill CHECKPOINT --out student.safetensors && harmowam export student.safetensors {how}",
    )


def _precision(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    bound, now = _engine(found), facts.precision
    if bound is None or report.get("kind") != "harmowam":
        return
    if report.get("engine") == "tensorrt":
        better = {"fp32": "fp16", "int8": "int8-fp16"}.get(now)
    else:
        better = "int8" if now == "fp32" and report.get("engine") == "onnxruntime" else None
    if better is None:
        return
    target = "tensorrt" if report["engine"] == "tensorrt" else "onnxruntime"
    gain = _roofline(report, bound.stage, better, now) if target == "tensorrt" else NOT_PREDICTED
    yield Advice(
        bound.said, gain, f"harmowam export CHECKPOINT --target {target} --precision {better} --out {better}.bundle"
    )


def _rates(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    """A rate whose period the stages fill to FULL."""
    for loop, p, least in (("fast", "p99_ms", 5.0), ("slow", "p50_ms", 0.5)):
        if loop not in found or not found[loop].stage:
            continue
        rows = _stages(report, loop)
        total = sum(row[p] for row in rows.values())
        hz = math.floor(10 * FULL * 1000 / max(total, 1e-3)) / 10
        if hz < least or hz >= 1000 / rows[found[loop].stage]["budget_ms"]:
            continue
        gain = f"the stages' {total:.1f} ms ({p.removesuffix('_ms')}) fit the period of {1000 / hz:.1f} ms"
        command = f"{loop}_hz = {hz:g}  # under [rates] of {_file(facts)}"
        if facts.simulated and loop == "fast":
            command = f"{_ours('run', facts)} --fps {hz:g}"
        yield Advice(found[loop].said, gain, command)


def _cameras(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    """A simulated camera hands its pictures over after a fixed time, whatever its rate: only a longer period helps."""
    modes = "v4l2-ctl --list-formats-ext  # then, for such a mode, fps ="
    if "frames" in found:
        fps = round(report["fast_hz"] + report["repeat_hz"])
        command = f"{_ours('profile', facts)} --fps {fps}" if facts.simulated else f"{modes} {fps} in {_file(facts)}"
        yield Advice(found["frames"].said, f"up to {report['repeat_hz']:.1f} more new frames a second", command)
    if "pictures" in found and facts.simulated:
        age = report["stages"]["observation.age"]["p99_ms"]
        fps = max(math.floor(FULL * 1000 / age), 1)
        gain = f"pictures of {age:.1f} ms (p99) fit the period of {1000 / fps:.1f} ms"
        yield Advice(found["pictures"].said, gain, f"{_ours('run', facts)} --fps {fps}")
    elif "pictures" in found:
        command = f"{modes} {2 * round(facts.camera_hz)} in {_file(facts)}"
        yield Advice(found["pictures"].said, NOT_PREDICTED, command)


def _processors(report: Figures, facts: Facts, found: Bounds) -> Iterator[Advice]:
    busy = report.get("processors", {}).get("busy", 0.0)
    if busy > BUSY and found.keys() & {"fast", "slow", "motor", "wire"}:
        yield Advice(f"the processors: {busy:.0%} busy", NOT_PREDICTED, "top -o %CPU  # stop what is not needed")


def _ours(verb: str, facts: Facts) -> str:
    return f"harmowam {verb} --bundle {shlex.quote(facts.bundle)} --robot {shlex.quote(facts.robot)}"


def _file(facts: Facts) -> str:
    """The robot file to edit; one that is shipped is copied first."""
    return facts.robot if facts.robot.endswith(".toml") else f"a copy of runtime/robots/{facts.robot}.toml"


def _doctor(facts: Facts) -> str:
    return f"harmowam doctor --robot {shlex.quote(facts.robot)}"


RULES: tuple[Callable[[Figures, Facts, Bounds], Iterator[Advice]], ...] = (
    _host,
    _processors,
    _rights,
    _clocks,
    _build,
    _flow_steps,
    _precision,
    _rates,
    _cameras,
)


def advice(report: Figures, facts: Facts) -> list[Advice]:
    """At most MOST, most valuable first: the machine, then the loop that drives the arm, the motors, the wire, the slow
    loop, the cameras; for each, what makes it faster comes before what asks less of it. Empty where every budget is
    kept. `report`: the JSON of `harmowam profile`."""
    found = bounds(report)
    if not found:
        return []
    out = [a for rule in RULES for a in rule(report, facts, found)]
    said = {a.binds for a in out}
    out += [Advice(b.said, NOT_PREDICTED, _doctor(facts)) for b in found.values() if b.said not in said]
    place = {b.said: k for k, b in enumerate(found.values())}
    return sorted(out, key=lambda a: place.get(a.binds, -1))[:MOST]
