"""Costs beside the work that they are paid for, and where a cost grows faster than its work. Pure functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MORE = 1.15  # log-log slope above which a cost counts as growing faster than its work
NOISE = 1.2  # a cost must be beyond its share by more: two runs on a shared machine differ by as much
BEHIND = 0.95  # share of the asked rate below which a rate counts as missed


@dataclass(frozen=True)
class Row:
    """One point. `work`: how much of the table's unit; `cost`: column -> figure."""

    name: str
    work: float
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Points in the order of growing work. `unit`: what `work` counts. `watched`: the columns whose growth is judged:
    medians, processor and memory, for a p99 of a minute is luck. `asked`: column of a rate -> the rate that was asked
    for. `note`: what was measured, and how."""

    title: str
    unit: str
    rows: tuple[Row, ...]
    watched: tuple[str, ...]
    note: str
    asked: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Growth:
    """How a column grows between two neighbours: cost as the `slope`-th power of the work; `beyond`: cost ratio over
    work ratio."""

    column: str
    before: str
    after: str
    slope: float
    beyond: float

    @property
    def faster(self) -> bool:
        """Than the work."""
        return self.slope > MORE and self.beyond > NOISE


def growths(table: Table) -> list[Growth]:
    """The log-log slopes of every watched column between neighbouring rows; none where the work is equal or a cost is
    not above zero."""
    found = []
    for column in table.watched:
        for a, b in zip(table.rows, table.rows[1:], strict=False):
            x, y = a.cost[column], b.cost[column]
            if b.work > a.work > 0 and x > 0 and y > 0:
                slope = math.log(y / x) / math.log(b.work / a.work)
                found.append(Growth(column, a.name, b.name, slope, y / x / (b.work / a.work)))
    return found


def bends(table: Table) -> list[str]:
    """The steps in which a cost grows faster than the work, and the rates that are missed from some row on, a sentence
    each."""
    lines = [
        f"**{g.column} grows faster than {table.unit}** from {g.before} to {g.after}: slope {g.slope:.2f}."
        for g in growths(table)
        if g.faster
    ]
    for column, rate in table.asked.items():
        missed = next((r for r in table.rows if r.cost[column] < BEHIND * rate), None)
        if missed is not None:
            lines.append(f"**{column} bends at {missed.name}**: {shown(missed.cost[column])} of {rate:g}.")
    return lines


def said(table: Table) -> list[str]:
    """Where it bends, and the steepest step of each column that does not."""
    found, lines = growths(table), bends(table)
    calm = [c for c in table.watched if not any(g.column == c and g.faster for g in found)]
    if calm:
        slopes = {c: max((g.slope for g in found if g.column == c), default=0.0) for c in calm}
        each = ", ".join(f"{c} {slope:.2f}" for c, slope in slopes.items())
        lines.append(f"Not faster than {table.unit} (steepest slope): {each}.")
    return lines


def shown(value: float) -> str:
    """A figure to three digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def markdown(table: Table) -> str:
    """The table with its note and what it says of growth."""
    columns = list(table.rows[0].cost)
    head = f"| | {table.unit} | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}\n"
    body = "".join(
        f"| {r.name} | {shown(r.work)} | {' | '.join(shown(r.cost[c]) for c in columns)} |\n" for r in table.rows
    )
    note = f"{table.note}\n\n" if table.note else ""
    return f"### {table.title}\n\n{note}{head}{body}\n" + "".join(f"* {line}\n" for line in said(table))


def as_json(table: Table) -> dict[str, Any]:
    """The table and its slopes, for files."""
    return {**dataclasses.asdict(table), "slopes": [dataclasses.asdict(g) for g in growths(table)]}
