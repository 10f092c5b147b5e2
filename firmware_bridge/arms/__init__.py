"""Arm families, one file each, numpy only.

Joint angles follow the convention of the arm's maker; tool poses have the same meaning for every family. To add a
family, add a file to this folder that sets `FAMILY` to an instance of a subclass of `family.Family`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from common.errors import Mendable
from firmware_bridge.arms.family import Family

__all__ = ["FAMILIES", "Family", "FamilyError", "beyond", "family"]


class FamilyError(Mendable):
    """An arm family that this version does not know; the text is one sentence and the next step."""


def _found() -> dict[str, Family]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    families = (m.FAMILY for m in modules if isinstance(getattr(m, "FAMILY", None), Family))
    return {f.NAME: f for f in families}


FAMILIES: dict[str, Family] = _found()


def family(name: str) -> Family:
    """The family of this name; raises FamilyError, which lists the known names."""
    found = FAMILIES.get(name)
    if found is None:
        raise FamilyError(f"arm family '{name}' is not known: this version drives {', '.join(sorted(FAMILIES))}.")
    return found


SLACK = 0.5  # rad: servo horns and mechanical stops differ between arms of a family by less than this


def beyond(known: Family, lower: Sequence[float], upper: Sequence[float]) -> str:
    """Why `lower` and `upper` (rad, one value per joint) cannot be the limits of an arm of this family; "" if they can.

    Names the first joint whose limits are more than `SLACK` outside the maker's, or in the wrong order.
    """
    for k, (name, low, high) in enumerate(zip(known.JOINTS, lower, upper, strict=True)):
        ends = float(known.LOWER[k]) - SLACK, float(known.UPPER[k]) + SLACK
        if not ends[0] <= low < high <= ends[1]:
            return (
                f"impossible limits of {name}: 'lower' and 'upper' must be from {ends[0]:.2f} to {ends[1]:.2f} rad "
                f"and in that order, not {low:g} and {high:g}"
            )
    return ""
