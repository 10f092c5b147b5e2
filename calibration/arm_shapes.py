"""Convex shapes of an arm: of its family's boxes, or of the meshes that a URDF names.

Source of the file formats: ros.org/urdf/XML, and the STL files that CAD programs write (binary and ASCII).
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from calibration.camera import CalibrationError
from common.files import barred
from firmware_bridge.arms.family import Family, points

BASE = -1  # the link of shapes that do not move
MOST_BYTES = 64 * 1024 * 1024  # of a mesh
SLAB_M = 0.035  # a mesh, which is rarely convex, is cut across its longest side into parts of about this
DIRECTIONS = 60  # a mesh is kept by the vertices that lie farthest in so many directions
BOX_SD_M = 0.003  # how far the families' boxes, which enclose the parts, lie off them
MESH_SD_M = 0.0007


@dataclass(frozen=True)
class Shapes:
    """Vertices float64[V,3] (m) of S convex solids in the frames of their links; `ends` int64[S+1]: solid s has the
    vertices from ends[s] to ends[s+1]; `link` int64[S]: of the family's chain, or `BASE`. `sd_m`: how far they are
    off."""

    vertices: np.ndarray
    ends: np.ndarray
    link: np.ndarray
    sd_m: float

    @property
    def of_vertex(self) -> np.ndarray:
        """The link of each vertex, int64[V]."""
        return np.repeat(self.link, np.diff(self.ends))

    def coarse(self) -> Shapes:
        """One solid a link, for a quick look."""
        links = np.unique(self.link)
        return _joined([(int(k), _extremes(self.vertices[self.of_vertex == k])) for k in links], self.sd_m)

    def drawn(self, rng: np.random.Generator) -> Shapes:
        """The shapes as they may be as well: each solid shifted and grown by random amounts of `sd_m`."""
        parts = [self.vertices[a:b] for a, b in zip(self.ends[:-1], self.ends[1:])]
        for k, part in enumerate(parts):
            middle, half = part.mean(0), np.maximum(np.ptp(part, axis=0) / 2, self.sd_m)
            grown = 1 + rng.normal(0, self.sd_m, 3) / half
            parts[k] = middle + (part - middle) * grown + rng.normal(0, self.sd_m, 3)
        return dataclasses.replace(self, vertices=np.concatenate(parts))


def _joined(solids: list[tuple[int, np.ndarray]], sd_m: float) -> Shapes:
    ends = np.cumsum([0, *(len(v) for _, v in solids)])
    return Shapes(np.concatenate([v for _, v in solids]), ends, np.array([k for k, _ in solids]), sd_m)


def of_family(arm: Family) -> Shapes:
    """Each box of the family as a solid."""
    boxes = [(BASE, b) for b in arm.BASE] + [(k, b) for k, link in enumerate(arm.chain) for b in link.boxes]
    return _joined([(k, points((b,))[:8]) for k, b in boxes], BOX_SD_M)


def of_urdf(path: Path, arm: Family) -> Shapes:
    """Each visual mesh (STL), box and cylinder of a URDF as a solid, by its convex hull. Its joints have the family's
    names and zeros, its root is the family's base. Raises CalibrationError."""
    if said := barred(path):
        raise CalibrationError(said)
    try:
        root = ET.fromstring(path.read_bytes())
        if root.tag != "robot":
            raise ValueError("its root is no <robot>")
        frames, carried = _zero_pose(root, arm)
        solids = []
        chain = np.linalg.inv(arm.frames(np.zeros(len(arm.JOINTS))))
        for link in root.findall("link"):
            name = str(link.get("name"))
            for visual in link.findall("visual"):
                if name not in frames or (found := _points(visual, path.parent)) is None:
                    continue
                T, k = frames[name] @ _origin(visual), carried[name]
                for part in _slabs(found):
                    at = _extremes(part) @ T[:3, :3].T + T[:3, 3]
                    solids.append((k, at if k == BASE else at @ chain[k, :3, :3].T + chain[k, :3, 3]))
    except (OSError, ValueError, ET.ParseError, IndexError) as e:
        raise CalibrationError(f"{path} cannot be used ({e}): give the arm's URDF, with its meshes beside it.") from e
    missing = [arm.JOINTS[k] for k in range(len(arm.chain)) if k not in {s[0] for s in solids}]
    if missing:
        raise CalibrationError(f"{path} has no shape that {missing[0]} moves: give the URDF of this arm ({arm.NAME}).")
    return _joined(solids, MESH_SD_M)


def _zero_pose(root: ET.Element, arm: Family) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """T_base_from_link of every link with all joints at 0, and the last joint of the chain that carries it."""
    joints = [(j, str(j.find("parent").get("link")), str(j.find("child").get("link"))) for j in root.findall("joint")]  # type: ignore[union-attr]
    children = {c for _, _, c in joints}
    roots = [str(k.get("name")) for k in root.findall("link") if k.get("name") not in children]
    if len(roots) != 1:
        raise ValueError("its links are not one tree")
    frames, carried, todo = {roots[0]: np.eye(4)}, {roots[0]: BASE}, [roots[0]]
    while todo:
        at = todo.pop()
        for joint, parent, child in joints:
            if parent != at or child in frames:
                continue
            name = str(joint.get("name"))
            frames[child] = frames[at] @ _origin(joint)
            carried[child] = arm.JOINTS.index(name) if name in arm.JOINTS[: len(arm.chain)] else carried[at]
            todo.append(child)
    return frames, carried


def _origin(element: ET.Element) -> np.ndarray:
    """The transform float64[4,4] of an element's <origin>: fixed axes roll, pitch, yaw."""
    found, T = element.find("origin"), np.eye(4)
    if found is None:
        return T
    T[:3, 3] = _numbers(found.get("xyz", "0 0 0"))
    r, p, y = _numbers(found.get("rpy", "0 0 0"))
    x, z = cv2.Rodrigues(np.array([r, 0, 0.0]))[0], cv2.Rodrigues(np.array([0, 0, y]))[0]
    T[:3, :3] = z @ cv2.Rodrigues(np.array([0, p, 0.0]))[0] @ x
    return T


def _numbers(text: str, count: int = 3) -> np.ndarray:
    out = np.array([float(v) for v in text.split()])
    if out.shape != (count,) or not np.isfinite(out).all():
        raise ValueError(f"'{text[:40]}' is not {count} numbers")
    return out


def _points(visual: ET.Element, folder: Path) -> np.ndarray | None:
    """Vertices float64[n,3] (m) of a visual; None for one without a shape that is known."""
    mesh, box, round_ = (visual.find(f"geometry/{k}") for k in ("mesh", "box", "cylinder"))
    if mesh is not None:
        name = str(mesh.get("filename")).partition("//")[2] or str(mesh.get("filename"))
        at = next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), None)
        if at is None:
            raise ValueError(f"its mesh {name[:80]} is missing")
        return read_stl(at) * _numbers(mesh.get("scale", "1 1 1"))
    if box is not None:
        half = _numbers(str(box.get("size"))) / 2
        return np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    if round_ is not None:
        r, h = float(str(round_.get("radius"))), float(str(round_.get("length"))) / 2
        a = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        ring = np.stack([r * np.cos(a), r * np.sin(a)], 1)
        return np.concatenate([np.column_stack([ring, np.full(24, s)]) for s in (-h, h)])
    return None


def read_stl(path: Path) -> np.ndarray:
    """Corners float64[n,3] of the triangles of an STL file, binary or ASCII. Raises OSError, ValueError."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES >> 20} MiB")
    raw = path.read_bytes()
    count = int.from_bytes(raw[80:84], "little") if len(raw) >= 84 else 0
    if len(raw) == 84 + 50 * count and count:
        rows = np.frombuffer(raw, np.dtype([("f", "<f4", (4, 3)), ("a", "<u2")]), count, 84)
        out: np.ndarray = rows["f"][:, 1:].reshape(-1, 3).astype(float)
    else:
        words = raw.decode("ascii", "replace").split()
        out = np.array([words[k + 1 : k + 4] for k, w in enumerate(words) if w == "vertex"], float)
    if out.ndim != 2 or out.shape[1:] != (3,) or not np.isfinite(out).all():
        raise ValueError(f"{path} is no STL file")
    return out


def _slabs(corners: np.ndarray) -> list[np.ndarray]:
    """The corners float64[3n,3] of n triangles, cut across the longest side; of a box or cylinder as they are."""
    extent = np.ptp(corners, axis=0)
    count, along = int(np.ceil(extent.max() / SLAB_M)), int(extent.argmax())
    if len(corners) < 300 or count < 2:
        return [corners]
    triangles = corners.reshape(-1, 3, 3)
    low, high = triangles[..., along].min(1), triangles[..., along].max(1)
    cuts = np.linspace(corners[:, along].min(), corners[:, along].max(), count + 1)
    out = []
    for a, b in zip(cuts[:-1], cuts[1:]):
        part = triangles[(high > a) & (low < b)].reshape(-1, 3).copy()
        part[:, along] = np.clip(part[:, along], a, b)
        out.append(part)
    return [p for p in out if len(p)]


def _extremes(vertices: np.ndarray) -> np.ndarray:
    """The vertices that lie farthest in `DIRECTIONS` directions spread evenly over the sphere (Fibonacci's spiral)."""
    k = np.arange(DIRECTIONS) + 0.5
    z, a = 1 - 2 * k / DIRECTIONS, np.pi * (1 + 5**0.5) * k
    r = np.sqrt(1 - z * z)
    around = np.stack([r * np.cos(a), r * np.sin(a), z], 1)
    best = np.full(DIRECTIONS, -np.inf)
    index = np.zeros(DIRECTIONS, int)
    for first in range(0, len(vertices), 4096):
        along = vertices[first : first + 4096] @ around.T
        top = along.argmax(0)
        better = along[top, np.arange(DIRECTIONS)] > best
        index[better], best[better] = first + top[better], along[top, np.arange(DIRECTIONS)][better]
    return vertices[np.unique(index)]
