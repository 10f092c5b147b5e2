"""Arm families, one file each, numpy only.

Joint angles follow the convention of the arm's maker; tool poses have the same meaning for every family. To add a
family, add a file to this folder that sets `FAMILY` to an instance of a subclass of `family.Family`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

import numpy as np

from common.errors import Mendable
from firmware_bridge.arms.family import Family

__all__ = ["FAMILIES", "UNUSABLE", "Family", "FamilyError", "beyond", "family", "flaw"]


class FamilyError(Mendable):
    """An arm family that this version does not know; the text is one sentence and the next step."""


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


def flaw(found: object) -> str:
    """Why `found`, the `FAMILY` of a file, cannot drive an arm; "" if it can."""
    if not isinstance(found, Family):
        return "its FAMILY must be an instance of a subclass of firmware_bridge.arms.family.Family"
    missing = [n for n in (*Family.__annotations__, "chain", "tcp") if not hasattr(found, n)]
    if missing:
        return f"its FAMILY lacks {', '.join(missing)}, which firmware_bridge/arms/family.py describes"
    joints = len(found.JOINTS)
    for name in ("LOWER", "UPPER", "UPRIGHT", "SEEN_TURNS"):
        if np.shape(getattr(found, name)) != (joints,):
            return f"{name} must hold one value for each of the {joints} joints"
    if wrong := beyond(found, found.LOWER.tolist(), found.UPPER.tolist()):
        return wrong
    if not any(link.boxes for link in found.chain):
        return "its links have no boxes, so that nothing tells how far the arm is from the table: set SHAPES"
    return ""


def _found() -> tuple[dict[str, Family], dict[str, str]]:
    """The families by name, and why a file of this folder gives none, by the names it could be asked for."""
    good: dict[str, Family] = {}
    unusable: dict[str, str] = {}
    source: dict[str, str] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        file = f"firmware_bridge/arms/{module}.py"
        found: object = None
        try:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), "FAMILY", None)
            if found is None:
                continue
            wrong = flaw(found)
        except Exception as e:  # a file that somebody is writing must not keep other arms from moving
            wrong = f"it cannot be loaded ({type(e).__name__}: {e})"
        name = str(getattr(found, "NAME", module))
        if name in source:
            wrong = f"{source[name]} names itself '{name}', too: rename one"
            good.pop(name, None)
        source[name] = file
        if wrong:
            unusable[name] = unusable[module] = f"{file}: {wrong}"
        elif isinstance(found, Family):
            good[name] = found
    return good, unusable


FAMILIES, UNUSABLE = _found()


def family(name: str) -> Family:
    """The family of this name; raises FamilyError, which names what is wrong with its file, or the known names."""
    found = FAMILIES.get(name)
    if found is None:
        why = UNUSABLE.get(name, f"this version drives {', '.join(sorted(FAMILIES))}")
        raise FamilyError(f"arm family '{name}' is not {'usable' if name in UNUSABLE else 'known'}: {why}.")
    return found
