"""A recorded episode as a page and as a film, for people. Pictures first, numbers below."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_whole
from firmware_bridge.arms import FAMILIES
from runtime.bundle import Bundle
from runtime.observe.again import again
from runtime.observe.episode import CONFIG, LOG, REPORT, Episode, load_episode, pictures
from runtime.observe.film import Overview, write_video
from runtime.observe.profile import STAGES
from runtime.observe.strip import NEAR_NS, film_strip, instants, moments
from runtime.observe.timeline import INK, PREDICTIVE, REACTIVE, began_ns, events, figure, has_experts
from runtime.observe.verdict import MISSED, verdict


def lacking() -> list[str]:
    """Packages (pip's names) that `write_report` needs and that are not installed."""
    needed = {"jinja2": "jinja2", "matplotlib": "matplotlib", "imageio_ffmpeg": "imageio-ffmpeg"}
    return [package for module, package in needed.items() if importlib.util.find_spec(module) is None]


def _figure(fig: Any) -> str:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    import matplotlib.pyplot as plt

    plt.close(fig)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot_joints(episode: Episode, names: Sequence[str], zero_ns: int) -> str:
    """Commanded and measured angles of every joint; `names` [J]; `zero_ns`: start of the time axis (monotonic)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t, measured_at = (episode.t_ns - zero_ns) * 1e-9, (episode.state_ns - zero_ns) * 1e-9
    rows = (len(names) + 1) // 2
    fig, axes = plt.subplots(rows, 2, figsize=(10, 1.8 * rows), sharex=True, squeeze=False)
    for ax in axes.T.ravel()[len(names) :]:
        ax.set_visible(False)
    for j, (name, ax) in enumerate(zip(names, axes.T.ravel(), strict=False)):
        ax.plot(t, np.degrees(episode.command[:, j]), color=PREDICTIVE, lw=1.1, label="command")
        ax.plot(measured_at, np.degrees(episode.measured[:, j]), color=INK, lw=1.1, label="measured")
        ax.set_title(name.replace("_", " "), fontsize=9, loc="left")
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="best")
    for ax in axes[-1]:
        ax.set_xlabel("s", fontsize=8)
    fig.supylabel("degrees", fontsize=8)
    fig.tight_layout()
    return _figure(fig)


def plot_wire(milliseconds: np.ndarray) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 2.4))
    ax.hist(milliseconds, bins=50, color=REACTIVE)
    ax.set_xlabel("capture of the picture to bytes on the servo bus, ms", fontsize=8)
    ax.set_ylabel("commands", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    fig.tight_layout()
    return _figure(fig)


def _filmed(
    folder: Path, episode: Episode, report: dict[str, Any], near: np.ndarray, overview: Overview | None
) -> dict[int, np.ndarray]:
    """Write the film into `folder`; returns the front pictures near the instants `near` (ns) by their capture times."""
    kept: dict[int, np.ndarray] = {}

    def shown() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for t_ns, frames in pictures(folder / LOG, episode.picture_ns):
            if "front" in frames and np.any(np.abs(near - t_ns) < NEAR_NS):
                kept[t_ns] = frames["front"]
            yield t_ns, frames

    write_video(episode, shown(), folder / "episode.mp4", report, overview)
    return kept


def in_order(stages: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, words and numbers of each stage of a report, in the order in which a picture passes them; stages of other
    names last."""
    names = [s for s in STAGES if s in stages] + sorted(stages.keys() - STAGES.keys())
    return [(name, STAGES.get(name, name), stages[name]) for name in names]


def kept_time(report: dict[str, Any]) -> str:
    """Whether the simulator's physics kept to the clock, in words; "" for a real arm."""
    physics = report.get("physics")
    if physics is None:
        return "not recorded" if "success" in report else ""
    late = physics["late_s"] / max(physics["wall_s"], 1e-9)
    apart = abs(physics["simulated_s"] - physics["wall_s"]) / max(physics["wall_s"], 1e-9)
    told = f"{physics['simulated_s']:.2f} s simulated in {physics['wall_s']:.2f} s by the clock, {late:.1%} of it late"
    return f"{'yes' if max(late, apart) < MISSED else 'no'}: {told}"


def _facts(bundle_path: Path, folder: Path, report: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """What identifies the run, by name, and the command that runs it again ("" without a config)."""
    path = folder / CONFIG
    config = json.loads(path.read_text()) if path.is_file() else {}
    rows = {
        "task": report.get("task"),
        "seed of the start": config.get("seed"),
        "robot": report.get("robot"),
        "policy": f"{report.get('policy')}, of kind {report.get('kind')}",
        "bundle": report.get("bundle"),
        "SHA-256 of its manifest": config.get("bundle_sha256"),
        "engine": f"{report.get('engine')}, {report.get('quantization')}",
        "faults injected": ", ".join(config.get("faults", ())),
        "harmowam": config.get("harmowam"),
        "physics kept real time": kept_time(report),
    }
    known = [(name, str(value)) for name, value in rows.items() if value not in (None, "")]
    return known, again(config, bundle_path) if config else ""


def _start(episode: Episode, names: Sequence[str]) -> str:
    """The measured joint angles at the first fast step, in words."""
    if not len(episode.state_ns):
        return ""
    k = int(np.searchsorted(episode.state_ns, episode.t_ns[0]).clip(0, len(episode.state_ns) - 1))
    angles = np.degrees(episode.measured[k])
    return ", ".join(f"{name.replace('_', ' ')} {angle:.1f}°" for name, angle in zip(names, angles, strict=True))


def write_report(bundle: Bundle | Path, folder: Path, report: dict[str, Any], overview: Overview | None = None) -> None:
    """`report.html`, `report.json` and `episode.mp4` from the log in `folder` and the run's numbers. `bundle`: that was
    run, or where it lies; loaded only for pictures. `overview` gives the film's pictures of the whole scene.

    A run that ended before the first picture, or left no log in `folder`, has a page without pictures and no film.
    Raises ReportError, LogError, BundleError.
    """
    import jinja2

    logged = "log" in report and (folder / LOG).is_file()
    episode = load_episode(folder / LOG) if logged and report["ticks"] else None
    path = bundle.path if isinstance(bundle, Bundle) else bundle
    known, command = _facts(path, folder, report)
    seen: dict[str, Any] = {"driven": False, "unlogged": not logged and report["ticks"] > 0}
    seen |= {"known": known, "again": command}
    if episode is not None and len(episode.t_ns):
        chosen = moments(episode)
        wanted = instants(episode, chosen)
        fronts = _filmed(folder, episode, report, wanted, overview)
        ran = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        names, family = [j.name for j in ran.manifest.joints], FAMILIES[ran.manifest.arm_family]
        seen.update(
            driven=True,
            gap=episode.gap,
            start=_start(episode, names),
            events=events(episode, report),
            timeline=_figure(figure(episode, report, family)),
            strip=film_strip(ran, began_ns(episode, report), chosen, wanted, fronts),
            joints=plot_joints(episode, names, began_ns(episode, report)),
            wire=plot_wire(episode.wire_ms),
            experts=has_experts(episode),
        )
    else:
        (folder / "episode.mp4").unlink(missing_ok=True)  # of an earlier run
    template = jinja2.Environment(autoescape=True).from_string((Path(__file__).parent / "report.html.j2").read_text())
    stages = in_order(report["stages"])
    page = template.render(r=report, verdict=verdict(report), stages=stages, **seen)
    for name, text in (("report.html", page), (REPORT, json.dumps(report, indent=1, sort_keys=True) + "\n")):
        write_whole(folder / name, text)
