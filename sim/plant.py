"""The MuJoCo arm under the virtual servo bus, and the motor tick in virtual time: the real bytes, without waiting."""

from __future__ import annotations

import numpy as np

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.motion.messages import Command, JointState, RequestKind
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import MemoryPort
from runtime.robot import load_robot
from sim.virtual_time import MotorTick
from sim.world import World


class MujocoPlant:
    """`firmware_bridge.virtual.plant.Plant` over a World: the joints that the servos of `config` turn, second servos
    last.

    It only passes values on; the owner of the World decides when time passes. With two servos on a joint, goal and
    speed are those of the first; the joint is limp when both are, and its strength is the sum of both.
    """

    def __init__(self, world: World, config: ArmConfig):
        self.world, n = world, len(config.ids)
        self._first = n
        self._joint = np.array([*range(n), *(s[1] for s in config.shadows)])
        sign = np.array([*config.direction, *(s[2] for s in config.shadows)], float)
        unit = np.array([MODELS[m].rad_per_step for m in config.model_names])[self._joint]
        self._zero = np.array([*config.zero_step, *(s[3] for s in config.shadows)], float)
        self._rad = sign * unit / np.array(config.gear or (1.0,) * n)[self._joint]  # joint radians per servo step
        self._share = 1.0 / np.bincount(self._joint)

    def drive(self, goal: np.ndarray, torque_on: np.ndarray, speed: np.ndarray, torque_limit: np.ndarray) -> None:
        n = self._first
        limit = np.where(speed > 0, speed * np.abs(self._rad), np.inf)[:n]
        on = np.bincount(self._joint, torque_on) > 0
        pushing = torque_on | ~on[self._joint]
        strength = np.bincount(self._joint, np.where(pushing, torque_limit, 0.0)) * self._share
        self.world.set_goals(((goal - self._zero) * self._rad)[:n], on, limit, strength)

    def present(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w, j = self.world, self._joint
        return w.q[j] / self._rad + self._zero, w.qd[j] / self._rad, w.load[j] * np.sign(self._rad)


def servos(world: World, config: ArmConfig) -> VirtualBus:
    """The servos of an arm, from its robot file, over the arm of `world`."""
    models = [MODELS[m] for m in config.model_names]
    models += [models[s[1]] for s in config.shadows]
    return VirtualBus([*config.ids, *(s[0] for s in config.shadows)], MujocoPlant(world, config), models)


def virtual_motor(world: World, config: ArmConfig | None = None) -> MotorTick:
    """A motor tick for `run_episode`: limiter, state machine and servo packets, over memory instead of a port. It arms
    itself. `config` (default: the shipped simulated arm of the world's family) must be of that family."""
    config = config or load_robot(f"sim_{world.arm.NAME}").arm
    port = MemoryPort(servos(world, config))
    loop = MotorLoop(Arm(Bus(port, protocol=config.protocol), config))

    def tick(now_ns: int, command: Command | None) -> JointState:
        port.time_ns = now_ns
        return loop.tick(now_ns, command, RequestKind.ARM)

    return tick
