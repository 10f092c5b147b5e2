"""Plans in numbers: kernels by role, and what two plans have each that the other has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from export.tensorrt.work import WHY, role, short_name
from runtime.engines.plan import EnginePlan, Kernel


def by_role(plan: EnginePlan) -> dict[str, int]:
    """Number of kernels by role, most first; "wait" counts what only orders streams."""
    found = Counter(role(k) for k in plan.launched)
    waits = len(plan.kernels) - len(plan.launched)
    return dict(found.most_common()) | ({"wait": waits} if waits else {})


def likeness(kernel: Kernel) -> str:
    """What two kernels share that do the same to tensors of the same size and type, whatever their nodes are called."""
    name = kernel.kind if kernel.kind in ("gemm", "correlation") else short_name(kernel)
    ends = [f"{t.dtype}{list(t.shape)}" for t in (*kernel.inputs[:1], *kernel.outputs[:1])]
    return f"{name} {' -> '.join(ends)}"


def figures(plan: EnginePlan) -> dict[str, float]:
    """Kernels, waits, and megabytes and million operations of one pass."""
    return {
        "kernels": len(plan.launched),
        "waits": len(plan.kernels) - len(plan.launched),
        "INT8 kernels": sum(k.int8 for k in plan.launched),
        "plan MB": round(plan.plan_bytes / 1e6, 2),
        "weights MB": round(plan.weight_bytes / 1e6, 2),
        "activations MB": round(plan.activation_bytes / 1e6, 2),
        "moved MB": round(sum(k.bytes for k in plan.launched) / 1e6, 2),
        "million operations": round(sum(k.operations for k in plan.launched) / 1e6, 1),
    }


def different(before: EnginePlan, after: EnginePlan) -> dict[str, Any]:
    """Figures and roles of two plans of one engine as pairs, and the kernels that only one of them has, with how many
    (`likeness`)."""
    a, b = figures(before), figures(after)
    roles = by_role(before), by_role(after)
    own = [Counter(likeness(k) for k in plan.launched) for plan in (before, after)]
    return {
        "figures": {k: [a[k], b[k]] for k in a},
        "roles": {r: [side.get(r, 0) for side in roles] for r in (*WHY, "wait") if any(r in side for side in roles)},
        "only_before": dict((own[0] - own[1]).most_common()),
        "only_after": dict((own[1] - own[0]).most_common()),
    }


def all_different(before: Mapping[str, EnginePlan], after: Mapping[str, EnginePlan]) -> dict[str, dict[str, Any]]:
    """`different` of every engine that both have."""
    return {name: different(plan, after[name]) for name, plan in before.items() if name in after}


def plan_lines(plans: Mapping[str, EnginePlan]) -> list[str]:
    """Kernels of each engine by role, for a terminal."""
    return [f"{name:14}" + ", ".join(f"{n} {r}" for r, n in by_role(plan).items()) for name, plan in plans.items()]


def difference_lines(found: Mapping[str, Mapping[str, Any]], most: int = 12) -> list[str]:
    """`all_different` for a terminal: what changed, and the `most` frequent kernels of either side."""
    out = []
    for name, engine in found.items():
        pairs = {**engine["figures"], **engine["roles"]}
        changed = [f"{what} {a:g} -> {b:g}" for what, (a, b) in pairs.items() if a != b]
        out.append(f"{name:14}{', '.join(changed) or 'the same figures'}")
        for sign, key in (("-", "only_before"), ("+", "only_after")):
            rows = list(engine[key].items())
            out += [f"  {sign} {count:3} x {kernel}" for kernel, count in rows[:most]]
            out += [f"  {sign} {len(rows) - most} kinds more"] if len(rows) > most else []
    return out
