"""The result of a run in words: done or not, and the known reasons. A pure function of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HELD_S, DEGRADED_S = 0.2, 0.5  # shorter times are no reason for a failure
MISSED = 0.01  # of the ticks
ENOUGH_S = 12.0  # the time that an evaluation gives a task
BUSY, STOLEN = 0.9, 0.01  # of the processors' time


def spent(report: Mapping[str, Any], state: str) -> dict[str, float]:
    """Seconds of the run by what put it into the health `state` ("holding", "degraded", ...), the longest first."""
    changes = report["health"]["changes"]
    ends = [c["at_s"] for c in changes[1:]] + [report["seconds"]]
    found: dict[str, float] = {}
    for change, end in zip(changes, ends, strict=False):
        if change["state"] == state:
            reason = ", ".join(change["reasons"])
            found[reason] = found.get(reason, 0.0) + max(end - change["at_s"], 0.0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _held(report: Mapping[str, Any]) -> list[str]:
    out = []
    holding, degraded = spent(report, "holding"), spent(report, "degraded")
    if sum(holding.values()) > HELD_S:
        out.append(f"the loop held the arm for {sum(holding.values()):.1f} s ({next(iter(holding))})")
    elif report["held_s"] > HELD_S:
        out.append(f"the motor process held the arm for {report['held_s']:.1f} s, for commands came too late")
    if sum(degraded.values()) > DEGRADED_S:
        out.append(f"it ran degraded for {sum(degraded.values()):.1f} s ({next(iter(degraded))})")
    return out


def _interrupted(report: Mapping[str, Any]) -> str:
    return f"the run was interrupted after {report['seconds']:.1f} s"


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Why the task was not done, as far as the report shows: how the run ended, what the arm did not manage, what
    delayed it.

    `report`: what `harmowam run` writes (`runtime.loop.timing.timing_report` and, where known, `error`, `interrupted`,
    `failure`, `processors`). Never empty.
    """
    out = [report["error"].rstrip(".")] if report.get("error") else []
    if report.get("said_done"):
        out.append(f"the policy said done after {report['seconds']:.1f} s, and was wrong")
    if report.get("interrupted"):
        out.append(_interrupted(report))
    if not report["commanded"]:
        out.append("no command came from the policy")
    elif report.get("failure"):
        out.append(f"in {report['seconds']:.1f} s the arm {report['failure']}")
    held = _held(report)
    missed = report["deadline_misses"] / max(report["ticks"], 1)
    if missed > MISSED:
        held.append(f"{missed:.0%} of the deadlines were missed")
    if report["refused_outputs"]:
        held.append(f"{report['refused_outputs']} outputs of the model were refused")
    shares = report.get("processors", {"busy": 0.0, "stolen": 0.0})
    if held and shares["busy"] > BUSY:
        held.append(f"the processors were {shares['busy']:.0%} busy: end other programs and try again")
    if held and shares["stolen"] > STOLEN:
        held.append(f"{shares['stolen']:.0%} of the processors' time went to other machines on the same host")
    if not held and not out[: -1 if report.get("failure") else None]:
        if report["seconds"] < ENOUGH_S:
            held.append("that is a short time: give it more with --seconds")
        else:
            held.append("nothing held it up, so it is the policy's own mistake: another start (--seed) may go better")
    return out + held


def verdict(report: Mapping[str, Any]) -> str:
    """One line: "done", "done, and undone since", or "not done: " and why; whether the policy said so, and whether the
    user ended it; without a judge (a real arm) only how it ended."""
    if "success" not in report:
        if report.get("error") or report.get("interrupted"):
            return "; ".join(reasons(report))
        return "the policy said done" if report.get("said_done") else "driven to the end"
    if report["success"]:
        said = {None: "", True: ", and the policy said so", False: ", and the policy did not say so"}
        ended = f", then {report['error'].rstrip('.')}" if report.get("error") else ""
        ended += f"; {_interrupted(report)}" if report.get("interrupted") else ""
        return (
            ("done" if report["success_at_end"] else "done, and undone since") + said[report.get("said_done")] + ended
        )
    return "not done: " + "; ".join(reasons(report))
