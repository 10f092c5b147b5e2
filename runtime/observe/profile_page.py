"""The profile as one page: what was missed, a timeline round the worst tick, a histogram of each stage. No scripts, no
other files."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.observe.profile import MEANING, SERIES, STAGES, label
from runtime.observe.verdict import verdict

COLOURS = ("#2a78b5", "#d9632b", "#1c8a4b", "#8656a8", "#b58a1c", "#bd2c6a", "#3c8f94", "#6b7785")
BINS = 48
SPAN_MS = 400.0  # of the timeline


def _histogram(values: np.ndarray, colour: str, width: int = 220, height: int = 44) -> str:
    """Logarithmic counts over 0 to p99.9, so that rare values can be seen."""
    top = float(np.percentile(values, 99.9)) or 1e-3
    counts, _ = np.histogram(np.minimum(values, top), BINS, (0.0, top))
    tall = np.log1p(counts) / max(float(np.log1p(counts.max())), 1e-9) * (height - 2)
    step = width / BINS
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - h:.1f}" width="{step - 0.6:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(tall)
        if h
    )
    label = f"0 to {top:.2f} ms"
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'fill="{colour}"><title>{label}</title>{bars}</svg>'
    )


def worst_instant(tracks: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    """Middle (ns) of the longest tick of the fast loop."""
    slot, take = (tracks["fast loop"].get(f"fast.{s}") for s in ("slot", "take"))
    if slot is None or take is None or not slot.shape[1]:
        return 0
    n = min(slot.shape[1], take.shape[1])
    ends, starts = slot[0, -n:] + slot[1, -n:], take[0, -n:]
    k = int((ends - starts).argmax())
    return int(starts[k] + ends[k]) // 2


def timeline(tracks: Mapping[str, Mapping[str, np.ndarray]], middle_ns: int, colours: Mapping[str, str]) -> str:
    """SVG of `SPAN_MS` round `middle_ns`, or from the first span on where the run began later: one row a track."""
    width, row, left = 1040, 26, 110
    first = min((s[0].min() for stages in tracks.values() for s in stages.values() if s.size), default=0)
    begin = max(middle_ns - SPAN_MS * 5e5, first)
    end = begin + SPAN_MS * 1e6
    scale = (width - left) / (end - begin)
    parts, y = [], 4.0
    for track, stages in tracks.items():
        if not stages:
            continue
        parts.append(f'<text x="0" y="{y + 15:.0f}">{html.escape(track.removeprefix("age: "))}</text>')
        parts.append(f'<rect x="{left}" y="{y:.0f}" width="{width - left}" height="{row - 6}" fill="#f4f6f8"/>')
        for stage, spans in stages.items():
            inside = (spans[0] + spans[1] > begin) & (spans[0] < end)
            for start, duration in spans[:, inside].T.tolist():
                x0, x1 = max((start - begin) * scale, 0.0), min((start + duration - begin) * scale, width - left)
                tip = f"{stage} {duration / 1e6:.3f} ms"
                half = ' opacity="0.35"' if track.startswith("age") else ""
                parts.append(
                    f'<rect x="{left + x0:.2f}" y="{y:.0f}" width="{max(x1 - x0, 0.7):.2f}" height="{row - 6}" '
                    f'fill="{colours.get(stage, "#6b7785")}"{half}><title>{tip}</title></rect>'
                )
        y += row
    for ms in range(0, int(SPAN_MS) + 1, 50):
        x = left + ms / SPAN_MS * (width - left)
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="0" y2="{y:.0f}" stroke="#c9d1d9" stroke-width="0.6"/>')
        anchor = "end" if ms == SPAN_MS else "middle"
        parts.append(
            f'<text x="{x:.0f}" y="{y + 14:.0f}" text-anchor="{anchor}">{ms}{" ms" if ms == SPAN_MS else ""}</text>'
        )
    return f'<svg viewBox="0 0 {width} {y + 20:.0f}" width="100%" font-size="12" fill="#5d6b7a">{"".join(parts)}</svg>'


def _rows(report: Mapping[str, Any], durations: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> str:
    out = []
    for stage, what in STAGES.items():
        row = report["stages"].get(stage)
        if row is None:
            continue
        over = ' class="over"' if row["p99_ms"] > row["budget_ms"] else ""
        cells = "".join(f"<td>{row[k]:.2f}</td>" for k in ("p50_ms", "p90_ms"))
        cells += f"<td{over}>{row['p99_ms']:.2f}</td>" + "".join(
            f"<td>{row[k]:.2f}</td>" for k in ("p999_ms", "max_ms")
        )
        out.append(
            f'<tr><td><i style="background:{colours[stage]}"></i>{stage}<small>{html.escape(what)}</small></td>{cells}'
            f"<td>{row['budget_ms']:.0f}</td><td>{_histogram(durations[stage], colours[stage])}</td></tr>"
        )
    for key in SERIES:
        row = report[key]
        cells = "".join(f"<td>{row[p]:.2f}</td>" for p in ("p50", "p90", "p99", "p999", "max"))
        named = f"{label(key)}<small>{html.escape(MEANING[key])}</small>"
        out.append(f"<tr><td>{named}</td>{cells}<td></td><td></td></tr>")
    return "".join(out)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;background:#f4f6f8;margin:0}
main{max-width:1120px;margin:0 auto;padding:24px 16px 60px}
h1{font-size:24px;margin:0 0 2px}
h2{font-size:17px;margin:0 0 10px}
.sub,p.note{color:#5d6b7a;margin:0 0 18px}
p.note{font-size:13px;margin:8px 0 0}
section{background:#fff;border:1px solid #e1e6eb;border-radius:10px;padding:16px;margin:14px 0;overflow-x:auto}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px}
.fact{background:#fff;border:1px solid #e1e6eb;border-radius:10px;padding:10px 14px}
.fact b{display:block;font-size:21px}
.fact span{color:#5d6b7a;font-size:13px}
.ok b{color:#1c8a4b}
.bad b,.over{color:#bd2c2c}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:4px 8px;border-bottom:1px solid #e1e6eb;text-align:right;vertical-align:middle}
td:first-child,th:first-child,th:nth-child(8),.text td{text-align:left}
.text{width:auto}
td small{display:block;color:#5d6b7a;font-size:12px;margin-left:18px}
td i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:8px}
svg{display:block}
li{margin:2px 0}"""


def _facts(report: Mapping[str, Any]) -> str:
    """The boxes at the top."""
    missed = report["deadline_misses"] / max(report["ticks"], 1)
    facts = [
        ("", f"{report['fast_hz']:.1f} Hz", "fast loop, on new frames"),
        ("", f"{report['slow_hz']:.1f} Hz", "slow loop"),
        (
            "ok" if missed <= 0.001 else "bad",
            f"{missed:.2%}",
            f"deadlines missed ({report['deadline_misses']} of {report['ticks']})",
        ),
        ("", f"{report['observation_to_wire_ms']['p50']:.1f} ms", "picture to bytes on the wire, median"),
        ("", f"{report['overhead_ms']['p50']:.1f} ms", "of which not in an engine, from the frame's arrival"),
        ("", report["health"]["state"], "health at the end"),
    ]
    return "".join(
        f'<div class="fact {c}"><b>{html.escape(b)}</b><span>{html.escape(s)}</span></div>' for c, b, s in facts
    )


def _comparison(compared: Mapping[str, Any]) -> str:
    """A section with what `runtime.observe.profile.compare` gave."""
    rows = "".join(
        f"<tr><td>{r['name']}</td><td>{r['before']:.3f}</td><td>{r['now']:.3f}</td><td>{r['ratio'] or ''}</td>"
        f"<td>{r['verdict']}</td></tr>"
        for r in compared["rows"]
    )
    return (
        f"<section><h2>Against the other run: {compared['verdict']}</h2><table><tr><th>what</th><th>before</th>"
        f"<th>now</th><th>ratio</th><th></th></tr>{rows}</table></section>"
    )


def _stages(report: Mapping[str, Any], durations: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> str:
    """A section with one row a stage."""
    return (
        "<section><h2>Stages, ms</h2><table><tr><th>stage</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th>"
        "<th>max</th><th>budget</th><th>histogram, 0 to p99.9 (counts logarithmic)</th></tr>"
        f"{_rows(report, durations, colours)}</table></section>"
    )


UNITS = {"mhz": "MHz", "c": "°C", "w": "W"}  # by the last word of a key of `runtime.observe.profile.board`


def _percent(shares: Mapping[str, float]) -> dict[str, str]:
    return {k: f"{v:.1%}" for k, v in shares.items()}


def _told(board: Mapping[str, Any]) -> str:
    """What is known of the machine, in words; what was not found is left out."""
    out = []
    for key, value in board.items():
        if value in (None, "", {}):
            continue
        *words, last = key.split("_")
        name = " ".join(words if last in UNITS else [*words, last])
        each = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        out.append(f"{name} {each} {UNITS.get(last, '')}".rstrip())
    return "; ".join(out)


def _health(report: Mapping[str, Any]) -> str:
    """A section with the changes of the run's health, the goals' jerk and what is known of the board."""
    changes = "".join(
        f"<tr><td>{c['at_s']:.2f} s</td><td>{c['state']}</td><td>{html.escape('; '.join(c['reasons']))}</td></tr>"
        for c in report["health"]["changes"][:40]
    )
    known = _told({**report.get("board", {}), "processors": _percent(report.get("processors", {}))})
    jerk = report["goal_jerk_rad_s3"]
    return (
        f'<section><h2>Health</h2><table class="text">{changes or "<tr><td>no change</td></tr>"}</table>'
        '<p class="note">'
        f"Goals' jerk: rms {jerk['rms']:.0f}, max {jerk['max']:.0f} rad/s&sup3;. "
        f"{html.escape(known)}</p></section>"
    )


def _advice(report: Mapping[str, Any]) -> str:
    """A section with what `runtime.observe.advice.advice` gave."""
    said = "".join(
        f"<li>{html.escape(a['binds'])}<br>gain: {html.escape(a['gain'])}<br><code>{html.escape(a['command'])}</code>"
        "</li>"
        for a in report["advice"]
    )
    listed = f"<ol>{said}</ol>" if said else "<p>Every budget is kept.</p>"
    return f"<section><h2>What binds, and what to type next</h2>{listed}</section>"


def _task(report: Mapping[str, Any]) -> str:
    """The instruction and, where somebody judged it, whether it was done."""
    if not report.get("task"):
        return ""
    said = f": {verdict(report)}" if "success" in report else ""
    return f"<br>Task: {html.escape(report['task'] + said)}"


def page(
    report: Mapping[str, Any], tracks: Mapping[str, Mapping[str, np.ndarray]], compared: Mapping[str, Any] | None = None
) -> str:
    """The HTML text. `tracks` as from `runtime.loop.timing.tracks`, `compared` as from
    `runtime.observe.profile.compare`."""
    durations = {s: spans[1] / 1e6 for stages in tracks.values() for s, spans in stages.items()}
    colours = {s: COLOURS[i % len(COLOURS)] for i, s in enumerate(STAGES)}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">'
        f"<title>HarmoWAM profile</title><style>{STYLE}</style></head><body><main><h1>Where each millisecond goes</h1>"
        f'<p class="sub">{html.escape(str(report.get("robot", "")))}, {report["seconds"]:.0f} s, '
        f"{html.escape(str(report.get('quantization', '')))} on "
        f'{html.escape(str(report.get("engine", "")))}{_task(report)}</p><div class="facts">{_facts(report)}</div>'
        f"{_advice(report)}"
        f"<section><h2>Round the longest tick</h2>{timeline(tracks, worst_instant(tracks), colours)}"
        '<p class="note">Pale rows are ages and waits, not work. Hover for the figures; the Perfetto trace has the '
        "whole run.</p></section>"
        f"{_stages(report, durations, colours)}{'' if compared is None else _comparison(compared)}{_health(report)}"
        "</main></body></html>"
    )
