"""Page and film of a recorded run, also of one that ended with an error; the film of a simulated one shows the whole
scene, too."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.errors import Mendable
from harmowam.options import say
from runtime.bundle import Bundle
from runtime.observe.episode import CONFIG, REPORT
from runtime.observe.report import lacking, write_report
from sim.overview import overview


def write_page(bundle: Bundle | Path, folder: Path, report: dict[str, Any]) -> None:
    """See `runtime.observe.report.write_report`, also for what it raises. Where the scene cannot be rendered, the film
    has no overview, and the user is told why."""
    path = folder / CONFIG
    config = json.loads(path.read_text()) if path.is_file() else {}
    with contextlib.ExitStack() as stack:
        whole = None
        try:
            whole = stack.enter_context(overview(folder, config))
        except Exception as e:  # MuJoCo is not installed, or whatever its display driver raises
            say(f"the film has no overview, because the scene cannot be rendered here ({e!r})")
        write_report(bundle, folder, report, whole)


def lean(folder: Path, missing: list[str]) -> str:
    """What to do where the packages for a page and a film are not installed."""
    return (
        f"recorded: {folder}; for a page and a film `pip install {' '.join(missing)}`, here or where you copy the "
        f"folder, then `harmowam report {folder}`"
    )


def _written_ns(folder: Path) -> int:
    report = folder / REPORT
    return report.stat().st_mtime_ns if report.is_file() else 0


def paged(bundle: Bundle, folder: Path, report: dict[str, Any]) -> str:
    """Write the page of a run into its folder, where the packages for it are installed; returns what to tell the user,
    the folder's path in it. Raises as `write_page`."""
    if missing := lacking():  # a robot's installation may lack them
        return lean(folder, missing)
    write_page(bundle, folder, report)
    return f"report: {folder / 'report.html'}\nrecorded: {folder}"


@contextlib.contextmanager
def reported(bundle: Path, folder: Path | None, say: Callable[[str], None]) -> Iterator[None]:
    """Context round a `live` run that records into `folder`: if the run raises, its recording becomes the report there,
    and the error is raised on.

    A run that was refused before the arm was armed records nothing and leaves an earlier report as it is.
    """
    if folder is None:
        yield
        return
    before = _written_ns(folder)
    try:
        yield
    except BaseException:
        if _written_ns(folder) != before:
            try:
                if missing := lacking():
                    say(lean(folder, missing))
                else:
                    write_page(bundle, folder, json.loads((folder / REPORT).read_text()))
                    say(f"what happened: {folder / 'report.html'}")
            except (Mendable, OSError) as e:
                say(f"recorded: {folder}, but no report: {e}")
        raise
