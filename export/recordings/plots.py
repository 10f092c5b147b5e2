"""Inline SVG of what was measured in a recording."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from export.recordings.advice import grasps
from export.recordings.survey import Survey
from export.recordings.sync import TIME, Sync
from firmware_bridge.arms.family import Family

INK, DIM, BAR, WARN = "#1f4e79", "#d5d9de", "#7fa8d1", "#b3261e"


def svg(width: int, height: int, body: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def text(x: float, y: float, what: str, anchor: str = "start", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(what)}</text>'


def _box(x: float, y: float, w: float, h: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.5):.1f}" height="{h:.1f}" rx="2" fill="{colour}"/>'


def joints(arm: Family, seen: Survey) -> str:
    """Each joint's range (light: all, dark: 5 to 95 %) within its limits (grey), degrees."""
    q = np.degrees(np.concatenate([s.q for s in seen.episodes]))
    lower, upper = np.degrees(arm.LOWER), np.degrees(arm.UPPER)
    low, high = min(lower.min(), q.min()), max(upper.max(), q.max())
    left, wide = 120.0, 470.0

    def at(v: float) -> float:
        return left + (v - low) / (high - low) * wide

    body = []
    for k, name in enumerate(arm.JOINTS):
        y = 8 + 26 * k
        ends, middle = (q[:, k].min(), q[:, k].max()), np.quantile(q[:, k], (0.05, 0.95))
        over = ends[0] < lower[k] - 0.5 or ends[1] > upper[k] + 0.5
        body += [
            text(left - 8, y + 12, name, "end"),
            _box(at(lower[k]), y + 2, at(upper[k]) - at(lower[k]), 12, DIM),
            _box(at(ends[0]), y + 4, at(ends[1]) - at(ends[0]), 8, WARN if over else BAR),
            _box(at(middle[0]), y + 4, at(middle[1]) - at(middle[0]), 8, INK),
            text(left + wide + 8, y + 12, f"{ends[0]:.0f} to {ends[1]:.0f}", colour=WARN if over else "#444"),
        ]
    return svg(700, 12 + 26 * len(arm.JOINTS), body, "joint ranges against limits")


def jaw(arm: Family, seen: Survey) -> str:
    """How often the jaw stood how far open, 0 to 100 %."""
    share = np.concatenate([(s.q[:, -1] - arm.LOWER[-1]) / (arm.UPPER[-1] - arm.LOWER[-1]) for s in seen.episodes])
    counts, _ = np.histogram(np.clip(share, 0, 1), bins=25, range=(0, 1))
    top = max(1, counts.max())
    body = [_box(10 + 12 * k, 90 - 80 * c / top, 10, 80 * c / top, INK) for k, c in enumerate(counts)]
    body += [text(10, 106, "shut"), text(310, 106, "open", "end")]
    return svg(320, 112, body, "how far the jaw was open")


def delay(found: Sync) -> str:
    """Correlation of what moves in the pictures with what moves in the joints, at each delay."""
    x = 10 + (TIME - TIME[0]) / np.ptp(TIME) * 300
    y = 90 - 80 * np.clip(found.curve, 0, 1)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[::10], y[::10]))
    body = [f'<polyline points="{points}" fill="none" stroke="{INK}" stroke-width="2"/>']
    body.append(f'<line x1="160" x2="160" y1="8" y2="92" stroke="{DIM}"/>')
    body += [text(10, 106, "-0.5 s"), text(160, 106, "0", "middle"), text(310, 106, "+0.5 s", "end")]
    if found.delay_ms is not None:
        at = 10 + (found.delay_ms / 1000 - TIME[0]) / np.ptp(TIME) * 300
        body.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="8" y2="92" stroke="{WARN}" stroke-dasharray="3 3"/>')
    return svg(320, 112, body, f"delay of camera {found.camera}")


def table(arm: Family, seen: Survey) -> str:
    """The table from above: paths of the tool (grey), where the jaw closed (red), the base (blue), m."""
    reach = arm.reach_m * 1.05

    def at(p: np.ndarray) -> tuple[float, float]:
        return 160 - float(p[1]) / reach * 150, 160 - float(p[0]) / reach * 150

    body = [f'<path d="M10 160A150 150 0 0 1 310 160" fill="none" stroke="{DIM}"/>']
    for s in seen.episodes:
        path = arm.tool(s.q[:: max(1, len(s.q) // 60)])[:, :3, 3]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(at, path))
        body.append(f'<polyline points="{points}" fill="none" stroke="#9aa5b1" stroke-opacity=".35"/>')
    for s in seen.episodes:
        for p in grasps(arm, s)[:1]:
            a, b = at(p)
            body.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{WARN}" fill-opacity=".7"/>')
    body.append(_box(153, 153, 14, 14, INK))
    body.append(text(310, 186, f"half circle: {reach:.2f} m", "end"))
    return svg(320, 192, body, "the table from above")
