"""The SO-101 as the tests drive it."""

import dataclasses

import numpy as np

from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.plant import KinematicPlant

LOWER = (-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.174533)
UPPER = (1.91986, 1.74533, 1.69, 1.65806, 2.84121, 1.74533)
CONFIG = ArmConfig(
    joints=("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"),
    ids=(1, 2, 3, 4, 5, 6),
    lower=LOWER,
    upper=UPPER,
    direction=(1, 1, 1, 1, 1, 1),
    zero_step=(2048,) * 6,
    rest=(0.0, -1.2, 1.2, 1.0, 0.0, 0.0),
    max_velocity=(4.0,) * 6,
    max_acceleration=(30.0,) * 6,
    release_s=0.4,
    stop_after_s=0.5,
    lower_speed=1.5,
)
KNOWN = dataclasses.replace(CONFIG, family="so101")  # one whose kinematics are known: it is lowered by way-points


def bus(start_rad=(0.0, -0.5, 0.5, 0.5, 0.0, 0.5)):
    plant = KinematicPlant(np.array(start_rad) * 4096 / (2 * np.pi) + 2048)
    return VirtualBus(CONFIG.ids, plant), plant
