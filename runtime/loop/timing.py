"""What a run's loops did, as numbers: the report that every run leaves, and its spans for a timeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.loop.two_rate import Policy
from runtime.observe.profile import SERIES, STAGES
from runtime.observe.trace import percentiles, summary


def timing_report(policy: Policy, motor_hz: float) -> dict[str, Any]:
    """The `profile` JSON shape: rates, misses, ages and stages of a run, however it ended; `began_s` is on the monotonic clock."""
    c = policy.counts
    seconds = max((c.ended_ns - c.began_ns) * 1e-9, 1e-9)
    found: dict[str, np.ndarray] = {}
    for trace in (policy.fast_trace, policy.slow_trace, policy.motor_trace):
        found.update(trace.durations_ms())
    empty = np.zeros(0)
    stages = summary({name: found[name] for name in STAGES if name in found})
    budgets = {"slow": 1000 / policy.slow_hz, "motor": 1000 / motor_hz}
    for name, row in stages.items():
        row["budget_ms"] = round(budgets.get(name.split(".")[0], 1000 / policy.fast_hz), 3)
    report: dict[str, Any] = {
        "began_s": round(c.began_ns * 1e-9, 3), "seconds": round(seconds, 2),
        "fast_hz": round(c.new_frames / seconds, 3), "repeat_hz": round(c.repeats / seconds, 3),
        "slow_hz": round(c.slow / seconds, 3), "ticks": c.ticks, "deadline_misses": c.misses,
        "commanded": c.first_command_ns > 0, "held_s": round(c.held / policy.fast_hz, 2),
        **{key: percentiles(found.get(name, empty)) for key, name in SERIES.items()}, "stages": stages,
        "goal_jerk_rad_s3": {"rms": round(c.jerk_rms, 1), "max": round(c.jerk_max, 1)},
        "refused_outputs": c.faults_seen,
        "health": {
            "state": policy.health.state.name.lower(),
            "changes": [
                {"at_s": h.at_s, "state": h.state.name.lower(), "reasons": list(h.reasons)} for h in policy.health.history
            ],
        },
    }  # fmt: skip
    if policy.log is not None:
        report["log"] = {
            "file": str(policy.log.path),
            "mb": round(policy.log.bytes / 1e6, 1),
            "dropped": policy.log.dropped,
        }
        if policy.log.fault:
            report["log"]["fault"] = policy.log.fault
    return report


def tracks(policy: Policy) -> dict[str, dict[str, np.ndarray]]:
    """Spans of each thread and process, for a timeline; measured ages have a track of their own."""
    fast = policy.fast_trace.spans()
    loop = {s: v for s, v in fast.items() if s.startswith("fast.") and s != "fast.period_error"}
    ages = {s: v for s, v in fast.items() if s in ("observation.age", "wire", "wire.observation")}
    return {
        "fast loop": loop,
        "slow loop": policy.slow_trace.spans(),
        "motor process": policy.motor_trace.spans(),
        **{f"age: {s}": {s: v} for s, v in ages.items()},
    }
