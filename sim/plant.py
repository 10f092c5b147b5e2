"""The MuJoCo arm as plant of the virtual servo bus, and the motor tick in virtual time, with the real bus bytes."""

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
    """The `firmware_bridge.virtual.plant.Plant` of a World, for the servos of `config`, second servos last.

    It only converts values; the owner of the World calls `advance`. A joint with two servos has the goal and the speed
    of the first and the strength of both together, and no torque when both are off.
    """

    def __init__(self, world: World, config: ArmConfig):
        self.world, n = world, len(config.ids)
        self._first = n
        self._joint = np.array([*range(n), *(s[1] for s in config.shadows)])
        sign = np.array([*config.direction, *(s[2] for s in config.shadows)], float)
        unit = np.array([MODELS[m].rad_per_step for m in config.model_names])[self._joint]
        self._zero = np.array([*config.zero_step, *(s[3] for s in config.shadows)], float)
        self._rad_per_step = sign * unit / np.array(config.gear or (1.0,) * n)[self._joint]  # joint radians per step
        self._share = 1.0 / np.bincount(self._joint)

    def drive(self, goal: np.ndarray, torque_on: np.ndarray, speed: np.ndarray, torque_limit: np.ndarray) -> None:
        n = self._first
        limit = np.where(speed > 0, speed * np.abs(self._rad_per_step), np.inf)[:n]
        on = np.bincount(self._joint, torque_on) > 0
        pushing = torque_on | ~on[self._joint]
        strength = np.bincount(self._joint, np.where(pushing, torque_limit, 0.0)) * self._share
        self.world.set_goals(((goal - self._zero) * self._rad_per_step)[:n], on, limit, strength)

    def present(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w, j = self.world, self._joint
        rad = self._rad_per_step
        return w.q[j] / rad + self._zero, w.qd[j] / rad, w.load[j] * np.sign(rad)


def servos(world: World, config: ArmConfig) -> VirtualBus:
    """The virtual bus with the servos of `config`, which move the arm of `world`."""
    models = [MODELS[m] for m in config.model_names]
    models += [models[s[1]] for s in config.shadows]
    return VirtualBus([*config.ids, *(s[0] for s in config.shadows)], MujocoPlant(world, config), models)


def virtual_motor(world: World, config: ArmConfig | None = None) -> MotorTick:
    """A motor tick for `run_episode`: limiter, state machine and servo packets, on a bus in memory. It requests arming
    itself. `config`: of the world's family; default: the shipped simulated arm of that family."""
    config = config or load_robot(f"sim_{world.family.NAME}").arm
    port = MemoryPort(servos(world, config))
    loop = MotorLoop(Arm(Bus(port, protocol=config.protocol), config))

    def tick(now_ns: int, command: Command | None) -> JointState:
        port.time_ns = now_ns
        return loop.tick(now_ns, command, RequestKind.ARM)

    return tick
