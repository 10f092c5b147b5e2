"""The cameras of a recording: which is which view, what is stored, and which episodes have all their pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import CalibrationError, Camera
from export.lerobot.layout import DataError, check_file, read_table
from export.recordings.films import Probe, codec_of, column, picture_of, probe
from export.recordings.findings import VIEWS, Film, How, Pictures, Problem, Take
from export.recordings.layouts import MEND, Header, problem_of

ANGLE = np.radians(62)  # horizontal field of view of a usual webcam, where no calibration says
COST = {
    "front": "ACT looks through the wrist camera alone, and our model cannot be trained",
    "wrist": "ACT looks through the front camera alone, and our model cannot be trained",
}


def camera_of(raw: Any, source: str) -> Camera:
    try:
        return Camera.from_json(raw, source)
    except CalibrationError as e:
        raise DataError(str(e)) from e


def usual_camera(film: Film) -> Camera:
    """A camera without distortion at the stored size with the field of view of a usual webcam."""
    fx = film.width / 2 / np.tan(ANGLE / 2)
    K = np.array([[fx, 0, (film.width - 1) / 2], [0, fx, (film.height - 1) / 2], [0, 0, 1]])
    return Camera(film.name, film.width, film.height, K, np.zeros(0))


def views_of(header: Header, how: How, problems: list[Problem]) -> dict[str, str]:
    """View -> camera of the recording: as the owner says, else where they have the same name."""
    there = sorted(header.cameras)
    said = {v: (n,) if isinstance(n, str) else n for v, n in how.cameras.items()}
    taken = {n for names in said.values() for n in names}
    views = {v: v for v in VIEWS if v in header.cameras and v not in taken}
    for view, names in said.items():
        found = [n for n in names if n in header.cameras]
        if view in VIEWS and found:
            views[view] = found[0]
            continue
        problems.append(
            Problem(
                "cameras",
                None,
                f"--camera {view}={names[0]}: the policy's views are {' and '.join(VIEWS)}, the recording's cameras "
                f"{', '.join(there) or 'none'}",
                "correct it",
                True,
            )
        )
    views = {v: views[v] for v in VIEWS if views.get(v) in header.cameras}
    if not views:
        example = " ".join(f"--camera {v}={n}" for v, n in zip(VIEWS, there))
        problems.append(
            Problem(
                "cameras",
                None,
                f"none of its cameras ({', '.join(there) or 'none'}) is called front or wrist",
                f"say which is which, for example {example}" if there else "record again with a camera",
                True,
            )
        )
    elif missing := [v for v in VIEWS if v not in views]:
        left = [n for n in there if n not in views.values()]
        fix = f"add --camera {missing[0]}={left[0]} if that is it" if left else "add such a camera and record again"
        problems.append(Problem("cameras", None, f"there is no {missing[0]} view: {COST[missing[0]]}", fix))
    return views


def check_calibration(films: Mapping[str, Film], views: Mapping[str, str], how: How, problems: list[Problem]) -> None:
    for view, name in views.items():
        film, known = films.get(name), how.calibration.get(view) or how.calibration.get(name)
        if film is None:
            continue
        if known is None:
            problems.append(
                Problem(
                    "calibration",
                    None,
                    f"camera '{name}' ({view}) has no calibration: ACT is trained on its central square, the robot's "
                    "camera must stand where it stood, and our model cannot be trained",
                    f"put {view}.json (from `harmowam calibrate`) into a folder for --cameras",
                )
            )
        elif (known.width, known.height) != (film.width, film.height):
            problems.append(
                Problem(
                    "calibration",
                    None,
                    f"camera '{name}' stored {film.width}x{film.height} and its calibration is for {known.width}x"
                    f"{known.height}",
                    "calibrate it at the stored size",
                    True,
                )
            )


def examine(
    header: Header, takes: Sequence[Take], views: Mapping[str, str], problems: list[Problem]
) -> tuple[dict[str, Film], list[Take]]:
    """The cameras as they are stored, and the episodes that have all their pictures. A camera that is no view of the
    policy costs no episode: it is left aside."""
    films: dict[str, Film] = {}
    kept = list(takes)
    for name, key in header.cameras.items():
        said: list[Problem] = []
        look = _images if header.features[key].get("dtype") == "image" else _videos
        film, left = look(header, name, key, kept, said)
        if views and name not in views.values() and (film is None or len(left) < len(kept)):
            why = said[0].detail if said else "it has no episodes"
            problems.append(
                Problem("cameras", None, f"camera '{name}', which is no view of the policy, is left aside: {why}", MEND)
            )
            continue
        kept = left
        problems += said
        if film is not None:
            films[name] = film
    return films, kept


def _images(
    header: Header, name: str, key: str, takes: list[Take], problems: list[Problem]
) -> tuple[Film | None, list[Take]]:
    film, kept, tables = None, [], dict[Path, Any]()
    for take in takes:
        lies = take.pictures[name]
        try:
            if lies.path not in tables:
                tables = {lies.path: column(lies.path, read_table(lies.path, [key]), key)}
            value = tables[lies.path][int(lies.numbers[0])].as_py()
            shape = picture_of(value, header.folder).shape
        except DataError as e:
            problems.append(problem_of("pictures", take.number, e))
            continue
        found = Film(name, shape[1], shape[0], codec_of(value), None)
        film = film or found
        if (film.width, film.height) != (found.width, found.height):
            problems.append(_other_size(film, found, take.number))
            continue
        kept.append(take)
    return film, kept


def _other_size(film: Film, found: Film | Probe, number: int) -> Problem:
    return Problem(
        "pictures",
        number,
        f"camera '{film.name}' has pictures of {found.width}x{found.height}, and {film.width}x{film.height} elsewhere",
        "it is left out; record all episodes at one size",
        True,
    )


def _videos(
    header: Header, name: str, key: str, takes: list[Take], problems: list[Problem]
) -> tuple[Film | None, list[Take]]:
    places = {e.number: e.videos[key] for e in header.episodes}
    probes: dict[Path, Probe | Problem] = {}
    for path in dict.fromkeys(places[t.number].path for t in takes):
        try:
            check_file(path)
            probes[path] = probe(path)
        except DataError as e:
            probes[path] = problem_of("video", None, e)
    good = [p for p in probes.values() if isinstance(p, Probe)]
    if not good:
        problems += [p for p in list(probes.values())[:1] if isinstance(p, Problem)]
        return None, []
    first = good[0]
    film = Film(name, first.width, first.height, first.codec, round(float(np.median([p.fps for p in good])), 3))
    starts = _starts(header, key, probes)
    kept = []
    for take in takes:
        found, length = probes[places[take.number].path], int(take.rows[-1]) + 1
        if isinstance(found, Problem):
            problems.append(dataclasses.replace(found, episode=take.number))
        elif (found.width, found.height) != (film.width, film.height):
            problems.append(_other_size(film, found, take.number))
        elif (short := starts[take.number] + length - len(found.pts)) > 0:
            problems.append(
                Problem(
                    "pictures",
                    take.number,
                    f"the video of camera '{name}' lacks {short} of its {length} pictures",
                    "it is left out; download or record it again",
                    True,
                )
            )
        else:
            kept.append(_placed(take, name, places[take.number].path, starts[take.number], found))
    return film, kept


def _placed(take: Take, name: str, path: Path, start: int, found: Probe) -> Take:
    return dataclasses.replace(take, pictures={**take.pictures, name: Pictures(path, start + take.rows, found.pts)})


def _starts(header: Header, key: str, probes: Mapping[Path, Probe | Problem]) -> dict[int, int]:
    """First picture of each episode in its video. Where `from_timestamp` is within a picture of the summed lengths of
    the episodes in front of it, the sum is right: times are rounded, numbers of pictures are not."""
    out: dict[int, int] = {}
    files: dict[Path, list[tuple[float, int, int]]] = {}
    for e in header.episodes:
        place = e.videos[key]
        if place.from_s is None:
            out[e.number] = 0
        else:
            files.setdefault(place.path, []).append((place.from_s, e.number, e.length or 0))
    for path, entries in files.items():
        found, summed = probes.get(path), 0
        for from_s, number, length in sorted(entries):
            rate = found.fps if isinstance(found, Probe) else 0.0
            told = from_s * rate
            out[number] = summed if abs(told - summed) <= 1.0 else round(told)
            summed = out[number] + length
    return out
