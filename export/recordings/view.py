"""A recording in Rerun: pictures, positions and goals of each episode on its own time line. Needs the extra `view`."""

from __future__ import annotations

import numpy as np

from export.recordings.findings import Examined
from export.recordings.pictures import pictures
from export.recordings.units import to_rad


def view(found: Examined, episodes: tuple[int, ...]) -> int:
    """Open the viewer on these episodes (none named: all usable ones); returns how many. Raises DataError where
    pictures cannot be decoded, ModuleNotFoundError without rerun-sdk."""
    import rerun as rr

    assert found.arm is not None
    rr.init(f"harmowam {found.folder.name}", spawn=True)
    shown = [t for t in found.takes if not episodes or t.number in episodes]
    for take in shown:
        root = f"episode {take.number}"
        for what, values in (("positions", take.state), ("goals", take.action)):
            q = np.degrees(to_rad(values, found.units, found.arm))
            for t, row in zip(take.t, q):
                rr.set_time("time", duration=float(t))
                for name, value in zip(found.arm.JOINTS, row):
                    rr.log(f"{root}/{what}/{name}", rr.Scalars([float(value)]))
        for name in found.cameras:
            for t, (_, coloured) in zip(take.t, pictures(found, take, name)):
                rr.set_time("time", duration=float(t))
                rr.log(f"{root}/{name}", rr.Image(coloured()).compress(75))
    return len(shown)
