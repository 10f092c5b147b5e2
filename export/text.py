"""Instruction embedding without a model hub: hashed character n-grams, projected by the world model's learnt layer."""

from __future__ import annotations

import zlib

import numpy as np


def ngrams(text: str, size: int) -> np.ndarray:
    """Unit-length float32[size] of hashed word and 3- to 5-character n-gram counts."""
    padded = f" {' '.join(text.lower().split())} "
    pieces = padded.split() + [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
    out = np.zeros(size, np.float32)
    for piece in pieces:
        h = zlib.crc32(piece.encode())
        out[h % size] += 1.0 if h & 0x80000000 else -1.0
    return out / max(float(np.linalg.norm(out)), 1e-6)
