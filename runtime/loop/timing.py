"""What a run's loops did, as numbers: the report that every run leaves, and its spans for a timeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.loop.two_rate import Driver
from runtime.observe.profile import SERIES, STAGES
from runtime.observe.trace import percentiles, summary


def timing_report(driver: Driver, motor_hz: float) -> dict[str, Any]:
    """The `profile` JSON shape: rates, misses, ages and stages of a run, however it ended; `began_s` is on the
    monotonic clock."""
    c, record = driver.counts, driver.record
    seconds = max((c.ended_ns - c.began_ns) * 1e-9, 1e-9)
    found: dict[str, np.ndarray] = {}
    for trace in (record.fast_trace, record.slow_trace, record.motor_trace):
        found.update(trace.durations_ms())
    empty = np.zeros(0)
    known = (*STAGES, *(s for s in driver.stages if s not in STAGES))
    stages = summary({name: found[name] for name in known if name in found})
    budgets = {"slow": 1000 / driver.slow_hz, "motor": 1000 / motor_hz}
    for name, row in stages.items():
        row["budget_ms"] = round(budgets.get(name.split(".")[0], 1000 / driver.fast_hz), 3)
    report: dict[str, Any] = {
        "began_s": round(c.began_ns * 1e-9, 3),
        "seconds": round(seconds, 2),
        "fast_hz": round(c.new_frames / seconds, 3),
        "repeat_hz": round(c.repeats / seconds, 3),
        "slow_hz": round(c.slow / seconds, 3),
        "ticks": c.ticks,
        "deadline_misses": c.misses,
        "commanded": c.first_command_ns > 0,
        "held_s": round(c.held / driver.fast_hz, 2),
        **{key: percentiles(found.get(name, empty)) for key, name in SERIES.items()},
        "stages": stages,
        "goal_jerk_rad_s3": {"rms": round(c.jerk_rms, 1), "max": round(c.jerk_max, 1)},
        "refused_outputs": c.faults_seen,
        "health": {
            "state": driver.health.state.name.lower(),
            "changes": [
                {"at_s": h.at_s, "state": h.state.name.lower(), "reasons": list(h.reasons)}
                for h in driver.health.history
            ],
        },
    }
    if record.log is not None:
        report["log"] = {
            "file": str(record.log.path),
            "mb": round(record.log.bytes / 1e6, 1),
            "dropped": record.log.dropped,
        }
        if record.log.fault:
            report["log"]["fault"] = record.log.fault
    return report


def tracks(driver: Driver) -> dict[str, dict[str, np.ndarray]]:
    """Spans of each thread and process, for a timeline; measured ages have a track of their own."""
    fast = driver.record.fast_trace.spans()
    loop = {s: v for s, v in fast.items() if s.startswith("fast.") and s != "fast.period_error"}
    ages = {s: v for s, v in fast.items() if s in ("observation.age", "wire", "wire.observation")}
    return {
        "fast loop": loop,
        "slow loop": driver.record.slow_trace.spans(),
        "motor process": driver.record.motor_trace.spans(),
        **{f"age: {s}": {s: v} for s, v in ages.items()},
    }
