"""A recorded episode as a page that people look at, and as a film. Pictures first, numbers below."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import Mendable
from common.files import write_whole
from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle
from runtime.observe.recorder import load_episode, wire_ms
from runtime.observe.verdict import verdict

JOINTS = ("shoulder pan", "shoulder lift", "elbow", "wrist flex", "wrist roll", "gripper")
REACTIVE, PREDICTIVE, INK = "#2a78b5", "#d9632b", "#1d2733"
HORIZONS = ("+0.4 s", "+0.8 s", "next grasp or release")


class ReportError(Mendable):
    """A recording that no page or film can be made of; one sentence and the next step."""


def lacking() -> list[str]:
    """Packages, by the names that pip knows, that `write_report` needs and this environment lacks."""
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


def film_strip(bundle: Bundle, episode: dict[str, np.ndarray], columns: int = 7) -> list[dict[str, Any]]:
    """For moments spread over the run: what the camera saw, what the world model predicted, and what came true."""
    if "decoder" not in bundle.manifest.engines or "prior_future" not in episode or len(episode["prior_future"]) == 0:
        return []
    decoder = bundle.engine("decoder")
    start = int(episode["t_ns"][0])
    out = []
    picks = np.linspace(0, len(episode["prior_capture_ns"]) - 1, columns + 2).astype(int)[1:-1]
    for i in picks:
        captured = int(episode["prior_capture_ns"][i])
        frames = decoder.run({"future": episode["prior_future"][i].astype(np.float32)})["frames"]
        predicted = [np.clip((f.transpose(1, 2, 0) + 1) * 127.5, 0, 255).astype(np.uint8) for f in frames]

        def real(ahead_s: float, captured: int = captured) -> np.ndarray | None:
            wanted = captured + int(ahead_s * 1e9)
            k = int(np.argmin(np.abs(episode["picture_ns"] - wanted)))
            return (
                _crop(episode["picture_front"][k], 96)
                if abs(int(episode["picture_ns"][k]) - wanted) < 60_000_000
                else None
            )

        now = real(0.0)
        if now is None:
            continue
        out.append(
            {
                "time": f"{(captured - start) * 1e-9:.1f} s",
                "saw": _png(now),
                "predicted": [_png(p) for p in predicted],
                "real": [None if (r := real(a)) is None else _png(r) for a in (0.4, 0.8)],
            }
        )
    return out


def plot_joints(episode: dict[str, np.ndarray]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = (episode["t_ns"] - episode["t_ns"][0]) * 1e-9
    fig, axes = plt.subplots(3, 2, figsize=(10, 5.4), sharex=True)
    for j, ax in enumerate(axes.T.ravel()):
        ax.plot(t, np.degrees(episode["command"][:, j]), color=PREDICTIVE, lw=1.1, label="command")
        ax.plot(t, np.degrees(episode["measured"][:, j]), color=INK, lw=1.1, label="measured")
        ax.set_title(JOINTS[j], fontsize=9, loc="left")
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="best")
    for ax in axes[-1]:
        ax.set_xlabel("s", fontsize=8)
    fig.supylabel("degrees", fontsize=8)
    fig.tight_layout()
    return _figure(fig)


def plot_gate(episode: dict[str, np.ndarray]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = (episode["t_ns"] - episode["t_ns"][0]) * 1e-9
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
                where=episode["expert"] == expert,
                color=colour,
                alpha=0.22,
                step="post",
                transform=ax.get_xaxis_transform(),
                label=name if ax is a else None,
                lw=0,
            )
    a.plot(t, episode["gate"], color=INK, lw=1.1)
    a.axhline(0.5, color=INK, lw=0.6, ls=":")
    a.set_ylabel("P(interaction)", fontsize=8)
    a.set_ylim(-0.03, 1.03)
    a.legend(fontsize=8, frameon=False, loc="lower right", ncols=2, bbox_to_anchor=(1, 1), borderaxespad=0)
    b.plot(t, episode["sent_target"][:, 2] * 1000, color=INK, lw=1.1)
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


def write_video(episode: dict[str, np.ndarray], path: Path) -> None:
    """H.264: front and wrist view side by side, with the expert in charge and the gate written on them. Raises ReportError."""
    import imageio_ffmpeg

    if "picture_front" not in episode or "picture_wrist" not in episode:
        raise ReportError(
            "the recording holds no pictures of both cameras, so there is no film and no page: check the cables and record again."
        )
    front, wrist, times = episode["picture_front"], episode["picture_wrist"], episode["picture_ns"]
    scale = 2
    h, w = (scale * n for n in _beside(front[0], wrist[0]).shape[:2])
    fps = 1e9 / float(np.median(np.diff(times))) if len(times) > 1 else 15.0
    partial = path.with_name("episode.partial.mp4")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{w}x{h}",
        "-r",
        f"{fps:.3f}",
        "-i",
        "-",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-crf",
        "23",
        "-movflags",
        "+faststart",
        str(partial),
    ]
    encoder = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert encoder.stdin is not None
    try:
        for i, t in enumerate(times):
            picture = cv2.resize(_beside(front[i], wrist[i]), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
            k = int(np.searchsorted(episode["t_ns"], t).clip(0, len(episode["t_ns"]) - 1))
            expert = Expert(int(episode["expert"][k]))
            colour = {Expert.REACTIVE: (42, 120, 181), Expert.PREDICTIVE: (217, 99, 43)}.get(expert, (90, 90, 90))
            cv2.rectangle(picture, (0, 0), (picture.shape[1], 30), colour, -1)
            seconds = max((int(t) - int(episode["t_ns"][0])) * 1e-9, 0.0)
            who = {Expert.NONE: "no plan yet", Expert.PLAN: "follows its plan"}.get(
                expert, f"{expert.name.lower()} expert   P(interaction) {episode['gate'][k]:.2f}"
            )
            text = f"{seconds:5.1f} s   {who}"
            cv2.putText(picture, text, (10, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.58, (255, 255, 255), 1, cv2.LINE_AA)
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


def write_report(bundle_path: Path, record: Path, out: Path, report: dict[str, Any]) -> None:
    """`report.html`, `report.json` and `episode.mp4` in `out` from the recorded episode in `record`.

    A run that ended before the first picture has a page without pictures and no film. Raises ReportError.
    """
    import jinja2

    episode, _ = load_episode(record)
    out.mkdir(parents=True, exist_ok=True)
    driven = len(episode["t_ns"]) > 0
    pictures: dict[str, Any] = {}
    if driven:
        write_video(episode, out / "episode.mp4")
        pictures.update(strip=film_strip(Bundle.load(bundle_path), episode), gate=plot_gate(episode))
        pictures.update(joints=plot_joints(episode), wire=plot_wire(wire_ms(episode)))
    else:
        (out / "episode.mp4").unlink(missing_ok=True)  # of an earlier run
    template = (Path(__file__).parent / "report.html.j2").read_text()
    page = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            r=report,
            verdict=verdict(report),
            driven=driven,
            horizons=HORIZONS,
            experts=driven and bool(np.isin(episode["expert"], (Expert.REACTIVE, Expert.PREDICTIVE)).any()),
            stages=sorted(report["stages"].items()),
            **pictures,
        )
    )
    for name, text in (("report.html", page), ("report.json", json.dumps(report, indent=1, sort_keys=True) + "\n")):
        write_whole(out / name, text)
