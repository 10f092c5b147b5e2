"""The HTML page of a calibration: one file, pictures as inline SVG, no script and nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration import intrinsics
from calibration.hand_eye import HandEye
from calibration.store import write_atomically

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .9em .25em 0;text-align:left;border-bottom:1px solid #ddd}
figure{margin:1.5em 0}svg{width:100%;height:auto;background:#fafafa;border:1px solid #ddd}figcaption{color:#555}
.ok{color:#176b2c}.bad{color:#a11}.row{display:grid;grid-template-columns:1fr 1fr;gap:1em}
@media(max-width:640px){.row{grid-template-columns:1fr}}"""
_RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])  # viridis


def colour(share: float) -> str:
    at = float(np.clip(share, 0, 1)) * (len(_RAMP) - 1)
    low = min(int(at), len(_RAMP) - 2)
    r, g, b = _RAMP[low] + (_RAMP[low + 1] - _RAMP[low]) * (at - low)
    return f"#{int(r):02x}{int(g):02x}{int(b):02x}"


def _svg(size: tuple[int, int], body: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img">{"".join(body)}</svg>'


def heat(
    size: tuple[int, int],
    grid: tuple[int, int],
    values: np.ndarray,
    top: float,
    unit: str,
    used: np.ndarray | None = None,
) -> str:
    """Map of values float64[rows*columns] over the picture with its scale; what is not `used` is drawn pale, NaN is white."""
    rows, columns = grid
    w, h = size[0] / columns, size[1] / rows
    body = []
    for k, v in enumerate(values):
        if np.isfinite(v):
            pale = "" if used is None or used[k] else ' opacity=".35"'
            body.append(
                f'<rect x="{(k % columns) * w:.1f}" y="{(k // columns) * h:.1f}" width="{w + 0.5:.1f}" height="{h + 0.5:.1f}" '
                f'fill="{colour(v / top)}"{pale}/>'
            )
    bar, f = size[1] / 18, size[1] / 24
    for k in range(40):
        body.append(
            f'<rect x="{f + k * f * 0.25:.1f}" y="{size[1] - 2 * f:.1f}" width="{f * 0.26:.1f}" '
            f'height="{bar / 2:.1f}" fill="{colour(k / 39)}"/>'
        )
    label = f'font-size="{f:.0f}" fill="#fff" stroke="#000" stroke-width="{f / 6:.1f}" paint-order="stroke"'
    body.append(f'<text x="{f:.0f}" y="{size[1] - 2.3 * f:.0f}" {label}>0</text>')
    body.append(f'<text x="{f * 9.5:.0f}" y="{size[1] - 2.3 * f:.0f}" {label}>{top:.2g} {unit}</text>')
    return _svg(size, body)


def arrows(
    size: tuple[int, int], at: np.ndarray, vectors: np.ndarray, magnify: float, kept: np.ndarray | None = None
) -> str:
    """Vectors float64[n,2] px drawn `magnify` times as long; those not `kept` in red."""
    width = size[0] / 640
    body = []
    for k, (p, v) in enumerate(zip(at, vectors * magnify, strict=True)):
        ink = "#1f5fa8" if kept is None or kept[k] else "#c22"
        body.append(
            f'<line x1="{p[0]:.1f}" y1="{p[1]:.1f}" x2="{p[0] + v[0]:.1f}" y2="{p[1] + v[1]:.1f}" '
            f'stroke="{ink}" stroke-width="{width:.1f}"/>'
        )
        body.append(f'<circle cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="{width * 1.2:.1f}" fill="{ink}"/>')
    return _svg(size, body)


def figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(rows: Sequence[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
        + "</table>"
    )


def page(path: Path, title: str, verdict: list[str], parts: Sequence[str]) -> None:
    """Write the page; `verdict` lists what is wrong, empty when all is well."""
    judged = "".join(f'<p class="bad">{html.escape(v)}.</p>' for v in verdict) or '<p class="ok">Accepted.</p>'
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>{judged}{''.join(parts)}</html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def intrinsics_page(
    path: Path, name: str, c: intrinsics.Calibration, before: np.ndarray | None, verdict: list[str]
) -> None:
    """`before`: px float64[grid] by which the new lens differs from the stored one, None without one."""
    fit, size, q = c.fit, c.fit.size, c.quality()
    at = np.concatenate([v.pixels for v in fit.views])
    residual, kept = np.concatenate(fit.residuals), np.concatenate(fit.inlier)
    rows, columns = c.grid
    counts, _, _ = np.histogram2d(at[:, 1], at[:, 0], bins=(rows, columns), range=((0, size[1]), (0, size[0])))
    coverage = np.where(counts > 0, counts, np.nan).ravel()
    sd = np.sqrt(np.diag(fit.covariance))
    labels = [
        "fx",
        "fy",
        "cx",
        "cy",
        *(["k1", "k2", "k3", "k4"] if fit.model == "fisheye" else ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"]),
    ]
    numbers = [(n, f"{v:.4f} ± {s:.4f}") for n, v, s in zip(labels, fit.theta, sd, strict=False)]
    top = max(float(np.nanquantile(c.predicted[c.used], 0.98)), float(np.nanquantile(c.crossval[c.used], 0.98)), 0.02)
    magnify = 0.03 * size[0] / max(float(np.quantile(np.linalg.norm(residual, axis=1), 0.95)), 0.01)
    parts = [
        table([
            ("camera", f"{name}, {size[0]} x {size[1]}, {fit.model}"),
            ("views", f"{len(fit.views)} used, {len(c.rejected)} left out; {int((~kept).sum())} of {len(kept)} corners left out"),
            ("tilt spread", f"{intrinsics.tilt_spread(fit.poses):.0f} degrees"),
            *((k.replace("_", " "), f"{v:.3f}") for k, v in q.items()),
        ]),
        '<div class="row">',
        figure(heat(size, c.grid, c.predicted, top, "px", c.used), "Predicted uncertainty of the projection (one sd). Pale: no corners."),
        figure(heat(size, c.grid, c.crossval, top, "px", c.used), "Cross-validation: how far two halves of the views disagree."),
        figure(heat(size, c.grid, coverage, float(np.nanmax(coverage)), "corners"), "Coverage: corners seen in each part of the picture."),
        figure(arrows(size, at, residual, magnify, kept), f"Residuals, {magnify:.0f} times as long as they are; red ones are left out."),
        "</div>",
    ]  # fmt: skip
    if before is not None and np.isfinite(before).any():
        limit = max(float(np.nanquantile(before, 0.98)), 0.1)
        parts.append(
            figure(
                heat(size, c.grid, before, limit, "px", c.used),
                "Before and after: how far the new lens moves pixels against the stored one.",
            )
        )
    parts += ["<h2>Parameters</h2>", table(numbers)]
    if c.rejected:
        parts += ["<h2>Views left out</h2>", table(list(c.rejected))]
    page(path, f"Intrinsics of camera {name}", verdict, parts)


def hand_eye_page(
    path: Path, name: str, h: HandEye, halves: dict[str, float], size: tuple[int, int], corners: np.ndarray, residuals: np.ndarray,
    before: tuple[float, float] | None, verdict: list[str],
) -> None:  # fmt: skip
    """`before`: how far (deg, m) the new pose is from the stored one."""
    degrees, metres = h.sd
    magnify = 0.03 * size[0] / max(float(np.quantile(np.linalg.norm(residuals, axis=1), 0.95)), 0.01)
    rows = [
        ("mount", "fixed to the base" if h.mount == "base" else "on the arm"),
        ("position, m", ", ".join(f"{v:.4f}" for v in h.X[:3, 3])),
        ("standard deviation", f"{1000 * metres:.1f} mm, {degrees:.2f} degrees"),
        (
            "two halves differ by",
            f"{halves['halves_mm']:.1f} mm, {halves['halves_deg']:.2f} degrees ({halves['halves_sigma']:.1f} standard deviations)",
        ),
        ("poses", f"{len(h.kept)} used, {len(h.rejected)} left out"),
        (
            "arm had to give",
            f"{1000 * h.arm_rms[1]:.1f} mm, {h.arm_rms[0]:.2f} degrees (chi2 a degree of freedom {h.chi2:.2f})",
        ),
        (
            "joint offsets, degrees",
            ", ".join(
                f"{np.degrees(o):.2f} ± {np.degrees(s):.2f}" for o, s in zip(h.offsets, h.offsets_sd, strict=True)
            ),
        ),
        ("pixel RMS", f"{h.pixel_rms:.3f}"),
    ]
    if before is not None:
        rows.append(("moved since the stored pose", f"{1000 * before[1]:.1f} mm, {before[0]:.2f} degrees"))
    parts = [
        table(rows),
        figure(
            arrows(size, corners, residuals, magnify),
            f"Residuals after the arm's errors are taken out, {magnify:.0f} times as long.",
        ),
    ]
    if h.rejected:
        parts += ["<h2>Poses left out</h2>", table(list(h.rejected))]
    page(path, f"Pose of camera {name}", verdict, parts)
