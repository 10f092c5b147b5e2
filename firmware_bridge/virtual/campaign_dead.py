"""The rows of the campaign in virtual time, and the one in which the host falls silent."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.campaign import CASES, IDS, KOCH, MS, Rig, play


def dead_master(model: str) -> dict[str, Any]:
    """Group 23: the host falls silent in mid-motion; Dynamixel's bus watchdog stops the motor, except on 330-size
    servos (for which `campaign_live.py` has the guard)."""
    rig = Rig(dataclasses.replace(KOCH, models=(model,) * 6))
    rig.run(1.3)
    far = np.full(6, 2048 + 1500)  # the goal that was on the wire lies far away
    for i, step in zip(IDS, far, strict=True):
        rig.bus.put(i, "goal_position", int(step))
    hit = rig.now_ns
    trip = None
    for k in range(1, 60):
        rig.bus.refresh(hit + k * 10 * MS)
        if trip is None and rig.bus.get(1, "watchdog") == -1:
            trip = k * 10.0
    at = rig.plant.position.copy()
    rig.bus.refresh(hit + 700 * MS)
    stopped = bool(np.abs(at - far).min() > 50)
    believed = MODELS[model].watchdog_stops
    return {
        "group": 23,
        "name": f"master dead, {model}",
        "detected_as": f"bus watchdog tripped{'' if stopped else ', motor went on: the guard must act'}",
        "time_to_safe_ms": trip if stopped else None,
        "reacted_ms": trip,
        "limit_ms": 200,
        "lead_ms": 0.0,
        "final_state": "(servo)",
        "torque": "on, stopped by the servo" if stopped else "on, moving",
        "recovery": "operator",
        "safe": trip is not None and stopped == believed,
    }


def campaign(only: str = "") -> list[dict[str, Any]]:
    """The rows of a moving arm in virtual time, by group; `only`: those whose name contains it."""
    rows = [play(c) for c in CASES if only in c.name]
    rows += [dead_master("XL430-W250")] if only in "master dead, XL430-W250" else []
    return sorted(rows, key=lambda r: (r["group"], r["name"]))
