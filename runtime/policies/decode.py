"""From network outputs to end-effector targets, and back for labels: training and robot share these functions."""

from __future__ import annotations

import numpy as np

from calibration.camera import Camera
from firmware_bridge.arms.family import rotation
from firmware_bridge.arms.five_axis import FiveAxis
from runtime.bundle import Bundle, BundleError


def five_axis(bundle: Bundle) -> FiveAxis:
    """The arm that a bundle was made for; raises BundleError unless it has five axes and a jaw, as this policy's tool
    poses do."""
    family = bundle.family
    if not isinstance(family, FiveAxis):
        raise BundleError(
            f"{bundle.path} is a HarmoWAM bundle for '{family.NAME}', but HarmoWAM drives arms of five axes: name "
            "another with --bundle."
        )
    return family


def proprio(pose: np.ndarray) -> np.ndarray:
    """What the models are told of the arm: float32[..., 4] = z, pitch, roll, jaw of poses [..., 6]; never x, y or
    pan."""
    return np.asarray(pose, np.float32)[..., 2:6]


def _tool_frame(pose: np.ndarray, family: FiveAxis) -> np.ndarray:
    return rotation(family.heading(pose), pose[..., 3], pose[..., 4])


def relative_chunk(pose: np.ndarray, targets: np.ndarray, family: FiveAxis) -> np.ndarray:
    """Targets [..., K, 6] seen from the tool at `pose` [..., 6]: position in its frame, pitch and roll as differences,
    jaw as it is."""
    R = _tool_frame(pose, family)
    position = np.einsum("...ji,...kj->...ki", R, targets[..., :3] - pose[..., None, :3])
    return np.concatenate([position, targets[..., 3:5] - pose[..., None, 3:5], targets[..., 5:]], -1).astype(np.float32)


def absolute_chunk(pose: np.ndarray, chunk: np.ndarray, family: FiveAxis) -> np.ndarray:
    """Inverse of `relative_chunk`: float64[..., K, 6] in the base frame."""
    R = _tool_frame(pose, family)
    position = np.einsum("...ij,...kj->...ki", R, chunk[..., :3]) + pose[..., None, :3]
    return np.concatenate([position, chunk[..., 3:5] + pose[..., None, 3:5], chunk[..., 5:]], -1)


def heatmap_cell(camera: Camera, points: np.ndarray, side: int) -> np.ndarray:
    """Heat-map coordinates float64[..., 2] (column, row; cell centres at whole numbers) of points [..., 3] in the base
    frame."""
    return camera.scaled(side, side).project(points)


def heatmap_peak(logits: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Where a heat map [side * side] peaks, float64[2] (column, row), and the probability mass round it.

    The peak is the best cell, refined by the centre of mass of its 5x5 neighbourhood: a whole cell is 7 mm on the
    table.
    """
    heat = logits.reshape(side, side)
    probability = np.exp(heat - heat.max())
    probability /= probability.sum()
    row, column = divmod(int(probability.argmax()), side)
    r0, r1, c0, c1 = max(row - 2, 0), min(row + 3, side), max(column - 2, 0), min(column + 3, side)
    near = probability[r0:r1, c0:c1]
    mass = float(near.sum())
    rows, columns = np.mgrid[r0:r1, c0:c1]
    return np.array([(near * columns).sum(), (near * rows).sum()]) / mass, mass


def heatmap_point(camera: Camera, logits: np.ndarray, side: int, z: float) -> tuple[np.ndarray, float]:
    """The point [3] on the plane of height `z` under the heat map's peak, and the probability mass round it."""
    cell, mass = heatmap_peak(logits, side)
    return camera.scaled(side, side).at_height(cell, z), mass
