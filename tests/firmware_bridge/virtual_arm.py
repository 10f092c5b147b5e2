"""An arm of any configuration over virtual servos, without physics."""

from typing import Any

import numpy as np

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import MIDDLE
from firmware_bridge.virtual.line import MemoryPort
from firmware_bridge.virtual.plant import KinematicPlant

# ViperX 300: second servos on shoulder and elbow turn the other way; the gripper is geared.
VIPERX = ArmConfig(
    joints=("waist", "shoulder", "elbow", "wrist_angle", "wrist_rotate", "gripper"),
    ids=(1, 2, 4, 6, 8, 9),
    lower=(-1.5,) * 6,
    upper=(1.5,) * 6,
    direction=(1, 1, -1, 1, 1, 1),
    zero_step=(2048,) * 6,
    rest=(0.0,) * 6,
    max_velocity=(3.0,) * 6,
    max_acceleration=(20.0,) * 6,
    models=("XM540-W270",) * 4 + ("XM430-W350",) * 2,
    gear=(1.0,) * 5 + (2.0,),
    shadows=((3, 1, -1, 2048), (5, 2, 1, 2048)),
)


def virtual(config: ArmConfig, start: Any = MIDDLE) -> tuple[Any, Any]:
    ids = [*config.ids, *(s[0] for s in config.shadows)]
    models = [MODELS[m] for m in config.model_names] + [MODELS[config.model_names[s[1]]] for s in config.shadows]
    plant = KinematicPlant(np.full(len(ids), 2048.0))
    servos = VirtualBus(ids, plant, models)
    arm = Arm(Bus(MemoryPort(servos), protocol=config.protocol), config)
    plant.position = arm.to_steps(np.array(start)).astype(float)
    return arm, servos
