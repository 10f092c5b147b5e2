"""The MuJoCo arm under the virtual servo bus, and the motor tick in virtual time: real bytes, no waiting."""

from __future__ import annotations

import numpy as np

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.messages import Command, JointState, RequestKind
from firmware_bridge.motion.motor import MotorLoop
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from firmware_bridge.virtual.bus import MemoryPort, VirtualBus
from runtime.robot import load_robot
from sim.virtual_time import MotorTick
from sim.world import J, World

MIDDLE = 2048


class MujocoPlant:
    """`firmware_bridge.virtual.plant.Plant` over a World: 2048 steps are 0 rad, all servos turn the joint's way.

    It only passes values on; whoever owns the World decides when time passes.
    """

    def __init__(self, world: World):
        self.world = world

    def drive(self, goal: np.ndarray, torque_on: np.ndarray, speed: np.ndarray, torque_limit: np.ndarray) -> None:
        limit = np.where(speed > 0, speed * RAD_PER_STEP, np.inf)
        self.world.set_goals((goal - MIDDLE) * RAD_PER_STEP, torque_on, limit, torque_limit)

    def present(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w = self.world
        return w.q / RAD_PER_STEP + MIDDLE, w.qd / RAD_PER_STEP, w.load


def virtual_motor(world: World) -> MotorTick:
    """A motor tick for `run_episode`: limiter, state machine and servo packets, over memory instead of a port. Arms itself."""
    port = MemoryPort(VirtualBus(range(1, J + 1), MujocoPlant(world)))
    loop = MotorLoop(Arm(Bus(port), load_robot("sim_so101").arm))

    def tick(now_ns: int, command: Command | None) -> JointState:
        port.time_ns = now_ns
        return loop.tick(now_ns, command, RequestKind.ARM)

    return tick
