"""The simulated robot and its table: MuJoCo physics, servos with finite speed, latency and resolution, two cameras.

One `World` runs one episode at a time. It has no policy and no bus: joint goals go in (radians, through `set_goals`),
positions and pictures come out. `sim.plant` puts the virtual servo bus on top of it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's rasteriser: one thread is fastest for small frames

import mujoco

from calibration.camera import Camera
from common.errors import Mendable
from firmware_bridge.arms.family import Family
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from sim import trace
from sim.in_view import InView
from sim.tasks import ARM, N_DISTRACTORS, Layout, Look, sample_layout, success
from sim.variety import BOX, CYLINDER, draw_colour, draw_table_top, scale_bodies, vary_shapes

ASSETS = Path(__file__).parent / "assets"
SERVO_DT = 0.004  # the servos' own control period, s
SERVO_SPEED = 5.0  # rad/s, STS3215 at 7.4 V; `servo_speed` in an arm's MJCF file replaces it
LATENCY_TICKS = 3  # servo periods from a new goal to motion: 12 ms
CAMERA_SIZE = (320, 240)
PRESS_M = 0.004  # travel at which a button lights up
LIT = (1.0, 0.97, 0.75, 1.0)


class WorldError(Mendable):
    """The arm cannot be simulated; the text is one sentence and the next step."""


def compiled(task: str, family: Family = ARM) -> mujoco.MjModel:
    """The model of a task (a file in assets/) with an arm at its table; raises WorldError without such an arm."""
    if not (ASSETS / f"arms/{family.NAME}.xml").is_file():
        raise WorldError(f"the arm family '{family.NAME}' has no simulated arm: add sim/assets/arms/{family.NAME}.xml.")
    files = {p.name: p.read_bytes() for p in (ASSETS / "table_top.xml", ASSETS / f"arms/{family.NAME}.xml")}
    shown, file = f"arms/{ARM.NAME}.xml".encode(), f"{family.NAME}.xml".encode()
    files["table_top.xml"] = files["table_top.xml"].replace(shown, file)
    model = mujoco.MjModel.from_xml_string((ASSETS / f"{task}.xml").read_text(), files)
    joints = tuple(model.joint(k).name for k in range(len(family.JOINTS)))
    if joints != family.JOINTS or model.nu != len(family.JOINTS):
        own = f"{', '.join(family.JOINTS)}, with an actuator each"
        raise WorldError(f"sim/assets/arms/{family.NAME}.xml has joints {', '.join(joints)}: it must have {own}.")
    needed = {"body": ("base",), "site": ("tcp",), "camera": ("wrist",), "geom": ("fixed_jaw", "moving_jaw")}
    for kind, names in needed.items():
        for name in names:
            if mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name) < 0:
                raise WorldError(f"sim/assets/arms/{family.NAME}.xml has no {kind} '{name}': add it.")
    return model


def _named_channel(part: str) -> int | None:
    """Colour channel (0 red, 1 green, 2 blue) by which instructions name a part; None where they do not."""
    return None if part.endswith("_base") else {"red": 0, "green": 1, "blue": 2}.get(part.split("_")[0])


class Scene:
    """One task's compiled model with its renderer; `reset` of a World switches between scenes."""

    def __init__(self, task: str, family: Family = ARM):
        self.model = compiled(task, family)
        self.data = mujoco.MjData(self.model)
        self.renderer: mujoco.Renderer | None = None
        m, self.in_view = self.model, InView(self.model, CAMERA_SIZE[0] / CAMERA_SIZE[1])
        names = [m.geom(i).name for i in range(m.ngeom)]
        swapped = {n.split("@")[0].rstrip("0123456789") for n in names if n.endswith("@unseen")}
        self.seen = [i for i, n in enumerate(names) if n.rstrip("0123456789") in swapped]
        self.unseen = [i for i, n in enumerate(names) if n.endswith("@unseen")]
        self.contype, self.conaffinity = m.geom_contype.copy(), m.geom_conaffinity.copy()
        self.rgba, self.force = m.geom_rgba.copy(), m.actuator_forcerange.copy()
        self.jaws = [m.geom(g).id for g in ("fixed_jaw", "moving_jaw")]
        bodies = [m.body(int(b)).name for b in m.geom_bodyid]
        table_and_arm = (0, m.body("base").id)
        roots = m.body_rootid[m.geom_bodyid]
        self.things = [
            i for i, b in enumerate(bodies) if roots[i] not in table_and_arm and not b.startswith("distractor")
        ]
        self.foreign = [[i for i, b in enumerate(bodies) if b == f"distractor{k}"] for k in range(N_DISTRACTORS)]
        # Groups of geoms of one colour: the walls of a tray, the cap of a button, its base. Holes stay dark, and a red
        # cap stays red because the instruction names it.
        parts: dict[tuple[str, str], list[int]] = {}
        for i in [*self.things, *(g for geoms in self.foreign for g in geoms)]:
            if i not in self.unseen and names[i] not in ("hole", "floor_of_tray"):
                parts.setdefault((bodies[i], names[i].rstrip("0123456789")), []).append(i)
        self.coloured = [(geoms, _named_channel(part or body)) for (body, part), geoms in parts.items()]
        self.shapes = tuple(a.copy() for a in (m.geom_type, m.geom_size, m.geom_pos, m.geom_aabb, m.geom_rbound))
        # Bodies of one or two geoms may change their proportions; bodies of more (ring, tray, block) only their width.
        self.simple: dict[int, list[int]] = {}
        for i in self.things:
            if i not in self.unseen and m.geom_type[i] in (BOX, CYLINDER):
                self.simple.setdefault(int(m.geom_bodyid[i]), []).append(i)
        self.composed = {b: g for b, g in self.simple.items() if len(g) > 2}
        self.simple = {b: g for b, g in self.simple.items() if len(g) <= 2}
        speed = [i for i in range(m.nnumeric) if m.numeric(i).name == "servo_speed"]
        self.speed = np.array(m.numeric(speed[0]).data) if speed else np.full(m.nu, SERVO_SPEED)
        self.buttons = [m.joint(i).name for i in range(m.njnt) if m.joint(i).name.endswith("_button")]
        free = np.flatnonzero(m.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        self.free = {m.body(m.jnt_bodyid[j]).name: int(m.jnt_qposadr[j]) for j in free}  # where poses begin in qpos

    def dress(self, unseen: bool) -> None:
        """Enable the seen or unseen variant of every geom with both; the other is invisible, without collisions."""
        m = self.model
        m.geom_contype[:], m.geom_conaffinity[:], m.geom_rgba[:] = self.contype, self.conaffinity, self.rgba
        m.geom_type[:], m.geom_size[:], m.geom_pos[:], m.geom_aabb[:], m.geom_rbound[:] = self.shapes
        hidden = self.seen if unseen else self.unseen
        m.geom_contype[hidden] = m.geom_conaffinity[hidden] = 0
        m.geom_rgba[hidden, 3] = 0.0

    def look(self, look: Look) -> None:
        m = self.model
        if look.tint:
            rng = np.random.default_rng(look.tint)
            for geoms, named in self.coloured:
                m.geom_rgba[geoms, :3] = draw_colour(rng, m.geom_rgba[geoms[0], :3], named)
            if rng.random() < 0.6:
                vary_shapes(m, self.simple, rng)
                scale_bodies(m, self.composed, rng)
            if look.table == "drawn":
                self._draw_table(rng)
        table = m.geom("table").id
        m.geom_matid[table] = m.material(look.table).id if look.table else -1
        m.geom_rgba[table, :3] = (1, 1, 1) if look.table else look.colour
        m.light_diffuse[0] = look.key
        m.light_dir[0] = np.array(look.light) / np.linalg.norm(look.light)
        m.vis.headlight.ambient[:] = m.vis.headlight.diffuse[:] = look.ambient
        for k in range(N_DISTRACTORS):
            m.body(f"distractor{k}").pos[:] = (0, 0, -2)
            m.geom_rgba[self.foreign[k], 3] = float(k in {c[0] for c in look.clutter})  # else below the floor, unseen
        for k, x, y, yaw in look.clutter:
            body = m.body(f"distractor{k}")
            body.pos[:], body.quat[:] = (x, y, 0), (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))

    def _draw_table(self, rng: np.random.Generator) -> None:
        """Draw another picture for the material "drawn" and load it into the renderer."""
        m, texture = self.model, self.model.texture("drawn")
        size, at = int(texture.height[0]), int(texture.adr[0])
        m.tex_data[at : at + 3 * size * size] = draw_table_top(rng, size).ravel()
        m.mat_texrepeat[m.material("drawn").id] = rng.uniform(1.0, 6.0)
        if self.renderer is not None:
            self.renderer._gl_context.make_current()
            mujoco.mjr_uploadTexture(m, self.renderer._mjr_context, texture.id)


class World:
    """Physics at 500 Hz, servos at 250 Hz. `q` float64[J]: true joint angles (rad); `measured`: those of the encoders.

    Construct it with a layout, or with a seed from which one is drawn. `family`: the family of its arm.
    """

    def __init__(self, seed: int = 0, *, layout: Layout | None = None, family: Family = ARM):
        self.family, self._n = family, len(family.JOINTS)
        self._scenes: dict[str, Scene] = {}
        self.reset(layout or sample_layout(np.random.default_rng(seed)))

    def reset(self, layout: Layout) -> None:
        """Start an episode; the arm stands at `layout.start`, at rest."""
        if layout.task not in self._scenes:
            self._scenes[layout.task] = Scene(layout.task, self.family)
        self.scene = scene = self._scenes[layout.task]
        self.model, self.data = scene.model, scene.data
        self._substeps = round(SERVO_DT / self.model.opt.timestep)
        mujoco.mj_resetData(self.model, self.data)
        self.layout = layout
        scene.dress(layout.environment == "object")
        scene.look(layout.look)
        self._fixed = [name for name in layout.places if self.free_joint(name) is None]
        self.pressed = list(layout.pressed)
        for button in self.pressed:
            self._light(button)
        for name, (x, y, yaw) in layout.places.items():
            turned = (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
            body = self.model.body(name)
            at = self.free_joint(name)
            if at is None:
                body.pos[:2], body.quat[:] = (x, y), turned
            else:
                self.data.qpos[at : at + 2], self.data.qpos[at + 3 : at + 7] = (x, y), turned
        n, self._limits = self._n, self.model.jnt_range[: self._n].T
        self.data.qpos[:n], _ = self.family.inverse(np.append(layout.start, layout.jaw), *self._limits)
        self._settle_coupled()
        self._goal = self.q
        self._profile = self._goal.copy()
        self._delay = [self._goal.copy()] * LATENCY_TICKS
        self._torque: np.ndarray = np.ones(n, bool)
        self._driven: np.ndarray = np.zeros(n, bool)  # whether torque has been on since `reset`
        self._speed: np.ndarray = scene.speed.copy()
        self.model.actuator_forcerange[:] = scene.force
        self.data.ctrl[:] = self._goal
        self._debt = 0.0
        mujoco.mj_step(self.model, self.data, 60)  # let the objects settle on the table
        self.data.time = 0.0

    def _settle_coupled(self) -> None:
        """Set the positions of joints that are coupled to others (fingers on a crank)."""
        m = self.model
        for k in range(m.neq):
            if m.eq_type[k] == mujoco.mjtEq.mjEQ_JOINT:
                a, b = (int(m.jnt_qposadr[j]) for j in (m.eq_obj1id[k], m.eq_obj2id[k]))
                moved = self.data.qpos[b] - m.qpos0[b]
                self.data.qpos[a] = m.qpos0[a] + np.polynomial.polynomial.polyval(moved, m.eq_data[k, :5])

    def free_joint(self, name: str) -> int | None:
        """Index in qpos where a free body's pose begins; None for a fixed body."""
        return self.scene.free.get(name)

    @property
    def instruction(self) -> str:
        return self.layout.instruction

    @property
    def time_s(self) -> float:
        return float(self.data.time)

    @property
    def q(self) -> np.ndarray:
        return self.data.qpos[: self._n].copy()

    @property
    def qd(self) -> np.ndarray:
        return self.data.qvel[: self._n].copy()

    @property
    def load(self) -> np.ndarray:
        """Actuator force divided by its limit, float64[J] in [-1, 1]; 0 for a joint that its brake holds."""
        return np.where(self._torque | self._driven, self.data.actuator_force / self.scene.force[:, 1], 0.0)

    @property
    def measured(self) -> np.ndarray:
        """Joint angles as the encoders report them: whole steps of 1/4096 turn."""
        return np.round(self.data.qpos[: self._n] / RAD_PER_STEP) * RAD_PER_STEP

    @property
    def pose(self) -> np.ndarray:
        """Measured tool pose float64[6] (`firmware_bridge.arms.family`)."""
        return self.family.forward(self.measured)

    def set_goals(
        self,
        goal_rad: np.ndarray,
        torque_on: np.ndarray | None = None,
        speed_rad_s: np.ndarray | None = None,
        torque_limit: np.ndarray | None = None,
    ) -> None:
        """Write the goal registers of all joints; angles are rounded to servo steps and clipped to the joint limits.
        `torque_limit` in [0, 1].

        A brake holds a joint at its start pose until its torque is switched on for the first time after `reset`, so
        that the arm does not fall while it waits. From then on a joint without torque moves freely.
        """
        goal = np.clip(np.round(np.asarray(goal_rad, float) / RAD_PER_STEP) * RAD_PER_STEP, *self._limits)
        if torque_on is not None:
            self._torque = np.asarray(torque_on, bool)
        self._driven = self._driven | self._torque
        self._goal = np.where(self._driven, goal, self._goal)
        if speed_rad_s is not None:
            self._speed = np.clip(np.asarray(speed_rad_s, float), 0.0, self.scene.speed)
        if torque_limit is not None:
            limit = np.where(self._driven, np.asarray(torque_limit, float), 1.0)
            self.model.actuator_forcerange[:] = self.scene.force * limit[:, None]

    def advance(self, dt: float) -> None:
        """Advance the physics by `dt` seconds, in whole servo periods; the remainder is added to the next call."""
        self._debt += dt
        while self._debt > SERVO_DT / 2:
            self._debt -= SERVO_DT
            self._servo_period()

    def _servo_period(self) -> None:
        limit = self._speed * SERVO_DT
        self._profile += np.clip(self._goal - self._profile, -limit, limit)
        self._delay.append(self._profile.copy())
        self.data.ctrl[:] = self._delay.pop(0)
        limp = self._driven & ~self._torque
        if limp.any():  # a servo without torque follows its joint without force
            here = self.q
            self._profile[limp] = here[limp]
            self._delay = [np.where(limp, here, d) for d in self._delay]
            self.data.ctrl[limp] = here[limp]
        mujoco.mj_step(self.model, self.data, self._substeps)
        for name in self.scene.buttons:
            if name not in self.pressed and float(self.data.joint(name).qpos[0]) < -PRESS_M:
                self.pressed.append(name)
                self._light(name)

    def _light(self, button: str) -> None:
        cap = button.replace("_button", "_cap")
        for geom in (cap, f"{cap}@unseen"):
            self.model.geom(geom).rgba[:3] = LIT[:3]

    def camera(self, name: str) -> Camera:
        """Calibration of a simulated camera: exact pinhole, 320x240."""
        (width, height), cam = CAMERA_SIZE, self.model.camera(name)
        f = 0.5 * height / math.tan(math.radians(float(cam.fovy[0])) / 2)
        K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1.0]])
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        pose = np.eye(4)
        pose[:3, :3] = self.data.camera(name).xmat.reshape(3, 3) @ np.diag([1, -1, -1.0])  # GL looks along -z
        pose[:3, 3] = self.data.camera(name).xpos
        if name == "front":
            return Camera(name, width, height, K, np.zeros(0), pose)
        on_tool = np.linalg.inv(self.family.tool(self.q)) @ pose
        return Camera(name, width, height, K, np.zeros(0), T_tool_from_cam=on_tool)

    def render(self, camera: str) -> np.ndarray:
        """Picture uint8[240, 320, 3] RGB."""
        renderer = self.scene.renderer
        if renderer is None:
            renderer = self.scene.renderer = mujoco.Renderer(self.model, CAMERA_SIZE[1], CAMERA_SIZE[0])
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self.scene.in_view.update(renderer, self.data, camera)
        return renderer.render()

    @property
    def visible(self) -> np.ndarray:
        """The state that pictures depend on, float64[nq + buttons + 2 fixed]: joint positions, 1 for every lit button,
        x and y (m) of what is fixed to the table."""
        lit = [float(b in self.pressed) for b in self.scene.buttons]
        return np.concatenate([self.data.qpos, lit, *(self.model.body(n).pos[:2] for n in self._fixed)])

    def render_visible(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures uint8[240, 320, 3] RGB of both cameras at `state` (see `visible`), without physics."""
        self.show(state)
        return {name: self.render(name) for name in ("front", "wrist")}

    def show(self, state: np.ndarray) -> None:
        """Put everything that is visible where `state` (see `visible`) says, without physics."""
        self.data.qpos[:], lamps, places = np.split(state, np.cumsum([self.model.nq, len(self.scene.buttons)]))
        for name, lit in zip(self.scene.buttons, lamps, strict=True):
            if lit:
                self._light(name)
        for name, place in zip(self._fixed, places.reshape(-1, 2), strict=True):
            self.model.body(name).pos[:2] = place
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def close(self) -> None:
        for scene in self._scenes.values():
            if scene.renderer is not None:
                scene.renderer.close()
                scene.renderer = None

    # -- true state: for the scripted expert and the score, not for a policy -------------------------------------------

    def position(self, body: str) -> np.ndarray:
        """True position of a body float64[3], m: the centre of a free body, the foot of a fixed one."""
        at = self.free_joint(body)
        return self.data.qpos[at : at + 3].copy() if at is not None else self.model.body(body).pos.copy()

    def yaw(self, body: str) -> float:
        """True heading of a body, rad."""
        at = self.free_joint(body)
        w, x, y, z = self.model.body(body).quat if at is None else self.data.qpos[at + 3 : at + 7]
        return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))

    def is_round(self, body: str) -> bool:
        """Whether the body looks the same from all sides: upright cylinders only."""
        m = self.model
        own = (m.geom_bodyid == m.body(body).id) & (m.geom_rgba[:, 3] > 0)
        return bool((m.geom_type[own] == CYLINDER).all())

    def upright(self, body: str) -> float:
        """Cosine of a free body's tilt."""
        at = self.free_joint(body)
        assert at is not None, body
        x, y = self.data.qpos[at + 4 : at + 6]
        return float(1 - 2 * (x * x + y * y))

    def at_rest(self, body: str) -> bool:
        v = self.data.qvel[self.model.jnt_dofadr[self.model.body(body).jntadr[0]] :][:6]
        return bool(np.abs(v[:3]).max() < 0.02)

    def touched(self, body: str) -> bool:
        """Whether a jaw touches the body."""
        pairs = self.data.contact.geom[: self.data.ncon]
        jaws, own = np.isin(pairs, self.scene.jaws), self.model.geom_bodyid[pairs] == self.model.body(body).id
        return bool((jaws & own[:, ::-1]).any())

    def holds(self, body: str) -> bool:
        """Whether the gripper carries the body: a jaw touches it, and it is off the table and near the tool."""
        return self.position(body)[2] > self.resting_z(body) + 0.004 and self.touched(body)

    def resting_z(self, body: str) -> float:
        """Height of a free body's centre when it stands on the table."""
        return float(self.model.body(body).pos[2])

    def success(self) -> bool:
        """See `sim.tasks.success` and `sim.trace.success`."""
        return trace.success(self) if self.layout.task == trace.TASK else success(self)
