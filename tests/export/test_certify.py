"""The closed-loop gate's arithmetic."""

import pytest

from export.certify import LEAST
from sim.statistics import paired_lower_bound


def test_equal_results_are_not_certain_with_few_pairs_but_are_with_400():
    assert paired_lower_bound(0, 0, 20) < LEAST < paired_lower_bound(0, 0, 400) < 0


def test_the_bound_of_equal_results_has_a_closed_form():
    """With no pair that differs the score equation gives z^2 / (n + z^2)."""
    assert paired_lower_bound(0, 0, 400) == pytest.approx(-(1.6449**2) / (400 + 1.6449**2), abs=1e-5)


def test_the_bound_lies_below_the_difference_and_near_the_normal_one():
    bound = paired_lower_bound(20, 24, 400)
    normal = (20 - 24) / 400 - 1.6449 * ((44 - 16 / 400) ** 0.5) / 400
    assert bound < -4 / 400 and bound == pytest.approx(normal, abs=0.003)
    assert paired_lower_bound(10, 30, 400) < LEAST  # five points lost do not pass
