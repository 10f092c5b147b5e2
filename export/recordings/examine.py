"""Examines a recording: everything that is found, at once, before anything is read for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.files import barred
from export.lerobot.checks import seal_of
from export.lerobot.layout import INFO, OURS, VECTORS, DataError, read_json
from export.recordings import arms, cameras, units
from export.recordings.clock import LONGEST_GAP_S, clock_of
from export.recordings.findings import Examined, How, Pictures, Problem, Take, Units
from export.recordings.layouts import Header, Listed, dumped, problem_of, read_header
from export.recordings.tables import Stored, read_rows
from firmware_bridge.arms import SLACK
from firmware_bridge.arms.family import Family

BEYOND = 0.01  # share of an episode's rows that may lie outside the limits: a joint that was pushed
SHORTEST_S = 0.25  # of an episode
RATES_AGREE = 0.02


def examine(folder: Path, how: How = How()) -> Examined:
    """Look at a LeRobotDataset v2.0, v2.1 or v3 as it lies. Every fault of the data becomes a `Problem`; nothing of it
    raises."""
    folder, problems = Path(folder), list[Problem]()
    nothing = Units(None, "nothing was read")
    if said := barred(folder) or barred(folder / "meta"):
        detail, _, fix = said.rpartition(": ")
        problems.append(Problem("access", None, detail, fix.rstrip("."), True))
    elif not (folder / INFO).exists():
        problems.append(
            Problem("info", None, f"{folder} holds no LeRobotDataset ({INFO})", "name the folder that holds meta", True)
        )
    header = None if problems else read_header(folder, problems)
    if header is None:
        return Examined(folder, "", None, None, 0.0, 0, nothing, {}, {}, (), tuple(problems), how)
    how = _as_ours(folder, how, problems)
    arm, columns, width = arms.arm_of(header, how, problems)
    views = cameras.views_of(header, how, problems)
    stored = {} if arm is None else _stored(header, columns, width, how, problems)
    fps = _rate(header, stored, how, problems)
    takes = [] if arm is None else _takes(header, stored, fps, how, problems)
    films, takes = cameras.examine(header, takes, views, problems)
    _check_films(films, fps, stored, how, problems)
    cameras.check_calibration(films, views, how, problems)
    found = nothing
    if arm is not None and takes:
        found, takes = _in_limits(arm, takes, how, problems)
    if not takes and not any(p.fatal and p.episode is None for p in problems):
        problems.append(Problem("episodes", None, f"{folder} has no usable episode", "record or download some", True))
    return Examined(
        folder,
        header.version,
        header.robot,
        arm,
        fps,
        len(header.episodes),
        found,
        films,
        views,
        tuple(takes),
        tuple(problems),
        how,
    )


def _as_ours(folder: Path, how: How, problems: list[Problem]) -> How:
    """What meta/harmowam.json of a dataset of ours says about its units and cameras."""
    if not (folder / OURS).exists():
        return how
    try:
        ours = read_json(folder / OURS)
        seal_of(folder)
        if ours.get("schema") not in (2, 3) or ours.get("units") != "rad" or not isinstance(ours.get("cameras"), dict):
            raise DataError(f"{folder / OURS} is of another version: read it with `harmowam train --dataset` alone.")
        known = {k: cameras.camera_of(v, str(folder / OURS)) for k, v in ours["cameras"].items()}
    except DataError as e:
        problems.append(problem_of("ours", None, e))
        return how
    if how.units not in (None, "rad"):
        problems.append(
            Problem("units", None, f"{OURS} says rad, asked for are {how.units}", "leave --units away", True)
        )
    return dataclasses.replace(how, units="rad", calibration={**known, **how.calibration})


def _stored(
    header: Header, columns: Sequence[int], width: int, how: How, problems: list[Problem]
) -> dict[int, tuple[Listed, Stored]]:
    """The rows of every episode that can be read, by number."""
    unknown = set(how.leave_out) - {e.number for e in header.episodes}
    if unknown:
        problems.append(
            Problem("left out", None, f"there is no episode {min(unknown)} to leave out", "correct --leave-out")
        )
    tables: dict[Path, dict[int, Stored] | Problem] = {}
    out = {}
    for e in header.episodes:
        if e.number in how.leave_out:
            continue
        if e.table not in tables:
            try:
                tables[e.table] = read_rows(e.table, columns, width)
            except DataError as error:
                tables[e.table] = problem_of("table", None, error)
        table = tables[e.table]
        if isinstance(table, Problem):
            problems.append(dataclasses.replace(table, episode=e.number))
            continue
        rows = table.get(e.number)
        if why := _unusable(e, rows):
            problems.append(Problem("rows", e.number, why, "it is left out; download or record it again", True))
        elif rows is not None:
            out[e.number] = (e, rows)
    return out


def _unusable(e: Listed, rows: Stored | None) -> str:
    if rows is None:
        return f"{e.table.name} has no rows of it"
    if e.length is not None and len(rows.state) != e.length:
        return f"{e.table.name} has {len(rows.state)} rows of it where its list says {e.length}"
    for name, values in zip(VECTORS, (rows.state, rows.action)):
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            return f"'{name}' in row {bad[0]} is not a number"
    return ""


def _rate(header: Header, stored: Mapping[int, tuple[Listed, Stored]], how: How, problems: list[Problem]) -> float:
    """Rows a second: of the timestamps, or what the owner says."""
    if how.recorded_fps is not None:
        return how.recorded_fps
    clocks = {n: c for n, (_, s) in stored.items() if s.t is not None and (c := clock_of(s.t))}
    if not clocks:
        if header.fps is None:
            problems.append(
                Problem("rate", None, "neither timestamps nor meta/info.json say the rate", "add --recorded-fps", True)
            )
            return 0.0
        if stored:
            problems.append(
                Problem("rate", None, f"there are no usable timestamps: {header.fps:g} rows/s are believed", "compare")
            )
        return header.fps
    fps = float(np.median([c.fps for c in clocks.values()]))
    uneven = [n for n, c in clocks.items() if c.irregular]
    if uneven:
        worst = max(clocks, key=lambda n: clocks[n].longest_s)
        c = clocks[worst]
        problems.append(
            Problem(
                "clock",
                None,
                f"the rows are unevenly spaced in {len(uneven)} of {len(clocks)} episodes (episode {worst}: jitter "
                f"{c.jitter_ms:.0f} ms, up to {1000 * c.longest_s:.0f} ms apart)",
                "they are resampled by their timestamps; a faster computer or fewer cameras record evenly",
            )
        )
    if header.fps is None or abs(fps / header.fps - 1) > RATES_AGREE:
        problems.append(
            Problem(
                "rate",
                None,
                f"meta/info.json says {header.fps or 0:g} rows/s, the timestamps say {fps:.4g}",
                "the timestamps are believed; --recorded-fps overrules them",
            )
        )
    return round(fps, 3)


def _check_films(
    films: Mapping[str, Any], fps: float, stored: Mapping[int, tuple[Listed, Stored]], how: How, problems: list[Problem]
) -> None:
    """Compares the videos' own clock with the rows'."""
    uneven = any(s.t is not None and (c := clock_of(s.t)) and c.irregular for _, s in stored.values())
    for name, film in films.items():
        if film.fps is None or not fps or abs(film.fps / fps - 1) <= RATES_AGREE or how.recorded_fps is not None:
            continue
        problems.append(
            Problem(
                "video rate",
                None,
                f"the video of camera '{name}' shows {film.fps:.4g} pictures/s, the rows are {fps:.4g} a second",
                "the rows' timestamps are believed, a picture a row"
                if uneven
                else f"say which is right: --recorded-fps {film.fps:.4g} or --recorded-fps {fps:.4g}",
                not uneven,
            )
        )


def _takes(
    header: Header, stored: Mapping[int, tuple[Listed, Stored]], fps: float, how: How, problems: list[Problem]
) -> list[Take]:
    out = []
    for number, (listed, s) in stored.items():
        t = np.arange(len(s.state)) / fps if fps and (s.t is None or how.recorded_fps is not None) else s.t
        why = "its rate is unknown" if t is None else _bad_times(t)
        if why or t is None:
            problems.append(Problem("clock", number, why, "it is left out; record it again", True))
            continue
        keep = np.concatenate([[True], np.diff(t) > 0])
        if twice := int((~keep).sum()):
            problems.append(
                Problem("clock", number, f"{twice} rows have the time of the row before them", "they are skipped")
            )
        parts = _parts(header, listed, s.task[keep], problems)
        images = [c for c, key in header.cameras.items() if header.features[key].get("dtype") == "image"]
        lie = {c: Pictures(listed.table, s.row[keep]) for c in images}  # `cameras.examine` adds the videos
        out.append(Take(number, s.state[keep], s.action[keep], t[keep] - t[0], np.flatnonzero(keep), parts, lie))
    return out


def _bad_times(t: np.ndarray) -> str:
    steps = np.diff(t)
    if not np.isfinite(t).all() or np.abs(t).max() > 1e11:
        return "a timestamp is not a number"
    if (steps < 0).any():
        return f"time goes backwards in row {int(np.argmax(steps < 0)) + 1}"
    if len(t) < 2 or t[-1] - t[0] < SHORTEST_S:
        return f"it lasts {t[-1] - t[0]:.2f} s, and {SHORTEST_S} s are needed"
    if steps.max() > LONGEST_GAP_S:
        return f"nothing was recorded for {steps.max():.1f} s from row {int(np.argmax(steps))} on"
    return ""


def _parts(
    header: Header, listed: Listed, task: np.ndarray, problems: list[Problem]
) -> tuple[tuple[int, int, str], ...]:
    """First row, row after the last and instruction of each run of rows with the same task."""
    starts = [0, *(np.flatnonzero(np.diff(task)) + 1).tolist(), len(task)]
    several = len(starts) > 2
    out = []
    for a, b in zip(starts, starts[1:]):
        text = header.tasks.get(int(task[a]))
        if text is None or (not several and len(listed.tasks) == 1):
            text = listed.tasks[0] if listed.tasks else text or ""
        out.append((a, b, text))
    if several:
        problems.append(
            Problem(
                "tasks",
                listed.number,
                f"it has {len(out)} instructions one after the other ({'; '.join(dumped(x[2]) for x in out[:3])})",
                "each part counts as an episode of its own",
            )
        )
    elif len(listed.tasks) > 1:
        problems.append(
            Problem(
                "tasks",
                listed.number,
                f"its list names {len(listed.tasks)} instructions and its rows one, {dumped(out[0][2])}",
                "the rows are believed; correct meta if that is wrong",
            )
        )
    if not out[0][2].strip():
        problems.append(
            Problem("tasks", listed.number, "it has no instruction", "write one into meta: the policy is asked by it")
        )
    return tuple(out)


def _in_limits(arm: Family, takes: list[Take], how: How, problems: list[Problem]) -> tuple[Units, list[Take]]:
    """The units, and the episodes whose joints stay within the arm's limits and a margin."""
    state, action = (np.concatenate([getattr(t, k) for t in takes]) for k in ("state", "action"))
    found = units.decide(state, action, arm, how, problems)
    units.check_jaw(state, action, found, problems)
    if found.joints is None or any(p.kind in ("units", "jaw", "joints") and p.fatal for p in problems):
        return found, takes
    good, said = [], []
    for take in takes:
        q = units.to_rad(np.concatenate([take.state, take.action]), found, arm)
        over = np.maximum(arm.LOWER - q, q - arm.UPPER) - SLACK
        share = (over > 0).mean(0)
        k = int(share.argmax())
        if share[k] <= BEYOND:
            good.append(take)
            continue
        ends = q[:, k].min(), q[:, k].max()
        scale, unit = (1.0, "rad") if found.joints == "rad" else (180 / np.pi, "degrees")
        said.append(
            Problem(
                "limits",
                take.number,
                f"{arm.JOINTS[k]} goes from {scale * ends[0]:.4g} to {scale * ends[1]:.4g} {unit}, and a {arm.NAME} "
                f"from {scale * arm.LOWER[k]:.4g} to {scale * arm.UPPER[k]:.4g}",
                "it is left out; if every episode says so, the units or the arm are others",
                True,
            )
        )
    if said and not good:
        first = said[0]
        said = [
            dataclasses.replace(
                first, episode=None, fix=f"these are no {found.joints}, or of another arm: check --units and --arm"
            )
        ]
    problems += said
    return found, good
