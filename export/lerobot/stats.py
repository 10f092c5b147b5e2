"""Statistics of an episode and of a dataset, with the names and shapes that lerobot uses for normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)


def of_vectors(x: np.ndarray) -> dict[str, Any]:
    """Statistics of float[n,k]: lists of k numbers."""
    x = x.astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0)))
    return {k: v.tolist() for k, v in stats.items()} | {"count": [len(x)]}


def of_pictures(x: np.ndarray) -> dict[str, Any]:
    """Statistics of uint8[n,H,W,3]: numbers in 0..1 of shape [3,1,1], exact through histograms."""
    stats: dict[str, list[Any]] = {k: [] for k in NAMES if k != "count"}
    level = np.arange(256) / 255
    for channel in range(3):
        counts = np.bincount(x[..., channel].ravel(), minlength=256)
        share, cumulative, there = counts / counts.sum(), np.cumsum(counts), np.flatnonzero(counts)
        mean = float(share @ level)
        values = {
            "min": level[there[0]],
            "max": level[there[-1]],
            "mean": mean,
            "std": np.sqrt(share @ (level - mean) ** 2),
        }
        values |= {k: level[np.searchsorted(cumulative, q * cumulative[-1])] for k, q in QUANTILES.items()}
        for k, v in values.items():
            stats[k].append([[float(v)]])
    return stats | {"count": [len(x)]}


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of all episodes: exact for min, max, mean and std; a quantile is the mean of the episodes' quantiles,
    as in lerobot."""
    a = {k: np.array([p[k] for p in parts], np.float64) for k in NAMES}
    count = a.pop("count")[:, 0]

    def average(x: np.ndarray) -> np.ndarray:
        return np.average(x, axis=0, weights=count)

    out = {k: average(a[k]) for k in ("mean", *QUANTILES)}
    out |= {"min": a["min"].min(0), "max": a["max"].max(0)}
    out["std"] = np.sqrt(average(a["std"] ** 2 + (a["mean"] - out["mean"]) ** 2))
    return {k: v.tolist() for k, v in out.items()} | {"count": [int(count.sum())]}
