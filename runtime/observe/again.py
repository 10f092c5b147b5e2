"""The command that runs a recorded run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.schema import Malformed, parse_toml
from runtime.robot import SHIPPED


def _robot(config: Mapping[str, Any]) -> str:
    """What --robot named: a shipped robot by its name, else the path of its file."""
    text = config.get("robot_file")
    shipped = (p.stem for p in sorted(SHIPPED.glob("*.toml")) if p.read_text() == text)
    return next(shipped, str(config.get("robot_path", "ROBOT.toml")))


def _fps(config: Mapping[str, Any]) -> float | None:
    """The rate of the fast loop where it was not the robot file's."""
    try:
        filed = parse_toml(config.get("robot_file", "").encode())
        rate = filed["rates"]["fast_hz"]
    except (Malformed, KeyError, TypeError, ValueError):
        return None
    return config["fast_hz"] if "fast_hz" in config and config["fast_hz"] != rate else None


def again(config: Mapping[str, Any], bundle: Path) -> str:
    """The command line, as a shell takes it. `config`: what the run was (`run_meta` with the arguments of the run);
    `bundle`: where its bundle lies. A task that the seed drew is not named, because the seed would then draw another
    start."""
    words = ["harmowam", "run", "--bundle", str(bundle), "--robot", _robot(config)]
    options = {} if config.get("task_drawn") else {"task": "task"}
    options |= {"seconds": "seconds", "seed": "seed", "policy": "policy", "engine": "engine", "port": "port"}
    for option, key in options.items():
        if config.get(key) is not None:
            value = config[key]
            words += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
    if (fps := _fps(config)) is not None:
        words += ["--fps", f"{fps:g}"]
    for task in config.get("then", ()):
        words += ["--then", task]
    for fault in config.get("faults", ()):
        words += ["--fault", fault]
    return shlex.join(words)
