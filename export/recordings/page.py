"""The page of `harmowam data check`: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from export.recordings import advice, plots
from export.recordings.findings import Examined, Problem
from export.recordings.survey import Look, Seen, Survey, survey

STYLE = """:root{--ink:#222;--dim:#667;--line:#dfe3e8;--back:#f4f6f8;--ok:#176b2c;--bad:#b3261e;--warn:#8a5a00}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;margin:0;background:var(--back);color:var(--ink)}
main{max-width:1100px;margin:0 auto;padding:24px 20px 60px}h1{font-size:26px;margin:.2em 0}
h2{font-size:19px;margin:0 0 .6em;overflow-wrap:anywhere}figure{margin:0}ul{margin:.3em 0;padding-left:1.2em}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:16px 0}
.verdict{border-left:6px solid var(--ok)}.verdict.no{border-left-color:var(--bad)}.verdict b{color:var(--ok)}
.verdict.no b{color:var(--bad)}.grid,.facts{display:grid;gap:14px 28px}
.grid{grid-template-columns:repeat(auto-fit,minmax(300px,1fr))}
.facts{grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin:10px 0 0}
.facts div{font-size:18px}.facts span,.dim,figcaption{display:block;color:var(--dim);font-size:13px}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}table{border-collapse:collapse;width:100%}
th{font-weight:600;color:var(--dim);font-size:13px}
td:nth-child(-n+2){overflow-wrap:normal}
td,th{overflow-wrap:anywhere;padding:.35em .8em .35em 0}
td,th{text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
.tag{font-size:12px;border-radius:9px;padding:1px 8px;background:#eef1f4;color:var(--dim);white-space:nowrap}
.tag.stop{background:#fbe9e7;color:var(--bad)}.episode{border-top:1px solid var(--line);padding:10px 0}
.strip{display:flex;gap:3px;overflow-x:auto;margin:4px 0}.strip img{height:72px;border-radius:3px;display:block}
.episode p{margin:0}.warn{color:var(--warn)}.bad{color:var(--bad)}code{font-size:13px}
@media(max-width:600px){.strip img{height:52px}main{padding:12px}}"""
MANY = 6  # problems of one kind that are shown one by one
MOST_EPISODES = 200  # that are shown with their pictures


@dataclass(frozen=True)
class Checked:
    """What is shown of one recording; `seen` is None where nothing could be measured. `problems`: all of them."""

    found: Examined
    seen: Survey | None
    problems: tuple[Problem, ...]

    @property
    def left_out(self) -> int:
        return len({p.episode for p in self.problems if p.fatal and p.episode is not None})


def checked(found: Examined) -> Checked:
    """Look at every picture of `found`, where its joints can be told."""
    if found.arm is None or found.units.joints is None or not found.takes:
        return Checked(found, None, found.problems)
    seen = survey(found)
    return Checked(found, seen, (*found.problems, *advice.measured_problems(found, seen)))


def _facts(c: Checked) -> str:
    f = c.found
    seconds = sum(float(t.t[-1]) for t in f.takes)
    jitter = f"{np.median([s.jitter_ms for s in c.seen.episodes]):.1f} ms" if c.seen and c.seen.episodes else "-"
    sd = f", ranges ±{f.units.span_sd_deg:.0f}°" if f.units.span_sd_deg else ""
    facts = [
        ("format", f"LeRobotDataset {f.version or '-'}"),
        ("arm", f"{f.arm.NAME if f.arm else '-'} ({f.robot or 'not named'})"),
        ("usable episodes", f"{len(f.takes)} of {f.listed}"),
        ("recorded", f"{seconds / 60:.1f} min, {f.rows:,} rows"),
        ("rate, jitter", f"{f.fps:g} Hz, {jitter}"),
        ("joints in", f"{f.units.joints or 'unknown'}{sd}"),
    ]
    facts += [(f"camera {n}", f"{k.width}x{k.height} {k.codec}") for n, k in f.cameras.items()]
    cells = "".join(f"<div><span>{escape(k)}</span>{escape(v)}</div>" for k, v in facts)
    return f'<div class="facts">{cells}</div><p class="dim">Units: {escape(f.units.evidence)}.</p>'


def _verdict(c: Checked) -> str:
    if not c.found.accepted:
        said = "cannot be used as it is"
    elif c.left_out:
        said = f"can be used, without {c.left_out} episode{'s' if c.left_out > 1 else ''}"
    else:
        said = "can be used"
    no = "" if c.found.accepted else " no"
    return (
        f'<section class="card verdict{no}"><h2>{escape(str(c.found.folder))}: <b>{said}</b></h2>{_facts(c)}</section>'
    )


def _problems(problems: Sequence[Problem]) -> str:
    if not problems:
        return '<section class="card"><h2>Findings</h2><p>Nothing was found.</p></section>'
    rows, counts, shown = [], Counter(p.kind for p in problems if p.episode is not None), Counter[str]()
    for p in sorted(problems, key=lambda p: (not p.fatal, p.episode is not None)):
        if p.episode is not None:
            shown[p.kind] += 1
            if shown[p.kind] > MANY:
                continue
        what = "stops" if p.fatal and p.episode is None else "left out" if p.fatal else "to know"
        where = "all" if p.episode is None else f"episode {p.episode}"
        tag = f'<span class="tag{" stop" if p.fatal else ""}">{what}</span>'
        rows.append(
            f"<tr><td>{tag}</td><td>{escape(p.kind)}<span class=dim>{where}</span></td><td>{escape(p.detail)}"
            f"<span class=dim>{escape(p.fix)}</span></td></tr>"
        )
    rest = [f"{n - MANY} more of kind “{escape(k)}”" for k, n in counts.items() if n > MANY]
    tail = f"<p class=dim>{'; '.join(rest)}: all are in the JSON.</p>" if rest else ""
    head = "<tr><th></th><th>kind</th><th>what was found, and what to do</th></tr>"
    return f'<section class="card"><h2>Findings</h2><table>{head}{"".join(rows)}</table>{tail}</section>'


def _list(title: str, lines: Sequence[str], none: str) -> str:
    body = "".join(f"<li>{escape(line)}</li>" for line in lines) or f"<li>{none}</li>"
    return f'<section class="card"><h2>{title}</h2><ul>{body}</ul></section>'


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _motion(c: Checked) -> str:
    arm, seen = c.found.arm, c.seen
    if arm is None or seen is None or not seen.episodes:
        return ""
    figures = [
        _figure(plots.table(arm, seen), "the table from above: paths of the tool, and where the jaw closed (red)"),
        _figure(plots.jaw(arm, seen), "jaw: how often it stood how far open"),
    ]
    for s in seen.syncs:
        if s.delay_ms is None:
            said = f"camera {s.camera}: its delay to the joints does not show (correlation {s.correlation:.2f})"
        else:
            sure = "" if s.sd_ms is None else f" ± {s.sd_ms:.0f}"
            said = f"camera {s.camera}: {s.delay_ms:+.0f}{sure} ms behind the joints (correlation {s.correlation:.2f})"
        figures.append(_figure(plots.delay(s), said))
    lag = "" if seen.lag_ms is None else f" Positions follow the goals {seen.lag_ms:.0f} ms later."
    ranges = _figure(
        plots.joints(arm, seen),
        f"each joint, degrees: limits (grey), all (light), 5 to 95 % (dark).{lag}",
    )
    return (
        f'<section class="card"><h2>Joints</h2>{ranges}</section><section class="card"><h2>Motion and sync</h2>'
        f'<div class="grid">{"".join(figures)}</div></section>'
    )


def _strip(look: Look) -> str:
    images = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(raw).decode()}">' for raw in look.strip
    )
    notes = [f"{look.brightness:.0f} of 255 bright", f"sharpness {look.sharpness:.0f}"]
    if look.doubled:
        notes.append(f"{look.doubled} repeated")
    said = escape(f"{look.camera}: {', '.join(notes)}")
    return f'<span class="dim">{said}</span><div class="strip">{images}</div>'


def _episode(c: Checked, s: Seen) -> str:
    own = [p for p in c.problems if p.episode == s.number]
    late = f", {s.late} rows missing" if s.late else ""
    warned = "".join(f'<p class="{"bad" if p.fatal else "warn"}">{escape(p.kind)}: {escape(p.detail)}</p>' for p in own)
    head = (
        f"<p><strong>{s.number}</strong> {escape('; '.join(s.tasks) or '(no instruction)')} "
        f'<span class="tag">{s.seconds:.1f} s</span> '
        f'<span class="tag">jitter {s.jitter_ms:.1f} ms{late}</span></p>'
    )
    return f'<div class="episode">{head}{warned}{"".join(map(_strip, s.looks))}</div>'


def _episodes(c: Checked) -> str:
    if c.seen is None or not c.seen.episodes:
        return ""
    seconds = np.array([s.seconds for s in c.seen.episodes])
    tasks = Counter(t or "(no instruction)" for s in c.seen.episodes for t in s.tasks)
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{n}</td></tr>" for k, n in tasks.most_common())
    named = {p.episode for p in c.problems}
    shown = sorted(c.seen.episodes, key=lambda s: s.number not in named)[:MOST_EPISODES]
    rest = len(c.seen.episodes) - len(shown)
    tail = f"<p class=dim>{rest} more, of which nothing or less is to be said, are not shown.</p>" if rest else ""
    return (
        '<section class="card"><h2>Tasks</h2><table><tr><th>instruction</th><th>episodes</th></tr>'
        f'{rows}</table></section><section class="card"><h2>Episodes</h2><p class="dim">{seconds.min():.1f} to '
        f"{seconds.max():.1f} s, median {np.median(seconds):.1f} s</p>"
        f"{''.join(_episode(c, s) for s in sorted(shown, key=lambda s: s.number))}{tail}</section>"
    )


def page(looked: Sequence[Checked], rate_hz: float) -> str:
    """The HTML of one or more recordings."""
    body = []
    for c in looked:
        body += [_verdict(c), _problems(c.problems)]
        body.append(_list("What training will do with it", advice.training(c.found, rate_hz), "nothing"))
        if c.seen is not None:
            body.append(_list("What to record more of", advice.more(c.found, c.seen), "nothing that shows"))
        body += [_motion(c), _episodes(c)]
    good = sum(c.found.accepted for c in looked)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>harmowam data check</title><style>{STYLE}</style><main><h1>Before training</h1>"
        f'<p class="dim">{good} of {len(looked)} recording{"s" if len(looked) > 1 else ""} can be used. Made by '
        f"<code>harmowam data check</code>.</p>{''.join(body)}</main></html>"
    )
