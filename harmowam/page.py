"""Page and film of a recorded run; the film of a simulated one shows the whole scene, too."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from harmowam.options import say
from runtime.observe.episode import CONFIG
from runtime.observe.report import write_report
from sim.overview import overview


def write_page(bundle: Path, folder: Path, report: dict[str, Any]) -> None:
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
