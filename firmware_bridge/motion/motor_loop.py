"""One tick of the motor process: decide, write, read. Tests and simulation run it in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.lowering import REST_TOLERANCE
from firmware_bridge.motion.measurement import NO_REPLY, Measurement
from firmware_bridge.motion.messages import Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.safety import INSIST_S, Decision, Safety, blind

RELEASE_NS = 100_000_000
INSIST_NS = int(INSIST_S * 1e9)
# Telemetry is read in ticks with enough time left, and in every 10th tick anyway: nine servos with a long return delay
# never leave enough.
TELEMETRY_EVERY = 10


class MotorLoop:
    """One arm with its safety machine. `tick(now, command, request)` does the work of one period.

    A tick decides from the measurement of the previous tick, then writes the goals and reads all servos with one write
    to the port, so a command does not wait for six servos to answer. It reads first while the arm is disarmed, so that
    arming starts from the present pose, and after a tick in which no servo answered.

    `late` returns a command that has come since `tick` was called, or None. A caller that gives `late` calls
    `telemetry` itself, after it has published the state of the tick.
    """

    def __init__(self, arm: Arm, energised: bool = False, late: Callable[[], Command | None] | None = None):
        self.arm, self.config = arm, arm.config
        self.safety = Safety(arm.config, energised)
        self.ticks = 0
        self._late = late
        self.finished = False
        self.holding: list[int] = []  # servos whose torque could not be switched off at the end
        self.rested: bool | None = None  # whether the arm was at rest when the torque ramp began; None before
        self._period_ns = int(1e9 / arm.config.motor_hz)
        self._torque: float | None = None
        self._releasing_ns = 0
        # newest command that goals were sent for: its number, capture time, when its first goal was written to the port
        self._sent = (0, 0, 0)
        self._now_ns = self._began_ns = 0
        n = len(arm.config.ids)
        self._measured = Measurement(np.zeros(n), np.zeros(n), np.full(n, NO_REPLY, np.uint8))

    def tick(
        self,
        now_ns: int,
        command: Command | None,
        request: RequestKind,
        missed: int = 0,
        pressed: bool = False,
        shifted_ns: int = 0,
    ) -> JointState:
        """Do one tick and return its state.

        `missed` periods and `shifted_ns` are copied into the state. `pressed`: the emergency stop. Raises PortError
        when the port is lost, ArmError when the arm cannot be armed (`Arm.torque_on`).
        """
        bus = self.arm.bus
        began = self._began_ns = bus.port.now_ns()
        self._now_ns = now_ns
        bus.until_ns = began + self._period_ns * 4 // 10  # a retry must not delay the next tick
        read_first = self.safety.state == SafetyState.DISARMED or blind(self._measured)
        if read_first:
            self._measured = self.arm.read()
        d = self.safety.step(now_ns, command, request, self._measured, self.arm.telemetry, pressed)
        if self.rested is None and (d.release or d.torque_share is not None):
            away = np.abs(self._measured.q - np.array(self.config.rest))[:-1]  # without the gripper: it may hold a part
            self.rested = bool((away < REST_TOLERANCE).all())
        self._switch(d, now_ns, began)
        if d.goal is not None and not d.torque_on:
            self._drive(d, now_ns, command, read_first)
        elif not read_first:
            self._measured = self.arm.read()
        if self._late is None:
            self.telemetry()
        self.ticks += 1
        return self._joint_state(missed, shifted_ns)

    def _switch(self, d: Decision, now_ns: int, began: int) -> None:
        """Switch the torque on, ramp it down or switch it off, as decided. `began`: start of the tick on the port's
        clock, ns."""
        bus = self.arm.bus
        if d.torque_on:
            bus.until_ns = None
            self.arm.torque_on()
        elif d.release:
            if not self.finished:
                bus.until_ns = began + RELEASE_NS  # a longer tick would look like a stall to the guard
                self.holding = self.arm.torque_off()
                self._releasing_ns = self._releasing_ns or now_ns
                self.finished = not self.holding or now_ns - self._releasing_ns > INSIST_NS
        elif d.torque_share is not None and (self._torque is None or abs(d.torque_share - self._torque) > 0.02):
            self.arm.set_torque(d.torque_share)
            self._torque = d.torque_share

    def _drive(self, d: Decision, now_ns: int, command: Command | None, measured: bool) -> None:
        """Send the decided goal, or the goal for a command that came since; read the servos unless `measured`."""
        assert d.goal is not None
        goal = d.goal
        late = self._late() if self._late is not None else None  # one may have come while the decision was made
        if late is not None and (revised := self.safety.revise(now_ns, late, self._measured)) is not None:
            goal, command = revised, late
        if measured:
            self.arm.write_goals(goal)
        else:
            self._measured = self.arm.exchange(goal)
        if command is not None and d.state == SafetyState.ACTIVE:
            self._book(command)
            if blind(self._measured):  # brake now, not a tick later
                self.revise(command)

    def _joint_state(self, missed: int, shifted_ns: int) -> JointState:
        """The state after the tick, for the state slot."""
        measured = self._measured
        state, reason = self.safety.state, self.safety.reason
        goal = self.safety.goal if state != SafetyState.DISARMED else measured.q
        return JointState(
            self._now_ns,
            measured.q.astype(np.float32),
            measured.qd.astype(np.float32),
            np.asarray(goal, np.float32),
            self.arm.current,
            self.arm.temperature,
            self.arm.voltage,
            measured.bits,
            state,
            reason,
            self._sent[2],
            self._sent[1],
            self._sent[0],
            self.ticks,
            missed,
            shifted_ns,
        )

    def telemetry(self) -> None:
        """Read the telemetry of one servo if the tick leaves enough time."""
        spent_ns = self.arm.bus.port.now_ns() - self._began_ns
        room = spent_ns < self._period_ns * 6 // 10 or self.ticks % TELEMETRY_EVERY == 0
        failing = (self._measured.bits & NO_REPLY).any()  # a read that times out would make the next tick late
        if room and not failing:
            self.arm.read_telemetry()

    def revise(self, command: Command) -> None:
        """Correct the goal of the last tick, for a command that came after it or because no servo answered."""
        goal = self.safety.revise(self._now_ns, command, self._measured)
        if goal is not None:
            self.arm.write_goals(goal)
            self._book(command)

    def _book(self, command: Command) -> None:
        """Note the time when the first goal for `command` was written to the port."""
        if command.number != self._sent[0]:
            self._sent = (command.number, command.t_capture_ns, self.arm.bus.told_ns)
