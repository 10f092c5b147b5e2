"""A run that ends with an error leaves a report all the same: what was recorded of it becomes a page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import Mendable
from runtime.observe.recorder import load_episode
from runtime.observe.report import lacking, write_report


def _written_ns(record: Path) -> int:
    meta = record / "meta.json"
    return meta.stat().st_mtime_ns if meta.is_file() else 0


@contextlib.contextmanager
def reported(bundle: Path, record: Path, out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Round a `live` run that records into `record`: if it raises, what it recorded becomes the report in `out`, and the error goes on.

    A run that was refused before the arm was armed records nothing, and leaves an earlier report as it is.
    """
    before = _written_ns(record)
    try:
        yield
    except BaseException:
        if _written_ns(record) != before:
            try:
                if missing := lacking():
                    say(f"recorded: {record}; for a page and a film first `pip install {' '.join(missing)}`")
                else:
                    write_report(bundle, record, out, load_episode(record)[1])
                    say(f"what happened: {out / 'report.html'}")
            except (Mendable, OSError) as e:
                say(f"recorded: {record}, but no report: {e}")
        raise
