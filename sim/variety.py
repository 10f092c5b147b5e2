"""Random table tops, colours and shapes of objects for play.

Task demonstrations show one table and one set of objects. Play takes the place of the large data set of the paper's
world model (1.9 M trajectories), so its table tops, colours and shapes do not repeat.
"""

from __future__ import annotations

import cv2
import mujoco
import numpy as np

BOX, CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER


def draw_table_top(rng: np.random.Generator, size: int) -> np.ndarray:
    """A pattern uint8[size, size, 3] in two or three similar colours: squares, stripes, marks, speckles or shades."""
    base = np.clip(rng.uniform(0.3, 0.85) + rng.uniform(-0.14, 0.14, 3), 0.1, 0.95)
    other = np.clip(base + rng.uniform(-0.22, 0.22) + rng.uniform(-0.10, 0.10, 3), 0.05, 0.98)
    y, x = np.mgrid[0:size, 0:size] / size
    kind = rng.choice(["squares", "stripes", "shade", "speckles", "clouds", "marks"])
    if kind == "squares":
        n = int(rng.integers(1, 5))
        share = ((np.floor(x * 2 * n) + np.floor(y * 2 * n)) % 2).astype(float)
    elif kind == "stripes":
        a = rng.uniform(0, np.pi)
        share = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(1, 6) * (x * np.cos(a) + y * np.sin(a)))
        share = share if rng.random() < 0.5 else (share > 0.5).astype(float)
    elif kind == "shade":
        a = rng.uniform(0, 2 * np.pi)
        share = np.clip(0.5 + (x - 0.5) * np.cos(a) + (y - 0.5) * np.sin(a), 0, 1)
    elif kind == "speckles":
        share = (rng.random((size, size)) < rng.uniform(0.03, 0.2)).astype(float)
    elif kind == "clouds":
        coarse = rng.random((int(rng.integers(3, 12)),) * 2)
        share = np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)
    else:
        share = np.zeros((size, size))
        width = int(rng.integers(1, max(2, size // 12)))
        for at in rng.integers(0, size, int(rng.integers(1, 4))):
            share[at : at + width] = share[:, at : at + width] = 1.0
    colours = base + share[..., None] * (other - base)
    return np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def draw_colour(rng: np.random.Generator, usual: np.ndarray, named: int | None) -> np.ndarray:
    """Another colour float[3] for an object of colour `usual`: similar or arbitrary. If an instruction names the colour
    (`named`: 0 red, 1 green, 2 blue), that channel stays the strongest."""
    while True:
        near = usual + rng.uniform(-0.45, 0.45, 3)
        colour = np.clip(near if named is not None or rng.random() < 0.5 else rng.uniform(0, 1, 3), 0, 1)
        if named is None or colour[named] > np.delete(colour, named).max() + 0.2:
            return colour


def vary_shapes(m: mujoco.MjModel, bodies: dict[int, list[int]], rng: np.random.Generator) -> None:
    """Stretch each body's geoms horizontally, and turn some cylinders into boxes and some boxes into cylinders;
    `bodies` maps body id -> geom ids."""
    for geoms in bodies.values():
        stretch, swap = rng.uniform(0.80, 1.20, 2), rng.random() < 0.5
        for g in geoms:
            kind, size = m.geom_type[g], m.geom_size[g].copy()
            half = np.array([size[0], size[0], size[1]]) if kind == CYLINDER else size
            even = abs(half[0] - half[1]) < 1e-6
            becomes = (BOX if kind == CYLINDER else CYLINDER) if swap and even else kind
            half[:2] *= stretch if becomes == BOX else stretch[0]
            m.geom_type[g] = becomes
            m.geom_size[g] = half if becomes == BOX else (half[0], half[2], 0.0)
            m.geom_aabb[g, 3:] = half
            m.geom_rbound[g] = np.linalg.norm(half)


def scale_bodies(m: mujoco.MjModel, bodies: dict[int, list[int]], rng: np.random.Generator) -> None:
    """Make bodies of several geoms (a ring, a tray) wider or narrower; `bodies` maps body id -> geom ids."""
    for geoms in bodies.values():
        factor = rng.uniform(0.9, 1.1)
        for g in geoms:
            m.geom_pos[g, :2] *= factor
            m.geom_size[g, :2] *= factor
            m.geom_aabb[g, 3:5] *= factor
            m.geom_rbound[g] *= max(factor, 1.0)
