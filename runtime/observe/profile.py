"""What a run's stamps say: percentiles, misses, ages, and a comparison with another run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from common.schema import parse_json, read_bounded, shaped

MOST_BYTES = 4 * 1024 * 1024  # of a report

STAGES = {  # each stage in words, in the order in which a picture passes them
    "observation.age": "exposure, transfer and waiting: capture to the loop's hand",
    "fast.take": "frames out of their slots, checks of them",
    "fast.preprocess": "pre-processing, all cameras",
    "fast.engine": "reactive expert and gate: one engine",
    "fast.gate": "heat map to target, choice of the expert",
    "fast.handover": "continuous hand-over between plans and experts",
    "fast.command": "inverse kinematics, command",
    "fast.slot": "checks of the output, command into its slot",
    "wire": "command in its slot to bytes on the bus",
    "slow.preprocess": "pre-processing, all cameras",
    "slow.world_model": "world model: image encoder and flow",
    "slow.predictive": "predictive expert",
    "slow.chunk": "action chunk: one engine",
    "motor.read": "servo read-back",
    "motor.write": "bus write",
    "motor.telemetry": "temperature, voltage and current of one servo",
    "motor.wake": "start of a motor tick after its due time",
}

SERIES = {  # series over a whole run: key in a report -> name in the trace
    "observation_to_wire_ms": "wire.observation",
    "overhead_ms": "wire.overhead",
    "prior_age_ms": "prior.age",
    "period_error_ms": "fast.period_error",
}
MEANING = {  # of SERIES, for people
    "observation_to_wire_ms": "from a picture's capture to its command on the bus",
    "overhead_ms": "of this, what is neither in an engine nor before the frame's arrival",
    "prior_age_ms": "how old the pictures behind the slow loop's plan (Prior) are when it is used",
    "period_error_ms": "how far a fast step begins from where its period puts it",
}


def label(key: str) -> str:
    """The name of a series of SERIES in a table."""
    return key.removesuffix("_ms").replace("_", " ")


Milliseconds = Annotated[float, Meta(ge=-1e9, le=1e9)]  # a period's error may be below zero
Hertz = Annotated[float, Meta(ge=0, le=1e6)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Percentiles(msgspec.Struct, frozen=True):
    """Of a whole run, ms."""

    p50: Milliseconds
    p99: Milliseconds
    p90: Milliseconds | None = None
    p999: Milliseconds | None = None
    max: Milliseconds | None = None


class StageRow(msgspec.Struct, frozen=True):
    """Of one stage."""

    p50_ms: Milliseconds
    p99_ms: Milliseconds
    p90_ms: Milliseconds | None = None
    p999_ms: Milliseconds | None = None
    max_ms: Milliseconds | None = None
    budget_ms: Milliseconds | None = None
    count: Count | None = None


class Processors(msgspec.Struct, frozen=True):
    """Shares of the cores' time."""

    busy: Annotated[float, Meta(ge=-1, le=1)]  # may be below 0: two counters are read one after the other
    stolen: Share


class Report(msgspec.Struct, frozen=True):
    """The JSON of `run` and `profile`. Fields without a default are those that a comparison needs; a file may hold more
    than is declared here, because each verb adds its own."""

    fast_hz: Hertz
    slow_hz: Hertz
    ticks: Count
    deadline_misses: Count
    stages: dict[str, StageRow]
    repeat_hz: Hertz | None = None
    began_s: Seconds | None = None
    seconds: Seconds | None = None
    held_s: Seconds | None = None
    commanded: bool | None = None
    refused_outputs: Count | None = None
    observation_to_wire_ms: Percentiles | None = None
    overhead_ms: Percentiles | None = None
    prior_age_ms: Percentiles | None = None
    period_error_ms: Percentiles | None = None
    processors: Processors | None = None
    motor_missed_ticks: Count | None = None
    motor_shift_ms: Milliseconds | None = None
    motor_drift_ms: Milliseconds | None = None
    rss_mb: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    time_to_first_command_s: Seconds | None = None
    interrupted: bool | None = None
    task: str | None = None
    robot: str | None = None
    bundle: str | None = None


def read_report(path: Path) -> dict[str, Any]:
    """The report in a file, as `compare` takes it. Raises OSError, or Malformed where it is none."""
    raw = parse_json(read_bounded(path, MOST_BYTES))
    shaped(raw, Report)
    return dict(raw)


def compare(
    mine: Mapping[str, Any], other: Mapping[str, Any], tolerance: float = 0.15, floor_ms: float = 0.3
) -> dict[str, Any]:
    """Two runs: `{"rows": [...], "worse": [...], "verdict": "same" | "better" | "worse"}`.

    A row is worse when p50 or p99 rose by more than `tolerance` and by more than `floor_ms`, or when a rate fell by
    more than the tolerance, or when more than 0.1 % more of the deadlines were missed. `other` is the older run.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, now: float, before: float, higher_is_better: bool = False, floor: float = floor_ms) -> None:
        change = (now - before) / before if before else 0.0
        rose = change > tolerance and now - before > floor
        fell = change < -tolerance and before - now > floor
        worse, better = (fell, rose) if higher_is_better else (rose, fell)
        verdict = "worse" if worse else "better" if better else "same"
        rows.append(
            {
                "name": name,
                "now": now,
                "before": before,
                "ratio": round(now / before, 3) if before else None,
                "verdict": verdict,
            }
        )

    for rate in ("fast_hz", "slow_hz"):
        add(rate, mine[rate], other[rate], higher_is_better=True, floor=0.0)
    for key in SERIES:
        for p in ("p50", "p99"):
            if p in mine.get(key, {}) and p in other.get(key, {}):
                add(f"{key.removesuffix('_ms')} {p}", mine[key][p], other[key][p])
    for stage, row in mine["stages"].items():
        before = other["stages"].get(stage)
        if before:
            for p in ("p50_ms", "p99_ms"):
                add(f"{stage} {p.removesuffix('_ms')}", row[p], before[p])
    share = [r["deadline_misses"] / max(r["ticks"], 1) for r in (mine, other)]
    missed = "worse" if share[0] > share[1] + 0.001 else "better" if share[0] < share[1] - 0.001 else "same"
    rows.append({"name": "deadline misses", "now": share[0], "before": share[1], "ratio": None, "verdict": missed})
    worse = [r["name"] for r in rows if r["verdict"] == "worse"]
    better = any(r["verdict"] == "better" for r in rows)
    return {"rows": rows, "worse": worse, "verdict": "worse" if worse else "better" if better else "same"}


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text().strip())
    except (OSError, ValueError):
        return None


def processor_ticks(stat: Path = Path("/proc/stat")) -> np.ndarray:
    """Ticks since boot, all cores together, int64[3]: all, not idle, taken by a hypervisor for other machines (proc(5),
    "steal")."""
    ticks = np.array(stat.read_text().splitlines()[0].split()[1:9], np.int64)
    return np.array([ticks.sum(), ticks.sum() - ticks[3:5].sum(), ticks[7]])


def processor_shares(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """`{"busy": share, "stolen": share}` of the cores' time between two `processor_ticks`; what was stolen is not in
    `busy`."""
    passed, busy, stolen = (after - before).tolist()
    return {"busy": round((busy - stolen) / max(passed, 1), 4), "stolen": round(stolen / max(passed, 1), 4)}


def board() -> dict[str, Any]:
    """What the machine ran at: model, cores, clocks, governor, temperatures, and on a Jetson power mode and rail power.

    Read from sysfs, no root needed; what a machine does not show is left out. Jetson: INA3221 under hwmon (rail power),
    devfreq (GPU clock), `/var/lib/nvpmodel/status` (power mode).
    """
    out: dict[str, Any] = {"cores": os.cpu_count()}
    model = Path("/proc/device-tree/model")
    if model.exists():
        out["model"] = model.read_text().strip("\0\n ")
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        out["model"] = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
        )
    cpu = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    clock = _number(cpu / "scaling_cur_freq")
    if clock:
        out["cpu_mhz"] = round(clock / 1000)
        out["governor"] = (cpu / "scaling_governor").read_text().strip()
    for devfreq in Path("/sys/class/devfreq").glob("*"):
        if any(s in devfreq.name for s in ("gpu", "ga10b", "gv11b")) and (hz := _number(devfreq / "cur_freq")):
            out["gpu_mhz"] = round(hz / 1e6)
    zones = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        t = _number(zone / "temp")
        if t is not None:
            zones[(zone / "type").read_text().strip()] = round(t / 1000, 1)
    if zones:
        out["temperature_c"] = zones
    rails = {}
    for label in Path("/sys/class/hwmon").glob("hwmon*/in*_label"):
        index = label.name.removeprefix("in").removesuffix("_label")
        volt, ampere = (_number(label.with_name(f"{kind}{index}_input")) for kind in ("in", "curr"))
        if volt and ampere:
            rails[label.read_text().strip()] = round(volt * ampere * 1e-6, 2)
    if rails:
        out["power_w"] = rails
    try:
        out["power_mode"] = Path("/var/lib/nvpmodel/status").read_text().strip()
    except OSError:
        pass
    return out
