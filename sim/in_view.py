"""Which geoms a camera may see: a picture takes a third less time when the others are left out, and is the same."""

from __future__ import annotations

import mujoco
import numpy as np

HIDDEN = 5  # a group of geoms that MuJoCo does not draw by default
ASIDE = 1.02  # the view is taken as that much wider, m in m: rounding must not hide what is half a pixel inside


class InView:
    """Geoms of one model in the views of its cameras; `aspect`: width by height of the pictures.

    A geom is out of view when its bounding sphere is. The floor is out of view when the corners of the view are all on
    the table, which then covers it.
    """

    def __init__(self, model: mujoco.MjModel, aspect: float):
        self.model, self.groups, self.aspect = model, model.geom_group.copy(), aspect
        self._planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        self._floor, self._table = model.geom("floor").id, model.geom("table").id
        self._nearest = 2 * model.vis.map.znear * model.stat.extent

    def visible(self, data: mujoco.MjData, camera: int) -> np.ndarray:
        """bool[ngeom]: which geoms may be in the picture. Positions are those of the last kinematics."""
        m, at, turned = self.model, data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
        high = ASIDE * np.tan(np.radians(m.cam_fovy[camera]) / 2)
        half = np.array([high * self.aspect, high])  # of the view, at a depth of 1 m
        there = (data.geom_xpos - at) @ turned  # the camera looks along -z, y is up
        depth, radius = -there[:, 2], m.geom_rbound
        reach = depth[:, None] * half + radius[:, None] * np.sqrt(1 + half**2)
        seen = (np.abs(there[:, :2]) <= reach).all(axis=1) & (depth + radius > 0)
        seen |= self._planes  # without end
        seen[self._floor] = not self._table_fills(at, turned, half)
        return seen

    def _table_fills(self, at: np.ndarray, turned: np.ndarray, half: np.ndarray) -> bool:
        """Whether every ray of the view ends on the table top."""
        m, (w, h) = self.model, half
        middle, size = m.geom_pos[self._table], m.geom_size[self._table]
        rays = np.array([[w, h, -1], [w, -h, -1], [-w, h, -1], [-w, -h, -1]]) @ turned.T
        if (rays[:, 2] > -1e-3).any():
            return False
        depth = (at[2] - middle[2] - size[2]) / -rays[:, 2]
        hits = at[:2] + depth[:, None] * rays[:, :2]
        return bool((depth > self._nearest).all() and (np.abs(hits - middle[:2]) < size[:2]).all())

    def update(self, renderer: mujoco.Renderer, data: mujoco.MjData, camera: str) -> None:
        """Hand the renderer what the camera may see."""
        self.model.geom_group[:] = np.where(self.visible(data, self.model.camera(camera).id), self.groups, HIDDEN)
        renderer.update_scene(data, camera)
        self.model.geom_group[:] = self.groups
