"""Plots and the film strip of docs/results.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from export.data import simulated_warps
from runtime.bundle import Bundle
from runtime.contracts import Observation
from sim.evaluate import Job, run_and_keep
from sim.phases import find_events
from sim.results import Row, grouped
from sim.statistics import wilson
from sim.tasks import ENVIRONMENTS

# environment, s after the start of its episode
FILM = (("seen", 0.9), ("background", 0.9), ("position", 0.9), ("object", 0.9))
SIDE, GAP, TOP = 144, 4, 20  # pixels
HEADS = ("now", "+0.4 s, predicted", "real", "+0.8 s, predicted", "real", "next event, predicted", "real")
COLOURS = ("#1b6ca8", "#d1603d", "#3f8f5f", "#8a63a8", "#777777", "#c2a23a", "#b0447a", "#4aa3a3")


def _axes(width: float, height: float):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure  # this interface needs neither a window nor a backend

    figure = Figure((width, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylim(0, 1)
    axes.set_ylabel("success")
    return figure, axes


def plot_policies(rows: Sequence[Row], path: Path) -> None:
    """Grouped bars with Wilson intervals: one group per environment, one bar per policy."""
    by = grouped([r for r in rows if r["start"] == "home"], "policy", "environment")
    policies = list(dict.fromkeys(p for p, _ in by))
    if not policies:
        return
    figure, axes = _axes(8, 3.6)
    width = 0.8 / len(policies)
    for i, policy in enumerate(policies):
        xs, ys, low, high = [], [], [], []
        for k, environment in enumerate(ENVIRONMENTS):
            mine = [r["success"] for r in by.get((policy, environment), [])]
            if mine:
                a, b = wilson(sum(mine), len(mine))
                xs.append(k + (i - (len(policies) - 1) / 2) * width)
                ys.append(sum(mine) / len(mine))
                low.append(max(ys[-1] - a, 0.0))
                high.append(max(b - ys[-1], 0.0))
        axes.bar(
            xs, ys, width * 0.92, yerr=[low, high], label=policy, color=COLOURS[i], error_kw={"lw": 0.8, "capsize": 2}
        )
    axes.set_xticks(range(len(ENVIRONMENTS)), ENVIRONMENTS)
    figure.legend(loc="outside upper center", ncols=len(policies), frameon=False)
    figure.savefig(path, metadata={"Software": None})


def plot_line(lines: dict[str, list[tuple[int, float, float, float]]], label: str, path: Path) -> None:
    """Success with its interval against one number; solid lines for the first environment, dashed ones for the
    others."""
    figure, axes = _axes(6, 3.2)
    first = next(iter(lines)).split(", ")[-1]
    for i, (name, points) in enumerate(lines.items()):
        x, y, low, high = (np.array(v) for v in zip(*points, strict=True))
        axes.plot(x, y, "o-" if name.endswith(first) else "o--", color=COLOURS[i], label=name, ms=4)
        axes.fill_between(x, low, high, color=COLOURS[i], alpha=0.12, lw=0)
    axes.set_xlabel(label)
    axes.set_xticks(sorted({p[0] for points in lines.values() for p in points}))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def film_strip(jobs: Sequence[Job], path: Path) -> None:
    """Predicted beside real front frames of the same episode; one row per environment, each from another task."""
    lines = []
    gated = [j for j in jobs if j.policy == "gated" and j.start == "home"]
    tasks = list(dict.fromkeys(j.task for j in gated))
    for i, (environment, after_s) in enumerate(FILM):
        job = next((j for j in gated if j.environment == environment and j.task == tasks[i % len(tasks)]), None)
        if job is not None:
            lines.append(_line(job, after_s))
    if lines:
        cv2.imwrite(str(path), cv2.cvtColor(np.concatenate([_head(), *lines]), cv2.COLOR_RGB2BGR))


def _line(job: Job, after_s: float) -> np.ndarray:
    frames: dict[int, np.ndarray] = {}

    def look(now_ns: int, obs: Observation) -> None:
        frames[now_ns] = obs.frames["front"].copy()

    row, episode, world = run_and_keep(job, look)
    warp = simulated_warps(world)["front"]
    times = np.array(sorted(frames))
    prior = min(episode.priors, key=lambda p: abs(p.t_capture_ns - times[0] - after_s * 1e9))
    decoder = Bundle.load(Path(job.bundle)).engine("decoder")
    predicted = decoder.run({"future": prior.future})["frames"]
    at = int(np.searchsorted(times, prior.t_capture_ns))
    sent = np.array([t.sent_target for t in episode.ticks])
    events = find_events(sent, sent, np.full(len(sent), len(sent) - 1), job.schedule.camera_hz)
    event = next((int(e) for e in events if e > at), len(times) - 1)
    real = [times[np.abs(times - prior.t_capture_ns - h * 1e9).argmin()] for h in (0.4, 0.8)] + [times[event]]

    def tile(picture: np.ndarray) -> np.ndarray:
        big = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        return cv2.copyMakeBorder(big, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))

    def native(t: int) -> np.ndarray:
        return warp(frames[t]).transpose(1, 2, 0).copy()

    tiles = [tile(native(int(times[at])))]
    for k in range(3):
        tiles += [
            tile(((predicted[k].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8)),
            tile(native(int(real[k]))),
        ]
    strip = np.concatenate(tiles, 1)
    title = np.full((TOP, strip.shape[1], 3), 255, np.uint8)
    said = f"{job.environment}: {row['instruction']} ({'done' if row['success'] else row['failure']})"
    cv2.putText(title, said, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, strip])


def _head() -> np.ndarray:
    out = np.full((TOP, len(HEADS) * (SIDE + GAP), 3), 255, np.uint8)
    for i, text in enumerate(HEADS):
        cv2.putText(out, text, (i * (SIDE + GAP) + 2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (90, 90, 90), 1, cv2.LINE_AA)
    return out
