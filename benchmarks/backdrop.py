"""Draws docs/images/other_tables.png: demonstrations before and after `train --tables`. `python -m benchmarks.backdrop`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from export.backdrop import with_other_tables
from export.config import Config
from export.data import collect, load_demonstrations
from sim.tasks import TASKS

OUT = Path(__file__).parent.parent / "docs/images/other_tables.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), 1, 0, seed=3)
        data = load_demonstrations(Path(folder))
    other = with_other_tables(data, 1.0, 1, Config())
    first = np.unique(data.episode, return_index=True)[1]
    rows = [i + 30 for i in first[: len(TASKS)]]
    shown = [
        np.concatenate([getattr(source, view)[i].transpose(1, 2, 0) for i in rows], 1)
        for source in (data, other)
        for view in ("front", "wrist")
    ]
    picture = cv2.resize(np.concatenate(shown)[..., ::-1], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(args.out), picture)


if __name__ == "__main__":
    main()
