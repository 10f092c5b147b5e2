"""Which units the joints of a recording have, by evidence, and the way to rad.

lerobot writes degrees about the middle of each joint's calibrated range, or -100 to 100 of that range (its default up
to 0.4.3), and rarely rad; the file does not say which. The measured positions do: a servo has 4096 steps a turn, so
degrees lie on a lattice of 360/4096 (or 360/4095) and normalised positions on one of 200/N, where N is the joint's
range in steps. What fits gives the units, and for normalised joints the range itself. Sources: lerobot
`motors_bus._normalize`, and the lattices of its releases; measured in tests/export/test_recordings_units.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from calibration.joints_lerobot import MOST_BYTES, STEPS, LeRobotJoint
from common.schema import Malformed, parse_json, read_bounded, shaped
from export.lerobot.layout import DataError, check_file
from export.recordings.findings import How, Problem, Units
from firmware_bridge.arms import SLACK
from firmware_bridge.arms.family import Family

CLOSE = 0.03  # of a step: how far a measured position may lie from its lattice (float32 leaves 0.002)
FITS = 0.98  # share of positions that must lie on it
FEW = 16  # different positions that a joint must have shown
SMALLEST = 100  # steps: ranges below are no calibrated joint's
CLIPPED = 100.5  # normalised values end at 100
SPAN_SD_DEG = 12.0  # spread of the ranges that owners swept, where nothing tells the range
JAW_LOW, JAW_HIGH = -15.0, 115.0
JAW_SHARE = 0.5  # of its values beyond those: the jaw's scale is another one
JAW_USED = 2.0  # of 100
MOST_VALUES = 400  # different positions that are looked at, of each joint
LATTICES = {"degrees": (360 / STEPS, 360 / (STEPS - 1)), "rad": (2 * np.pi / STEPS, 2 * np.pi / (STEPS - 1))}


def different(values: np.ndarray) -> np.ndarray:
    """Some of the different values of one joint, float64[k], spread over its range."""
    found = np.unique(values)
    return found[np.unique(np.linspace(0, len(found) - 1, MOST_VALUES).astype(int))] if len(found) else found


def on_lattice(values: np.ndarray, step: float) -> bool:
    """Whether `values` float64[k] are multiples of half of `step`: a range's middle may lie between two steps."""
    if np.ptp(values) < 4 * step:
        return False
    away = values / (step / 2)
    return float(np.mean(np.abs(away - np.round(away)) < CLOSE)) >= FITS


def steps_of(values: np.ndarray) -> int | None:
    """Range in steps of a joint with these normalised positions -100..100 float64[k]; None where they show none."""
    if len(values) < FEW:
        return None
    n = np.arange(SMALLEST, STEPS)
    at = (values[None] + 100) / 200 * n[:, None]
    share = (np.abs(at - np.round(at)) < CLOSE).mean(1)
    good = np.flatnonzero(share >= FITS)
    return int(n[good[0]]) if len(good) else None


def lattice(state: np.ndarray) -> tuple[str | None, np.ndarray]:
    """Units of measured positions float64[N,J-1] by their lattice, None where there is none; and the ranges
    float64[J-1] (deg) of normalised joints, NaN where unknown."""
    seen = [different(x) for x in state.T]
    moved = [v for v in seen if len(v) >= FEW]
    unknown = np.full(len(seen), np.nan)
    if not moved:
        return None, unknown
    least = len(moved) - (len(moved) > 3)  # one joint may be off: a broken episode, or a file that was edited
    for name, steps in LATTICES.items():
        if any(sum(on_lattice(v, s) for v in moved) >= least for s in steps):
            return name, unknown
    if max(float(np.abs(v).max()) for v in moved) > CLIPPED:
        return None, unknown
    ranges = [steps_of(v) for v in seen]
    found = sum(r is not None for r in ranges)
    if found and found >= least:
        return "normalised", np.array([np.nan if r is None else r * 360 / STEPS for r in ranges])
    return None, unknown


def calibrated(path: Path, arm: Family) -> np.ndarray:
    """Ranges float64[J-1] (deg) of the joints in a lerobot_calibration.json. Raises DataError."""
    check_file(path)
    try:
        raw = shaped(parse_json(read_bounded(path, MOST_BYTES)), dict[str, Any])
        rows = {k: msgspec.convert(raw[k], LeRobotJoint) for k in arm.JOINTS[:-1]}
    except (OSError, Malformed, msgspec.ValidationError, KeyError) as e:
        raise DataError(
            f"{path} is no lerobot calibration of a {arm.NAME} ({e}): give the JSON that lerobot-calibrate wrote for "
            "the arm of the recording."
        ) from e
    span = np.array([(r.range_max - r.range_min) * 360 / STEPS for r in rows.values()])
    if not (span > 0).all():
        raise DataError(f"{path} has a joint whose range is empty: run lerobot-calibrate again.")
    return span


def decide(state: np.ndarray, action: np.ndarray, arm: Family, how: How, problems: list[Problem]) -> Units:
    """Units of a recording from all its measured positions and goals float64[N,J]; adds to `problems` what stands
    against reading it."""
    joints = np.concatenate([state[:, :-1], action[:, :-1]])
    most = float(np.abs(joints).max(initial=0.0))
    shown, span = lattice(state[:, :-1])
    if shown == "normalised":
        steps = ", ".join("?" if np.isnan(s) else f"{s / 360 * STEPS:.0f}" for s in span)
        why = f"measured positions lie on the servo's steps of ranges of {steps} steps"
    elif shown:
        why = f"measured positions lie on the servo's steps of 1/{STEPS} turn in {shown}"
    else:
        shown, why = _by_size(joints, most, arm)
    if how.units is None:
        if shown is None:
            problems.append(
                Problem(
                    "units",
                    None,
                    f"the joints reach {most:.4g}, and nothing tells degrees from -100..100 ({why})",
                    "add --units degrees, --units rad or --units normalised --joints lerobot_calibration.json",
                    True,
                )
            )
            return Units(None, why)
        return _with_span(shown, why, span, state, arm, how, problems)
    if shown is not None and shown != how.units:
        problems.append(
            Problem(
                "units", None, f"--units {how.units} is said, and {why}", f"give --units {shown} or leave it out", True
            )
        )
    return _with_span(how.units, f"said by the owner; {why}", span, state, arm, how, problems)


def _by_size(joints: np.ndarray, most: float, arm: Family) -> tuple[str | None, str]:
    """Units by how far the joints go, where the servo's steps do not show."""
    furthest = float(np.abs(np.concatenate([arm.LOWER[:-1], arm.UPPER[:-1]])).max()) + SLACK
    if most > CLIPPED:
        return "degrees", f"a joint reaches {most:.4g}, beyond 100 and beyond any angle in rad"
    if most <= furthest and (np.ptp(joints, axis=0).max(initial=0.0) > 0.3):
        return "rad", f"no joint goes beyond {most:.3g}, which is as far as this arm turns in rad"
    ends = ((np.abs(np.abs(joints) - 100) < 1e-4).sum(0) >= 3).sum()
    if ends >= 2:
        return "normalised", f"{ends} joints stop at exactly 100 or -100"
    return None, "the servo's steps do not show, and the values fit both"


def _with_span(
    units: str, why: str, span: np.ndarray, state: np.ndarray, arm: Family, how: How, problems: list[Problem]
) -> Units:
    if units != "normalised":
        if how.joints is not None:
            problems.append(
                Problem("units", None, f"--joints is for normalised joints, and these are in {units}", "leave it out")
            )
        return Units(units, why, early=units == "degrees" and _early(state, arm))
    usual = np.degrees(arm.UPPER - arm.LOWER)[:-1]
    if how.joints is not None:
        try:
            said = calibrated(how.joints, arm)
        except DataError as e:
            detail, _, fix = str(e).rpartition(": ")
            problems.append(Problem("joints", None, detail, fix.rstrip("."), True))
            return Units(units, why)
        off = np.abs(said - span)
        if (off > 1.0).any():  # NaN compares false
            k = int(np.nanargmax(off))
            problems.append(
                Problem(
                    "joints",
                    None,
                    f"{how.joints} says that {arm.JOINTS[k]} turns {said[k]:.1f} degrees, its measured positions say "
                    f"{span[k]:.1f}",
                    "give the calibration that was in use when this was recorded, or leave --joints out",
                    True,
                )
            )
        return Units(units, f"{why}; ranges from {how.joints.name}", said)
    unknown = np.isnan(span)
    sd = SPAN_SD_DEG if unknown.any() else 0.0
    if unknown.any():
        names = ", ".join(np.array(arm.JOINTS[:-1])[unknown])
        problems.append(
            Problem(
                "joints",
                None,
                f"the ranges of {names} are not in the recording: the arm family's are taken, each uncertain by about "
                f"{SPAN_SD_DEG:.0f} degrees, which moves the tool by some 10 mm",
                "add --joints lerobot_calibration.json of the arm that recorded it",
            )
        )
    else:
        why += "; the ranges are exact, where 0 is in the middle of each, as in lerobot's degrees"
    return Units(units, why, np.where(unknown, usual, span), sd)


def _early(state: np.ndarray, arm: Family) -> bool:
    """Whether degrees are those of before June 2025: more rows are within the limits when read so."""
    if arm.EARLY_DEGREES is None or not len(state):
        return False
    margin = np.radians(10)

    def inside(q: np.ndarray) -> float:
        return float(((q > arm.LOWER[:-1] - margin) & (q < arm.UPPER[:-1] + margin)).all(1).mean())

    after = np.radians(state[:, :-1]) + arm.middle[:-1]
    before = np.radians(_of_now(state[:, :-1], arm))
    return inside(before) > max(0.9, inside(after) + 0.5)


def _of_now(degrees: np.ndarray, arm: Family) -> np.ndarray:
    """Degrees [N, J-1] of before June 2025 as those after."""
    sign, offset = np.array(arm.EARLY_DEGREES, float).T
    turned: np.ndarray = sign * (degrees - offset)
    return turned


def check_jaw(state: np.ndarray, action: np.ndarray, units: Units, problems: list[Problem]) -> None:
    """Adds to `problems` where the jaw, the last column, has another scale than 0 (shut) to 100 (open)."""
    jaw = np.concatenate([state[:, -1], action[:, -1]])
    if units.joints in (None, "rad") or not len(jaw):
        return
    low, high = (float(v) for v in np.quantile(jaw, (0.01, 0.99)))
    if low < JAW_LOW or high > JAW_HIGH:
        problems.append(
            Problem(
                "jaw",
                None,
                f"the jaw goes from {low:.4g} to {high:.4g}, where 0 is shut and 100 is open",
                "record again after lerobot-calibrate, or scale that column to 0..100",
                True,
            )
        )
    elif high < JAW_USED:
        problems.append(
            Problem(
                "jaw",
                None,
                f"the jaw never passes {high:.2g} of 100: it is never opened, or its scale is 0 to 1",
                "multiply that column by 100 if it is 0 to 1; else demonstrations of grasping are missing",
            )
        )


def to_rad(values: np.ndarray, units: Units, arm: Family) -> np.ndarray:
    """Joint angles float64[N,J] in rad from values [N,J] in the recording's units."""
    if units.joints == "rad":
        return np.asarray(values, float)
    body = np.asarray(values, float).copy()
    if units.span_deg is not None:
        body[:, :-1] = body[:, :-1] / 200 * units.span_deg
    elif units.early:
        body[:, :-1] = _of_now(body[:, :-1], arm)
    return arm.from_lerobot(body)
