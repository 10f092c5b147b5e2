"""Confidence intervals for one proportion and for the difference of two paired proportions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

Z95 = 1.959964  # two-sided 95 %
Z95_ONE_SIDED = 1.644854
LEAST = 0.25  # least success on seen from which a relative drop is computed


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


def paired_difference(strata: Mapping[Hashable, Sequence[float]]) -> dict[str, float]:
    """Mean of paired differences with its 95 % interval; every stratum (a task) has the same weight.

    A stratum holds one difference per start: +1, 0 or -1, or their mean over the environments that share the start, so
    that a shared start is not counted twice. With one stratum this is the Wald interval of matched pairs (Agresti,
    Categorical Data Analysis, 10.1). `lower95` is the one-sided bound. Raises ValueError without any pair.
    """
    groups = [np.asarray(d, float) for d in strata.values() if len(d)]
    if not groups:
        raise ValueError("nothing was paired: run both policies on the same seeds")
    mean = float(np.mean([g.mean() for g in groups]))
    error = math.sqrt(sum(g.var() / len(g) for g in groups)) / len(groups)
    return {
        "difference": mean,
        "low": mean - Z95 * error,
        "high": mean + Z95 * error,
        "lower95": mean - Z95_ONE_SIDED * error,
        "pairs": sum(len(g) for g in groups),
    }


def paired_lower_bound(better: int, worse: int, pairs: int, z: float = Z95_ONE_SIDED) -> float:
    """Lower confidence bound of a difference of paired proportions by Tango's score interval (Statistics in Medicine
    17, 1998).

    `better`: pairs that only the candidate won; `worse`: pairs that only the reference won. Unlike a normal interval,
    it does not collapse to a point when no pair differs.
    """

    def score(d: float) -> float:
        a, c = 2.0 * pairs, -worse * d * (1 - d)
        b = -better - worse + (2 * pairs - better + worse) * d
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = pairs * (2 * q + d * (1 - d))
        gap = better - worse - pairs * d
        return gap / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, gap)

    low, high = -1.0 + 1e-9, (better - worse) / pairs
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > z else (low, middle)
    return low


def relative_drop(seen: float, unseen: float) -> float | None:
    """Share of the success on seen that is lost elsewhere; None where the success on seen is below LEAST."""
    return None if seen < LEAST else 1.0 - unseen / seen
