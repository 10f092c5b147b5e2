"""The plans of a bundle as an HTML page: one file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from export.tensorrt.compare import all_different, by_role, figures
from export.tensorrt.work import WHY, role, short_name
from runtime.engines.plan import EnginePlan, Kernel, Tensor

STYLE = """body{font:14px/1.5 system-ui,sans-serif;max-width:1280px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.4em}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top;
border-bottom:1px solid #ddd}td.n,th.n{text-align:right}code{font-size:12px;overflow-wrap:anywhere}
tr.wait{color:#999}.bar i{display:inline-block;height:12px}summary{cursor:pointer;font-weight:600}
td:nth-child(2){white-space:nowrap}p.note{color:#555}"""
COLOURS = {
    "product": "#2f6db5",
    "attention": "#1b998b",
    "normalisation": "#8e6bbf",
    "softmax": "#c96a9b",
    "quantisation": "#d1495b",
    "movement": "#e0a030",
    "resizing": "#7d8f69",
    "arithmetic": "#9a9a9a",
}


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}"


def _row(number: int, kernel: Kernel) -> str:
    if not kernel.launches:
        return (
            f'<tr class="wait"><td class="n">{number}<td colspan="8">{html.escape(kernel.kind)}, stream {kernel.stream}'
        )
    names = [html.escape(n) for n in kernel.nodes]
    nodes = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    cells = (
        f'<td><i style="color:{COLOURS[role(kernel)]}">&#9632;</i> {role(kernel)}',
        f"<td><code>{html.escape(short_name(kernel)[:80])}</code>",
        f"<td>{html.escape(kernel.kind)}",
        f"<td><code>{nodes}</code>",
        f"<td>{'<br>'.join(_tensor(t) for t in kernel.inputs)}",
        f"<td>{'<br>'.join(_tensor(t) for t in kernel.outputs)}",
        f'<td class="n">{kernel.bytes / 1e3:.1f}',
        f'<td class="n">{kernel.operations / 1e3:.1f}',
    )
    return f'<tr><td class="n">{number}{"".join(cells)}'


def _bar(plan: EnginePlan) -> str:
    width = 100 / max(1, len(plan.launched))
    parts = "".join(
        f'<i style="width:{n * width:.2f}%;background:{COLOURS[r]}" title="{r}: {n}"></i>'
        for r, n in by_role(plan).items()
        if r in COLOURS
    )
    return f'<div class="bar">{parts}</div>'


def _engine(name: str, plan: EnginePlan) -> str:
    facts = ", ".join(f"{k} {v:g}" for k, v in figures(plan).items())
    fused = sum(len(k.nodes) > 1 for k in plan.launched)
    roles = "".join(
        f'<tr><td class="n">{n}<td>{r}<td>{WHY[r]}' if r in WHY else f'<tr><td class="n">{n}<td>{r}<td>orders streams'
        for r, n in by_role(plan).items()
    )
    rows = "".join(_row(i, k) for i, k in enumerate(plan.kernels))
    head = ("role", "kernel", "kind", "ONNX nodes", "reads", "writes")
    titles = "".join(f"<th>{t}" for t in head) + '<th class="n">kB<th class="n">thousand operations'
    return (
        f"<h2>{html.escape(name)}</h2>{_bar(plan)}<p>{facts}; {fused} kernels join several ONNX nodes.</p>"
        f"<table>{roles}</table><details><summary>Kernels in order</summary>"
        f'<table><tr><th class="n">#{titles}{rows}</table></details>'
    )


def _changes(found: Mapping[str, Mapping[str, Any]], against: str) -> str:
    out = [f"<h2>Beside {html.escape(against)}</h2>"]
    for name, engine in found.items():
        pairs = {**engine["figures"], **engine["roles"]}
        rows = "".join(f'<tr><td>{k}<td class="n">{a:g}<td class="n">{b:g}' for k, (a, b) in pairs.items())
        out.append(f'<h3>{html.escape(name)}</h3><table><tr><th><th class="n">this<th class="n">other{rows}</table>')
        for title, key in (("Only this one has", "only_before"), ("Only the other one has", "only_after")):
            kernels = "".join(f'<tr><td class="n">{n}<td><code>{html.escape(k)}</code>' for k, n in engine[key].items())
            out.append(
                f"<details><summary>{title}: {len(engine[key])} kinds</summary><table>{kernels}</table></details>"
            )
    return "".join(out)


def page(
    title: str, plans: Mapping[str, EnginePlan], against: str = "", others: Mapping[str, EnginePlan] | None = None
) -> str:
    """The page of the engines' plans (name -> plan), with what differs from `others` of the bundle `against`."""
    first = next(iter(plans.values()))
    parts = [_engine(name, plan) for name, plan in plans.items()]
    changes = _changes(all_different(plans, others), against) if others else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Plans of {html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>Plans of {html.escape(title)}</h1><p class='note'>TensorRT for RTX {html.escape(first.builder)} compiled "
        f"these engines for {html.escape(', '.join(first.capabilities))}. An Orin is SM87 and JetPack 6 has TensorRT "
        "10.3: the counts are indicative for it. Why a kernel stands alone is concluded from its name and nodes; the "
        f"compiler itself gives no reasons.</p>{changes}{''.join(parts)}</body></html>\n"
    )
