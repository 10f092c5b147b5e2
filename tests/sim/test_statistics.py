"""Confidence intervals compared with published cases."""

import numpy as np
import pytest

from sim.results import difference, measures, summary
from sim.statistics import paired_difference, relative_drop, wilson


def test_wilson_gives_the_published_intervals():
    # Brown, Cai & DasGupta 2001 and Newcombe 1998: 0 of 10, 8 of 10, 81 of 263
    assert np.allclose(wilson(0, 10), (0.0, 0.2775), atol=1e-4)
    assert np.allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)
    assert np.allclose(wilson(81, 263), (0.2553, 0.3662), atol=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_paired_difference_is_that_of_matched_pairs():
    """Approval of the prime minister, 1,600 people asked twice: Agresti, Categorical Data Analysis, table 10.1 and
    section 10.1.1."""
    found = paired_difference({"all": [0] * (794 + 570) + [-1] * 150 + [1] * 86})
    assert found["difference"] == pytest.approx(-0.04) and found["pairs"] == 1600
    assert found["low"] == pytest.approx(-0.0587, abs=2e-4) and found["high"] == pytest.approx(-0.0213, abs=2e-4)
    assert found["low"] < found["lower95"] < found["difference"]


def test_every_stratum_has_the_same_weight_whatever_its_size():
    found = paired_difference({"a": [1, 1], "b": [0] * 200})
    assert found["difference"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference({"a": []})


def test_the_relative_drop_is_defined_as_in_the_paper():
    assert relative_drop(0.89, 0.82) == pytest.approx(0.079, abs=1e-3)
    assert relative_drop(0.0, 0.5) is None and relative_drop(0.04, 0.08) is None  # not a drop of -100 %


def row(policy, environment, seed, success, **more):
    return {
        "policy": policy,
        "environment": environment,
        "task": "plate",
        "seed": seed,
        "start": "home",
        "success": success,
        "transit": True,
        "seconds": 5.0,
        "switches": 2,
        "failure": "" if success else "grasped nothing",
        **more,
    }


def test_environments_of_one_seed_are_one_observation():
    """Three environments with the same outcome say no more than one."""
    rng = np.random.default_rng(0)
    wins = {(p, s): bool(rng.random() < q) for p, q in (("gated", 0.9), ("reactive", 0.4)) for s in range(40)}

    def rows(environments):
        return [row(p, e, s, won) for (p, s), won in wins.items() for e in environments]

    one, three = (
        difference(rows(e), "gated", "reactive") for e in (["position"], ["position", "object", "background"])
    )
    assert one == pytest.approx(three) and one["pairs"] == 40


def test_only_shared_starts_are_compared():
    rows = [row("gated", "position", s, True) for s in range(9)] + [
        row("reactive", "position", s, False) for s in range(6, 20)
    ]
    assert difference(rows, "gated", "reactive")["pairs"] == 3
    assert difference(rows, "gated", "bc") is None


def test_the_summary_names_the_better_rival():
    rows = [
        row(p, e, s, s < n)
        for p, n in (("gated", 9), ("reactive", 4), ("predictive", 6))
        for e in ("seen", "object")
        for s in range(10)
    ]
    found = summary(rows)
    assert found["gated_minus"]["better single expert"]["policy"] == "predictive"
    assert found["gated_minus"]["better single expert"]["difference"] == pytest.approx(0.3)
    assert found["policies"]["gated"]["relative_drop"] == 0.0


def test_success_is_transit_times_interaction_given_transit():
    rows = [row("gated", "seen", s, s < 4, transit=s < 8, gate_right=9, gate_frames=10) for s in range(10)]
    m = measures(rows)
    assert (m["transit"], m["interaction_given_transit"], m["successes"]) == (0.8, 0.5, 4) and m["gate_accuracy"] == 0.9
    assert m["interaction_near"] is None and m["failures"] == {"grasped nothing": 6}
