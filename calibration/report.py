"""The HTML page of a calibration: one file, pictures as inline SVG, no script and nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration import intrinsics
from calibration.hand_eye import AGREE, MIN_POSES, MOST_CHI2, HandEye
from calibration.joints import JointCalibration
from calibration.lens_fit import Fit
from calibration.lens_quality import tilt_spread
from calibration.store import write_result

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .9em .25em 0;text-align:left;border-bottom:1px solid #ddd}
figure{margin:1.5em 0}svg{width:100%;height:auto;background:#fafafa;border:1px solid #ddd}figcaption{color:#555}
.ok{color:#176b2c}.bad{color:#a11}.row{display:grid;grid-template-columns:1fr 1fr;gap:1.5em 1em}.row figure{margin:0}
@media(max-width:640px){.row{grid-template-columns:1fr}}"""
COEFFICIENTS = {  # names of theta's numbers; the pinhole model has the first nine of the rational one's
    "rational": ["fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"],
    "fisheye": ["fx", "fy", "cx", "cy", "k1", "k2", "k3", "k4"],
}
NUMBERS = {  # what the page calls those of `Calibration.quality`
    "rms_px": "residuals, RMS, px",
    "heldout_px": "held-out residuals, RMS, px",
    "crossval_median_px": "two halves differ, median, px",
    "crossval_p90_px": "two halves differ, 90th percentile, px",
    "uncertainty_median_px": "predicted uncertainty, median, px",
    "uncertainty_p90_px": "predicted uncertainty, 90th percentile, px",
    "corner_noise_px": "noise of a corner, px",
    "board_rms_mm": "corners off on the board, RMS, mm",
}
Moved = tuple[float, float] | None  # rotation (deg) and distance (m) from the stored pose
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
    """Map of values float64[rows*columns] over the picture, with its scale, 0 to `top`, below. What is not `used` (bool,
    the same shape) is pale, NaN is white."""
    rows, columns = grid
    w, h = size[0] / columns, size[1] / rows
    body = ['<g shape-rendering="crispEdges">']  # no seams between the cells
    for k, v in enumerate(values):
        if np.isfinite(v):
            pale = "" if used is None or used[k] else ' opacity=".35"'
            body.append(
                f'<rect x="{(k % columns) * w:.1f}" y="{(k // columns) * h:.1f}" width="{w:.1f}" height="{h:.1f}" '
                f'fill="{colour(v / top)}"{pale}/>'
            )
    f = size[1] / 24
    y, bar = size[1] + f, 12 * f
    for k in range(40):
        body.append(
            f'<rect x="{1.7 * f + k * bar / 40:.1f}" y="{y - 0.2 * f:.1f}" width="{bar / 40:.1f}" height="{0.8 * f:.1f}" '
            f'fill="{colour(k / 39)}"/>'
        )
    body.append("</g>")
    label = f'y="{y + 0.6 * f:.1f}" font-size="{f:.0f}" fill="#555"'
    body.append(
        f'<text x="{0.7 * f:.1f}" {label}>0</text><text x="{bar + 2.2 * f:.1f}" {label}>{top:.2g} {unit}</text>'
    )
    return _svg((size[0], round(size[1] + 2.4 * f)), body)


def arrows(
    size: tuple[int, int], at: np.ndarray, vectors: np.ndarray, magnify: float, kept: np.ndarray | None = None
) -> str:
    """Vectors float64[n,2] px from points `at` float64[n,2] px, drawn `magnify` times as long; those not `kept` (bool[n])
    in red."""
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


def picture_svg(size: tuple[int, int], href: str, lines: np.ndarray) -> str:
    """A photograph (its data as an address) over a picture of `size`, with lines float64[n,2,2] px over it."""
    width = size[0] / 640
    body = [f'<image href="{href}" width="{size[0]}" height="{size[1]}"/>']
    for a, b in lines + 0.5:  # a pixel's centre is half a pixel from its edge
        body.append(
            f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="#e5007d" '
            f'stroke-width="{width:.1f}" opacity=".8"/>'
        )
    return _svg(size, body)


def figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(rows: Sequence[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
        + "</table>"
    )


def wide_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table with a line of names above its rows."""
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def page(path: Path, title: str, verdict: list[str], parts: Sequence[str]) -> None:
    """Write the page; `verdict` lists what is wrong, empty when all is well."""
    judged = "".join(f'<p class="bad">{html.escape(v)}.</p>' for v in verdict) or '<p class="ok">Accepted.</p>'
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><h1>{html.escape(title)}</h1>{judged}{''.join(parts)}</html>"
    )
    write_result(path, text.encode())


def _coverage(size: tuple[int, int], grid: tuple[int, int], corners: np.ndarray) -> str:
    """Figure that shows how many of `corners` float64[n,2] px lie in each part of the picture."""
    counts, _, _ = np.histogram2d(corners[:, 1], corners[:, 0], bins=grid, range=((0, size[1]), (0, size[0])))
    picture = heat(size, grid, np.where(counts > 0, counts, np.nan).ravel(), float(counts.max()), "corners")
    return figure(picture, "Coverage: corners seen in each part of the picture.")


def _board(corners: np.ndarray, shape: np.ndarray) -> str:
    """Figure of the board's corners float64[m,3] (m) as described and of how far the true ones are from them, `shape`
    float64[m,3] (m)."""
    rms = 1000 * np.sqrt((shape**2).mean(0))
    extent = np.ptp(corners, axis=0)[:2]
    scale = 560 / float(extent.max())
    at = (corners[:, :2] - corners[:, :2].min(0)) * scale + 40
    magnify = max(1.0, 0.4 * float(extent.max()) / len(corners) ** 0.5 / max(float(np.abs(shape[:, :2]).max()), 1e-5))
    picture = arrows((640, round(float(extent[1]) * scale) + 80), at, shape[:, :2] * scale, magnify)
    return figure(
        picture,
        f"The board as found: its corners are {rms[0]:.3f}, {rms[1]:.3f} and {rms[2]:.3f} mm off (x, y, out of its "
        "plane; RMS). "
        f"Arrows {magnify:.0f} times as long.",
    )


def intrinsics_page(
    path: Path,
    name: str,
    c: intrinsics.Calibration,
    before: np.ndarray | None,
    verdict: list[str],
    left_out: Sequence[tuple[str, str]],
    photographs: Sequence[str] = (),
) -> None:
    """`before`: px float64[grid] by which the new lens differs from the stored one, None without one; `left_out`: view,
    reason; `photographs`: figures of a picture with and without the lens (`calibration.straight`). Raises CalibrationError
    when the page cannot be written."""
    fit = c.fit
    parts = [
        _intrinsics_table(name, c, len(left_out)),
        '<div class="row">',
        *_lens_maps(c),
        _board(fit.corners, fit.shape),
        "</div>",
    ]
    if photographs:
        parts += ["<h2>With and without the lens</h2>", '<div class="row">', *photographs, "</div>"]
    if before is not None and np.isfinite(before).any():
        limit = max(float(np.nanquantile(before, 0.98)), 0.1)
        parts.append(
            figure(
                heat(fit.size, c.grid, before, limit, "px", c.used),
                "Before and after: how far the new lens moves pixels against the stored one.",
            )
        )
    names = COEFFICIENTS["fisheye" if fit.model == "fisheye" else "rational"]
    sd = np.sqrt(np.diag(fit.covariance))
    numbers = [
        (n, _with_sd(v, s) + " px" * (k < 4)) for k, (n, v, s) in enumerate(zip(names, fit.theta, sd, strict=False))
    ]
    parts += ['<div class="row"><div><h2>Parameters</h2>', table(numbers), "</div>"]
    parts += ["<div><h2>Views used</h2>", _views_table(fit), "</div></div>"]
    if left_out:
        parts += ["<h2>Views left out</h2>", table(list(left_out))]
    page(path, f"Intrinsics of camera {name}", verdict, parts)


def _with_sd(value: float, sd: float) -> str:
    """A number with its standard deviation, both to the deviation's second digit."""
    digits = int(np.clip(1 - np.floor(np.log10(max(sd, 1e-9))), 0, 7))
    return f"{value:.{digits}f} ± {sd:.{digits}f}"


def _views_table(fit: Fit) -> str:
    """Each view's corners and the residuals of those that were used, worst first."""
    rows = []
    for view, residual, used in zip(fit.views, fit.residuals, fit.inlier, strict=True):
        length = np.linalg.norm(residual[used] if used.any() else residual, axis=1)
        rms, worst = float(np.sqrt((length**2).mean())), float(length.max())
        rows.append((rms, (view.name, f"{int(used.sum())} of {len(used)}", f"{rms:.3f}", f"{worst:.3f}")))
    ordered = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return wide_table(("view", "corners used", "RMS, px", "largest, px"), ordered)


def _intrinsics_table(name: str, c: intrinsics.Calibration, left_out: int) -> str:
    fit, kept, most = c.fit, np.concatenate(c.fit.inlier), c.limits()
    views = f"{len(fit.views)} used (at least {intrinsics.MIN_VIEWS}), {left_out} left out; {int((~kept).sum())} of {len(kept)} corners left out"
    return table(
        [
            ("camera", f"{name}, {fit.size[0]} x {fit.size[1]} px, {fit.model} lens model"),
            ("views", views),
            ("tilt spread", f"{tilt_spread(fit.poses):.0f} degrees (at least {intrinsics.MIN_TILT:.0f})"),
            *(
                (NUMBERS[k], f"{v:.3f}" + (f" (at most {most[k]:.3f})" if k in most else ""))
                for k, v in c.quality().items()
            ),
        ]
    )


def _lens_maps(c: intrinsics.Calibration) -> list[str]:
    """Figures over the picture: uncertainty, cross-validation, coverage, residuals."""
    fit, size = c.fit, c.fit.size
    at, residual = np.concatenate([v.pixels for v in fit.views]), np.concatenate(fit.residuals)
    top = max(float(np.nanquantile(c.predicted[c.used], 0.98)), float(np.nanquantile(c.crossval[c.used], 0.98)), 0.02)
    magnify = _magnify(size, residual)
    return [
        figure(
            heat(size, c.grid, c.predicted, top, "px", c.used),
            "Predicted uncertainty of the projection (one sd). Pale: no corners.",
        ),
        figure(
            heat(size, c.grid, c.crossval, top, "px", c.used),
            "Cross-validation: how far two halves of the views disagree.",
        ),
        _coverage(size, c.grid, at),
        figure(
            arrows(size, at, residual, magnify, np.concatenate(fit.inlier)),
            f"Residuals, {magnify:.0f} times as long as they are; red ones are left out.",
        ),
    ]


@dataclass(frozen=True)
class HandEyeMaps:
    """What the page of a hand-eye calibration draws over a picture of `size`. `views`: name, number of corners and RMS of
    the residuals (px) of each that was used; `corners` float64[n,2] px and their
    `residuals` (each picture's median taken out); `ray_sd_mm` float64[grid]: `HandEye.ray_sd` of the grid's pixels;
    `shifts` float64[n,2] px from each corner to where the stored pose would put it, None without one."""

    size: tuple[int, int]
    views: tuple[tuple[str, int, float], ...]
    corners: np.ndarray
    residuals: np.ndarray
    grid: tuple[int, int]
    ray_sd_mm: np.ndarray
    shifts: np.ndarray | None


def hand_eye_page(
    path: Path,
    name: str,
    h: HandEye,
    halves: dict[str, float],
    moved: Moved,
    maps: HandEyeMaps,
    verdict: list[str],
    joints: tuple[str, ...],
) -> None:
    """`halves`: `hand_eye.calibrate`'s; `moved`: rotation (deg) and distance (m) from the stored pose, None without
    one. Raises CalibrationError when the page cannot be written."""
    size = maps.size
    magnify = _magnify(size, maps.residuals)
    parts = [
        _hand_eye_table(h, halves, moved, joints),
        '<div class="row">',
        figure(
            heat(size, maps.grid, maps.ray_sd_mm, float(np.nanmax(maps.ray_sd_mm)), "mm"),
            "Predicted uncertainty: how far the ray of a pixel may pass from where it seems to, at the board's "
            "distance (one sd).",
        ),
        _coverage(size, maps.grid, maps.corners),
        figure(
            arrows(size, maps.corners, maps.residuals, magnify),
            f"Residuals after the arm's errors are taken out, {magnify:.0f} times as long.",
        ),
    ]
    if maps.shifts is not None:
        caption = "Before and after: where the stored pose would have put these corners (true length)."
        parts.append(figure(arrows(size, maps.corners, maps.shifts, 1.0), caption))
    parts.append("</div>")
    parts += ["<h2>Poses used</h2>", _poses_table(h, maps)]
    if h.rejected:
        parts += ["<h2>Poses left out</h2>", table(list(h.rejected))]
    page(path, f"Pose of camera {name}", verdict, parts)


def _poses_table(h: HandEye, maps: HandEyeMaps) -> str:
    """Each pose's corners, residuals and the arm's error there."""
    rows = []
    for (name, corners, rms), error in zip(maps.views, h.arms, strict=True):
        degrees, mm = np.degrees(np.linalg.norm(error[:3])), 1000 * np.linalg.norm(error[3:])
        rows.append((name, str(corners), f"{rms:.3f}", f"{mm:.1f}", f"{degrees:.2f}"))
    return wide_table(("pose", "corners", "RMS, px", "arm's error, mm", "arm's error, degrees"), rows)


def _hand_eye_table(h: HandEye, halves: dict[str, float], moved: Moved, joints: tuple[str, ...]) -> str:
    degrees, metres = h.sd
    sigmas = f"{halves['halves_sigma']:.1f} standard deviations, at most {AGREE:.0f}"
    chi2 = f"{h.chi2:.2f}, at most {MOST_CHI2:.0f}"
    rows = [
        ("mount", "fixed to the base" if h.mount == "base" else "on the arm"),
        ("position, m", ", ".join(f"{v:.4f}" for v in h.X[:3, 3])),
        ("standard deviation", f"{1000 * metres:.1f} mm, {degrees:.2f} degrees"),
        ("two halves differ by", f"{halves['halves_mm']:.1f} mm, {halves['halves_deg']:.2f} degrees ({sigmas})"),
        ("poses", f"{len(h.kept)} used (at least {MIN_POSES}), {len(h.rejected)} left out"),
        (
            "errors of arm poses",
            f"{1000 * h.arm_rms[1]:.1f} mm, {h.arm_rms[0]:.2f} degrees (chi2 a degree of freedom {chi2})",
        ),
        ("residuals, RMS, px", f"{h.pixel_rms:.3f}"),
    ]
    if h.offsets_sd.max() > 1e-6:  # rad; less: none were estimated
        found = zip(joints, np.degrees(h.offsets), np.degrees(h.offsets_sd), strict=False)  # the jaw has none
        rows += [(f"offset of {n}, degrees", _with_sd(o, sd) if sd > 1e-4 else "taken as 0") for n, o, sd in found]
    if moved is not None:
        rows.append(("moved since the stored pose", f"{1000 * moved[1]:.1f} mm, {moved[0]:.2f} degrees"))
    return table(rows)


def _magnify(size: tuple[int, int], residuals: np.ndarray) -> float:
    """How many times as long `residuals` float64[n,2] px are drawn."""
    return 0.03 * size[0] / max(float(np.quantile(np.linalg.norm(residuals, axis=1), 0.95)), 0.01)


def joints_page(path: Path, made: JointCalibration, before: JointCalibration | None) -> None:
    """Ranges and zeros of the joints, beside those stored before. Raises CalibrationError when the page cannot be
    written."""
    old = {j.name: j for j in before.joints} if before else {}
    low, high = -np.pi, np.pi
    step, left, width = 46, 150, 960
    body = []

    def x(rad: float) -> float:
        return left + (float(np.clip(rad, low, high)) - low) / (high - low) * (width - left - 20)

    for degrees in range(-180, 181, 45):
        at, foot = x(np.radians(degrees)), step * len(made.joints) + 10
        body.append(f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{foot}" stroke="#ddd"/>')
        body.append(
            f'<text x="{at:.1f}" y="{foot + 18}" font-size="14" text-anchor="middle" fill="#555">{degrees}°</text>'
        )
    for k, joint in enumerate(made.joints):
        y = step * k + 12
        body.append(f'<text x="8" y="{y + 16}" font-size="15">{html.escape(joint.name)}</text>')
        for j, ink, top, tall in ((old.get(joint.name), "#bbb", y + 20, 6), (joint, "#1f5fa8", y + 4, 14)):
            if j is not None:
                a, b = made.limits(j, jaw=k == len(made.joints) - 1)
                body.append(f'<rect x="{x(a):.1f}" y="{top}" width="{x(b) - x(a):.1f}" height="{tall}" fill="{ink}"/>')
        body.append(f'<line x1="{x(0):.1f}" y1="{y}" x2="{x(0):.1f}" y2="{y + 28}" stroke="#c22" stroke-width="2"/>')
    rows = []
    for j in made.joints:
        a, b = np.degrees(made.limits(j, jaw=j is made.joints[-1]))
        text = f"{a:.0f} to {b:.0f} degrees, zero at step {j.zero_step}, homing offset {j.homing_offset} in EEPROM"
        if j.second:
            which = "with" if j.second.direction == j.direction else "against"
            text += f"; its second servo {j.second.id} turns {which} it, zero at step {j.second.zero_step}"
        if j.name in old and (was := old[j.name]) != j:
            moved = np.degrees((j.zero_step - was.zero_step) * j.rad_per_step)
            text += f"; zero moved by {moved:+.1f} degrees, homing offset was {was.homing_offset}"
        rows.append((j.name, text))
    picture = _svg((width, step * len(made.joints) + 40), body)
    grey = ", as stored before (grey)," if old else ""
    caption = f"Range of each joint inside its stops (blue){grey} and its zero (red)."
    page(path, "Joints", [], [figure(picture, caption), table(rows)])
