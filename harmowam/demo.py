"""`harmowam demo`: from checkpoint to INT8 bundle to a moving (simulated) arm to a report, in one command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.python import module_command
from export.origin import made_from, shipped
from harmowam.folders import make_folder
from harmowam.live import live
from harmowam.options import ROBOT, UserError, with_engine
from harmowam.page import reported, write_page
from runtime.observe.episode import LOG
from runtime.robot import load_robot

Say = Callable[[str], None]


def shipped_bundle(bundle: Path, say: Say) -> Path:
    """The shipped checkpoint's bundle: the one at `bundle`, exported where there is none. A bundle of something else
    stays as it is, and the demo's own lies beside it. Raises UserError."""
    wanted = shipped()
    if bundle.exists() and not made_from(bundle, wanted):
        say(
            f"{bundle} was exported from something else and stays as it is (`harmowam export --out {bundle}` replaces "
            f"it): the demo's own is {bundle.with_name('demo.bundle')}"
        )
        bundle = bundle.with_name("demo.bundle")
    if made_from(bundle, wanted):
        say(f"1 of 3: {bundle} is there, exported from the shipped checkpoint")
        return bundle
    say("1 of 3: export the shipped checkpoint to INT8")
    # In a process of its own: torch must not be in memory when the runtime is measured.
    export = module_command("harmowam.cli", "export", "--out", str(bundle))
    if subprocess.run(export, check=False).returncode:
        raise UserError(
            "the shipped checkpoint could not be exported: mend what is said above, then start the demo again."
        )
    return bundle


def demo(
    bundle: Path, out: Path, task: str, seed: int, seconds: float, say: Say, engine: str | None = None
) -> dict[str, Any]:
    """Run the demo; returns the report that it wrote to `out`. Raises UserError and what `live` and `write_page`
    raise."""
    make_folder(out, "--out")
    bundle = shipped_bundle(bundle, say)
    say("2 of 3: run the two-rate loop against the simulated arm, in real time")
    robot = with_engine(load_robot(ROBOT), engine)
    with reported(bundle, out, say):
        done = live(bundle, robot, task, seconds, seed=seed, record=out, log=out / LOG, stop_at_success=True, say=say)
    say("3 of 3: report")
    write_page(done.bundle, out, done.report)
    return done.report
