"""Measures what the latents keep of a picture: front views of each environment and their reconstruction.

    python -m analyses.november_2026.tokeniser [--checkpoint FILE ...]

It reads the demonstrations that the study bottleneck.py collected (out/held_out), prints the signal-to-noise ratio by
environment and draws docs/images/tokeniser.png: a row of pictures, and for each checkpoint a row of reconstructions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from export.checkpoint import load_checkpoint
from export.data import Demonstrations, load_demonstrations
from export.models import Tokeniser
from export.origin import CHECKPOINT
from export.rows import images
from sim.tasks import ENVIRONMENTS

FILE = Path("docs/images/tokeniser.png")
SHOWN = (
    ("seen", "ring"),
    ("background", "ring"),
    ("background", "slot"),
    ("background", "peg"),
    ("background", "press"),
    ("object", "slot"),
)
SIZE = 192  # pixels per picture


def reconstructed(tokeniser: Tokeniser, rows: np.ndarray) -> np.ndarray:
    """Reconstructions uint8[B,96,96,3] of pictures uint8[B,3,96,96]."""
    with torch.no_grad():
        out = tokeniser.decode(tokeniser.encode(images(rows))).clamp(-1, 1)
    return ((out + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def psnr(tokeniser: Tokeniser, front: np.ndarray) -> float:
    """Peak signal-to-noise ratio over pictures uint8[N,3,96,96], dB."""
    parts = np.array_split(front, max(1, len(front) // 64))
    squares = [(reconstructed(tokeniser, p).astype(float) - p.transpose(0, 2, 3, 1)) ** 2 for p in parts]
    return float(10 * np.log10(255**2 / np.mean(np.concatenate(squares))))


def first_frame(data: Demonstrations, task: str) -> np.ndarray:
    """First front picture uint8[1,3,96,96] of the second episode of `task`."""
    episode = data.scenes.index(task) + 1
    row = int(np.searchsorted(data.episode, episode))
    return data.front[row : row + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[CHECKPOINT])
    parser.add_argument("--held-out", type=Path, default=Path("out/held_out"))
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    models = [load_checkpoint(c, grow=True)[0].tokeniser.eval() for c in args.checkpoint]
    sets = {e: load_demonstrations(args.held_out / e) for e in ENVIRONMENTS}
    print(f"{'PSNR, dB':40}" + "".join(f"{e:>12}" for e in sets))
    for path, tokeniser in zip(args.checkpoint, models, strict=True):
        print(
            f"{path.parent.name + '/' + path.name:40}"
            + "".join(f"{psnr(tokeniser, d.front[::40]):12.1f}" for d in sets.values())
        )
    frames = np.concatenate([first_frame(sets[e], task) for e, task in SHOWN])
    rows = [frames.transpose(0, 2, 3, 1), *(reconstructed(t, frames) for t in models)]
    sheet = np.concatenate(
        [np.concatenate([cv2.resize(f, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for f in row], 1) for row in rows]
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), sheet[:, :, ::-1])


if __name__ == "__main__":
    main()
