"""Which arm made a recording, and which columns of its vectors are that arm's joints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.lerobot.layout import VECTORS
from export.recordings.findings import How, Problem
from export.recordings.layouts import Header, dumped
from firmware_bridge.arms import FAMILIES
from firmware_bridge.arms.family import Family
from sim.tasks import ARM

DRIVEN = ", ".join(sorted(FAMILIES))


def _names(feature: Mapping[str, Any]) -> list[str] | None:
    """The names of a vector's entries, None where it has none. Forms: a list, {"motors": [...]}, lists in a list."""
    names = feature.get("names")
    while isinstance(names, (dict, list)) and names:
        inner = next(iter(names.values())) if isinstance(names, dict) else names[0]
        if isinstance(names, dict) or isinstance(inner, list):
            names = inner
            continue
        return [str(n) for n in names]
    return None


def _by_name(robot: str | None) -> Family | None:
    """The family that a `robot_type` names; None for a name that no family has."""
    return next((f for f in FAMILIES.values() if robot in f.LEROBOT), None) if robot else None


def arm_of(header: Header, how: How, problems: list[Problem]) -> tuple[Family | None, tuple[int, ...], int]:
    """The arm's family (None: no arm that is driven here), and its columns out of how many."""
    for key in VECTORS:
        if key not in header.features:
            problems.append(
                Problem("joints", None, f"there is no '{key}'", "record with lerobot-record, which writes it", True)
            )
            return None, (), 0
    names = {k: _names(header.features[k]) for k in VECTORS}
    told = _by_name(header.robot)
    known = names["observation.state"] or names["action"]
    if known is not None:
        fits = [f for f in FAMILIES.values() if f.lerobot_columns(known) is not None]
    else:
        width = _declared(header.features["action"]) or _declared(header.features["observation.state"])
        fits = [f for f in FAMILIES.values() if width in (None, len(f.JOINTS))]
    arm = how.arm or (told if told in fits else None) or (ARM if ARM in fits else next(iter(fits), None))
    if arm is None or arm not in fits or (told is not None and told is not arm):
        what = f"a {header.robot}" if header.robot else "an arm without a name"
        problems.append(
            Problem(
                "arm",
                None,
                f"it was recorded with {what} (entries {dumped(known)}), and this tool drives one {DRIVEN}",
                f"use a recording of {'a ' + how.arm.NAME if how.arm else 'one of these'}",
                True,
            )
        )
        return None, (), 0
    if told is None:
        problems.append(
            Problem(
                "arm",
                None,
                f"robot_type {dumped(header.robot)} names no arm that is known here: a {arm.NAME} is believed",
                "add --arm if it is another",
            )
        )
    return arm, *_columns(header, arm, names, problems)


def _declared(feature: Mapping[str, Any]) -> int | None:
    shape = feature.get("shape")
    return shape[0] if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) else None


def _columns(
    header: Header, arm: Family, names: Mapping[str, list[str] | None], problems: list[Problem]
) -> tuple[tuple[int, ...], int]:
    state, action = names["observation.state"], names["action"]
    if state is None or action is None:
        problems.append(
            Problem(
                "joint names",
                None,
                "the joints have no names",
                f"they are taken in the order {', '.join(arm.JOINTS)}: look at the joint ranges on the page",
            )
        )
    known = state or action
    if state is not None and action is not None and arm.lerobot_columns(state) != arm.lerobot_columns(action):
        problems.append(
            Problem(
                "joint names",
                None,
                f"positions are of {dumped(state)} and goals of {dumped(action)}",
                "both must name the same joints in one order: record with lerobot-record",
                True,
            )
        )
    if known is None:
        return tuple(range(len(arm.JOINTS))), len(arm.JOINTS)
    return arm.lerobot_columns(known) or (), len(known)
