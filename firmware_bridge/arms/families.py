"""The arm families that this version knows, by the name that robot files and bundles give. A new one is a line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firmware_bridge.arms import so101


@dataclass(frozen=True)
class Shape:
    """Joint names, gripper last; the maker's limits float64[J] (rad); link lengths (m) by name."""

    joints: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    links: dict[str, float]


FAMILIES = {
    so101.FAMILY: Shape(so101.JOINTS, so101.LOWER, so101.UPPER, dict(vars(so101.Links()))),
}
SLACK = 0.5  # rad: horns and stops sit differently from arm to arm, by less than this


def beyond(family: Shape, lower: Sequence[float], upper: Sequence[float]) -> str:
    """The first pair of joint limits (rad, one a joint) that no arm of this family can have, in a few words; "" if there is none."""
    for k, (name, low, high) in enumerate(zip(family.joints, lower, upper, strict=True)):
        ends = float(family.lower[k]) - SLACK, float(family.upper[k]) + SLACK
        if not ends[0] <= low < high <= ends[1]:
            return (
                f"impossible limits of {name}: 'lower' and 'upper' must be from {ends[0]:.2f} to {ends[1]:.2f} rad and in that "
                f"order, not {low:g} and {high:g}"
            )
    return ""
