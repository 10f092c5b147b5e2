"""What happened when in a run: its events in words, and a figure of them on one time axis that begins with the run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from firmware_bridge.arms.family import Family
from firmware_bridge.motion.messages import Expert
from runtime.observe.episode import Episode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REACTIVE, PREDICTIVE, INK, DONE = "#2a78b5", "#d9632b", "#1d2733", "#1c8a4b"
JAW_MOVES_RAD = 0.1  # a jaw whose command spans less does not grasp or release
JAW_SHUT, JAW_OPEN = 0.35, 0.65  # shares of that span: below the first it closes, above the second it opens
FAR_NS = 60_000_000_000  # a report that began this long before or after its log is of another run

Event = tuple[float, str]  # s since the run began, what happened


def began_ns(episode: Episode, report: Mapping[str, Any]) -> int:
    """Time zero of the run (monotonic): what `success_after_s` counts from; the first step where the report lacks it or
    is not of this log."""
    first = int(episode.t_ns[0])
    told = round(report.get("began_s", first * 1e-9) * 1e9)
    return told if abs(told - first) < FAR_NS else first


def jaw_events(command: np.ndarray) -> list[tuple[int, str]]:
    """Steps at which the commanded jaw passes from one end of its span to the other. `command`: rad [n], NaN where a
    step gave none."""
    given = command[np.isfinite(command)]
    if not len(given) or np.ptp(given) < JAW_MOVES_RAD:
        return []
    share = (command - given.min()) / np.ptp(given)
    found, state = list[tuple[int, str]](), ""
    for k, part in enumerate(share):
        now = "closes" if part < JAW_SHUT else "opens" if part > JAW_OPEN else state
        if state and now != state:
            found.append((k, f"gripper {now}"))
        state = now
    return found


def has_experts(episode: Episode) -> bool:
    """Whether the policy has a gate that chooses an expert."""
    return bool(np.isin(episode.expert, (Expert.REACTIVE, Expert.PREDICTIVE)).any())


def _switches(expert: np.ndarray) -> list[tuple[int, str]]:
    steps = np.flatnonzero(np.diff(expert, prepend=Expert.NONE))
    named = {Expert.REACTIVE: "reactive expert takes over", Expert.PREDICTIVE: "predictive expert takes over"}
    return [(int(k), named[Expert(int(expert[k]))]) for k in steps if Expert(int(expert[k])) in named]


def events(episode: Episode, report: Mapping[str, Any]) -> list[Event]:
    """Start, first command, switches of the expert, the gripper, health, success and end of a run, in order of time."""
    zero = began_ns(episode, report)
    since = (episode.t_ns - zero) * 1e-9
    found: list[Event] = [(0.0, "start")]
    commanded = np.flatnonzero(np.isfinite(episode.command).all(1))
    found += [(float(since[k]), "first command") for k in commanded[:1]]
    found += [(float(since[k]), what) for k, what in _switches(episode.expert) + jaw_events(episode.command[:, -1])]
    for change in report["health"]["changes"]:
        if change["state"] not in ("running", "starting"):
            why = f" ({', '.join(change['reasons'])})" if change["reasons"] else ""
            found.append((float(since[0]) + change["at_s"], f"{change['state']}{why}"))
    if report.get("success"):
        found.append((report["success_after_s"], "task solved"))
    found.append((max(report.get("seconds", 0.0), float(since[-1])), "end"))
    return sorted(found, key=lambda event: event[0])


def _shade(ax: Axes, t: np.ndarray, expert: np.ndarray, labelled: bool) -> None:
    """Colour the times in which each expert was in charge."""
    looks = {Expert.REACTIVE: (REACTIVE, "reactive in charge"), Expert.PREDICTIVE: (PREDICTIVE, "predictive in charge")}
    bounds = [0, *(np.flatnonzero(np.diff(expert)) + 1), len(t) - 1]
    named = set[Expert]()
    for first, last in itertools.pairwise(bounds):
        which = Expert(int(expert[first]))
        if which in looks:
            colour, words = looks[which]
            label = words if labelled and which not in named else None
            ax.axvspan(t[first], t[last], color=colour, alpha=0.22, lw=0, label=label)
            named.add(which)


def _mark(axes: list[Axes], happened: list[Event]) -> None:
    """A line through all axes at each event but the switches, which are the colours; its words above the first, on
    three heights so that neighbours can be read."""
    shown = [(at, what) for at, what in happened if not what.endswith("takes over")]
    for k, (at, what) in enumerate(shown):
        colour = DONE if what == "task solved" else INK
        for ax in axes:
            ax.axvline(at, color=colour, lw=1.6 if colour == DONE else 0.8, ls="-" if colour == DONE else "--")
        where = (at, 1.06 + 0.2 * (k % 3))
        words = f"{what.partition(' (')[0]} {at:.2f}"
        axes[0].annotate(words, where, xycoords=axes[0].get_xaxis_transform(), fontsize=8, color=colour)


def figure(episode: Episode, report: Mapping[str, Any], family: Family) -> Figure:
    """Events, expert in charge, height of the tool and jaw, as commanded, over the run's seconds. A policy without a
    gate has no axis for it, and a step without a command no sample."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = (episode.t_ns - began_ns(episode, report)) * 1e-9
    given = np.isfinite(episode.command).all(1)
    height = family.forward(episode.command)[:, 2] * 1000
    drawn = [("tool height, mm", height), ("jaw, degrees", np.degrees(episode.command[:, -1]))]
    if has_experts(episode):
        drawn.insert(0, ("P(interaction)", np.where(given, episode.gate, np.nan)))
    fig, axes = plt.subplots(len(drawn), 1, figsize=(10, 1 + 1.3 * len(drawn)), sharex=True, squeeze=False)
    for k, (ax, (name, values)) in enumerate(zip(axes[:, 0], drawn, strict=True)):
        _shade(ax, t, episode.expert, labelled=k == 0 and len(drawn) == 3)
        ax.plot(t, values, color=INK, lw=1.1)
        ax.set_ylabel(name, fontsize=8)
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
    if len(drawn) == 3:
        axes[0, 0].axhline(0.5, color=INK, lw=0.6, ls=":")
        axes[0, 0].set_ylim(-0.03, 1.03)
        fig.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    _mark(list(axes[:, 0]), events(episode, report))
    axes[-1, 0].set_xlabel("s since the start", fontsize=8)
    fig.align_ylabels()
    fig.tight_layout()
    return fig
