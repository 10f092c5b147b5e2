"""The virtual arm of `harmowam rehearse`: servos on a pseudo-terminal, and the hand of the person who sets them up.

The hand moves the joints one step whenever somebody reads them, so that a reader on a late machine misses no end of a
range.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.clock import prefer
from common.timing import SIM_SERVO_PRIORITY
from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from sim.tasks import ARM

ZERO_STEP = np.array([2085.0, 1996, 2112, 2027, 2063, 2018])  # of each servo at 0 rad: horns never sit in the middle
NEW_ID = 1  # of a servo as it is delivered
QUICK = 5  # looks at the joints while the hand takes them from one pose to the next
PATIENCE_S = 30.0


class HeldPlant(KinematicPlant):
    """Joints that go to their goals, and that a hand moves along `way`: float64[n] steps each, one at every
    reading."""

    def __init__(self, start: np.ndarray):
        super().__init__(start)
        self.way: deque[np.ndarray] = deque()
        self.joints = multiprocessing.get_context("spawn").RawArray("d", len(start))  # rad, for other processes

    def present(self, now_ns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with contextlib.suppress(IndexError):
            self.position = self.way.popleft()
        present = super().present(now_ns)
        self.joints[:] = ((self.position - ZERO_STEP) * RAD_PER_STEP).tolist()
        return present


def steps(q: np.ndarray) -> np.ndarray:
    """Servo steps of joint angles float64[6] (rad)."""
    return ZERO_STEP + np.asarray(q, float) / RAD_PER_STEP


class VirtualArm:
    """Six servos, ids `ids`, in the zero pose with the jaw shut; use it inside `plugged_in`."""

    def __init__(self, ids: Sequence[int] = range(1, 7)):
        self.zero_pose = np.append(np.zeros(5), ARM.SHUT)
        self.plant = HeldPlant(steps(self.zero_pose))
        self.servos = VirtualBus(ids, self.plant)

    @property
    def q(self) -> np.ndarray:
        """True joint angles float64[6], rad."""
        return (self.plant.position - ZERO_STEP) * RAD_PER_STEP

    def put(self, q: np.ndarray) -> None:
        """Put the arm where its joints have the angles `q` float64[6] (rad)."""
        self.plant.way.append(steps(q))

    def carry(self, *poses: np.ndarray, looks: int = QUICK) -> None:
        """Let the hand move the joints through `poses` (float64[6] rad each), from where they are; each way takes
        `looks` readings."""
        at = self.q
        for q in poses:
            self.plant.way += [steps(at + (q - at) * (k + 1) / looks) for k in range(looks)]
            at = q

    def wait_for_hand(self) -> None:
        """Return when the hand has come to the end of its way, or nobody reads the joints."""
        deadline = time.monotonic() + PATIENCE_S
        while self.plant.way and time.monotonic() < deadline:
            time.sleep(0.01)

    def every_joint(self) -> list[np.ndarray]:
        """Poses that take each joint from stop to stop and back to the zero pose, one after the other."""
        out = []
        for k in range(6):
            for end in (ARM.LOWER[k], ARM.UPPER[k], self.zero_pose[k]):
                pose = self.zero_pose.copy()
                pose[k] = end
                out.append(pose)
        return out


@contextlib.contextmanager
def plugged_in(servos: VirtualBus, port: Path) -> Iterator[None]:
    """The servos on an adapter whose lasting name is `port`, with their power on."""
    prefer(SIM_SERVO_PRIORITY)  # real servos wait for no processor
    line = PtyBus(servos, link=port)
    prefer(0)
    try:
        yield
    finally:
        line.close()


def new_servo() -> VirtualBus:
    """One servo as it is delivered, alone on the bus."""
    return VirtualBus([NEW_ID], KinematicPlant(np.full(1, 2048.0)))
