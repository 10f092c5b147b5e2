"""One check's outcome, and the machine that is checked."""

from __future__ import annotations

import grp
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """Outcome of one check. `state`: ok, warn (works, but not as well as it could) or bad (will not work);
    `mend`: what to type."""

    name: str
    state: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Machine:
    """Files of the machine that is checked; `root` is another folder in tests."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        """Where this machine has it; a relative name is of the working directory, as for who opens a port."""
        return self.root / name.lstrip("/") if name.startswith("/") else Path(name)

    def read(self, absolute: str) -> str:
        try:
            return self.path(absolute).read_text().strip("\0\n ")
        except OSError:
            return ""

    @property
    def jetson(self) -> bool:
        return self.path("/etc/nv_tegra_release").exists() or "tegra" in self.read("/proc/device-tree/compatible")


def access_mend(node: Path, mode: int, fallback: str) -> str:
    """The command that lets this user open `node` with `mode` (as for os.access); "" where this user may.

    `fallback`: the group to join where `node`'s own group has no name.
    """
    if os.access(node, mode):
        return ""
    try:
        group = grp.getgrgid(node.stat().st_gid).gr_name
    except KeyError:
        group = fallback
    return f"`sudo usermod -aG {group} $USER` and log in again"
