"""Arm families: one file each, numpy only. Joint angles are those of the arm's maker, tool poses are the same for every
family.

To add a family, add a file whose `FAMILY` is an object of a subclass of `firmware_bridge.arms.family.Family`: it is
found by that name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from common.errors import Mendable
from firmware_bridge.arms.family import Family

__all__ = ["FAMILIES", "Family", "FamilyError", "beyond", "family"]


class FamilyError(Mendable):
    """An arm family that this version does not know."""


def _found() -> dict[str, Family]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    families = (m.FAMILY for m in modules if isinstance(getattr(m, "FAMILY", None), Family))
    return {f.NAME: f for f in families}


FAMILIES: dict[str, Family] = _found()


def family(name: str) -> Family:
    """A family by its name; raises FamilyError that names the known ones."""
    found = FAMILIES.get(name)
    if found is None:
        raise FamilyError(f"arm family '{name}' is not known: this version drives {', '.join(sorted(FAMILIES))}.")
    return found


SLACK = 0.5  # rad: horns and stops sit differently from arm to arm, by less than this


def beyond(known: Family, lower: Sequence[float], upper: Sequence[float]) -> str:
    """The first pair of joint limits (rad, one a joint) that no arm of this family can have, in a few words; "" if
    there is none."""
    for k, (name, low, high) in enumerate(zip(known.JOINTS, lower, upper, strict=True)):
        ends = float(known.LOWER[k]) - SLACK, float(known.UPPER[k]) + SLACK
        if not ends[0] <= low < high <= ends[1]:
            return (
                f"impossible limits of {name}: 'lower' and 'upper' must be from {ends[0]:.2f} to {ends[1]:.2f} rad "
                "and in that "
                f"order, not {low:g} and {high:g}"
            )
    return ""
