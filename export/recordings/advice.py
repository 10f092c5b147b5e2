"""What training will do with recordings, and what to record more of: sentences that follow from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from export.recordings.clock import times_at
from export.recordings.findings import VIEWS, Examined, Problem
from export.recordings.survey import BLURRED, BRIGHT, DARK, Seen, Survey
from export.recordings.sync import LATE_MS
from firmware_bridge.arms.family import Family

ENOUGH = 50  # demonstrations of a task
NARROW_M = 0.03  # spread (standard deviation) of grasps over the table below which the policy learns one place
SAME_START = 0.05  # rad
CLOSING, OPENING = 0.35, 0.6  # share of the jaw's range: closed below, open above


def grasps(arm: Family, seen: Seen) -> np.ndarray:
    """Where the jaw closes after it was open: tool positions float64[k,3] m in the base frame."""
    share = (seen.q[:, -1] - seen.q[:, -1].min()) / max(1e-6, float(np.ptp(seen.q[:, -1])))
    if np.ptp(seen.q[:, -1]) < 0.1 * (arm.UPPER[-1] - arm.LOWER[-1]):
        return np.zeros((0, 3))
    found, is_open = [], False
    for k, s in enumerate(share):
        if s > OPENING:
            is_open = True
        elif s < CLOSING and is_open:
            is_open = False
            found.append(k)
    return arm.tool(seen.q[found])[:, :3, 3] if found else np.zeros((0, 3))


def measured_problems(found: Examined, seen: Survey) -> list[Problem]:
    """What only a look at every picture shows."""
    out = []
    for s in seen.episodes:
        missing = set(found.cameras) - {look.camera for look in s.looks}
        if missing:
            out.append(
                Problem(
                    "pictures",
                    s.number,
                    f"pictures of camera '{min(missing)}' cannot be decoded",
                    "it is left out; download or record it again",
                    True,
                )
            )
        for look in s.looks:
            out += _of_look(s, look.camera, look.doubled, look.brightness, look.sharpness)
        if s.late:
            out.append(
                Problem(
                    "dropped",
                    s.number,
                    f"{s.late} {'rows are' if s.late > 1 else 'row is'} missing (gaps above 1.5 usual distances)",
                    "they are filled by the rows around them; close other programs while recording",
                )
            )
    for timed in seen.syncs:
        if timed.delay_ms is not None and abs(timed.delay_ms) > LATE_MS:
            what = "later" if timed.delay_ms > 0 else "earlier"
            out.append(
                Problem(
                    "sync",
                    None,
                    f"the pictures of camera '{timed.camera}' are {abs(timed.delay_ms):.0f} ms {what} than the joints",
                    "a policy learns that delay: record and run with the same camera settings",
                )
            )
    if seen.alike:
        first = ", ".join(f"{a} and {b}" for a, b in seen.alike[:5])
        out.append(
            Problem(
                "alike",
                None,
                f"{len(seen.alike)} pairs of episodes are nearly the same ({first})",
                "leave one of each out with --leave-out, unless they were recorded twice on purpose",
            )
        )
    return out


def _of_look(s: Seen, camera: str, doubled: int, brightness: float, sharpness: float) -> list[Problem]:
    out = []
    if doubled > max(5, 0.03 * len(s.q)):
        out.append(
            Problem(
                "repeated",
                s.number,
                f"{doubled} of {len(s.q)} pictures of camera '{camera}' repeat the one before while the arm moves",
                "record at the rate that the camera gives, or give it more USB bandwidth",
            )
        )
    if not DARK <= brightness <= BRIGHT:
        what = "dark" if brightness < DARK else "bright"
        out.append(
            Problem(
                "light",
                s.number,
                f"camera '{camera}' is too {what} (mean {brightness:.0f} of 255)",
                "light the table evenly and fix the exposure",
            )
        )
    if sharpness < BLURRED:
        out.append(
            Problem(
                "blur",
                s.number,
                f"camera '{camera}' is blurred or shows nothing but plain areas (sharpness {sharpness:.0f})",
                "set its focus by hand and shorten the exposure",
            )
        )
    return out


def training(found: Examined, rate_hz: float) -> list[str]:
    """What `harmowam train` will do with it."""
    if not found.accepted:
        return ["Nothing is trained on it as it is: mend what stands against it, above."]
    rows = sum(len(times_at(t.t[a:b], rate_hz)) for t in found.takes for a, b, _ in t.parts)
    arm = found.arm.NAME if found.arm else ""
    read = (
        f"{len(found.takes)} of {found.listed} episodes are read: {rows:,} rows at {rate_hz:g} Hz from {found.rows:,} "
        f"at {found.fps:g}; joints linear between rows, pictures the nearest in time."
    )
    out = [read, f"Joints are in {found.units.joints} ({found.units.evidence}) and become rad of a {arm}."]
    for view in VIEWS:
        if view not in found.views:
            out.append(f"There is no {view} view: the baseline ACT is trained without, our model is not.")
            continue
        film = found.cameras[found.views[view]]
        side = min(film.width, film.height)
        calibrated = found.how.calibration.get(view) or found.how.calibration.get(film.name)
        lens = "undistorted by its calibration" if calibrated else "without calibration, as a usual webcam's"
        out.append(
            f"Camera '{film.name}' is the {view} view: the central {side}x{side} of {film.width}x{film.height} pixels, "
            f"{lens}, becomes 96x96; what lies outside that square is not seen."
        )
    return out


def more(found: Examined, seen: Survey) -> list[str]:
    """What to record more of."""
    if found.arm is None or not seen.episodes:
        return []
    out = []
    for task, count in sorted(Counter(t for s in seen.episodes for t in s.tasks).items()):
        if count < ENOUGH:
            name = f"of “{task}”" if task else "(and write an instruction for them)"
            out.append(f"{ENOUGH - count} more demonstrations {name}: there are {count}, and {ENOUGH} are usual.")
    places = [grasps(found.arm, s) for s in seen.episodes]
    closed = sum(len(p) > 0 for p in places)
    if closed < 0.5 * len(places):
        out.append(f"Grasps: the jaw closes after it was open in {closed} of {len(places)} episodes only.")
    at = np.concatenate([p[:1] for p in places])
    if len(at) > 2 and float(at[:, :2].std(0).max()) < NARROW_M:
        spread = 100 * at[:, :2].std(0)
        out.append(
            f"Other places: grasps are all within {spread[0]:.1f} x {spread[1]:.1f} cm (standard deviation); put the "
            "things where you want the policy to find them."
        )
    starts = np.stack([s.q[0, :-1] for s in seen.episodes])
    if len(starts) > 2 and float(starts.std(0).max()) < SAME_START:
        out.append("Other beginnings: every episode starts in the same pose; begin some beside it, some after a miss.")
    return out + _of_light(seen.episodes)


def _of_light(seen: Sequence[Seen]) -> list[str]:
    out = []
    for camera in dict.fromkeys(look.camera for s in seen for look in s.looks):
        light = np.array([look.brightness for s in seen for look in s.looks if look.camera == camera])
        if len(light) > 4 and light.std() < 3:
            out.append(
                f"Other light: camera '{camera}' sees the same brightness in every episode ({light.mean():.0f})."
            )
    return out
