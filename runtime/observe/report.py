"""A recorded episode as a page and as a film, for people. Pictures first, numbers below."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import itertools
import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import Mendable
from common.files import write_whole
from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle
from runtime.observe.episode import LOG, REPORT, Episode, load_episode, pictures
from runtime.observe.records import FutureRecord
from runtime.observe.verdict import verdict

REACTIVE, PREDICTIVE, INK = "#2a78b5", "#d9632b", "#1d2733"
HORIZONS = ("+0.4 s", "+0.8 s", "next grasp or release")
AHEAD_S = (0.4, 0.8)  # of the first two
SCALE = 2  # of the film
NEAR_NS = 60_000_000  # a picture at most this far from an instant is shown for it


class ReportError(Mendable):
    """A recording that no page or film can be made of; one sentence and the next step."""


def lacking() -> list[str]:
    """Packages (pip's names) that `write_report` needs and that are not installed."""
    needed = {"jinja2": "jinja2", "matplotlib": "matplotlib", "imageio_ffmpeg": "imageio-ffmpeg"}
    return [package for module, package in needed.items() if importlib.util.find_spec(module) is None]


def _png(rgb: np.ndarray) -> str:
    ok, data = cv2.imencode(".png", rgb[..., ::-1])
    assert ok
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def _figure(fig: Any) -> str:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    import matplotlib.pyplot as plt

    plt.close(fig)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Both pictures uint8[H, W, 3] side by side, the right one as high as the left one."""
    if right.shape[0] != left.shape[0]:
        width = round(right.shape[1] * left.shape[0] / right.shape[0])
        right = cv2.resize(right, (width, left.shape[0]), interpolation=cv2.INTER_AREA)
    return np.hstack([left, right])


def _crop(rgb: np.ndarray, size: int) -> np.ndarray:
    """The central square, as the policy sees it."""
    h, w = rgb.shape[:2]
    x = (w - h) // 2
    return cv2.resize(rgb[:, x : x + h], (size, size), interpolation=cv2.INTER_AREA)


def moments(episode: Episode, columns: int = 7) -> list[FutureRecord]:
    """Predictions spread over the run."""
    if not episode.futures:
        return []
    picks = np.linspace(0, len(episode.futures) - 1, columns + 2).astype(int)[1:-1]
    return [episode.futures[i] for i in picks]


def _came_true(shown: list[FutureRecord]) -> np.ndarray:
    """int64[n,3]: when each of them was taken, and the instants that it predicted."""
    return np.array([[r.t_capture_ns + int(a * 1e9) for a in (0.0, *AHEAD_S)] for r in shown], np.int64).reshape(-1, 3)


def film_strip(
    bundle: Bundle, start_ns: int, shown: list[FutureRecord], seen: dict[int, np.ndarray]
) -> list[dict[str, Any]]:
    """For `moments`: what the camera saw, what the world model predicted, and what came true. `seen`: front pictures by
    capture time."""
    if "decoder" not in bundle.manifest.engines:
        return []
    decoder, times = bundle.engine("decoder"), np.array(sorted(seen), np.int64)

    def real(wanted: int) -> str | None:
        t = times[np.argmin(np.abs(times - wanted))] if len(times) else 0
        return _png(_crop(seen[int(t)], 96)) if len(times) and abs(int(t) - wanted) < NEAR_NS else None

    out = []
    for record, wanted in zip(shown, _came_true(shown)):
        frames = decoder.run({"future": record.future.astype(np.float32)})["frames"]
        predicted = [np.clip((f.transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.uint8) for f in frames]
        saw, *real_ones = (real(int(w)) for w in wanted)
        if saw is not None:
            when = f"{(record.t_capture_ns - start_ns) * 1e-9:.1f} s"
            out.append({"time": when, "saw": saw, "predicted": [_png(p) for p in predicted], "real": real_ones})
    return out


def plot_joints(episode: Episode, names: Sequence[str]) -> str:
    """Commanded and measured angles of every joint; `names` [J]."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    start = episode.t_ns[0]
    t, measured_at = (episode.t_ns - start) * 1e-9, (episode.state_ns - start) * 1e-9
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


def plot_gate(episode: Episode) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = (episode.t_ns - episode.t_ns[0]) * 1e-9
    fig, (a, b) = plt.subplots(2, 1, figsize=(10, 3.2), sharex=True, height_ratios=[1.4, 1])
    for expert, colour, name in (
        (Expert.REACTIVE, REACTIVE, "reactive in charge"),
        (Expert.PREDICTIVE, PREDICTIVE, "predictive in charge"),
    ):
        for ax in (a, b):
            ax.fill_between(
                t,
                0,
                1,
                where=episode.expert == expert,
                color=colour,
                alpha=0.22,
                step="post",
                transform=ax.get_xaxis_transform(),
                label=name if ax is a else None,
                lw=0,
            )
    a.plot(t, episode.gate, color=INK, lw=1.1)
    a.axhline(0.5, color=INK, lw=0.6, ls=":")
    a.set_ylabel("P(interaction)", fontsize=8)
    a.set_ylim(-0.03, 1.03)
    a.legend(fontsize=8, frameon=False, loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
    b.plot(t, episode.sent_target[:, 2] * 1000, color=INK, lw=1.1)
    b.set_ylabel("tool height, mm", fontsize=8)
    b.set_xlabel("s", fontsize=8)
    for ax in (a, b):
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
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


def _captioned(episode: Episode, t_ns: int, both: np.ndarray) -> np.ndarray:
    """The picture enlarged, with the expert in charge and the gate written on it."""
    picture = cv2.resize(both, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_LINEAR)
    k = int(np.searchsorted(episode.t_ns, t_ns).clip(0, len(episode.t_ns) - 1))
    expert = Expert(int(episode.expert[k]))
    colour = {Expert.REACTIVE: (42, 120, 181), Expert.PREDICTIVE: (217, 99, 43)}.get(expert, (90, 90, 90))
    cv2.rectangle(picture, (0, 0), (picture.shape[1], 30), colour, -1)
    seconds = max((t_ns - int(episode.t_ns[0])) * 1e-9, 0.0)
    who = {Expert.NONE: "no plan yet", Expert.PLAN: "follows its plan"}.get(
        expert, f"{expert.name.lower()} expert   P(interaction) {episode.gate[k]:.2f}"
    )
    text = f"{seconds:5.1f} s   {who}"
    cv2.putText(picture, text, (10, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.58, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def _encoder(path: Path, width: int, height: int, fps: float) -> subprocess.Popen[bytes]:
    """ffmpeg, which takes RGB pictures and writes H.264."""
    import imageio_ffmpeg

    taken = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps:.3f} -i -"
    given = "-c:v libx264 -pix_fmt yuv420p -crf 23 -movflags +faststart"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *taken.split(), *given.split(), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def write_video(episode: Episode, shown: Iterable[tuple[int, dict[str, np.ndarray]]], path: Path) -> None:
    """Front and wrist view side by side, `shown` by capture time (`runtime.observe.episode.pictures`). Raises
    ReportError."""
    shown = iter(shown)
    first = next(shown, None)
    if first is None or not {"front", "wrist"} <= first[1].keys():
        raise ReportError(
            "the recording holds no pictures of both cameras, so there is no film and no page: check the cables and "
            "record again."
        )
    height, width = (SCALE * n for n in _beside(first[1]["front"], first[1]["wrist"]).shape[:2])
    between = np.diff(episode.picture_ns)
    partial = path.with_name("episode.partial.mp4")
    encoder = _encoder(partial, width, height, 1e9 / float(np.median(between)) if len(between) else 15.0)
    assert encoder.stdin is not None
    try:
        for t_ns, frames in itertools.chain([first], shown):
            picture = _captioned(episode, t_ns, _beside(frames["front"], frames["wrist"]))
            encoder.stdin.write(np.ascontiguousarray(picture).tobytes())
        encoder.stdin.flush()
    except BrokenPipeError:
        pass  # the encoder has ended and said why
    with contextlib.suppress(BrokenPipeError):
        encoder.stdin.close()
    if encoder.wait():
        partial.unlink(missing_ok=True)
        raise ReportError(f"{path} cannot be encoded (see above): make room there, or name another folder.")
    partial.replace(path)


def _filmed(log: Path, episode: Episode, path: Path, near: np.ndarray) -> dict[int, np.ndarray]:
    """Write the film; returns the front pictures near the instants `near` (ns) by their capture times."""
    kept: dict[int, np.ndarray] = {}

    def shown() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for t_ns, frames in pictures(log, episode.picture_ns):
            if "front" in frames and np.any(np.abs(near - t_ns) < NEAR_NS):
                kept[t_ns] = frames["front"]
            yield t_ns, frames

    write_video(episode, shown(), path)
    return kept


def write_report(bundle_path: Path, folder: Path, report: dict[str, Any]) -> None:
    """`report.html`, `report.json` and `episode.mp4` from the log in `folder` and the run's numbers.

    A run that ended before the first picture, or left no log in `folder`, has a page without pictures and no film.
    Raises ReportError, LogError, BundleError.
    """
    import jinja2

    logged = "log" in report and (folder / LOG).is_file()
    episode = load_episode(folder / LOG) if logged and report["ticks"] else None
    seen: dict[str, Any] = {"driven": False, "unlogged": not logged and report["ticks"] > 0}
    if episode is not None and len(episode.t_ns):
        chosen = moments(episode)
        fronts = _filmed(folder / LOG, episode, folder / "episode.mp4", _came_true(chosen))
        bundle = Bundle.load(bundle_path)
        strip = film_strip(bundle, int(episode.t_ns[0]), chosen, fronts)
        seen |= {"driven": True, "gap": episode.gap, "strip": strip, "gate": plot_gate(episode)}
        experts = bool(np.isin(episode.expert, (Expert.REACTIVE, Expert.PREDICTIVE)).any())
        seen.update(
            joints=plot_joints(episode, [j.name for j in bundle.manifest.joints]),
            wire=plot_wire(episode.wire_ms),
            experts=experts,
        )
    else:
        (folder / "episode.mp4").unlink(missing_ok=True)  # of an earlier run
    template = jinja2.Environment(autoescape=True).from_string((Path(__file__).parent / "report.html.j2").read_text())
    stages = sorted(report["stages"].items())
    page = template.render(r=report, verdict=verdict(report), horizons=HORIZONS, stages=stages, **seen)
    for name, text in (("report.html", page), (REPORT, json.dumps(report, indent=1, sort_keys=True) + "\n")):
        write_whole(folder / name, text)
