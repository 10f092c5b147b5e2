"""Tables from the rows of an evaluation: cells, means over tasks, relative drops, paired differences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np

from common.words import counted
from sim.statistics import paired_difference, relative_drop, wilson
from sim.tasks import DISTURBED, ENVIRONMENTS

Row = dict[str, Any]
UNSEEN = ENVIRONMENTS[1:]
SINGLE = ("reactive", "predictive")
CLONING = ("bc", "bc_play")


def _share(rows: list[Row], good: Callable[[Row], bool]) -> float | None:
    return round(sum(map(good, rows)) / len(rows), 4) if rows else None


def measures(rows: list[Row]) -> dict[str, Any]:
    """Counts and shares over the episodes `rows` of one policy; a share is None where there is no episode to count."""
    home = [r for r in rows if r["start"] == "home"]
    near = [r for r in rows if r["start"] == "near"]
    arrived = [r for r in home if r["transit"]]
    frames = sum(r.get("gate_frames", 0) for r in home)
    wins = sum(r["success"] for r in home)
    return {
        "episodes": len(home),
        "successes": wins,
        "wilson95": [round(v, 4) for v in wilson(wins, len(home))],
        "transit": _share(home, lambda r: r["transit"]),
        "interaction_given_transit": _share(arrived, lambda r: r["success"]),
        "near_episodes": len(near),
        "interaction_near": _share(near, lambda r: r["success"]),
        "near_wilson95": [round(v, 4) for v in wilson(sum(r["success"] for r in near), len(near))],
        "gate_accuracy": round(sum(r.get("gate_right", 0) for r in home) / frames, 4) if frames else None,
        "switches_per_episode": round(float(np.mean([r["switches"] for r in home])), 2) if home else None,
        "median_seconds": round(float(np.median([r["seconds"] for r in home if r["success"]])), 2) if wins else None,
        **jaw(home),
        **_finishes(home),
        "failures": dict(Counter(r["failure"] for r in home if not r["success"]).most_common()),
    }


def jaw(rows: list[Row]) -> dict[str, int]:
    """How often the jaw's goal turned back in its events (`sim.jaw`): all events, those with more than one reversal,
    and the most in one event."""
    events = [n for r in rows for n in r.get("jaw_reversals", ())]
    return {"jaw_events": len(events), "jaw_chattered": sum(n > 1 for n in events), "jaw_most": max(events, default=0)}


def disturbed(rows: list[Row]) -> dict[str, Any] | None:
    """What displacements did to one policy, from its rows; None without a displacement.

    `success` and `undisturbed` (None where not played): shares of the starts in which something moved, as they were
    played disturbed and "seen". `reaction_p50_ms`, `reaction_p99_ms`: over those with a reaction; `unreacted`: count of
    the others.
    """
    moved = [r for r in rows if r["environment"] == DISTURBED and r["displaced_s"] is not None]
    if not moved:
        return None
    still = {(r["task"], r["seed"], r["start"]): r["success"] for r in rows if r["environment"] == "seen"}
    pairs = [(r["success"], still[k]) for r in moved if (k := (r["task"], r["seed"], r["start"])) in still]
    times = [r["reaction_ms"] for r in moved if r["reaction_ms"] is not None]
    return {
        "episodes": sum(r["environment"] == DISTURBED for r in rows),
        "displaced": len(moved),
        "pairs": len(pairs),
        "success": sum(won for won, _ in pairs) / len(pairs) if pairs else _share(moved, lambda r: r["success"]),
        "undisturbed": sum(won for _, won in pairs) / len(pairs) if pairs else None,
        "reaction_p50_ms": round(float(np.percentile(times, 50)), 1) if times else None,
        "reaction_p99_ms": round(float(np.percentile(times, 99)), 1) if times else None,
        "unreacted": len(moved) - len(times),
    }


def _finishes(rows: list[Row]) -> dict[str, Any]:
    """Of policies that say when they are done: episodes that ended so, those of them without success, and episodes
    that had success at some time."""
    told = [r for r in rows if "said_done" in r]
    if not told:
        return {}
    return {
        "said_done": sum(r["said_done"] for r in told),
        "false_finishes": sum(r["said_done"] and not r["success"] for r in told),
        "ever": sum(r["ever"] for r in told),
    }


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    out: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        out[tuple(str(r[k]) for k in keys)].append(r)
    return dict(out)


def cells(rows: list[Row]) -> list[dict[str, Any]]:
    """One entry per task, environment and policy, as in the JSON of `harmowam evaluate`."""
    by = grouped(rows, "task", "environment", "policy")
    return [{"task": t, "environment": e, "policy": p, **measures(mine)} for (t, e, p), mine in by.items()]


def success_rate(rows: list[Row]) -> float | None:
    """Mean over tasks of the success from home; every task has the same weight."""
    by = grouped([r for r in rows if r["start"] == "home"], "task")
    return float(np.mean([np.mean([r["success"] for r in mine]) for mine in by.values()])) if by else None


def difference(rows: list[Row], a: str, b: str, environments: tuple[str, ...] = UNSEEN) -> dict[str, float] | None:
    """Success of policy `a` minus `b` on the same starts; None where they share none. See
    `statistics.paired_difference`.

    The three environments of a seed are one observation, because they share the start.
    """
    won: dict[tuple[str, str], dict[tuple[Hashable, ...], bool]] = defaultdict(dict)
    for r in rows:
        if r["policy"] in (a, b) and r["environment"] in environments:
            won[r["task"], r["policy"]][r["environment"], r["seed"], r["start"]] = r["success"]
    strata: dict[Hashable, list[float]] = {}
    for task in {t for t, _ in won}:
        first, second = won[task, a], won[task, b]
        by_seed: dict[Hashable, list[int]] = defaultdict(list)
        for key in first.keys() & second.keys():
            by_seed[key[1:]].append(int(first[key]) - int(second[key]))
        strata[task] = [float(np.mean(d)) for d in by_seed.values()]
    return paired_difference(strata) if any(strata.values()) else None


def summary(rows: list[Row]) -> dict[str, Any]:
    """Per policy: success in the environment of training and in the others, relative drop; and the gated policy minus
    the best of the others."""
    home = [r for r in rows if r["start"] == "home"]
    by = grouped(home, "policy", "environment")
    policies: dict[str, dict[str, Any]] = {}
    for policy in dict.fromkeys(p for p, _ in by):
        rates = {e: success_rate(by.get((policy, e), [])) for e in ("seen", *UNSEEN)}
        unseen = [v for e in UNSEEN if (v := rates[e]) is not None]
        mean = float(np.mean(unseen)) if unseen else None
        seen = rates["seen"]
        policies[policy] = {
            **rates,
            "unseen": mean,
            "relative_drop": None if seen is None or mean is None else relative_drop(seen, mean),
        }
    paired = {}
    for name, rivals in (("better single expert", SINGLE), ("better behaviour cloning", CLONING)):
        there = [p for p in rivals if policies.get(p, {}).get("unseen") is not None]
        if "gated" in policies and there:
            best = max(there, key=lambda p: policies[p]["unseen"])
            paired[name] = {"policy": best, **(difference(home, "gated", best) or {})}
    mine = {p: [r for r in home if r["policy"] == p] for p in policies}
    moved = {p: found for p, r in mine.items() if (found := disturbed(r)) is not None}
    return {
        "policies": policies,
        "gated_minus": paired,
        "disturbed": moved,
        "jaw": {p: jaw(r) for p, r in mine.items()},
    }


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


COLUMNS = (
    "policy",
    "environment",
    "episodes",
    "transit",
    "interaction given transit",
    "interaction, near start",
    "success (95 %)",
    "relative drop",
    "gate accuracy",
    "switches",
)

LEGEND = """\
transit: the arm reached everything that it went for; interaction given transit: how many of those succeeded
near start: begun above the first thing to reach
relative drop: share of the success in seen that is lost (below zero: more success than there)
gate accuracy: frames in which the right expert is in charge; switches: changes of expert in an episode"""


def table(rows: list[Row]) -> list[list[str]]:
    """The paper's table: one row per policy and environment, over all tasks; texts in the order of COLUMNS."""
    total = summary(rows)["policies"]
    out = []
    by = grouped(rows, "policy", "environment")
    policies = list(dict.fromkeys(p for p, _ in by))
    for policy, environment in sorted(by, key=lambda k: (policies.index(k[0]), (*ENVIRONMENTS, DISTURBED).index(k[1]))):
        mine = by[policy, environment]
        m = measures(mine)
        rate, (low, high) = success_rate(mine), m["wilson95"]
        seen = total.get(policy, {}).get("seen")
        drop = relative_drop(seen, rate) if seen is not None and rate is not None and environment != "seen" else None
        switches = m["switches_per_episode"]
        out.append(
            [
                policy,
                environment,
                str(m["episodes"]),
                _percent(m["transit"]),
                _percent(m["interaction_given_transit"]),
                _percent(m["interaction_near"]),
                "-" if rate is None else f"{_percent(rate)} ({_percent(low)[:-2]}-{_percent(high)[:-2]})",
                _percent(drop),
                _percent(m["gate_accuracy"], 1),
                "-" if switches is None else f"{switches:.1f}",
            ]
        )
    return out


def sentences(rows: list[Row]) -> list[str]:
    """`summary` as sentences."""
    s = summary(rows)
    out = [
        f"{p}: seen {_percent(v['seen'], 1)}, mean of unseen {_percent(v['unseen'], 1)}, relative drop "
        f"{_percent(v['relative_drop'], 1)}"
        for p, v in s["policies"].items()
        if v["unseen"] is not None
    ]
    for policy, mine in grouped(rows, "policy").items():
        home = [r for r in mine if r["start"] == "home"]
        if f := _finishes(home):
            out.append(
                f"{policy[0]}: said done in {f['said_done']} of {counted(len(home), 'episode')}, in "
                f"{f['false_finishes']} of them wrongly; {f['ever']} had success at some time"
            )
    for name, d in s["gated_minus"].items():
        if "difference" in d:
            out.append(
                f"gated minus {name} ({d['policy']}), mean of unseen, paired: {100 * d['difference']:+.1f} points (95 "
                f"% {100 * d['low']:+.1f} to {100 * d['high']:+.1f}; {d['pairs']} starts)"
            )
    for p, d in s["disturbed"].items():
        beside = "" if d["undisturbed"] is None else f" ({_percent(d['undisturbed'])} of the same starts undisturbed)"
        times = (
            "no reaction"
            if d["reaction_p50_ms"] is None
            else f"{d['reaction_p50_ms']:.0f} ms at p50, {d['reaction_p99_ms']:.0f} ms at p99"
        )
        out.append(
            f"{p}, disturbed: moved in {d['displaced']} of {counted(d['episodes'], 'episode')}, "
            f"{_percent(d['success'])} of these solved{beside}; reaction {times}, none in {d['unreacted']}"
        )
    return out + [_jaw_sentence(p, j) for p, j in s["jaw"].items() if j["jaw_events"]]


def _jaw_sentence(policy: str, found: dict[str, int]) -> str:
    """`jaw` as a sentence."""
    most = f" (up to {found['jaw_most']} times)" if found["jaw_chattered"] else ""
    return (
        f"{policy}: the jaw was told to open or close {counted(found['jaw_events'], 'time')}; in "
        f"{found['jaw_chattered']} of these the order was reversed more than once in quick succession{most}"
    )
