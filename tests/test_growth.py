"""What the page on growth says by itself: which cost grows faster than its work, and which rate is missed."""

import json

import pytest

from benchmarks.growth.__main__ import page, table_of
from benchmarks.growth.servos import arm_of, wire_ms
from benchmarks.growth.table import Row, Table, as_json, growths, markdown, said, shown


def table(*costs, column="seconds", asked=()):
    rows = tuple(Row(f"{10**k} items", 10.0**k, {column: cost}) for k, cost in enumerate(costs))
    return Table("Sorting", "items", rows, (column,), "By hand.", dict(asked))


def test_the_slope_is_the_power_of_the_work_that_a_cost_grows_with():
    assert [g.slope for g in growths(table(3.0, 30.0, 3000.0, 3000.0))] == pytest.approx([1, 2, 0])


def test_a_cost_that_grows_faster_than_its_work_is_named_with_the_step_in_which_it_does():
    assert said(table(3.0, 30.0, 3000.0)) == [
        "**seconds grows faster than items** from 10 items to 100 items: slope 2.00."
    ]


def test_what_two_runs_differ_by_is_not_called_growth():
    few = Table("", "cameras", (Row("3", 3, {"ms": 3.0}), Row("4", 4, {"ms": 4.7})), ("ms",), "")
    assert growths(few)[0].slope > 1.5 and said(few) == ["Not faster than cameras (steepest slope): ms 1.56."]


def test_a_cost_that_does_not_has_its_steepest_slope_named():
    assert said(table(3.0, 6.0, 60.0)) == ["Not faster than items (steepest slope): seconds 1.00."]


def test_a_rate_bends_at_the_first_row_that_falls_behind_what_was_asked():
    slow = table(30.0, 29.0, 21.0, 8.0, column="turns/s", asked={"turns/s": 30.0})
    assert said(slow)[0] == "**turns/s bends at 100 items**: 21.0 of 30."


def test_a_cost_of_zero_and_equal_work_have_no_slope():
    assert growths(table(0.0, 5.0)) == [] and growths(table(5.0, 0.0)) == []
    same = Table("", "items", (Row("a", 2, {"s": 1}), Row("b", 2, {"s": 3})), ("s",), "")
    assert growths(same) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345.6, "12,346"), (99.94, "99.9"), (1.234, "1.23"), (0.0441, "0.0441")]
)
def test_figures_have_three_digits(value, text):
    assert shown(value) == text


def test_a_page_is_made_from_kept_figures_as_from_measured_ones():
    made = table(3.0, 30.0)
    kept = json.loads(json.dumps(as_json(made)))
    assert markdown(table_of(kept)) == markdown(made)
    bent = as_json(table(3.0, 300.0))
    text = page({"logs": {"machine": "a board, 2 cores", "load": 0.1, "tables": [kept, bent]}})
    assert text.index("* Logs, Sorting: **seconds grows faster than items** from 1 items") < text.index("## Logs")
    assert "## Logs" in text and "Machine: a board, 2 cores" in text and "| 1 items | 1.00 | 3.00 |" in text


def test_the_wire_of_one_bus_is_counted_in_bytes():
    """A cycle of six STS servos at 1 Mbaud: 8 + 6 bytes of a sync read, 10 of each answer, 8 + 3 * 6 of a sync
    write; ten bits a byte."""
    assert wire_ms(6) == pytest.approx((14 + 6 * 10 + 26) * 10e-3)
    assert wire_ms(12) == pytest.approx((20 + 12 * 10 + 44) * 10e-3)
    assert len(set(arm_of(18).ids)) == 18 == len(arm_of(18).lower)
