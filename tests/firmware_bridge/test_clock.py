"""The motor process's clock against the commands' rhythm, in virtual time: a bus at the pace of the wire, commands at
given instants."""

import numpy as np
import pytest

from common.clock import Ticker
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion import motor
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.incoming import as_command
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from firmware_bridge.motion.motor import Between
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.virtual.line import MemoryPort
from tests.firmware_bridge.so101 import CONFIG, bus

MS = 1_000_000
PERIOD = 10 * MS
FIRST = 50  # ticks: by then it is armed


class Policy:
    """Commands that come at given instants (ns), each good for 75 ms. Waiting for one takes the port's time with it."""

    def __init__(self, port, instants, pose):
        self._port, self._instants, self._pose = port, instants, pose
        self._given = 0

    @property
    def newest_version(self):
        return int(np.searchsorted(self._instants, self._port.time_ns, side="right"))

    @property
    def fresh(self):
        return self.newest_version > self._given

    def read(self):
        self._given = self.newest_version
        if not self._given:
            return None
        at = int(self._instants[self._given - 1])
        return Command(at, at + 75 * MS, self._pose, 0 * self._pose, number=self._given).pack()

    def take(self):
        return self.read() if self.fresh else None

    def wait(self, until_ns):
        coming = self._instants[self.newest_version] if self.newest_version < len(self._instants) else until_ns
        self._port.time_ns = max(self._port.time_ns, min(int(coming), until_ns))
        return self.fresh and self._port.time_ns <= until_ns


class Run:
    """Ticks of one motor loop whose commands come `phase_ns` after each tick of the unshifted clock, every `every_ns`,
    from FIRST on."""

    def __init__(self, phase_ns, ticks, every_ns=PERIOD):
        servos, _ = bus()
        self.port = port = MemoryPort(servos, baud=1_000_000, latency_ns=200_000)
        loop = MotorLoop(Arm(Bus(port), CONFIG), late=lambda: as_command(policy.take()))
        ticker = Ticker(CONFIG.motor_hz, port.now_ns, self._sleep)
        instants = ticker.next_ns + FIRST * PERIOD + phase_ns + every_ns * np.arange(ticks * PERIOD // every_ns)
        policy = Policy(port, instants, np.array([0.0, -0.5, 0.5, 0.5, 0.0, 0.5], np.float32))
        between = Between(loop, ticker, policy, lambda: False, port.now_ns)
        self.states = []
        for _ in range(FIRST + ticks):
            now = ticker.wait()
            request = RequestKind.ARM if loop.ticks < FIRST else RequestKind.NONE
            command = as_command(policy.read())
            self.states.append(loop.tick(now, command, request, ticker.missed, False, ticker.shifted_ns))
            between.spend()
        self.shifts = np.diff([s.shifted_ns for s in self.states])

    def _sleep(self, seconds):
        self.port.time_ns += round(seconds * 1e9)


def test_the_clock_moves_later_until_commands_fall_between_the_servos_answers():
    """They first come 0.6 ms after each tick's beginning, where a half-duplex bus cannot take them."""
    run = Run(phase_ns=600_000, ticks=200)
    assert run.states[-1].safety == SafetyState.ACTIVE
    assert set(run.shifts.tolist()) == {0, motor.PHASE_STEP_NS}  # only ever later, by so much a tick
    moved = np.flatnonzero(run.shifts)
    assert run.shifts.sum() >= 1_200_000  # out of the way: a command is taken until 0.7 ms before a tick,
    assert moved[-1] - moved[0] == len(moved) - 1 and moved[-1] < FIRST + 20  # tick by tick, and there it stays


def test_commands_that_fall_between_ticks_already_move_nothing():
    """But for the first, for which an arm that holds does not wait."""
    shifts = Run(phase_ns=5 * MS, ticks=100).shifts
    assert not shifts[FIRST + 2 :].any() and np.count_nonzero(shifts) <= 1


@pytest.mark.parametrize("phase_ns", [600_000, 5 * MS])
def test_but_for_its_shifts_the_clock_is_absolute(phase_ns):
    run = Run(phase_ns, ticks=100)
    begun = {s.t_ns - s.shifted_ns - (s.tick + s.missed_ticks) * PERIOD for s in run.states}
    assert begun == {0}


def test_commands_of_another_rhythm_keep_it_moving_now_and_then():
    """Every 9.9 ms: each comes a little earlier than the one before, until it falls where nothing can be sent."""
    run = Run(phase_ns=5 * MS, ticks=400, every_ns=9_900_000)
    moved = np.flatnonzero(run.shifts)
    assert 0 < len(moved) < 100 and moved[-1] - moved[0] > 50
