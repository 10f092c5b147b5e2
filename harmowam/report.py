"""A recorded episode as a page that people look at, and as a film. Pictures first, numbers below."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from firmware_bridge.messages import Expert
from runtime.bundle import Bundle
from runtime.recorder import load_episode

JOINTS = ("shoulder pan", "shoulder lift", "elbow", "wrist flex", "wrist roll", "gripper")
REACTIVE, PREDICTIVE, INK, PAPER = "#2a78b5", "#d9632b", "#1d2733", "#ffffff"
HORIZONS = ("+0.4 s", "+0.8 s", "next grasp or release")


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


def _crop(rgb: np.ndarray, size: int) -> np.ndarray:
    """The central square, as the policy sees it."""
    h, w = rgb.shape[:2]
    x = (w - h) // 2
    return cv2.resize(rgb[:, x : x + h], (size, size), interpolation=cv2.INTER_AREA)


def film_strip(bundle: Bundle, episode: dict[str, np.ndarray], columns: int = 6) -> list[dict[str, Any]]:
    """For moments spread over the run: what the camera saw, what the world model predicted, and what came true."""
    if "prior_future" not in episode or len(episode["prior_future"]) == 0:
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
            return _crop(episode["picture_front"][k], 96) if abs(int(episode["picture_ns"][k]) - wanted) < 60_000_000 else None

        now = real(0.0)
        if now is None:
            continue
        out.append({
            "time": f"{(captured - start) * 1e-9:.1f} s", "saw": _png(now), "predicted": [_png(p) for p in predicted],
            "real": [None if (r := real(a)) is None else _png(r) for a in (0.4, 0.8)],
        })  # fmt: skip
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
    for expert, colour, name in ((Expert.REACTIVE, REACTIVE, "reactive in charge"), (Expert.PREDICTIVE, PREDICTIVE, "predictive in charge")):
        for ax in (a, b):
            ax.fill_between(t, 0, 1, where=episode["expert"] == expert, color=colour, alpha=0.22, step="post", transform=ax.get_xaxis_transform(),
                            label=name if ax is a else None, lw=0)  # fmt: skip
    a.plot(t, episode["gate"], color=INK, lw=1.1)
    a.axhline(0.5, color=INK, lw=0.6, ls=":")
    a.set_ylabel("P(interaction)", fontsize=8)
    a.set_ylim(-0.03, 1.03)
    a.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    b.plot(t, episode["sent_target"][:, 2] * 1000, color=INK, lw=1.1)
    b.set_ylabel("tool height, mm", fontsize=8)
    b.set_xlabel("s", fontsize=8)
    for ax in (a, b):
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
    fig.tight_layout()
    return _figure(fig)


def plot_wire(wire_ms: list[float]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 2.4))
    ax.hist(wire_ms, bins=50, color=REACTIVE)
    ax.set_xlabel("capture of the picture to bytes on the servo bus, ms", fontsize=8)
    ax.set_ylabel("commands", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    fig.tight_layout()
    return _figure(fig)


def write_video(episode: dict[str, np.ndarray], path: Path) -> None:
    """H.264: front and wrist view side by side, with the expert in charge and the gate written on them."""
    import imageio_ffmpeg

    front, wrist, times = episode["picture_front"], episode["picture_wrist"], episode["picture_ns"]
    h, w = front.shape[1:3]
    scale = 2
    fps = 1e9 / float(np.median(np.diff(times))) if len(times) > 1 else 15.0
    partial = path.with_name("episode.partial.mp4")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{2 * w * scale}x{h * scale}",
        "-r", f"{fps:.3f}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "23", "-movflags", "+faststart", str(partial),
    ]  # fmt: skip
    encoder = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert encoder.stdin is not None
    for i, t in enumerate(times):
        picture = cv2.resize(np.hstack([front[i], wrist[i]]), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        k = int(np.searchsorted(episode["t_ns"], t).clip(0, len(episode["t_ns"]) - 1))
        expert = Expert(int(episode["expert"][k]))
        colour = {Expert.REACTIVE: (42, 120, 181), Expert.PREDICTIVE: (217, 99, 43)}.get(expert, (90, 90, 90))
        cv2.rectangle(picture, (0, 0), (picture.shape[1], 30), colour, -1)
        text = f"{(int(t) - int(episode['t_ns'][0])) * 1e-9:5.1f} s   {expert.name.lower()} expert   P(interaction) {episode['gate'][k]:.2f}"
        cv2.putText(picture, text, (10, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.58, (255, 255, 255), 1, cv2.LINE_AA)
        encoder.stdin.write(np.ascontiguousarray(picture).tobytes())
    encoder.stdin.close()
    if encoder.wait():
        raise RuntimeError("ffmpeg failed to encode the episode")
    partial.replace(path)


PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>HarmoWAM: {{ r.task }}</title><style>
:root{--ink:#1d2733;--soft:#5d6b7a;--line:#e1e6eb;--re:#2a78b5;--pr:#d9632b}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:#f4f6f8;margin:0}
main{max-width:1080px;margin:0 auto;padding:24px 16px 60px}h1{font-size:24px;margin:0 0 2px}h2{font-size:17px;margin:0 0 10px}
.sub{color:var(--soft);margin:0 0 18px}section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:16px;margin:14px 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px}.fact{background:#fff;border:1px solid var(--line);border-radius:10px;padding:10px 14px}
.fact b{display:block;font-size:21px}.fact span{color:var(--soft);font-size:13px}.ok b{color:#1c8a4b}.bad b{color:#bd2c2c}
.strip{overflow-x:auto}.strip table{border-collapse:separate;border-spacing:6px}.strip th{font-weight:500;color:var(--soft);font-size:12px;text-align:left;white-space:nowrap}
.strip img{width:124px;height:124px;display:block;border-radius:5px;image-rendering:auto}.strip td.p img{outline:3px solid var(--pr)}.strip td.none{color:var(--soft);font-size:12px;text-align:center;background:#f4f6f8;border-radius:5px}
img.plot{width:100%;display:block}video{width:100%;border-radius:6px;background:#000}table.n{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
table.n td,table.n th{padding:4px 8px;border-bottom:1px solid var(--line);text-align:right}table.n td:first-child,table.n th:first-child{text-align:left}table.n .over{color:#bd2c2c}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:14px}p.note{color:var(--soft);font-size:13px;margin:8px 0 0}
</style></head><body><main>
<h1>&ldquo;{{ r.task }}&rdquo;</h1>
<p class="sub">{{ r.robot }}, {{ r.quantization }} on {{ r.engine }}, {{ r.policy }} policy, {{ "%.1f"|format(r.seconds) }} s in real time</p>
<div class="facts">
{% if r.success is defined %}<div class="fact {{ 'ok' if r.success else 'bad' }}"><b>{{ 'done' if r.success else 'not done' }}</b><span>{{ 'task solved, judged by physics' if r.success else 'task not solved in time' }}</span></div>{% endif %}
<div class="fact"><b>{{ "%.1f"|format(r.fast_hz) }} Hz</b><span>fast loop, on new frames</span></div>
<div class="fact"><b>{{ "%.1f"|format(r.slow_hz) }} Hz</b><span>slow loop: world model, predictive expert</span></div>
<div class="fact"><b>{{ "%.1f"|format(r.observation_to_wire_ms.p50) }} ms</b><span>picture to bytes on the wire, median (p99 {{ "%.1f"|format(r.observation_to_wire_ms.p99) }})</span></div>
<div class="fact"><b>{{ r.deadline_misses }} / {{ r.ticks }}</b><span>deadlines missed</span></div>
</div>
<section><h2>The episode</h2><video src="episode.mp4" controls muted loop playsinline></video></section>
<section class="strip"><h2>What the robot saw, and what the world model predicted</h2><table>
<tr><th></th>{% for s in strip %}<th>{{ s.time }}</th>{% endfor %}</tr>
<tr><th>camera now</th>{% for s in strip %}<td><img alt="camera" src="{{ s.saw }}"></td>{% endfor %}</tr>
{% for h in horizons %}<tr><th>predicted<br>{{ h }}</th>{% set i = loop.index0 %}{% for s in strip %}<td class="p"><img alt="predicted" src="{{ s.predicted[i] }}"></td>{% endfor %}</tr>
{% if i < 2 %}<tr><th>camera<br>{{ h }}</th>{% for s in strip %}{% if s.real[i] %}<td><img alt="came true" src="{{ s.real[i] }}"></td>{% else %}<td class="none">not<br>recorded</td>{% endif %}{% endfor %}</tr>{% endif %}{% endfor %}
</table><p class="note">Orange frames are imagined. The reactive expert sees the instruction only through them.</p></section>
<section><h2>Which expert was in charge</h2><img class="plot" alt="gate" src="{{ gate }}"></section>
<section><h2>Joints: command and measured</h2><img class="plot" alt="joints" src="{{ joints }}"></section>
<section><h2>Where the time goes</h2><div class="two"><div><table class="n"><tr><th>stage</th><th>p50</th><th>p99</th><th>max</th><th>budget, ms</th></tr>
{% for name, s in stages %}<tr><td>{{ name }}</td><td>{{ "%.2f"|format(s.p50_ms) }}</td><td>{{ "%.2f"|format(s.p99_ms) }}</td><td class="{{ 'over' if s.max_ms > s.budget_ms }}">{{ "%.2f"|format(s.max_ms) }}</td><td>{{ "%.0f"|format(s.budget_ms) }}</td></tr>{% endfor %}
<tr><td>picture to wire</td><td>{{ "%.2f"|format(r.observation_to_wire_ms.p50) }}</td><td>{{ "%.2f"|format(r.observation_to_wire_ms.p99) }}</td><td>{{ "%.2f"|format(r.observation_to_wire_ms.max) }}</td><td></td></tr>
<tr><td>age of the Prior at use</td><td>{{ "%.1f"|format(r.prior_age_ms.p50) }}</td><td>{{ "%.1f"|format(r.prior_age_ms.p99) }}</td><td>{{ "%.1f"|format(r.prior_age_ms.max) }}</td><td></td></tr></table>
<p class="note">First command {{ r.time_to_first_command_s }} s after start; runtime processes together {{ r.rss_mb }} MB; {{ r.motor_missed_ticks }} motor ticks missed.</p></div>
<div><img class="plot" alt="observation to wire" src="{{ wire }}"></div></div></section>
</main></body></html>"""


def write_report(bundle_path: Path, record: Path, out: Path, report: dict[str, Any], wire_ms: list[float]) -> None:
    """`report.html`, `report.json` and `episode.mp4` in `out` from the recorded episode in `record`."""
    import jinja2

    episode, _ = load_episode(record)
    out.mkdir(parents=True, exist_ok=True)
    write_video(episode, out / "episode.mp4")
    page = jinja2.Environment(autoescape=True).from_string(PAGE).render(
        r=report, strip=film_strip(Bundle.load(bundle_path), episode), horizons=HORIZONS, gate=plot_gate(episode), joints=plot_joints(episode),
        wire=plot_wire(wire_ms), stages=sorted(report["stages"].items()),
    )  # fmt: skip
    for name, text in (("report.html", page), ("report.json", json.dumps(report, indent=1, sort_keys=True) + "\n")):
        (out / f"{name}.partial").write_text(text)
        (out / f"{name}.partial").replace(out / name)
