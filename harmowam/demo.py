"""`harmowam demo`: from checkpoint to INT8 bundle to a moving (simulated) arm to a report, in one command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.python import module_command
from harmowam.failed import reported
from harmowam.live import live, make_folder
from harmowam.options import ROBOT, UserError, with_engine
from harmowam.page import write_page
from runtime.robot import load_robot


def demo(
    out: Path, task: str, seed: int, seconds: float, say: Callable[[str], None], engine: str | None = None
) -> dict[str, Any]:
    """Run the demo; returns the report that it wrote to `out`. Raises UserError and what `live` and `write_page`
    raise."""
    bundle = out / "so101.bundle"
    make_folder(out, "--out")
    say("1 of 3: export the shipped checkpoint to INT8")
    # In a process of its own: torch must not be in memory when the runtime is measured.
    export = module_command("harmowam.cli", "export", "--out", str(bundle))
    if subprocess.run(export, check=False).returncode:  # for example on a machine where INT8 is not faster
        say(
            "the export was refused, see above: trying it with --force, which passes over missed gates and marks the "
            "bundle as failed"
        )
        if subprocess.run([*export, "--force"], check=False).returncode:
            raise UserError(
                "the shipped checkpoint could not be exported: mend what is said above, then start the demo again."
            )
    say("2 of 3: run the two-rate loop against the simulated arm, in real time")
    robot = with_engine(load_robot(ROBOT), engine)
    with reported(bundle, out, say):
        done = live(bundle, robot, task, seconds, seed=seed, record=out, stop_at_success=True, say=say)
    say("3 of 3: report")
    write_page(bundle, out, done.report)
    return done.report
